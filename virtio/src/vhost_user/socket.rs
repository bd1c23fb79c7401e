//! Looking at a back-end's socket without waiting, and waiting for no longer than is said.

#![expect(
    unsafe_code,
    reason = "the standard library has neither a look at a socket that takes nothing nor poll(2)"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
