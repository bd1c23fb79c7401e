//! The thread `api`: every connection, and nothing that takes long.
//!
//! Requests become commands for the owner of the machine, who carries them out in the order of their arrival; `vmm.ping` and
//! `vm.info` are answered here, whatever is being carried out. All sockets are non-blocking and watched by one epoll.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use husk_devices::chain;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::command::Reply;
use super::connection::Connection;
use super::http::Message;
use super::inbox::{self, Answers, Inbox, Mailbox, Outbox, Outcome};
use super::info::Info;
use super::listener::{ListenError, Listener};
use super::response::Response;
use super::routes::{Routed, refusal, route, unknown_fields};
use crate::config::fields::Unknown;
use crate::events::Events;

/// Connections at a time. Cloud Hypervisor has 10.
pub const CONNECTIONS: usize = 64;

/// Bytes read at a time from one connection.
const CHUNK_BYTES: usize = 64 << 10;
/// How long the last answers may take to go out.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// How long nobody is accepted when the host has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const LISTENER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const ANSWERS: u64 = u64::MAX - 2;

/// A server that clients can connect to, and that does not serve them yet.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
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
        Listener::bind(path).map(Self::on)
    }

    /// Takes a Unix stream socket that listens already.
    ///
    /// # Errors
    /// When it is none.
    pub fn adopt(fd: OwnedFd) -> Result<Self, ListenError> {
        Listener::adopt(fd).map(Self::on)
    }

    fn on(listener: Listener) -> Self {
        Self {
            listener,
            events: Events::default(),
        }
    }

    /// The same, which tells `events` of fields that have no meaning.
    #[must_use]
    pub fn with_events(mut self, events: Events) -> Self {
        self.events = events;
        self
    }

    /// Starts the thread, which calls `confine` before it looks at the first client. Commands come out of the inbox, which also
    /// owns the socket's file; `info` is what `vm.info` answers.
    ///
    /// # Errors
    /// When the host has no thread or no descriptor left.
    pub fn spawn(
        self,
        info: Info,
        confine: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<(Running, Inbox)> {
        let Self { listener, events } = self;
        let Listener { socket, file } = listener;
        let (outbox, inbox) = inbox::commands(file)?;
        let (mailbox, answers) = inbox::answers()?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        for (fd, token) in [
            (socket.as_raw_fd(), LISTENER),
            (stop.as_raw_fd(), STOP),
            (answers.as_raw_fd(), ANSWERS),
        ] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        let event_loop = EventLoop {
            epoll,
            listener: socket,
            accept_again: None,
            connections: BTreeMap::new(),
            next: 0,
            outbox,
            mailbox,
            answers,
            info,
            events,
            buffer: vec![0; CHUNK_BYTES],
        };
        let body = move || match confine() {
            Ok(()) => event_loop.run(),
            Err(error) => log::error!("the API cannot be confined, and ends: {}", chain(&error)),
        };
        let thread = thread::Builder::new().name("api".into()).spawn(body)?;
        Ok((
            Running {
                stop,
                thread: Some(thread),
            },
            inbox,
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

/// What the thread works with.
struct EventLoop {
    epoll: Epoll,
    listener: UnixListener,
    /// When clients are accepted again, while they are not.
    accept_again: Option<Instant>,
    connections: BTreeMap<u64, Connection>,
    /// The number of the next connection. None is used twice: an answer never reaches the wrong client.
    next: u64,
    outbox: Outbox,
    mailbox: Mailbox,
    answers: Answers,
    info: Info,
    events: Events,
    buffer: Vec<u8>,
}

impl EventLoop {
    fn run(mut self) {
        if let Err(error) = self.serve() {
            log::error!("the API has failed: {error}");
        }
        self.flush_answers();
    }

    /// Serves until it is told to stop.
    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 32];
        loop {
            let ready = match self.epoll.wait(self.timeout(), &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                ready => ready?,
            };
            for event in events.iter().take(ready) {
                match event.data() {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    ANSWERS => self.deliver_answers(),
                    number => self.on_connection(number, event.event_set()),
                }
            }
            self.expire()?;
        }
    }

    /// Milliseconds until something has to be done without an event.
    fn timeout(&self) -> i32 {
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        let Some(next) = deadlines.chain(self.accept_again).min() else {
            return -1;
        };
        let left = next.saturating_duration_since(Instant::now()).as_millis();
        i32::try_from(left).map_or(i32::MAX, |left| left.saturating_add(1))
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        // Dropping a connection closes its socket, which takes it out of the epoll.
        self.connections.retain(|_, connection| !connection.is_over(now));
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            self.watch_listener(EventSet::IN)?;
        }
        Ok(())
    }

    fn watch_listener(&self, events: EventSet) -> io::Result<()> {
        let fd = self.listener.as_raw_fd();
        self.epoll
            .ctl(ControlOperation::Modify, fd, EpollEvent::new(events, LISTENER))
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = self.add_connection(stream) {
                    log::warn!("a client could not be taken in: {error}");
                }
                Ok(())
            }
            Err(error) if is_of_the_client(&error) => Ok(()),
            Err(error) => {
                log::warn!("no client can be accepted for the moment: {error}");
                self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                self.watch_listener(EventSet::empty())
            }
        }
    }

    fn add_connection(&mut self, stream: UnixStream) -> io::Result<()> {
        let mut connection = Connection::new(stream)?;
        if self.connections.len() >= CONNECTIONS {
            log::warn!("a client was turned away: {CONNECTIONS} are connected");
            connection.reject(CONNECTIONS);
            return Ok(());
        }
        connection.watched = connection.interest();
        let interest = EpollEvent::new(connection.watched, self.next);
        self.epoll
            .ctl(ControlOperation::Add, connection.as_raw_fd(), interest)?;
        self.connections.insert(self.next, connection);
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Something has happened on a connection.
    fn on_connection(&mut self, number: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let left = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if left {
            // Whoever asks and goes is still heard.
            while connection.receive(&mut self.buffer) {}
        } else if events.contains(EventSet::IN) {
            connection.receive(&mut self.buffer);
        }
        self.serve_connection(number);
        if left {
            self.connections.remove(&number);
        }
    }

    /// Answers or passes on whatever requests a connection has, and sends what it is owed.
    fn serve_connection(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        connection.flush();
        while let Some((message, fds)) = connection.next() {
            match route(&message, fds, &self.info) {
                Routed::Answer(response) => connection.answer(&response),
                Routed::Command(command) => {
                    log::debug!("{}", message.path);
                    tell_unknown(&self.events, &message);
                    self.outbox.send(command, number, &self.mailbox);
                }
            }
            connection.flush();
        }
        connection.flush();
        if let Err(error) = watch(&self.epoll, connection, number) {
            log::warn!("a client was lost: {error}");
            self.connections.remove(&number);
        }
    }

    fn deliver_answers(&mut self) {
        while let Some(answer) = self.answers.next() {
            if let Some(connection) = self.connections.get_mut(&answer.connection) {
                connection.answer(&respond(&answer.outcome));
                self.serve_connection(answer.connection);
            }
        }
    }

    /// Sends the answers that have been given, as far as the clients take them in time.
    fn flush_answers(mut self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let mut events = [EpollEvent::default(); 32];
        while let Some(answer) = self.answers.next() {
            if let Some(connection) = self.connections.get_mut(&answer.connection) {
                connection.answer(&respond(&answer.outcome));
            }
        }
        loop {
            self.connections.values_mut().for_each(Connection::flush);
            self.connections.retain(|_, connection| !connection.is_flushed());
            let left = until.saturating_duration_since(Instant::now());
            if self.connections.is_empty() || left.is_zero() {
                return;
            }
            let Ok(epoll) = self.watch_for_room() else {
                return;
            };
            let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1);
            let _ = epoll.wait(left, &mut events);
        }
    }

    /// An epoll that tells of room for answers, and of nothing else.
    fn watch_for_room(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        for connection in self.connections.values() {
            let interest = EpollEvent::new(EventSet::OUT, 0);
            epoll.ctl(ControlOperation::Add, connection.as_raw_fd(), interest)?;
        }
        Ok(epoll)
    }
}

/// Has the epoll look for what the connection waits for now.
fn watch(epoll: &Epoll, connection: &mut Connection, number: u64) -> io::Result<()> {
    let interest = connection.interest();
    if interest == connection.watched {
        return Ok(());
    }
    connection.watched = interest;
    let event = EpollEvent::new(interest, number);
    epoll.ctl(ControlOperation::Modify, connection.as_raw_fd(), event)
}

/// Says which fields of a request have no meaning: they are kept, and the client goes on without what it has asked for.
fn tell_unknown(events: &Events, message: &Message) {
    let request = message.path.rsplit('/').next().unwrap_or_default();
    for Unknown { field, nearest } in unknown_fields(message) {
        let meant = nearest.map(|name| format!("; is {name} meant?")).unwrap_or_default();
        log::warn!(
            "{request}: there is no field {}, it has no effect{meant}",
            field.escape_debug()
        );
        let properties = [
            ("request", request.into()),
            ("field", field.into()),
            ("nearest", nearest.into()),
        ];
        events.emit_with("vm", "unknown-field", properties);
    }
}

fn respond(outcome: &Outcome) -> Response {
    match outcome {
        Ok(Reply::Done) => Response::done(),
        Ok(Reply::Json(value)) => Response::json(200, value),
        Err(error) => refusal("a command has failed", error),
    }
}

/// Whether accepting failed because of the one client that was to be accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
