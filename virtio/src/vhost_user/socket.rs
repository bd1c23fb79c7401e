//! Looking at what waits in a back-end's socket.

#![expect(
    unsafe_code,
    reason = "the standard library has no look at a socket that takes nothing"
)]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Whether the other end has said something, or left, without taking what it said.
pub(super) fn peek(socket: &UnixStream) -> io::Result<Pending> {
    let mut byte = 0_u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most one byte to the local, during the call only.
    match unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) } {
        0 => Ok(Pending::End),
        1.. => Ok(Pending::Something),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(Pending::Nothing),
            error => Err(error),
        },
    }
}

/// What waits in a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    Nothing,
    Something,
    /// The other end has closed it.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_apart_and_stays() {
        let (here, there) = UnixStream::pair().unwrap();
        assert_eq!(peek(&here).unwrap(), Pending::Nothing);
        io::Write::write_all(&mut &there, b"x").unwrap();
        assert_eq!(peek(&here).unwrap(), Pending::Something);
        drop(there);
        assert_eq!(peek(&here).unwrap(), Pending::Something);
        io::Read::read_exact(&mut &here, &mut [0]).unwrap();
        assert_eq!(peek(&here).unwrap(), Pending::End);
    }
}
