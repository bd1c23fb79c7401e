//! The thread `api`: every connection, and nothing that takes long.
//!
//! Requests become commands for the owner of the machine, who carries them out in the order of
//! their arrival; `vmm.ping` and `vm.info` are answered here, whatever is being carried out. All
//! sockets are non-blocking and watched by one epoll.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use husk_devices::error_chain;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::Rights;
use super::event_loop::{ANSWERS, CHUNK_BYTES, EventLoop, LISTENER, ListeningSocket, METRICS_LISTENER, STOP};
use super::info::Info;
use super::listener::{ListenError, Listener};
use super::passed::FdCloser;
use super::queue::{self, CommandReceiver};
use crate::events::Events;
use crate::metrics::Calls;

/// A server that clients can connect to, and that does not serve them yet.
#[derive(Debug)]
pub struct Server {
    /// Where everything can be asked for.
    listener: Option<Listener>,
    /// Where figures can be asked for, and nothing else.
    metrics: Option<Listener>,
    /// Told of fields that have no meaning.
    events: Events,
}

/// A running server. When this is dropped, the answers that have been given still go out, then connections are closed.
#[derive(Debug)]
pub struct Running {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a new socket at `path`, of mode 0600.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        Self::silent().with_api_at(path)
    }

    /// A server without a socket. What is added first listens first.
    pub fn silent() -> Self {
        Self {
            listener: None,
            metrics: None,
            events: Events::default(),
        }
    }

    /// The same, which also listens on a new socket at `path`, of mode 0600, where figures can be
    /// asked for and nothing else.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn with_metrics_at(self, path: &Path) -> Result<Self, ListenError> {
        Listener::bind(path).map(|metrics| self.with_metrics(metrics))
    }

    /// The same, on a Unix stream socket that listens already.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_metrics_on(self, fd: OwnedFd) -> Result<Self, ListenError> {
        Listener::adopt(fd).map(|metrics| self.with_metrics(metrics))
    }

    fn with_metrics(mut self, metrics: Listener) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The same, which also listens on a new socket at `path`, of mode 0600, for whoever controls the VM.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn with_api_at(self, path: &Path) -> Result<Self, ListenError> {
        Listener::bind(path).map(|listener| self.with_api(listener))
    }

    /// The same, on a Unix stream socket that listens already.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_api_on(self, fd: OwnedFd) -> Result<Self, ListenError> {
        Listener::adopt(fd).map(|listener| self.with_api(listener))
    }

    fn with_api(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// The same, which tells `events` of fields that have no meaning.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// Starts the thread, which calls `confine` before it looks at the first client. Commands come
    /// out of the receiver, which also owns the socket's file; `info` is what `vm.info` answers,
    /// and `closer` has what clients pass closed.
    ///
    /// # Errors
    /// When the host has no thread or no descriptor left.
    pub fn spawn(
        self,
        info: Info,
        closer: FdCloser,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<(Running, CommandReceiver)> {
        let Self {
            listener,
            metrics,
            events,
        } = self;
        let (mut sockets, mut files) = (Vec::new(), Vec::new());
        let listeners = [
            (listener, Rights::Control, LISTENER),
            (metrics, Rights::Metrics, METRICS_LISTENER),
        ];
        for (listener, rights, token) in listeners {
            let Some(Listener { socket, file }) = listener else {
                continue;
            };
            files.extend(file);
            sockets.push(ListeningSocket { socket, rights, token });
        }
        let (command_sender, commands) = queue::command_queue(files)?;
        let (answer_sender, answers) = queue::answer_queue()?;
        events.set_reader_eventfd(answer_sender.eventfd());
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        let listener_fds = sockets.iter().map(|s| (s.socket.as_raw_fd(), s.token));
        for (fd, token) in listener_fds.chain([(stop.as_raw_fd(), STOP), (answers.as_raw_fd(), ANSWERS)]) {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        let event_loop = EventLoop {
            epoll,
            listeners: sockets,
            accept_again: None,
            connections: BTreeMap::new(),
            next: 0,
            command_sender,
            answer_sender,
            answers,
            info,
            closer,
            events,
            calls: Calls::default(),
            buffer: vec![0; CHUNK_BYTES],
        };
        let body = move || match confine() {
            Ok(()) => event_loop.run(),
            Err(error) => log::error!("the API cannot be confined, and ends: {}", error_chain(&error)),
        };
        let thread = thread::Builder::new().name("api".into()).spawn(body)?;
        Ok((
            Running {
                stop,
                thread: Some(thread),
            },
            commands,
        ))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when the counter is full: then the thread has been told.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
