//! What all installations on one host have in common: it stays as long as one of them needs it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::content::Content;
use super::manifest::Manifest;
use super::runtimes::runtimes;
use super::{InstallError, Options, behind, containerd, crio, shared};
use crate::regular_file;

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

/// Whether `path`, which `manifest` has of the system at `root`, is needed by another installation:
/// it is common to all of them, and an engine's folder has a drop-in of husk's that `manifest` does
/// not have.
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

/// The manifests of other installations than that below `prefix`: those whose configurations the
/// handlers of the engines' drop-ins name, `folders` having more of these.
pub(super) fn others<'a>(root: &Path, prefix: &Path, folders: impl Iterator<Item = &'a Path>) -> Vec<Manifest> {
    let folders = folders.chain([containerd::FOLDER, crio::FOLDER].map(Path::new));
    let entries = folders.flat_map(|folder| fs::read_dir(behind(root, folder)).into_iter().flatten().flatten());
    let texts = entries.filter_map(|entry| regular_file::read_text(&entry.path()).ok());
    let handlers = texts.flat_map(|text| text.parse().map(|document| runtimes(&document)).unwrap_or_default());
    let prefixes: BTreeSet<PathBuf> = handlers
        .filter_map(|handler| prefix_of(&handler.configuration))
        .collect();
    let others = prefixes.into_iter().filter(|other| other != prefix);
    others.filter_map(|other| Manifest::read(root, &other).ok()?).collect()
}

/// The prefix of the installation that the configuration of a handler belongs to.
fn prefix_of(configuration: &Path) -> Option<PathBuf> {
    let kata = configuration.ancestors().nth(2)?;
    let prefix = kata.ancestors().nth(3)?;
    (shared(prefix).join("kata") == kata).then(|| prefix.to_owned())
}

fn is_drop_in(path: &Path) -> bool {
    let mut head = [0; HEAD.len()];
    let is_named = path.extension().is_some_and(|end| end == "toml" || end == "conf");
    is_named
        && path.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
        && head == HEAD
}
