//! The socket that clients connect to: a new one, or one that husk was started with.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use husk_virtio::unix::{self, BindError, SocketFile};
use rustix::net::SocketType;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_acceptconn, socket_type};

/// How long a client that has gone to another acceptor is waited for. Whoever has an adopted socket
/// too can clear its `O_NONBLOCK`, and accept4(2) cannot be told not to wait.
const PATIENCE: Duration = Duration::from_micros(1);
/// Connections that wait to be accepted.
const BACKLOG: libc::c_int = 128;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// There can be no socket of that path.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A descriptor that is no listening Unix socket.
    #[error("fd {0}: not a listening Unix stream socket")]
    NotListening(RawFd),
    /// The host refused.
    #[error("fd {fd}: cannot be made non-blocking")]
    Host {
        /// The descriptor.
        fd: RawFd,
        /// The host's answer.
        source: io::Error,
    },
}

/// A listening socket, and its file if it is husk's to remove.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    pub(super) file: Option<SocketFile>,
}

impl Listener {
    /// Listens on a new socket at `path`.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        let (socket, file) = unix::bind(path, BACKLOG)?;
        let file = Some(file);
        Ok(Self { socket, file })
    }

    /// Takes a socket that listens already. Its file, if it has one, is somebody else's.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, ListenError> {
        let number = fd.as_raw_fd();
        let socket = UnixListener::from(fd);
        // A family other than Unix has no address that reads as one.
        let is_unix = socket.local_addr().is_ok();
        if !is_unix || socket_acceptconn(&socket) != Ok(true) || socket_type(&socket) != Ok(SocketType::STREAM) {
            return Err(ListenError::NotListening(number));
        }
        let failed = |source| ListenError::Host { fd: number, source };
        socket.set_nonblocking(true).map_err(failed)?;
        // Accepting ends also when the socket is blocking (`SO_RCVTIMEO`, socket(7)).
        let bounded = set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE));
        bounded.map_err(|errno| failed(errno.into()))?;
        Ok(Self { socket, file: None })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Another process that accepts from the same socket was faster, and has made it blocking.
    #[test]
    fn a_client_that_another_acceptor_has_taken_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let theirs = UnixListener::bind(folder.path().join("a")).unwrap();
        let ours = Listener::adopt(theirs.try_clone().unwrap().into()).unwrap();
        theirs.set_nonblocking(false).unwrap();
        let (done, outcome) = mpsc::channel();
        thread::spawn(move || done.send(ours.socket.accept().map(drop)).unwrap());
        let outcome = outcome.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_descriptor_must_be_a_listening_socket() {
        let folder = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(folder.path().join("a")).unwrap();
        assert!(Listener::adopt(listening.into()).is_ok());
        let connected = UnixStream::pair().unwrap().0;
        assert!(matches!(
            Listener::adopt(connected.into()),
            Err(ListenError::NotListening(_))
        ));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(
            Listener::adopt(file.into()),
            Err(ListenError::NotListening(_))
        ));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(Listener::adopt(tcp.into()), Err(ListenError::NotListening(_))));
    }
}
