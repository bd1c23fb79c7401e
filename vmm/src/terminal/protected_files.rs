//! The files that husk writes for itself: a guest's output may go there as well, and must not empty them.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells a file from all others, whatever its names are (stat(2), `st_dev` and `st_ino`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// That of a regular file. Nothing else can be emptied.
    pub(super) fn of(file: &File) -> Option<Self> {
        Self::found(&file.metadata().ok()?)
    }

    /// That of the regular file at `path`. Waits for its file system.
    pub fn at(path: &Path) -> Option<Self> {
        Self::found(&path.metadata().ok()?)
    }

    fn found(found: &Metadata) -> Option<Self> {
        found.is_file().then(|| Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// The regular files that husk has open to write to, each with what it is for.
#[derive(Clone, Debug, Default)]
pub struct ProtectedFiles(Vec<ProtectedFile>);

#[derive(Clone, Debug)]
struct ProtectedFile {
    what: &'static str,
    file: FileId,
    /// Whether husk has written to it, or may at any time.
    written: bool,
}

impl ProtectedFiles {
    /// One more of them, unless it is no regular file. `what` is for as in "it is husk's log".
    pub fn add(&mut self, what: &'static str, file: Option<FileId>) {
        let written = true;
        self.0.extend(file.map(|file| ProtectedFile { what, file, written }));
    }

    /// As [`ProtectedFiles::add`], of a file that husk writes to at its end only: what a port empties is of an earlier
    /// run.
    pub fn add_unwritten(&mut self, what: &'static str, file: Option<FileId>) {
        let written = false;
        self.0.extend(file.map(|file| ProtectedFile { what, file, written }));
    }

    /// Whether nothing may empty `file`.
    pub fn is_kept(&self, file: Option<FileId>) -> bool {
        self.0.iter().any(|own| own.written && Some(own.file) == file)
    }

    /// What `file` is for, if it is one of these.
    pub fn protected_as(&self, file: Option<FileId>) -> Option<&'static str> {
        let file = file?;
        let found = self.0.iter().find(|own| own.file == file);
        found.map(|own| own.what)
    }
}
