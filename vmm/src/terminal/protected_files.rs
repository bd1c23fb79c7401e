//! The files that husk writes for itself: a guest's output may go there as well, but for events,
//! and must not empty them.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
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

    /// That of standard output, if a shell has had that lead to a regular file.
    pub fn of_stdout() -> Option<Self> {
        Self::of_stream(&io::stdout())
    }

    /// That of standard error, likewise.
    pub fn of_stderr() -> Option<Self> {
        Self::of_stream(&io::stderr())
    }

    /// `None` for one that is closed, too.
    fn of_stream(stream: &impl AsFd) -> Option<Self> {
        let own = stream.as_fd().try_clone_to_owned().ok()?;
        Self::of(&File::from(own))
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
    written: Written,
}

/// When husk writes to a file, and beside whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It has, or may at any time, and so may a port.
    AtAnyTime,
    /// Likewise, and no port may: who reads there believes what it reads.
    Alone,
    /// At its end.
    AtTheEnd,
}

impl ProtectedFiles {
    /// What husk's standard error is called.
    pub const STDERR: &'static str = "husk's standard error";

    /// Standard error and standard output, as far as they are regular files.
    pub fn of_process() -> Self {
        let mut files = Self::default();
        files.add(Self::STDERR, FileId::of_stderr());
        files.add("husk's standard output", FileId::of_stdout());
        files
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more of them, unless it is no regular file. `what` is for as in "it is husk's log".
    pub fn add(&mut self, what: &'static str, file: Option<FileId>) {
        self.put(what, file, Written::AtAnyTime);
    }

    /// As [`ProtectedFiles::add`], of a file that no port may write to as well.
    pub fn add_exclusive(&mut self, what: &'static str, file: Option<FileId>) {
        self.put(what, file, Written::Alone);
    }

    /// As [`ProtectedFiles::add`], of a file that husk writes to at its end only: what a port empties is of an earlier
    /// run.
    pub fn add_unwritten(&mut self, what: &'static str, file: Option<FileId>) {
        self.put(what, file, Written::AtTheEnd);
    }

    fn put(&mut self, what: &'static str, file: Option<FileId>, written: Written) {
        self.0.extend(file.map(|file| ProtectedFile { what, file, written }));
    }

    /// Whether nothing may empty `file`.
    pub fn is_kept(&self, file: Option<FileId>) -> bool {
        let is_kept = |own: &ProtectedFile| own.written != Written::AtTheEnd && Some(own.file) == file;
        self.0.iter().any(is_kept)
    }

    /// What `file` is for, if it is one of these.
    pub fn protected_as(&self, file: Option<FileId>) -> Option<&'static str> {
        let file = file?;
        let found = self.0.iter().find(|own| own.file == file);
        found.map(|own| own.what)
    }

    /// What `file` is for, if it is one of these to which no port may write.
    pub fn exclusive_as(&self, file: FileId) -> Option<&'static str> {
        let mut exclusive = self.0.iter().filter(|own| own.written == Written::Alone);
        exclusive.find(|own| own.file == file).map(|own| own.what)
    }
}
