//! The files that husk writes for itself: a guest's output may go there as well, and must not empty them.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// What tells a file from all others, whatever its names are (stat(2), `st_dev` and `st_ino`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// That of a regular file. Nothing else can be emptied.
    pub(super) fn of(file: &File) -> Option<Self> {
        let found = file.metadata().ok()?;
        found.is_file().then(|| Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// The regular files that husk has open to write to, each with what it is for.
#[derive(Clone, Debug, Default)]
pub struct ProtectedFiles(Vec<(&'static str, FileId)>);

impl ProtectedFiles {
    /// One more of them, unless it is no regular file. `what` is for as in "it is husk's log".
    pub fn add(&mut self, what: &'static str, file: Option<FileId>) {
        self.0.extend(file.map(|file| (what, file)));
    }

    /// What `file` is for, if it is one of these.
    pub fn protected_as(&self, file: Option<FileId>) -> Option<&'static str> {
        let file = file?;
        let found = self.0.iter().find(|(_, own)| *own == file);
        found.map(|(what, _)| *what)
    }
}
