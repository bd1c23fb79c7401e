//! The socket in the file system that programs of the host dial.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::socket::Socket;
use crate::syscall::is_ready;
use crate::unix::{self, BindError, SocketFile};

/// Dials that may wait until they are looked at.
const BACKLOG: libc::c_int = 1024;

/// A bound and listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// There are no descriptors, as far as dials are concerned.
    #[cfg(test)]
    pub exhausted: std::sync::atomic::AtomicBool,
}

impl Listener {
    /// Listens at `path`. The socket's file is not the listener's: I/O threads may not remove files.
    pub fn bind(path: &Path) -> Result<(Self, SocketFile), BindError> {
        let (socket, file) = unix::bind(path, BACKLOG)?;
        let path = path.to_owned();
        let listener = Self {
            socket,
            path,
            #[cfg(test)]
            exhausted: std::sync::atomic::AtomicBool::default(),
        };
        Ok((listener, file))
    }

    /// Takes the next dial.
    pub fn accept(&self) -> io::Result<Socket> {
        #[cfg(test)]
        if self.exhausted.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Socket::accept(&self.socket)
    }

    /// Whether a dial waits. Without a descriptor that is not to be learned by taking it.
    pub fn has_dial(&self) -> bool {
        is_ready(self.as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap_or(true)
    }

    /// Takes all dials that wait, whether or not there are descriptors.
    #[cfg(test)]
    pub fn accept_all(&self) {
        while self.has_dial() {
            drop(self.socket.accept());
        }
    }

    /// The socket of a program of the host that serves `port` to the guest.
    pub fn path_of_port(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A descriptor in reserve: given up for a moment when there are no others, so that a dial can be
/// taken and closed. Left alone, it would wait without an answer.
#[derive(Debug)]
pub(super) struct ReserveFd(Option<OwnedFd>);

impl ReserveFd {
    /// Puts one aside, if there is one.
    pub fn new(listener: &Listener) -> Self {
        Self(listener.socket.as_fd().try_clone_to_owned().ok())
    }

    /// Puts one aside again, if the last one was lost to somebody else.
    pub fn renew(&mut self, listener: &Listener) {
        if self.0.is_none() {
            *self = Self::new(listener);
        }
    }

    /// Whether one is put aside.
    #[cfg(test)]
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Somebody else has it.
    #[cfg(test)]
    pub fn lose(&mut self) {
        self.0 = None;
    }

    /// Closes the next dial. `false` if there is no reserve.
    pub fn shed(&mut self, listener: &Listener) -> bool {
        if self.0.take().is_none() {
            return false;
        }
        drop(listener.accept());
        *self = Self::new(listener);
        true
    }
}

/// Whether a dial could not be taken because the process or the host has run out of something.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_host_have_paths() {
        let folder = tempfile::tempdir().unwrap();
        let (listener, _file) = Listener::bind(&folder.path().join("v.sock")).unwrap();
        assert_eq!(listener.path_of_port(1024), folder.path().join("v.sock_1024"));
    }
}
