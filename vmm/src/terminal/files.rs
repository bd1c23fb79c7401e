//! Files of limited size that take a guest's output in turn, so that it never fills a disk.
//!
//! `PATH`, `PATH.1` … `PATH.KEEP` are opened once. The one that is full stays as it is, and the next is emptied and
//! written to: nothing is renamed or opened while a guest runs, which a confined process could not do. Writing and
//! emptying may wait for the file system: both are for the thread of a [`WriterThread`](super::WriterThread).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::non_blocking_file::{check_unlocked, reject_zero_write};
use super::{FileId, OpenOutputError, ProtectedFiles};

/// Files of limited size, in turn.
#[derive(Debug)]
pub struct Files {
    files: Vec<File>,
    /// Which of them is written to.
    current: usize,
    /// How many bytes it has.
    written: u64,
    /// The most that it may have.
    limit: u64,
    /// The next one could not be emptied: there will be no room any more.
    stuck: bool,
}

impl Files {
    /// Opens `path`, emptied, and `keep` more beside it, each to be of `limit` bytes at most and
    /// none of `protected`. Those that are made have the permissions `mode`.
    ///
    /// # Errors
    /// One of them is no regular file, or one of `protected`, or cannot be written to. None has been emptied then.
    pub fn open(
        path: &Path,
        limit: u64,
        keep: u32,
        mode: u32,
        protected: &ProtectedFiles,
    ) -> Result<Self, OpenOutputError> {
        let paths = (0..=keep).map(|number| numbered(path, number));
        let files: Vec<File> = paths
            .map(|path| open(&path, mode, protected))
            .collect::<Result<_, _>>()?;
        if let Some(first) = files.first() {
            first.set_len(0)?;
        }
        Ok(Self {
            files,
            current: 0,
            written: 0,
            limit,
            stuck: false,
        })
    }

    /// Which files they are, in the order of their numbers.
    pub fn ids(&self) -> Vec<Option<FileId>> {
        self.files.iter().map(FileId::of).collect()
    }

    /// Writes the head of `bytes`, to the next file if this one is full, and says how many bytes that was. May wait for
    /// the file system.
    ///
    /// # Errors
    /// `StorageFull` when the next file could not be emptied, `WriteZero` when nothing was taken and nothing said; what
    /// the host says otherwise.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.limit && !bytes.is_empty() {
            self.go_on();
        }
        if self.stuck {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let room = usize::try_from(self.limit.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let head = bytes.get(..room).unwrap_or(bytes);
        let Some(mut file) = self.files.get(self.current) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let count = reject_zero_write(head, file.write(head))?;
        self.written = self.written.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    /// Goes on to the next file, emptied.
    fn go_on(&mut self) {
        let next = self.current.saturating_add(1);
        let next = if next < self.files.len() { next } else { 0 };
        match self.files.get(next).map(|file| file.set_len(0)) {
            Some(Ok(())) => (self.current, self.written) = (next, 0),
            Some(Err(_)) | None => self.stuck = true,
        }
    }
}

/// The name of file `number`.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.into();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path, mode: u32, protected: &ProtectedFiles) -> Result<File, OpenOutputError> {
    let refuse = |found: &std::fs::Metadata| match found.is_file() {
        true => Ok(()),
        false => Err(OpenOutputError::Unlimited),
    };
    // Before it is opened: a FIFO would wait, and a device might act.
    if let Ok(found) = path.metadata() {
        refuse(&found)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(mode);
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    refuse(&file.metadata()?)?;
    check_unlocked(&file)?;
    match protected.protected_as(FileId::of(&file)) {
        Some(purpose) => Err(OpenOutputError::Protected(purpose)),
        None => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write_all(files: &mut Files, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = files.write(bytes).unwrap();
            bytes = &bytes[count..];
        }
    }

    #[test]
    fn files_are_full_in_turn_and_never_larger() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let read = |number| fs::read_to_string(numbered(&path, number)).unwrap();
        fs::write(&path, "of an earlier guest").unwrap();
        fs::write(numbered(&path, 1), "of an earlier guest").unwrap();
        let mut files = Files::open(&path, 10, 2, 0o600, &ProtectedFiles::default()).unwrap();
        write_all(&mut files, b"0123456789");
        assert_eq!(
            (read(0).as_str(), read(1).as_str()),
            ("0123456789", "of an earlier guest")
        );
        write_all(&mut files, b"abcdefghijABC");
        assert_eq!([read(0), read(1), read(2)], ["0123456789", "abcdefghij", "ABC"]);
        write_all(&mut files, b"DEFGHIJxy");
        assert_eq!([read(0), read(1), read(2)], ["xy", "abcdefghij", "ABCDEFGHIJ"]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    }

    #[test]
    fn one_file_alone_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut files = Files::open(&path, 4, 0, 0o600, &ProtectedFiles::default()).unwrap();
        write_all(&mut files, b"abcdef");
        assert_eq!(fs::read_to_string(&path).unwrap(), "ef");
    }

    #[test]
    fn what_is_no_file_has_no_limit() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = crate::terminal::testing::fifo(&folder);
        for path in [fifo.as_path(), Path::new("/dev/null"), folder.path()] {
            let error = Files::open(path, 10, 1, 0o600, &ProtectedFiles::default()).unwrap_err();
            assert!(error.to_string().starts_with("it is no regular file"), "{error}");
        }
    }
}
