//! Opens what the user names as kernel or initramfs: a regular file, not empty, and nothing else.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It does not open.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// It is something that a kernel is not loaded from.
    #[error("it is {0}; it must be a regular file")]
    Kind(&'static str),
    /// It has no bytes.
    #[error("it is empty")]
    Empty,
}

/// Opens `path` and tells its size in bytes. Looks before it opens: opening a device has effects. Should it be another
/// file by then, it is opened all the same without a wait for a FIFO's writer, and without becoming the terminal of
/// this process.
pub(crate) fn open(path: &Path) -> Result<(File, u64), FileError> {
    check(&path.metadata().map_err(FileError::Open)?)?;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(FileError::Open)?;
    let metadata = file.metadata().map_err(FileError::Open)?;
    check(&metadata)?;
    Ok((file, metadata.len()))
}

fn check(metadata: &Metadata) -> Result<(), FileError> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return if metadata.len() == 0 {
            Err(FileError::Empty)
        } else {
            Ok(())
        };
    }
    Err(FileError::Kind(match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "not a file",
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn refusal(path: &Path) -> String {
        open(path).unwrap_err().to_string()
    }

    #[test]
    fn a_regular_file_opens_with_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(open(&path).unwrap().1, 5);
    }

    #[test]
    fn everything_else_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let empty = dir.path().join("empty");
        let _listener = UnixListener::bind(&socket).unwrap();
        File::create(&empty).unwrap();
        assert_eq!(refusal(dir.path()), "it is a directory; it must be a regular file");
        assert_eq!(refusal(&socket), "it is a socket; it must be a regular file");
        assert_eq!(
            refusal(Path::new("/dev/null")),
            "it is a character device; it must be a regular file"
        );
        assert_eq!(refusal(&empty), "it is empty");
        assert_eq!(refusal(&dir.path().join("none")), "cannot open it");
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(refusal(&fifo), "it is a FIFO; it must be a regular file");
    }
}
