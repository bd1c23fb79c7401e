//! Whether what was installed is still there, and would be installed in the same way today.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use super::content::{Content, Fingerprint, digest};
use super::kubernetes::features;
use super::manifest::Manifest;
use super::plan::{Change, Plan, plan};
use super::{InstallError, Request, behind, beneath};
use crate::regular_file::{self, TEXT_BYTES};

/// What became of an installation.
#[derive(Clone, Debug)]
pub struct Status {
    version: String,
    class: String,
    lines: Vec<StatusLine>,
}

#[derive(Clone, Debug)]
struct StatusLine {
    word: &'static str,
    path: Option<PathBuf>,
    text: String,
}

impl StatusLine {
    fn of(word: &'static str, path: &Path, text: impl Into<String>) -> Self {
        let (path, text) = (Some(path.to_owned()), text.into());
        Self { word, path, text }
    }

    fn problem(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            word: "problem",
            path: None,
            text,
        }
    }
}

/// Looks at what was installed below `prefix`, and at what `program` would install there today.
///
/// # Errors
///
/// Nothing is installed there, or it cannot be read.
pub fn status(root: &Path, prefix: &Path, program: &Path) -> Result<Status, InstallError> {
    let manifest = Manifest::read(root, prefix)?.ok_or_else(|| InstallError::NotInstalled {
        prefix: beneath(root, prefix),
    })?;
    let items = manifest.items.iter().map(|(path, known)| {
        let word = match Content::read(&beneath(root, path)) {
            _ if known.len() != 1 => "unfinished",
            Ok(Some(found)) if manifest.has(path, &found) => "ok",
            Ok(None) => "missing",
            // A copy of what not everybody may read is for root alone.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => "unknown",
            Ok(Some(_)) | Err(_) => "changed",
        };
        StatusLine::of(
            word,
            path,
            if word == "unknown" {
                "is not for you to read"
            } else {
                ""
            },
        )
    });
    let sources = manifest.sources.iter().filter_map(|(path, known)| {
        // Read through a link, as when it was derived from.
        let found = regular_file::read(&behind(root, path), TEXT_BYTES).map_err(io::Error::from);
        let found = found.map(|bytes| Fingerprint::Sha256(digest(&bytes)));
        let text = match found {
            Ok(found) if found == *known => return None,
            Ok(_) => "changed since; install again to follow it".into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "gone; handlers that were derived from it may not work".into()
            }
            Err(error) => format!("cannot be read: {error}"),
        };
        Some(StatusLine::of("stale", path, text))
    });
    let mut lines: Vec<_> = items.chain(sources).collect();
    // Whoever asks may not be who can tell whether this host runs pods: what is said of it counts.
    let said = regular_file::read_text(&beneath(root, &features(&manifest.class))).unwrap_or_default();
    let today = Request::again(root, prefix, program, said).settle();
    match today.and_then(|options| plan(&options)) {
        Ok(today) => compare(&manifest, &today, program, &mut lines),
        // Told already.
        Err(InstallError::InTheWay { path, .. }) if lines.iter().any(|line| line.is_changed(root, &path)) => {}
        Err(error) => lines.push(StatusLine::problem(format!("{:#}", anyhow::Error::new(error)))),
    }
    Ok(Status {
        version: manifest.version.clone(),
        class: manifest.class.clone(),
        lines,
    })
}

/// Adds to `lines` in what `today`, which `program` would install, is something else than what `manifest` has.
fn compare(manifest: &Manifest, today: &Plan, program: &Path, lines: &mut Vec<StatusLine>) {
    let programs = ["lib/husk", "bin/husk", "libexec/husk"].map(|path| today.prefix.join(path));
    let mut is_another = false;
    for Change {
        path, before, after, ..
    } in &today.changes
    {
        let line = lines.iter_mut().find(|line| line.path.as_deref() == Some(path));
        let line = match line {
            // Something is wrong with it as it is.
            Some(line) if line.word != "ok" => continue,
            line => line,
        };
        let (word, text) = match (before, after) {
            (Some(Content::File { bytes, mode }), Some(Content::File { bytes: new, mode: to })) if bytes == new => {
                ("changed", format!("has mode {mode:04o} in place of {to:04o}"))
            }
            _ if programs.iter().any(|program| path.starts_with(program)) => {
                is_another = true;
                continue;
            }
            (_, None) => ("stale", "would not be there today; install again".into()),
            (None, _) => ("stale", "would be there today; install again".into()),
            _ => ("stale", "would be another one today; install again".into()),
        };
        match line {
            Some(line) => (line.word, line.text) = (word, text),
            None => lines.push(StatusLine::of(word, path, text)),
        }
    }
    if is_another {
        let text = format!(
            "is husk {}, and {} another one, {}; install again to have that",
            manifest.version,
            program.display(),
            env!("CARGO_PKG_VERSION")
        );
        lines.push(StatusLine::of("stale", &today.prefix.join("bin/husk"), text));
    }
    lines.extend(today.problems.iter().map(StatusLine::problem));
}

impl StatusLine {
    /// Whether it says that `place` is not as it was installed.
    fn is_changed(&self, root: &Path, place: &Path) -> bool {
        self.word == "changed" && self.path.as_ref().is_some_and(|path| beneath(root, path) == place)
    }
}

impl Status {
    /// Whether everything is as it was installed, and would be installed in the same way today.
    pub fn is_ok(&self) -> bool {
        self.lines.iter().all(|line| line.word == "ok")
    }

    /// As text for a terminal, with a line end after each row.
    pub fn to_table(&self) -> String {
        let mut text = format!("husk {} as {}\n", self.version, self.class);
        for StatusLine { word, path, text: what } in &self.lines {
            let path = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            let space = if path.is_empty() || what.is_empty() { "" } else { " " };
            let _ = writeln!(text, "{word:<10} {path}{space}{what}");
        }
        text
    }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod tests;
