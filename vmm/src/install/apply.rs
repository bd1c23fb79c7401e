//! Carrying out a plan: all of it, or nothing.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::content::{Content, remove_drafts};
use super::manifest::Manifest;
use super::plan::{Change, Plan};
use super::{InstallError, beneath};

/// Does what `plan` says. Before anything else the manifest gets what there was and what will be,
/// so that even what is left by a process that is killed can be removed by `husk uninstall`; what
/// such a one left half-written goes now.
///
/// # Errors
///
/// A step failed. Those before it have been undone, or the message says which could not be.
pub fn apply(plan: &Plan) -> Result<(), InstallError> {
    if plan.is_done() {
        return Ok(());
    }
    let manifest = Manifest::path(&plan.prefix);
    let place = |path: &Path| beneath(&plan.root, path);
    let before =
        Content::read(&place(&manifest)).map_err(|error| InstallError::io("read", &place(&manifest), error))?;
    let meanwhile = match &plan.before {
        Some(before) => before.meanwhile(&plan.after),
        None => plan.after.clone(),
    };
    let change = |before: Option<Content>, after: &Manifest| Change {
        path: manifest.clone(),
        before,
        after: Some(after.content()),
        excerpt: None,
    };
    let mut steps = vec![change(before, &meanwhile)];
    steps.extend(plan.changes.iter().cloned());
    steps.push(change(Some(meanwhile.content()), &plan.after));
    let (mut made, mut owners) = (Vec::new(), Vec::new());
    for step in &steps {
        let owner = owner(&place(&step.path));
        if let Err(source) = take(&plan.root, step, &mut made) {
            let stuck = undo(&plan.root, &steps, &owners, &made);
            let aftermath = match stuck.as_slice() {
                [] => "; nothing was changed".into(),
                stuck => format!("; {} could not be put back", stuck.join(", ")),
            };
            let doing = if step.after.is_some() { "write" } else { "remove" };
            let path = place(&step.path);
            return Err(InstallError::Io {
                doing,
                path,
                aftermath,
                source,
            });
        }
        owners.push(owner);
    }
    for path in meanwhile.items.keys() {
        remove_drafts(&place(path));
    }
    for gone in plan.changes.iter().filter(|change| change.after.is_none()) {
        let folders = gone.path.ancestors().skip(1);
        for folder in folders.take_while(|folder| plan.after.folders.iter().any(|own| own == folder)) {
            // Not empty: it is needed.
            let _ = fs::remove_dir(place(folder));
        }
    }
    Ok(())
}

/// One step; folders that it makes are added to `made`.
fn take(root: &Path, step: &Change, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let path = beneath(root, &step.path);
    let Some(after) = &step.after else {
        return fs::remove_file(path);
    };
    let folder = path.parent().unwrap_or(&path);
    let mut missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
    while let Some(folder) = missing.pop() {
        fs::create_dir(folder)?;
        made.push(folder.to_owned());
        // Whatever the umask is, as of files: engine and shims run as others, too.
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    after.put(&path)
}

/// Who owns what stands at `path`, a link itself.
fn owner(path: &Path) -> Option<(u32, u32)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.uid(), found.gid()))
}

/// Takes as many of `steps` back as there are `owners` of what stood there, the last first; those that could not be.
fn undo(root: &Path, steps: &[Change], owners: &[Option<(u32, u32)>], made: &[PathBuf]) -> Vec<String> {
    let mut stuck = Vec::new();
    for (step, before) in steps.iter().zip(owners).rev() {
        let path = beneath(root, &step.path);
        let undone = match &step.before {
            Some(content) => content.put(&path).and_then(|()| match before {
                Some((uid, gid)) if owner(&path) != *before => lchown(&path, Some(*uid), Some(*gid)),
                _ => Ok(()),
            }),
            None => fs::remove_file(&path),
        };
        if undone.is_err() {
            stuck.push(path.display().to_string());
        }
    }
    for folder in made.iter().rev() {
        // Somebody else may have put something into it.
        let _ = fs::remove_dir(folder);
    }
    stuck
}

#[cfg(test)]
#[path = "apply_test.rs"]
mod tests;
