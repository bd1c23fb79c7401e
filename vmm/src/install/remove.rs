//! Removing what was installed, and nothing that was changed since.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::common::is_needed;
use super::content::{Content, remove_drafts};
use super::manifest::Manifest;
use super::runtimes::that_read;
use super::{InstallError, beneath, shared};

/// What an uninstallation would do.
#[derive(Clone, Debug)]
pub struct Removal {
    root: PathBuf,
    prefix: PathBuf,
    manifest: Manifest,
    /// Files and links to remove, in order: handlers before what they name.
    pub remove: Vec<PathBuf>,
    /// Those that stay, because they are not as they were installed.
    pub keep: Vec<PathBuf>,
    /// Those that stay, because another installation needs them.
    pub needed: Vec<PathBuf>,
    /// Of those that stay, files with handlers that name what is removed, and these handlers.
    pub dangling: Vec<(PathBuf, Vec<String>)>,
}

/// What is to be removed below `prefix`.
///
/// # Errors
///
/// Nothing is installed there, or it cannot be read.
pub fn removal(root: &Path, prefix: &Path) -> Result<Removal, InstallError> {
    let manifest = Manifest::read_or_begun(root, prefix)?.ok_or_else(|| InstallError::NotInstalled {
        prefix: beneath(root, prefix),
    })?;
    let (mut remove, mut keep, mut needed) = (Vec::new(), Vec::new(), Vec::new());
    for path in manifest.items.keys() {
        let place = beneath(root, path);
        match Content::read(&place) {
            Ok(None) => {}
            Ok(Some(_)) if is_needed(root, &manifest, path) => needed.push(path.clone()),
            Ok(Some(found)) if manifest.has(path, &found) => remove.push(path.clone()),
            Ok(Some(_)) => keep.push(path.clone()),
            // Somebody's folder stands there.
            Err(_) if place.is_dir() => keep.push(path.clone()),
            Err(error) => return Err(InstallError::io("read", &place, error)),
        }
    }
    let dangling = keep.iter().filter_map(|path| {
        let names = that_read(&beneath(root, path), &shared(prefix));
        (!names.is_empty()).then(|| (path.clone(), names))
    });
    let dangling = dangling.collect();
    // Whoever reads an engine's drop-in finds what it names as long as it is there.
    remove.sort_by_key(|path| path.starts_with(prefix));
    Ok(Removal {
        root: root.to_owned(),
        prefix: prefix.to_owned(),
        manifest,
        remove,
        keep,
        needed,
        dangling,
    })
}

/// Carries it out. The manifest goes last, so that a second try goes on where the first one failed.
///
/// # Errors
///
/// Something could not be removed.
pub fn remove(removal: &Removal) -> Result<(), InstallError> {
    let manifest = Manifest::path(&removal.prefix);
    for path in removal.remove.iter().chain([&manifest]) {
        let path = beneath(&removal.root, path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::io("remove", &path, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    for path in removal.manifest.items.keys().chain([&manifest]) {
        // What a killed installation left.
        remove_drafts(&beneath(&removal.root, path));
    }
    for folder in removal.manifest.folders.iter().rev() {
        // Not empty: somebody else uses it.
        let _ = fs::remove_dir(beneath(&removal.root, folder));
    }
    Ok(())
}

#[cfg(test)]
#[path = "remove_test.rs"]
mod tests;
