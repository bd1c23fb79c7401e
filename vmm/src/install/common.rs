//! What all installations on one host have in common: it stays as long as one of them needs it.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::content::Content;
use super::manifest::Manifest;
use super::{InstallError, Options, behind, containerd, crio};

/// How husk's own drop-ins begin.
const HEAD: &[u8] = b"# husk ";

/// Whether `path` is as husk wrote it, as far as `manifest` knows. One that somebody has changed since is theirs.
pub(super) fn is_own(options: &Options, manifest: Option<&Manifest>, path: &Path) -> Result<bool, InstallError> {
    let place = options.at(path);
    let found = Content::read(&place).map_err(|error| InstallError::io("read", &place, error))?;
    Ok(manifest
        .zip(found)
        .is_some_and(|(manifest, found)| manifest.has(path, &found)))
}

/// Whether `path`, which `manifest` has of the system at `root`, is needed by another installation: it is common to all of them, and an engine's
/// folder has a drop-in of husk's that `manifest` does not have.
pub(super) fn is_needed(root: &Path, manifest: &Manifest, path: &Path) -> bool {
    if path != Path::new(containerd::CONFIGURATION) {
        return false;
    }
    let own = manifest.items.keys().filter_map(|path| path.parent());
    let mut folders: Vec<&Path> = own.filter(|folder| folder.starts_with("/etc")).collect();
    folders.extend([containerd::FOLDER, crio::FOLDER].map(Path::new));
    folders.iter().any(|folder| {
        let entries = fs::read_dir(behind(root, folder)).into_iter().flatten().flatten();
        entries
            .filter(|entry| !manifest.items.contains_key(&folder.join(entry.file_name())))
            .any(|entry| is_drop_in(&entry.path()))
    })
}

fn is_drop_in(path: &Path) -> bool {
    let mut head = [0; HEAD.len()];
    let is_named = path.extension().is_some_and(|end| end == "toml" || end == "conf");
    is_named
        && path.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
        && head == HEAD
}
