//! Whether what was installed is still there, and still fits what it was derived from.

use std::fmt::Write;
use std::path::Path;

use super::content::{Content, Fingerprint, digest};
use super::manifest::Manifest;
use super::{InstallError, behind, beneath};

/// What became of an installation.
#[derive(Clone, Debug)]
pub struct Status {
    version: String,
    class: String,
    lines: Vec<(&'static str, String)>,
}

/// Looks at what was installed below `prefix`.
///
/// # Errors
///
/// Nothing is installed there, or it cannot be read.
pub fn status(root: &Path, prefix: &Path) -> Result<Status, InstallError> {
    let manifest = Manifest::read(root, prefix)?.ok_or_else(|| InstallError::NotInstalled {
        prefix: beneath(root, prefix),
    })?;
    let items = manifest.items.iter().map(|(path, known)| {
        let word = match Content::read(&beneath(root, path)) {
            _ if known.len() != 1 => "unfinished",
            Ok(Some(found)) if manifest.has(path, &found) => "ok",
            Ok(None) => "missing",
            Ok(Some(_)) | Err(_) => "changed",
        };
        (word, path.display().to_string())
    });
    let sources = manifest.sources.iter().filter_map(|(path, known)| {
        // Read through a link, as when it was derived from.
        let found = std::fs::read(behind(root, path)).map(|bytes| Fingerprint::Sha256(digest(&bytes)));
        let word = match found {
            Ok(found) if found == *known => return None,
            Ok(_) => "changed since; install again to follow it",
            Err(_) => "gone; handlers that were derived from it may not work",
        };
        Some(("stale", format!("{} {word}", path.display())))
    });
    let lines = items.chain(sources).collect();
    Ok(Status {
        version: manifest.version.clone(),
        class: manifest.class.clone(),
        lines,
    })
}

impl Status {
    /// Whether everything is as it was installed, and would be installed in the same way today.
    pub fn is_ok(&self) -> bool {
        self.lines.iter().all(|(word, _)| *word == "ok")
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = format!("husk {} as {}\n", self.version, self.class);
        for (word, what) in &self.lines {
            let _ = writeln!(text, "{word:<10} {what}");
        }
        text
    }
}
