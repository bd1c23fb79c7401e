//! What can be known of a path without looking for it: refused when it is configured, not when the VM boots.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The most bytes of a path (`PATH_MAX` of linux/limits.h, less its NUL).
const PATH_BYTES: usize = 4095;
/// The most bytes of a socket's path (`sun_path` of unix(7), less its NUL).
const SOCKET_PATH_BYTES: usize = 107;

/// Why a path leads nowhere, whatever there is in the file system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is empty; with what it is for.
    #[error("{0}: no path given")]
    None(String),
    /// It would end there.
    #[error("{0}: the path has a NUL byte, which no path can have")]
    Nul(String),
    /// The kernel takes no such path.
    #[error("{of}: the path has {found} bytes, allowed: up to {max}")]
    Long {
        /// What it is the path of.
        of: String,
        /// Its length.
        found: usize,
        /// What is allowed.
        max: usize,
    },
}

/// Checks the path of a file that is called `of`.
pub(super) fn file(of: &str, path: &Path) -> Result<(), PathError> {
    check(of, path, PATH_BYTES)
}

/// Checks the path of a socket that is called `of`.
pub(super) fn socket(of: &str, path: &Path) -> Result<(), PathError> {
    check(of, path, SOCKET_PATH_BYTES)
}

fn check(of: &str, path: &Path, max: usize) -> Result<(), PathError> {
    let bytes = path.as_os_str().as_bytes();
    match bytes.len() {
        0 => Err(PathError::None(of.into())),
        _ if bytes.contains(&0) => Err(PathError::Nul(of.into())),
        found if found > max => Err(PathError::Long {
            of: of.into(),
            found,
            max,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_path_can_be_is_named_with_its_owner() {
        let why = |path: &str| file("kernel", Path::new(path)).unwrap_err().to_string();
        assert_eq!(why(""), "kernel: no path given");
        assert_eq!(why("/a\0b"), "kernel: the path has a NUL byte, which no path can have");
        assert_eq!(
            why(&"x".repeat(4096)),
            "kernel: the path has 4096 bytes, allowed: up to 4095"
        );
        file("kernel", Path::new(&"x".repeat(4095))).unwrap();
    }

    #[test]
    fn a_socket_has_a_shorter_path_than_a_file() {
        socket("vsock", Path::new(&"x".repeat(107))).unwrap();
        assert_eq!(
            socket("vsock", Path::new(&"x".repeat(108))).unwrap_err().to_string(),
            "vsock: the path has 108 bytes, allowed: up to 107"
        );
    }
}
