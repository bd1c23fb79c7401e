//! Descriptors that clients pass (unix(7), `SCM_RIGHTS`), and the thread that closes those that nobody has a use for.
//!
//! close(2) waits for the file system: of FUSE or NFS for whoever serves it, who may never answer. Which file it is, is
//! the client's choice. So neither `api` nor the control thread closes one: a client that has been given nothing else
//! to do could stop both.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use husk_devices::error_chain;

/// Where descriptors go that are to be closed. Its thread closes one after another, and ends when this and every
/// [`PassedFd`] have gone. Nobody waits for it, the end of the process neither.
///
/// There is one thread, so that a client cannot have any number of them made; what comes behind a file that does not
/// close stays open, within the limit of the process on descriptors.
#[derive(Clone, Debug)]
pub struct FdCloser(Sender<OwnedFd>);

impl FdCloser {
    /// Starts the thread, which calls `confine` before it closes the first one.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(confine: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (sender, descriptors) = channel();
        let body = move || match confine() {
            Ok(()) => descriptors.into_iter().for_each(drop),
            Err(error) => log::error!(
                "the thread that closes descriptors cannot be confined, and ends: {}",
                error_chain(&error)
            ),
        };
        thread::Builder::new().name("fd-closer".into()).spawn(body)?;
        Ok(Self(sender))
    }
}

/// A descriptor that a client has passed. Whoever drops it does not wait for its file: the thread of its [`FdCloser`]
/// closes it.
#[derive(Debug)]
pub struct PassedFd {
    fd: Option<OwnedFd>,
    closer: FdCloser,
}

impl PassedFd {
    /// `fd`, which `closer` closes.
    pub(super) fn new(fd: OwnedFd, closer: &FdCloser) -> Self {
        Self {
            fd: Some(fd),
            closer: closer.clone(),
        }
    }

    /// The descriptor itself, for whoever keeps it and may wait for its file when it is closed.
    pub fn into_owned(mut self) -> OwnedFd {
        self.fd.take().expect("taken by this and `drop` alone")
    }
}

impl Drop for PassedFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            // Without the thread it is closed here.
            let _ = self.closer.0.send(fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_that_is_dropped_waits_for_its_thread_and_one_that_is_kept_does_not_go_there() {
        let (go, gate) = channel::<()>();
        let closer = FdCloser::start(move || {
            gate.recv().unwrap();
            Ok(())
        });
        let closer = closer.unwrap();
        let (mut peer, dropped) = UnixStream::pair().unwrap();
        let (mut other, kept) = UnixStream::pair().unwrap();
        drop(PassedFd::new(dropped.into(), &closer));
        let kept = PassedFd::new(kept.into(), &closer).into_owned();
        peer.set_nonblocking(true).unwrap();
        let error = peer.read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            io::ErrorKind::WouldBlock,
            "it is open as long as its thread is busy"
        );
        peer.set_nonblocking(false).unwrap();
        go.send(()).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "closed");
        drop(closer);
        other.set_nonblocking(true).unwrap();
        assert!(other.read(&mut [0]).is_err(), "not closed");
        drop(kept);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn without_its_thread_a_descriptor_is_closed_all_the_same() {
        let (told, ended) = channel::<()>();
        let closer = FdCloser::start(move || {
            drop(told);
            Err(io::Error::other("no"))
        });
        assert!(ended.recv().is_err());
        let (mut peer, passed) = UnixStream::pair().unwrap();
        drop(PassedFd::new(passed.into(), &closer.unwrap()));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
