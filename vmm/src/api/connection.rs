//! One client: what it has sent, what it is owed, and when it is done.
//!
//! Answers go out in the order of the requests, one request at a time: while one is being carried
//! out, nothing is read, and what the client sends meanwhile stays in its socket. So neither a slow
//! client nor a fast one costs more than the bounds here.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::http::{Malformed, Message, Method, Parser};
use super::passed::{FdCloser, PassedFd};
use super::queue::Presence;
use super::response::{CONTINUE, END, Response, begin_stream, chunk};
use super::routes::{asked, body_bytes};
use super::scm;
use crate::events::Reader;
use crate::metrics::{Endpoint, Format};

/// Bytes of answers that wait for a client; while there are more, its next request waits.
const UNREAD_BYTES: usize = 64 << 10;
/// The most descriptors that wait for the end of their request.
const PENDING_FDS: usize = scm::MESSAGE_FDS;
/// How long a client whose connection ends may take to notice. Until then what it still sends is
/// discarded: closing at once would cut it short before it has read why.
const LINGER: Duration = Duration::from_secs(2);

/// How far the life of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests come.
    Open,
    /// The client sends no more; what it has sent is still answered.
    Ended,
    /// Nothing is answered any more; what is owed still goes out.
    Closing,
    /// Everything has gone out.
    Lingering { until: Instant },
    /// The client has closed the connection, or it broke: it is to be dropped.
    Gone,
}

/// The request that is being carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    /// Whether the answer has no body, whatever it would say.
    head: bool,
    close: bool,
    /// What is asked for.
    pub(super) endpoint: Endpoint,
    /// When the whole request had been taken from what the client sent; its latency is counted from here.
    pub(super) since: Instant,
    /// What figures are written in.
    pub(super) format: Format,
}

impl Pending {
    /// What is no request, and ends the connection.
    fn last() -> Self {
        Self {
            head: false,
            close: true,
            endpoint: Endpoint::Unknown,
            since: Instant::now(),
            format: Format::default(),
        }
    }
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Every endpoint of the API: a client of `--api-socket`.
    Control,
    /// `vmm.metrics` alone, anything else is answered with 403: a client of `--metrics`.
    Metrics,
}

/// A client's connection.
pub(super) struct Connection {
    stream: UnixStream,
    parser: Parser,
    /// Since when there is something of a request that has not come to its end.
    begun: Option<Instant>,
    /// Descriptors, each with the length of the stream when it came: it is of the request that has the byte before.
    fds: VecDeque<(u64, PassedFd)>,
    out: VecDeque<u8>,
    pending: Option<Pending>,
    /// What the answer goes on with, to the end of the connection.
    events: Option<Reader>,
    phase: Phase,
    rights: Rights,
    presence: Presence,
    /// What epoll has been told to look for.
    pub(super) watched: EventSet,
}

impl Connection {
    /// A client that has just connected.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn new(stream: UnixStream, rights: Rights) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            parser: Parser::new(match rights {
                Rights::Control => body_bytes,
                // Figures are asked for without one.
                Rights::Metrics => |_, _| 0,
            }),
            begun: None,
            fds: VecDeque::new(),
            out: VecDeque::new(),
            pending: None,
            events: None,
            phase: Phase::Open,
            rights,
            presence: Presence::default(),
            watched: EventSet::empty(),
        })
    }

    /// Tells a client that there is no room for it, and forgets it.
    pub(super) fn reject(mut self, limit: usize) {
        let response = Response::json(503, &[format!("{limit} connections are open, no more are allowed")]);
        self.put(&response, Pending::last());
        self.flush();
    }

    /// What the client may ask for.
    pub(super) fn rights(&self) -> Rights {
        self.rights
    }

    /// There as long as this is.
    pub(super) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The request that was taken last, if it was not answered yet.
    pub(super) fn pending(&self) -> Option<Pending> {
        self.pending
    }

    /// Takes what has come, at most one `buffer` of it. Whether there may be more. Descriptors that came along are
    /// `closer`'s to close.
    pub(super) fn receive(&mut self, buffer: &mut [u8], closer: &FdCloser) -> bool {
        let mut fds = Vec::new();
        match scm::receive(&self.stream, buffer, &mut fds, closer) {
            Ok(0) => self.end(),
            Ok(bytes) => {
                if self.phase == Phase::Open {
                    self.parser.push(buffer.get(..bytes).unwrap_or_default());
                    self.begun.get_or_insert_with(Instant::now);
                    self.keep(fds);
                }
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.refuse(Malformed::Descriptors),
            Err(_) => self.phase = Phase::Gone,
        }
        false
    }

    /// The next request and its descriptors, when there is one and the client is owed nothing. It
    /// has to be [answered](Self::answer).
    pub(super) fn next(&mut self) -> Option<(Message, Vec<PassedFd>)> {
        if !matches!(self.phase, Phase::Open | Phase::Ended) || self.pending.is_some() || self.out.len() > UNREAD_BYTES
        {
            return None;
        }
        match self.parser.next_message() {
            Ok(Some(message)) => {
                // What waits beyond it is of the next one.
                self.begun = (self.parser.waiting() > 0).then(Instant::now);
                self.pending = Some(Pending {
                    head: message.method == Method::Head,
                    close: message.close,
                    endpoint: asked(&message),
                    since: Instant::now(),
                    format: message.format,
                });
                let count = self.fds.iter().take_while(|(came, _)| *came <= message.end).count();
                let fds = self.fds.drain(..count).map(|(_, fd)| fd).collect();
                return Some((message, fds));
            }
            Ok(None) if self.phase == Phase::Ended => {
                self.phase = Phase::Closing;
                self.parser.forget();
            }
            Ok(None) => {
                if self.parser.take_wait() {
                    self.out.extend(CONTINUE);
                }
            }
            Err(error) => self.refuse(error),
        }
        None
    }

    /// Since when a request has waited for its end, and of how many bytes it is by now, if there is one that nothing
    /// else holds up.
    pub(super) fn unfinished(&self) -> Option<(Instant, usize)> {
        let waiting = Some(self.parser.waiting()).filter(|bytes| *bytes > 0 && self.pending.is_none());
        self.begun.zip(waiting)
    }

    /// Answers the request that was taken last.
    pub(super) fn answer(&mut self, response: &Response) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        self.put(response, pending);
        if pending.close {
            self.phase = Phase::Closing;
        }
    }

    /// Answers the request that was taken last with what `events` has, and will have: no other
    /// request is heard. To `HEAD` that is the same without a body (RFC 9110 §9.3.2), and the end.
    pub(super) fn stream(&mut self, events: Reader) {
        begin_stream(&mut self.out);
        if self.pending.take_if(|pending| pending.head).is_some() {
            self.phase = Phase::Closing;
        } else {
            self.events = Some(events);
        }
    }

    /// Whether events go out here.
    pub(super) fn is_stream(&self) -> bool {
        self.events.is_some()
    }

    /// Nothing more will happen: what has happened still goes out, then the end.
    pub(super) fn end_stream(&mut self) {
        if let Some(events) = self.events.take() {
            chunk(&mut self.out, events.take());
            self.out.extend(END);
            self.phase = Phase::Closing;
        }
    }

    /// Takes in what there is to tell, once all before it has gone out: what a slow client does not
    /// read waits, or is lost, elsewhere. Whether anything is owed.
    fn refill(&mut self) -> bool {
        if let (Some(events), true) = (&self.events, self.out.is_empty()) {
            chunk(&mut self.out, events.take());
        }
        !self.out.is_empty()
    }

    /// Sends what is owed, as far as the client takes it.
    pub(super) fn flush(&mut self) {
        while self.refill() {
            match self.stream.write(self.out.as_slices().0) {
                Ok(0) => self.phase = Phase::Gone,
                Ok(sent) => {
                    self.out.drain(..sent.min(self.out.len()));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.phase = Phase::Gone,
            }
            return;
        }
        if self.phase == Phase::Closing {
            self.phase = match self.stream.shutdown(Shutdown::Write) {
                Ok(()) => Phase::Lingering {
                    until: Instant::now() + LINGER,
                },
                Err(_) => Phase::Gone,
            };
        }
    }

    /// Whether the client is owed nothing that it could still be given.
    pub(super) fn is_flushed(&self) -> bool {
        self.out.is_empty() || self.phase == Phase::Gone
    }

    /// Whether there is nothing more to do for this client at `now`.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Gone => true,
            Phase::Lingering { until } => until <= now,
            Phase::Open | Phase::Ended | Phase::Closing => false,
        }
    }

    /// When it is over for lack of patience, if it can be.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Lingering { until } => Some(until),
            _ => None,
        }
    }

    /// What there is to wait for. The end of the peer is told of in any case.
    pub(super) fn interest(&self) -> EventSet {
        let mut interest = EventSet::empty();
        let reading = match self.phase {
            Phase::Open => self.pending.is_none() && self.out.len() <= UNREAD_BYTES,
            Phase::Lingering { .. } => true,
            Phase::Ended | Phase::Closing | Phase::Gone => false,
        };
        interest.set(EventSet::IN, reading);
        interest.set(EventSet::OUT, !self.out.is_empty());
        interest
    }

    /// The client will send nothing more.
    fn end(&mut self) {
        self.phase = match self.phase {
            Phase::Open => Phase::Ended,
            Phase::Lingering { .. } => Phase::Gone,
            phase => phase,
        };
    }

    fn keep(&mut self, fds: Vec<PassedFd>) {
        if self.fds.len().saturating_add(fds.len()) > PENDING_FDS {
            self.refuse(Malformed::Descriptors);
            return;
        }
        let came = self.parser.received();
        self.fds.extend(fds.into_iter().map(|fd| (came, fd)));
    }

    /// Says why the stream cannot be understood, and ends.
    pub(super) fn refuse(&mut self, error: Malformed) {
        log::info!("request refused: {error}");
        let response = Response::json(error.status(), &[error.to_string()]);
        self.put(&response, Pending::last());
        self.phase = Phase::Closing;
        self.fds.clear();
        self.parser.forget();
    }

    fn put(&mut self, response: &Response, to: Pending) {
        let mut bytes = Vec::new();
        response.write(&mut bytes, to.close, to.head);
        self.out.extend(bytes);
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
