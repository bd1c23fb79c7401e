//! All streams of one device, and what becomes of an event at a socket of the host.
//!
//! A connection with something for the guest stands once in a queue and gets its turns from
//! `receive.rs`. `RST` packets have a queue of their own, because their connection may be gone or
//! never have been: it is bounded by [`REPLIES_MAX`], beyond which no packets of the guest are
//! looked at (virtio 1.2 §5.10.6.2).

mod dials;
mod packets;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::buf_alloc::BufAllocPool;
use super::connection::{Connection, State};
use super::host::Host;
use super::listener::ReserveFd;
use super::packet::{Header, Op};
use super::table::{Table, Token};

/// Most connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 4096;
/// Most dials of the host that have not said what they want; the oldest gives way.
pub(super) const COMMANDS_MAX: usize = 128;
/// Most dials of the host that the guest has not answered; further ones are closed.
pub(super) const REQUESTS_MAX: usize = 1024;
/// Most `RST` that wait for a buffer before the guest's packets have to wait.
pub(super) const REPLIES_MAX: usize = 1024;
/// Ports of the host's side of streams that it opens are counted up from here: above those that programs choose.
const FIRST_PORT: u32 = 1 << 30;

/// The streams and dials of one device.
pub(super) struct Muxer {
    cid: u64,
    host: Arc<Host>,
    /// Made on the I/O thread: the thread that starts a device may not.
    epoll: Option<Epoll>,
    /// epoll's number of the listening socket.
    listener: u64,
    table: Table,
    /// What streams may have the guest send.
    pool: BufAllocPool,
    /// Connections with something for the guest, in the order of their turns.
    ready: VecDeque<Token>,
    /// `RST` packets on their way to the guest.
    replies: VecDeque<Header>,
    /// Dials that have not said what they want, oldest first.
    commands: VecDeque<Token>,
    /// Dials that the guest has not answered.
    requested: usize,
    next_port: u32,
    pub(super) reserve: ReserveFd,
    /// Dials wait until a descriptor becomes free, here or elsewhere.
    starved: bool,
}

impl Muxer {
    /// No streams yet. `listener` is epoll's number of the listening socket, which is not watched
    /// before [`Muxer::open`].
    pub fn new(cid: u64, host: Arc<Host>, listener: u64) -> Self {
        Self {
            cid,
            reserve: ReserveFd::new(&host.listener),
            host,
            epoll: None,
            listener,
            table: Table::default(),
            pool: BufAllocPool::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            commands: VecDeque::new(),
            requested: 0,
            next_port: FIRST_PORT,
            starved: false,
        }
    }

    /// Begins to take dials. Returns what is readable when something has happened at a socket.
    pub fn open(&mut self) -> io::Result<RawFd> {
        let fd = self.epoll.insert(Epoll::new()?).as_raw_fd();
        self.watch_listener(ControlOperation::Add)?;
        Ok(fd)
    }

    /// What has happened since the last time. Does not wait.
    pub fn events(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.epoll.as_ref().map_or(Ok(0), |epoll| epoll.wait(0, events)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, event: EpollEvent) -> io::Result<()> {
        let epoll = self.epoll.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        epoll.ctl(operation, fd, event)
    }

    /// The guest's context.
    pub fn cid(&self) -> u64 {
        self.cid
    }

    /// Whether the guest's packets should wait.
    pub fn is_congested(&self) -> bool {
        self.replies.len() >= REPLIES_MAX
    }

    /// The `RST` packets that wait for a buffer.
    pub fn replies(&mut self) -> &mut VecDeque<Header> {
        &mut self.replies
    }

    /// The connections with something for the guest.
    pub fn ready(&mut self) -> &mut VecDeque<Token> {
        &mut self.ready
    }

    /// A connection that has not ended.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut Connection> {
        self.table.get_mut(token)
    }

    /// Ends all streams and dials, without a word to the guest. The host's programs come to the end of theirs.
    pub fn forget_all(&mut self) {
        self.table = Table::default();
        self.ready.clear();
        self.replies.clear();
        self.commands.clear();
        self.requested = 0;
    }

    /// Whether dials wait for a descriptor: they are to be looked at again soon.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// Something happened at a socket: `events` as epoll says it.
    pub fn socket_event(&mut self, token: Token, events: u32) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        let has = |set: EventSet| events & set.bits() != 0;
        let broken = has(EventSet::HANG_UP | EventSet::ERROR);
        connection.gone |= broken;
        connection.urgent |= has(EventSet::PRIORITY);
        connection.last |= broken || has(EventSet::READ_HANG_UP);
        connection.readable |= connection.last || has(EventSet::IN);
        match connection.state {
            State::Command(_) => self.read_command(token),
            State::Requested { asked } if connection.gone => {
                if asked {
                    self.reset(token);
                }
                self.end(token);
            }
            State::Requested { .. } => {}
            State::Open | State::Lingering => {
                if connection.awaits_room && (broken || has(EventSet::OUT)) {
                    self.flush(token);
                }
                self.enqueue(token);
            }
        }
    }

    fn flush(&mut self, token: Token) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        connection.flush();
        if !connection.outbox.is_empty() {
            return;
        }
        if matches!(connection.state, State::Lingering) {
            return self.end(token);
        }
        self.await_room(token, false);
    }

    /// Says whether to be told when the socket has room.
    fn await_room(&mut self, token: Token, wanted: bool) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        if connection.awaits_room == wanted {
            return;
        }
        connection.awaits_room = wanted;
        let fd = connection.socket.as_raw_fd();
        // Only the kernel's want of memory can prevent this; then the stream goes on when its program speaks or leaves.
        let _ = self.watch(ControlOperation::Modify, fd, token, wanted);
    }

    /// Tells the guest that a stream has ended.
    fn reset(&mut self, token: Token) {
        let cid = self.cid;
        if let Some(connection) = self.table.get_mut(token) {
            let header = Header {
                buf_alloc: 0,
                fwd_cnt: 0,
                ..connection.header(cid, Op::Reset, 0)
            };
            self.replies.push_back(header);
        }
    }

    /// Closes a connection, whatever its state.
    fn end(&mut self, token: Token) {
        let Some(connection) = self.table.remove(token) else {
            return;
        };
        match connection.state {
            State::Command(_) => self.commands.retain(|waiting| *waiting != token),
            State::Requested { .. } => self.requested = self.requested.saturating_sub(1),
            State::Open | State::Lingering => {}
        }
        if connection.queued {
            // A guest without buffers could otherwise make the queue as long as it likes.
            self.ready.retain(|waiting| *waiting != token);
        }
        drop(connection);
        if std::mem::take(&mut self.starved) {
            // Cannot fail for want of memory: the entry exists.
            let _ = self.watch_listener(ControlOperation::Modify);
        }
    }

    /// Lets a connection have a turn if it has something for the guest.
    fn enqueue(&mut self, token: Token) {
        if let Some(connection) = self.table.get_mut(token)
            && !connection.queued
            && connection.wants_turn()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    fn watch(&self, operation: ControlOperation, fd: RawFd, token: Token, room: bool) -> io::Result<()> {
        let mut events = EventSet::IN | EventSet::PRIORITY | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if room {
            events |= EventSet::OUT;
        }
        self.control(operation, fd, EpollEvent::new(events, token.number()))
    }

    fn watch_listener(&self, operation: ControlOperation) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, self.listener);
        self.control(operation, self.host.listener.as_raw_fd(), event)
    }
}
