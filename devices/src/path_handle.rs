//! A file of the host that is looked at before it is opened.
//!
//! Opening has effects: a FIFO waits for its other end, `/dev/ptmx` makes a terminal, a watchdog begins to count, a
//! terminal may become the process's own. And a name may lead elsewhere between a look and an open. So the file is held
//! by a descriptor that opens nothing (`O_PATH`, open(2)), and what is opened later is that file, by the name that
//! `/proc` has for the descriptor (proc_pid_fd(5)).

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that is there, and not open.
#[derive(Debug)]
pub struct PathHandle {
    place: File,
    metadata: Metadata,
    path: PathBuf,
}

impl PathHandle {
    /// Finds what is at `path`; links are followed.
    ///
    /// # Errors
    /// There is nothing, or it is out of reach.
    pub fn at(path: &Path) -> io::Result<Self> {
        let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        Ok(Self {
            metadata: place.metadata()?,
            place,
            path: path.into(),
        })
    }

    /// What it is.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Opens it, and no other file, as `options` say: as often as that is wanted.
    ///
    /// # Errors
    /// What the host says.
    pub fn open(&self, options: &OpenOptions) -> io::Result<File> {
        let own = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        match options.open(own) {
            // Where `/proc` is not mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.open_by_name(options),
            opened => opened,
        }
    }

    fn open_by_name(&self, options: &OpenOptions) -> io::Result<File> {
        let file = options.open(&self.path)?;
        let (found, looked) = (file.metadata()?, &self.metadata);
        match (found.dev(), found.ino()) == (looked.dev(), looked.ino()) {
            true => Ok(file),
            false => Err(io::Error::other("it was replaced by another file while it was opened")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    #[test]
    fn what_is_opened_is_what_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        fs::write(&path, "looked at").unwrap();
        fs::write(&other, "another").unwrap();
        let handle = PathHandle::at(&path).unwrap();
        assert!(handle.metadata().is_file());
        fs::rename(&other, &path).unwrap();
        for _ in 0..2 {
            let mut text = String::new();
            let mut file = handle.open(OpenOptions::new().read(true)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "looked at");
        }
        let error = handle.open_by_name(OpenOptions::new().read(true)).unwrap_err();
        assert!(error.to_string().starts_with("it was replaced"), "{error}");
        let handle = PathHandle::at(&path).unwrap();
        assert!(handle.open_by_name(OpenOptions::new().read(true)).is_ok());
    }

    #[test]
    fn a_look_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let (kind, mode) = (
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        );
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        let handle = PathHandle::at(&path).unwrap();
        assert!(handle.metadata().file_type().is_fifo());
        let mut write = OpenOptions::new();
        write.write(true).custom_flags(libc::O_NONBLOCK);
        assert_eq!(
            write.open(&path).unwrap_err().raw_os_error(),
            Some(libc::ENXIO),
            "nobody reads it"
        );
        assert_eq!(
            PathHandle::at(folder.path().join("none").as_path()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
