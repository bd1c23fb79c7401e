//! Reads a file that somebody else has named: a regular one of bounded size, and nothing that would
//! be waited for or has no end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use husk_devices::PathHandle;

/// The most bytes of a configuration or another text.
pub const TEXT_BYTES: u64 = 64 << 20;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum RegularFileError {
    /// It does not open, or does not read.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// A folder, a FIFO, a device.
    #[error("is no regular file")]
    Kind,
    /// Too long.
    #[error("has more than {0} bytes")]
    Long(u64),
}

impl From<RegularFileError> for io::Error {
    fn from(error: RegularFileError) -> Self {
        match error {
            RegularFileError::Read(error) => error,
            other => Self::other(format!("it {other}")),
        }
    }
}

/// All of `path`, which has `limit` bytes at most; links are followed.
///
/// # Errors
/// It is no regular file, is longer, or cannot be read.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, RegularFileError> {
    let looked = PathHandle::at(path)?;
    if !looked.metadata().is_file() {
        return Err(RegularFileError::Kind);
    }
    let (file, mut bytes) = (looked.open(File::options().read(true))?, Vec::new());
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(RegularFileError::Long(limit));
    }
    Ok(bytes)
}

/// As [`read`], of [`TEXT_BYTES`] at most and in UTF-8.
///
/// # Errors
/// As there, or it is no text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path, TEXT_BYTES)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let fifo = crate::terminal::testing::fifo(&folder);
        for other in [&fifo, folder.path(), Path::new("/dev/zero")] {
            assert!(
                matches!(read(other, 4), Err(RegularFileError::Kind)),
                "{}",
                other.display()
            );
        }
        fs::write(path("file"), "text").unwrap();
        symlink(path("file"), path("link")).unwrap();
        assert_eq!(read(&path("link"), 4).unwrap(), b"text");
        assert_eq!(read_text(&path("link")).unwrap(), "text");
        assert!(matches!(read(&path("link"), 3), Err(RegularFileError::Long(3))));
        symlink(path("loop"), path("loop")).unwrap();
        for gone in ["loop", "gone"] {
            assert!(matches!(read(&path(gone), 3), Err(RegularFileError::Read(_))), "{gone}");
        }
        fs::write(path("file"), b"\xff").unwrap();
        assert_eq!(read_text(&path("file")).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
