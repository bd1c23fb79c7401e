//! The manifest: what was installed, in a file of its own, so that exactly that can be told and removed again.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::content::{Content, Fingerprint, drafts};
use super::request::Choices;
use super::{InstallError, beneath, shared};
use crate::regular_file::{self, TEXT_BYTES};

/// The version of the file's form.
const FORM: u32 = 2;
/// The oldest form that can be read: the same without [`options`](Manifest::options).
const OLDEST_FORM: u32 = 1;

/// What was installed below one prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    form: u32,
    /// The version of husk that installed it.
    pub version: String,
    /// What it was told to install.
    pub class: String,
    /// Whatever else it was told, of a finished or killed installation.
    #[serde(default)]
    pub(super) options: Option<Choices>,
    /// Files and links, by their path in the installed system. While an installation goes on, those
    /// of before are here, too.
    pub items: BTreeMap<PathBuf, Vec<Fingerprint>>,
    /// Folders that were made for them.
    pub folders: Vec<PathBuf>,
    /// Files of others from which some of these were derived.
    pub sources: BTreeMap<PathBuf, Fingerprint>,
}

impl Manifest {
    /// One that has nothing yet.
    pub(super) fn new(class: &str, options: Option<Choices>) -> Self {
        Self {
            form: FORM,
            version: env!("CARGO_PKG_VERSION").into(),
            class: class.into(),
            options,
            items: BTreeMap::new(),
            folders: Vec::new(),
            sources: BTreeMap::new(),
        }
    }

    /// Where that of `prefix` is, in the installed system.
    pub fn path(prefix: &Path) -> PathBuf {
        shared(prefix).join("manifest.json")
    }

    /// Reads that of `prefix`; `None` if nothing is installed there.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is none.
    pub fn read(root: &Path, prefix: &Path) -> Result<Option<Self>, InstallError> {
        let path = beneath(root, &Self::path(prefix));
        let bytes = match regular_file::read(&path, TEXT_BYTES).map_err(io::Error::from) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(InstallError::io("read", &path, error)),
        };
        let refuse = |problem| InstallError::Foreign {
            path: path.clone(),
            problem,
        };
        let found: Self =
            serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is no manifest of husk's: {error}")))?;
        if !(OLDEST_FORM..=FORM).contains(&found.form) {
            return Err(refuse(format!(
                "a manifest of form {}, which another version of husk wrote",
                found.form
            )));
        }
        Ok(Some(found))
    }

    /// As [`read`](Self::read), or that of an installation that was killed before it had written
    /// one: it has made nothing but folders, and a part of its manifest.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is none.
    pub fn read_or_begun(root: &Path, prefix: &Path) -> Result<Option<Self>, InstallError> {
        let found = Self::read(root, prefix)?;
        let is_begun = || {
            let drafts = drafts(&beneath(root, &Self::path(prefix)));
            drafts.iter().any(|draft| draft.symlink_metadata().is_ok())
        };
        if found.is_some() || !is_begun() {
            return Ok(found);
        }
        let shared = shared(prefix);
        let made = shared.ancestors().take_while(|folder| folder.starts_with(prefix));
        let mut begun = Self::new("", None);
        begun.folders = made.map(Path::to_owned).collect();
        begun.folders.reverse();
        Ok(Some(begun))
    }

    /// As a file.
    pub fn content(&self) -> Content {
        let mut text = serde_json::to_string_pretty(self).expect("text and numbers are always JSON");
        text.push('\n');
        Content::text(text)
    }

    /// Whether `content` at `path` is as it was installed.
    pub fn has(&self, path: &Path, content: &Content) -> bool {
        let print = content.fingerprint();
        self.items.get(path).is_some_and(|known| known.contains(&print))
    }

    /// The handlers of an installation below `prefix`.
    pub(super) fn handlers(&self, prefix: &Path) -> Vec<String> {
        let folder = shared(prefix).join("kata");
        let configurations = self.items.keys().filter(|path| path.ends_with("configuration.toml"));
        let folders = configurations.filter_map(|path| path.parent());
        let names = folders.filter_map(|path| path.strip_prefix(&folder).ok());
        names.map(|name| name.display().to_string()).collect()
    }

    /// What has to be known while `self` is being replaced by `next`: the things and folders of both.
    pub fn meanwhile(&self, next: &Self) -> Self {
        let mut both = next.clone();
        for (path, prints) in &self.items {
            let known = both.items.entry(path.clone()).or_default();
            known.extend(prints.iter().cloned());
            known.dedup();
        }
        for folder in &self.folders {
            if !both.folders.contains(folder) {
                both.folders.push(folder.clone());
            }
        }
        both
    }
}
