//! Unix stream sockets that never block and never raise a signal.
#![expect(unsafe_code, reason = "calls that the standard library does not offer")]

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::iovecs::Buffers;
use crate::syscall::retry;
use crate::unix;

/// No buffer of a socket counts less than this in `SIOCOUTQ`.
const LEAST_BUFFER: libc::c_int = 64;
/// What is still unread when a stream ends is thrown away in pieces of this size, a few at most.
const DISCARD_BYTES: usize = 16 << 10;
const DISCARDS_MAX: usize = 32;

/// One end of a connection. It is closed in order: what its peer has sent and nobody has read is thrown away first.
#[derive(Debug)]
pub(super) struct Socket(UnixStream);

/// What a read into several buffers has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes; 0 at the end of the stream.
    pub bytes: usize,
    /// Descriptors came with the last of them, and were closed. There the kernel ends a read, whatever is behind it.
    pub cut: bool,
}

impl Socket {
    /// Takes the next dial.
    pub fn accept(listener: &UnixListener) -> io::Result<Self> {
        listener.accept().map(|(stream, _)| Self(stream))
    }

    /// Dials the socket at `path`. Where its backlog is full the answer is an error, not a wait.
    pub fn connect(path: &Path) -> io::Result<Self> {
        unix::connect(path).map(Self)
    }

    /// Copies what has arrived, without taking it.
    pub fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_with(buffer, libc::MSG_PEEK)
    }

    /// Takes what has arrived, as far as it fits.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_with(buffer, 0)
    }

    fn receive_with(&self, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
        let (to, len) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: the kernel writes at most `len` bytes to the buffer, during the call only.
        retry(|| unsafe { libc::recv(self.as_raw_fd(), to, len, flags | libc::MSG_DONTWAIT) })
    }

    /// Sends as much as there is room for.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the kernel reads the bytes during the call only.
        retry(|| unsafe { libc::send(self.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
    }

    /// Takes what has arrived into several buffers.
    pub fn receive_vectored(&self, buffers: Buffers<'_>) -> io::Result<Received> {
        let mut message = message(buffers);
        // SAFETY: the message is a local, and `Buffers` are mapped and may be written.
        let bytes = retry(|| unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })?;
        // There is no room for anything but data.
        let cut = message.msg_flags & libc::MSG_CTRUNC != 0;
        Ok(Received { bytes, cut })
    }

    /// Sends as much of several buffers as there is room for.
    pub fn send_vectored(&self, buffers: Buffers<'_>) -> io::Result<usize> {
        let message = message(buffers);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message is a local, and `Buffers` are mapped; the kernel only reads them.
        retry(|| unsafe { libc::sendmsg(self.as_raw_fd(), &raw const message, flags) })
    }

    /// Whether the peer has read everything that was sent.
    pub fn is_drained(&self) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes a number, during the call only.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        // The kernel counts buffers with their administration, and the last byte of it a moment
        // longer than it tells us of room.
        result < 0 || unread < LEAST_BUFFER
    }

    /// Tells the peer that this side sends, or receives, no more.
    pub fn shutdown(&self, how: Shutdown) {
        // Fails only when the peer has gone, and then there is nobody to tell.
        let _ = self.0.shutdown(how);
    }

    /// Throws away what has arrived.
    fn discard(&self) {
        let mut scrap = [0; DISCARD_BYTES];
        for _ in 0..DISCARDS_MAX {
            if !matches!(self.receive(&mut scrap), Ok(1..)) {
                return;
            }
        }
    }
}

impl Drop for Socket {
    /// A socket closed with something unread gives its peer an error in place of an end.
    fn drop(&mut self) {
        self.shutdown(Shutdown::Read);
        self.discard();
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self(stream)
    }
}

#[cfg(test)]
impl From<Socket> for UnixStream {
    fn from(socket: Socket) -> Self {
        let stream = socket.0.try_clone().unwrap();
        // Nothing is to be thrown away.
        std::mem::forget(socket);
        stream
    }
}

fn message(buffers: Buffers<'_>) -> libc::msghdr {
    let buffers = buffers.as_slice();
    // SAFETY: a structure of numbers and pointers, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len();
    message
}
