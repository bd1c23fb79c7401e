//! What the thread `api` does: it accepts, reads, passes on and answers, and never waits but in its epoll.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::command::Reply;
use super::connection::{Connection, Pending, Rights};
use super::error::{ApiError, Kind};
use super::http::{Malformed, Message, UNFINISHED_BYTES};
use super::info::Info;
use super::passed::FdCloser;
use super::queue::{Answer, AnswerReceiver, AnswerSender, CommandSender, Outcome};
use super::response::Response;
use super::routes::{Routed, is_metrics, refusal, route, unknown_fields};
use crate::config::fields::Unknown;
use crate::events::{Events, Reader};
use crate::metrics::{Calls, Exposition};
use crate::trim::trim_heap;

/// Connections at a time. Cloud Hypervisor has 10.
pub const CONNECTIONS: usize = 64;
/// Beside them, those that may only ask for figures: however many scrapers there are, whoever
/// controls the VM finds room.
pub(super) const SCRAPERS: usize = 8;

/// Bytes read at a time from one connection.
pub(super) const CHUNK_BYTES: usize = 64 << 10;
/// After a body that is longer than this, what it took to read is given back to the host: many times as much.
const LARGE_BODY_BYTES: usize = 4 << 10;
/// How long the last answers may take to go out.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// How long nobody is accepted when the host has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) const LISTENER: u64 = u64::MAX;
pub(super) const STOP: u64 = u64::MAX - 1;
pub(super) const ANSWERS: u64 = u64::MAX - 2;
pub(super) const METRICS_LISTENER: u64 = u64::MAX - 3;

/// Where clients come in.
pub(super) struct ListeningSocket {
    pub(super) socket: UnixListener,
    /// What they may ask for then.
    pub(super) rights: Rights,
    pub(super) token: u64,
}

/// What a client is answered.
enum Content {
    Whole(Response),
    /// What happens, as it happens.
    Stream(Reader),
}

/// What the thread works with.
pub(super) struct EventLoop {
    pub(super) epoll: Epoll,
    pub(super) listeners: Vec<ListeningSocket>,
    /// When clients are accepted again, while they are not.
    pub(super) accept_again: Option<Instant>,
    pub(super) connections: BTreeMap<u64, Connection>,
    /// The number of the next connection. None is used twice: an answer never reaches the wrong client.
    pub(super) next: u64,
    pub(super) command_sender: CommandSender,
    pub(super) answer_sender: AnswerSender,
    pub(super) answers: AnswerReceiver,
    pub(super) info: Info,
    pub(super) closer: FdCloser,
    pub(super) events: Events,
    pub(super) calls: Calls,
    pub(super) buffer: Vec<u8>,
}

impl EventLoop {
    pub(super) fn run(mut self) {
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
                    LISTENER | METRICS_LISTENER => self.accept(event.data())?,
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
        let over = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.is_over(now));
        let over: Vec<u64> = over.map(|(number, _)| *number).collect();
        over.into_iter().for_each(|number| self.remove(number));
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            self.watch_listeners(EventSet::IN)?;
        }
        Ok(())
    }

    fn watch_listeners(&self, events: EventSet) -> io::Result<()> {
        self.listeners.iter().try_for_each(|listening| {
            let event = EpollEvent::new(events, listening.token);
            self.epoll
                .ctl(ControlOperation::Modify, listening.socket.as_raw_fd(), event)
        })
    }

    fn accept(&mut self, token: u64) -> io::Result<()> {
        let Some(listening) = self.listeners.iter().find(|listening| listening.token == token) else {
            return Ok(());
        };
        let rights = listening.rights;
        match listening.socket.accept() {
            Ok((stream, _)) => {
                if let Err(error) = self.add_connection(stream, rights) {
                    log::warn!("a client could not be taken in: {error}");
                }
                Ok(())
            }
            Err(error) if is_of_the_client(&error) => Ok(()),
            Err(error) => {
                log::warn!("no client can be accepted for the moment: {error}");
                self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                self.watch_listeners(EventSet::empty())
            }
        }
    }

    fn add_connection(&mut self, stream: UnixStream, rights: Rights) -> io::Result<()> {
        let mut connection = Connection::new(stream, rights)?;
        let limit = match rights {
            Rights::Control => CONNECTIONS,
            Rights::Metrics => SCRAPERS,
        };
        if self.count(rights) >= limit {
            log::warn!("a client was turned away: {limit} are connected");
            connection.reject(limit);
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

    /// How many clients are connected that may do this.
    fn count(&self, rights: Rights) -> usize {
        let connections = self.connections.values();
        connections.filter(|connection| connection.rights() == rights).count()
    }

    /// Something has happened on a connection.
    fn on_connection(&mut self, number: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        let left = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if left {
            // Whoever asks and goes is still heard.
            while connection.receive(&mut self.buffer, &self.closer) {}
        } else if events.contains(EventSet::IN) {
            connection.receive(&mut self.buffer, &self.closer);
        }
        self.serve_connection(number);
        if left {
            self.remove(number);
        }
        self.bound_unfinished();
    }

    /// Forgets a client. Whoever carries out what it has asked for is told that nobody waits for it.
    fn remove(&mut self, number: u64) {
        // Dropping a connection closes its socket, which takes it out of the epoll.
        let waited = self
            .connections
            .remove(&number)
            .is_some_and(|gone| gone.pending().is_some());
        if waited {
            self.command_sender.wake();
        }
    }

    /// Has the request that has waited for its end the longest refused, and the next one, while all of them together
    /// are too much. Whoever sends a request as a whole is the last to be asked, whatever others have begun.
    fn bound_unfinished(&mut self) {
        let unfinished = |(number, connection): (&u64, &Connection)| Some((connection.unfinished()?, *number));
        loop {
            let waiting: Vec<_> = self.connections.iter().filter_map(unfinished).collect();
            let bytes: usize = waiting.iter().map(|((_, bytes), _)| bytes).sum();
            let Some((_, oldest)) = waiting.into_iter().min().filter(|_| bytes > UNFINISHED_BYTES) else {
                return;
            };
            if let Some(connection) = self.connections.get_mut(&oldest) {
                connection.refuse(Malformed::Unfinished);
            }
            self.serve_connection(oldest);
        }
    }

    /// Answers or passes on whatever requests a connection has, and sends what it is owed.
    fn serve_connection(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        connection.flush();
        while let Some((message, fds)) = connection.next() {
            let routed = match connection.rights() {
                Rights::Metrics if !is_metrics(&message) => Routed::Answer(forbidden(&message)),
                _ => route(&message, fds, &self.info, &self.events),
            };
            if routed.is_understood() {
                tell_unknown(&self.events, &message);
            }
            if let Routed::Command(_) = &routed {
                log::debug!("{}", message.path);
            }
            let was_large = message.body.len() > LARGE_BODY_BYTES;
            drop(message);
            match routed {
                Routed::Answer(response) => answer(connection, &mut self.calls, &response),
                Routed::Command(command) => {
                    let presence = connection.presence();
                    self.command_sender.send(command, number, presence, &self.answer_sender);
                }
            }
            connection.flush();
            if was_large {
                // What a command is made of goes after the command.
                trim_heap();
            }
        }
        connection.flush();
        if let Err(error) = watch(&self.epoll, connection, number) {
            log::warn!("a client was lost: {error}");
            self.remove(number);
        }
    }

    fn deliver_answers(&mut self) {
        while let Some(answer) = self.answers.next() {
            let connection = answer.connection;
            self.deliver(answer);
            self.serve_connection(connection);
        }
        self.deliver_events();
    }

    /// Has those who read events get what has happened.
    fn deliver_events(&mut self) {
        let streams = self.connections.iter().filter(|(_, connection)| connection.is_stream());
        let streams: Vec<u64> = streams.map(|(number, _)| *number).collect();
        streams.into_iter().for_each(|number| self.serve_connection(number));
    }

    /// Gives a client its answer, if it is still there.
    fn deliver(&mut self, to: Answer) {
        let pending = self.connections.get(&to.connection).and_then(Connection::pending);
        let Some(pending) = pending else {
            return;
        };
        let content = self.content(to.outcome, pending);
        let Some(connection) = self.connections.get_mut(&to.connection) else {
            return;
        };
        match content {
            Content::Whole(response) => answer(connection, &mut self.calls, &response),
            Content::Stream(events) => {
                self.calls.add(pending.endpoint, 200, pending.since.elapsed());
                connection.stream(events);
            }
        }
    }

    fn content(&self, outcome: Outcome, to: Pending) -> Content {
        Content::Whole(match outcome {
            Ok(Reply::Events(events)) => return Content::Stream(events),
            Ok(Reply::Done) => Response::done(),
            Ok(Reply::Containers(noted)) => Response::ascii_json(noted.text()),
            Ok(Reply::Json(value)) => Response::json(200, &value),
            Ok(Reply::Queues(queues)) => Response::json(200, &queues.look()),
            Ok(Reply::Figures(figures)) => {
                let exposition = Exposition {
                    figures,
                    vm: self.info.get(),
                    calls: self.calls.clone(),
                    connections: vec![
                        ("api", self.count(Rights::Control)),
                        ("metrics", self.count(Rights::Metrics)),
                    ],
                };
                Response::text(exposition.write(to.format), to.format.content_type())
            }
            Err(error) => refusal(&format!("{} has failed", to.endpoint), &error),
        })
    }

    /// Sends the answers that have been given, as far as the clients take them in time.
    fn flush_answers(mut self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let mut events = [EpollEvent::default(); 32];
        while let Some(answer) = self.answers.next() {
            self.deliver(answer);
        }
        self.connections.values_mut().for_each(Connection::end_stream);
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

/// Answers the request of `connection` that was taken last.
fn answer(connection: &mut Connection, calls: &mut Calls, response: &Response) {
    if let Some(pending) = connection.pending() {
        calls.add(pending.endpoint, response.status, pending.since.elapsed());
    }
    connection.answer(response);
}

/// What a client is told that may only look.
fn forbidden(message: &Message) -> Response {
    let what = format!("{}: this socket is for GET /metrics alone", message.path);
    refusal(&message.path, &ApiError::new(Kind::Forbidden, what))
}

/// Whether accepting failed because of the one client that was to be accepted.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
#[path = "event_loop_test.rs"]
mod tests;
