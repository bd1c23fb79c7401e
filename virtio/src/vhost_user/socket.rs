//! Connecting to a back-end's socket and looking at it without waiting, and waiting for no longer than is said.

#![expect(
    unsafe_code,
    reason = "the standard library has these only with a wait, or not at all"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects to the stream socket at `path`, without ever blocking: where it is not there, or its backlog is full, the answer is an
/// error at once.
pub(super) fn dial(path: &Path) -> io::Result<UnixStream> {
    let address = address(path)?;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no memory.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("it is 110");
    // SAFETY: the address is `len` bytes long and read during the call only.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(socket))
}

/// Waits until `fd` is ready for one of `events` (poll(2)), at most for `patience`. A patience of zero looks, and does not wait.
///
/// # Errors
/// What poll(2) says, an interruption included.
pub(super) fn is_ready(fd: RawFd, events: i16, patience: Duration) -> io::Result<bool> {
    // Rounded up: what is left of a deadline must not become a busy loop.
    let patience = patience.as_micros().div_ceil(1000);
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the kernel writes to the local alone, during the call only.
    match unsafe { libc::poll(&raw mut polled, 1, i32::try_from(patience).unwrap_or(i32::MAX)) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the other end has said something, or left, without taking what it said.
pub(super) fn peek(socket: &UnixStream) -> io::Result<Heard> {
    let mut byte = 0_u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most one byte to the local, during the call only.
    match unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) } {
        0 => Ok(Heard::End),
        1.. => Ok(Heard::Something),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
            error => Err(error),
        },
    }
}

/// What waits in a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    Something,
    /// The other end has closed it.
    End,
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    // SAFETY: a structure of numbers, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("it is 1");
    let bytes = path.as_os_str().as_bytes();
    // The last byte stays 0.
    let room = address.sun_path.len().saturating_sub(1);
    if bytes.is_empty() || bytes.contains(&0) || bytes.len() > room {
        let found = format!("a path of {} bytes, 1 to {room} without NUL are allowed", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_full_backlog_is_an_error_and_no_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        // However long the backlog is, some dial does not fit.
        let waiting: Vec<_> = std::iter::repeat_with(|| dial(&path))
            .take_while(Result::is_ok)
            .take(10_000)
            .collect();
        assert!(!waiting.is_empty());
        assert_eq!(dial(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn readiness_is_looked_at_without_waiting_for_it() {
        let (here, there) = UnixStream::pair().unwrap();
        let is_readable = || is_ready(here.as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap();
        assert!(!is_readable());
        io::Write::write_all(&mut &there, b"x").unwrap();
        assert!(is_readable());
        assert!(is_ready(here.as_raw_fd(), libc::POLLOUT, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn what_waits_is_told_apart_and_stays() {
        let (here, there) = UnixStream::pair().unwrap();
        assert_eq!(peek(&here).unwrap(), Heard::Nothing);
        io::Write::write_all(&mut &there, b"x").unwrap();
        assert_eq!(peek(&here).unwrap(), Heard::Something);
        drop(there);
        assert_eq!(peek(&here).unwrap(), Heard::Something);
        io::Read::read_exact(&mut &here, &mut [0]).unwrap();
        assert_eq!(peek(&here).unwrap(), Heard::End);
    }

    #[test]
    fn paths_that_no_socket_has_are_refused() {
        let long = "/".repeat(108);
        let message = |path: &str| dial(Path::new(path)).unwrap_err().to_string();
        assert_eq!(message(&long), "a path of 108 bytes, 1 to 107 without NUL are allowed");
        assert_eq!(message(""), "a path of 0 bytes, 1 to 107 without NUL are allowed");
        assert_eq!(
            dial(Path::new("/nowhere/s")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
