//! Unix stream sockets by their path: connected to without a wait, and bound as their owner's alone.
//!
//! | part | what it holds |
//! |---|---|
//! | here | addresses, sockets, connecting |
//! | `bound` | a listening socket, its file, and what an earlier process has left in its place |

#![expect(unsafe_code, reason = "the standard library connects only with a wait")]

mod bound;

pub use bound::{BindError, SocketFile, bind};

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::syscall::check;

/// Longest path of a Unix socket, without its final NUL (`sun_path` has 108 bytes).
pub const PATH_MAX: usize = 107;

/// Connects to the socket at `path`. Where it is not there, or its backlog is full, the answer is
/// an error at once. The stream does not block.
///
/// # Errors
/// What the host says; `InvalidInput` of a path that no socket can have.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (address, len) = address(path)?;
    let socket = new()?;
    // SAFETY: the address is `len` bytes long and read during the call only.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket.into())
}

/// A socket that does not block.
fn new() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no memory.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    check(fd)?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address of the socket at `path`, and its length.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() > PATH_MAX {
        let found = format!(
            "a path of {} bytes, 1 to {PATH_MAX} without NUL are allowed",
            bytes.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
    }
    let mut address = libc::sockaddr_un {
        sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).expect("it is 1"),
        // The last byte stays 0.
        sun_path: [0; PATH_MAX + 1],
    };
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("it is 110");
    Ok((address, len))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_full_backlog_is_an_error_and_no_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        // However long the backlog is, some dial does not fit.
        let waiting: Vec<_> = std::iter::repeat_with(|| connect(&path))
            .take_while(Result::is_ok)
            .take(10_000)
            .collect();
        assert!(!waiting.is_empty());
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_with_its_length() {
        let long = PathBuf::from("x".repeat(PATH_MAX + 1));
        for path in [long.as_path(), Path::new(""), Path::new("a\0b")] {
            let error = connect(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(
                error.to_string().contains(&path.as_os_str().len().to_string()),
                "{error}"
            );
        }
        let longest = connect(&PathBuf::from("x".repeat(PATH_MAX))).unwrap_err();
        assert_eq!(longest.kind(), io::ErrorKind::NotFound);
    }
}
