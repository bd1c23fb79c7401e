//! Bytes and descriptors off a Unix socket (unix(7), `SCM_RIGHTS`).
#![expect(unsafe_code, reason = "recvmsg(2) takes raw buffers and hands out raw descriptors")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// The most descriptors of one message (`SCM_MAX_FD` of Linux).
pub(super) const MESSAGE_FDS: usize = 253;

/// Receives into `buffer`; descriptors that came along are appended to `fds`. 0 is the end of the stream.
///
/// The kernel ends a read with the message that carries descriptors: they belong to the last byte that was read.
///
/// # Errors
/// What the host says; `ENOBUFS` when there is no room in the descriptor table: all that came are closed then.
pub(super) fn receive(stream: &UnixStream, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut raw = [-1; MESSAGE_FDS];
    let mut iovec = [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }];
    // SAFETY: the iovec is `buffer`, which is borrowed for the call.
    let received = unsafe { stream.recv_with_fds(&mut iovec, &mut raw) };
    let (bytes, count) = received.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    for fd in raw.into_iter().take(count) {
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows of it.
        fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(bytes)
}
