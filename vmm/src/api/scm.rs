//! Bytes and descriptors off a Unix socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::passed::{FdCloser, PassedFd};

/// The most descriptors of one message (`SCM_MAX_FD` of Linux).
pub(super) const MESSAGE_FDS: usize = 253;

/// Receives into `buffer`; descriptors that came along are appended to `fds`, for `closer` to close. 0 is the end of
/// the stream.
///
/// The kernel ends a read with the message that carries descriptors: they belong to the last byte that was read.
///
/// # Errors
/// What the host says; `ENOBUFS` when there is no room in the descriptor table: all that came are closed then.
pub(super) fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    fds: &mut Vec<PassedFd>,
    closer: &FdCloser,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut came = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            came.extend(rights.map(|fd| PassedFd::new(fd, closer)));
        }
    }
    // What did come of a message that did not fit is no use, and goes the way of all.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
    }
    fds.append(&mut came);
    Ok(received.bytes)
}
