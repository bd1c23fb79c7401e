//! All streams of one device: what becomes of a packet of the guest, and of an event at a socket of the host.
//!
//! A connection with something for the guest stands once in a queue and gets its turns from `receive.rs`. `RST` packets have a
//! queue of their own, because their connection may be gone or never have been: it is bounded by [`REPLIES_MAX`], beyond which no
//! packets of the guest are looked at (virtio 1.2 §5.10.6.2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use husk_devices::metrics::Counter;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::buf_alloc::BufAllocPool;
use super::command::{Command, Progress};
use super::connection::{Connection, State, StreamViolation};
use super::host::Host;
use super::listener::{ReserveFd, is_shortage};
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};
use super::socket::Socket;
use super::table::{Name, Table, Token};
use super::vectors::Outgoing;

/// Most connections at a time.
pub(super) const CONNECTIONS_MAX: usize = 4096;
/// Most dials of the host that have not said what they want; the oldest gives way.
pub(super) const COMMANDS_MAX: usize = 128;
/// Most dials of the host that the guest has not answered; further ones are closed.
pub(super) const REQUESTS_MAX: usize = 1024;
/// Most `RST` that wait for a buffer before the guest's packets have to wait.
pub(super) const REPLIES_MAX: usize = 1024;
/// Dials taken before other events are looked at again.
const DIALS_PER_TURN: usize = 64;
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
    /// No streams yet. `listener` is epoll's number of the listening socket, which is not watched before [`Muxer::open`].
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

    /// Takes dials of the host.
    pub fn accept(&mut self) -> io::Result<()> {
        self.starved = false;
        for _ in 0..DIALS_PER_TURN {
            match self.host.listener.accept() {
                Ok(socket) => {
                    self.reserve.renew(&self.host.listener);
                    self.admit(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_shortage(&error) => {
                    if !self.host.listener.has_dial() {
                        return Ok(());
                    }
                    if !self.shed() {
                        self.starved = true;
                        return Ok(());
                    }
                }
                // The client has gone already.
                Err(_) => {}
            }
        }
        // There may be more: ask to be told again.
        self.watch_listener(ControlOperation::Modify)
    }

    /// Makes room for the next dial, or closes it. `false` if neither can be done.
    fn shed(&mut self) -> bool {
        self.host.metrics.dials_dropped.inc();
        if let Some(oldest) = self.commands.front().copied() {
            self.end(oldest);
            return true;
        }
        self.reserve.shed(&self.host.listener)
    }

    fn admit(&mut self, socket: Socket) {
        if self.table.len() >= CONNECTIONS_MAX {
            return self.host.metrics.dials_dropped.inc();
        }
        if self.commands.len() >= COMMANDS_MAX
            && let Some(oldest) = self.commands.front().copied()
        {
            self.host.metrics.dials_dropped.inc();
            self.end(oldest);
        }
        if let Some(token) = self.insert(socket) {
            self.commands.push_back(token);
            self.read_command(token);
        }
    }

    /// Puts a socket into the table and under watch.
    fn insert(&mut self, socket: Socket) -> Option<Token> {
        let fd = socket.as_raw_fd();
        let token = self.table.insert(Connection::new(socket, self.pool.clone()));
        if self.watch(ControlOperation::Add, fd, token, false).is_err() {
            self.host.metrics.dials_dropped.inc();
            self.table.remove(token);
            return None;
        }
        Some(token)
    }

    fn read_command(&mut self, token: Token) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        let State::Command(command) = &mut connection.state else {
            return;
        };
        match Command::read(command, &connection.socket) {
            Progress::More => {}
            Progress::Gone => self.end(token),
            Progress::Malformed => {
                self.host.metrics.dials_malformed.inc();
                self.end(token);
            }
            Progress::Port(port) => self.request(token, port),
        }
    }

    /// Has the guest be asked for a stream to `port`.
    fn request(&mut self, token: Token, port: u32) {
        if self.requested >= REQUESTS_MAX {
            self.host.metrics.dials_dropped.inc();
            return self.end(token);
        }
        self.commands.retain(|waiting| *waiting != token);
        let host = self.free_port(port);
        self.table.name(token, Name { host, guest: port });
        self.requested = self.requested.saturating_add(1);
        if let Some(connection) = self.table.get_mut(token) {
            connection.state = State::Requested { asked: false };
            connection.opening = Some(Op::Request);
        }
        self.enqueue(token);
    }

    /// A port of the host that no stream to the guest's port `guest` has: there are more ports than streams.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The last one means "any" (`VMADDR_PORT_ANY`).
            self.next_port = match host.wrapping_add(1) {
                u32::MAX => FIRST_PORT,
                next => next,
            };
            if self.table.find(Name { host, guest }).is_none() {
                return host;
            }
        }
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

    /// Takes a packet of the guest.
    pub fn packet(&mut self, packet: &mut Outgoing<'_, '_>) {
        let metrics = &self.host.metrics;
        metrics.tx_packets.inc();
        let Some(header) = packet.header() else {
            metrics.malformed_chains.inc();
            if let Some(header) = packet.header_unchecked()
                && let Some(token) = self.table.find(name_of(&header))
            {
                self.reset(token);
                self.end(token);
            }
            return;
        };
        if header.src_cid != self.cid {
            return metrics.stray_packets.inc();
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            metrics.stray_packets.inc();
            return self.refuse(&header);
        }
        let Some(op) = Op::new(header.op) else {
            return metrics.stray_packets.inc();
        };
        match (op, self.table.find(name_of(&header))) {
            (Op::Request, None) => self.dial(&header),
            (Op::Reset, None) => {}
            (_, None) => {
                metrics.stray_packets.inc();
                self.refuse(&header);
            }
            (op, Some(token)) => match self.stream_packet(token, op, &header, packet) {
                Ok(()) => {}
                Err(breach) => self.cut_off(token, breach),
            },
        }
    }

    fn stream_packet(
        &mut self,
        token: Token,
        op: Op,
        header: &Header,
        packet: &mut Outgoing<'_, '_>,
    ) -> Result<(), StreamViolation> {
        let Some(connection) = self.table.get_mut(token) else {
            return Ok(());
        };
        if op == Op::Reset {
            if matches!(connection.state, State::Requested { .. }) {
                self.host.metrics.dials_refused.inc();
            }
            self.end(token);
            return Ok(());
        }
        connection.credit.peer_says(header.buf_alloc, header.fwd_cnt)?;
        match op {
            Op::Data => {
                connection.data(packet, header.len)?;
                self.host.metrics.tx_bytes.add(header.len.into());
                if !connection.outbox.is_empty() {
                    self.await_room(token, true);
                }
            }
            Op::Response => self.established(token)?,
            Op::Shutdown => self.shut_down(token, header.flags),
            Op::CreditRequest => connection.credit_wanted = true,
            Op::CreditUpdate => {}
            Op::Request | Op::Reset => return Err(StreamViolation::Protocol),
        }
        self.enqueue(token);
        Ok(())
    }

    /// The guest has accepted a dial of the host.
    fn established(&mut self, token: Token) -> Result<(), StreamViolation> {
        let Some(connection) = self.table.get_mut(token) else {
            return Ok(());
        };
        if !matches!(connection.state, State::Requested { asked: true }) {
            return Err(StreamViolation::Protocol);
        }
        let answer = format!("OK {}\n", connection.name.host);
        if !matches!(connection.socket.send(answer.as_bytes()), Ok(sent) if sent == answer.len()) {
            self.reset(token);
            self.end(token);
            return Ok(());
        }
        connection.state = State::Open;
        connection.greeting = true;
        self.requested = self.requested.saturating_sub(1);
        self.host.metrics.host_streams.inc();
        Ok(())
    }

    fn shut_down(&mut self, token: Token, flags: u32) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        connection.shut_down(flags);
        if connection.guest_shutdown != SHUTDOWN_BOTH {
            return;
        }
        // The guest need not wait until the host's program has read the rest.
        let lingers = matches!(connection.state, State::Open) && !connection.outbox.is_empty();
        self.reset(token);
        if !lingers {
            return self.end(token);
        }
        connection_of(&mut self.table, token, |connection| connection.state = State::Lingering);
        self.table.forget_name(token);
    }

    /// The guest asks for a stream to a program of the host.
    fn dial(&mut self, header: &Header) {
        let socket = match self.table.len() < CONNECTIONS_MAX {
            true => Socket::connect(&self.host.listener.path_of_port(header.dst_port)).ok(),
            false => None,
        };
        let Some(token) = socket.and_then(|socket| self.insert(socket)) else {
            self.host.metrics.guest_dials_refused.inc();
            return self.refuse(header);
        };
        self.table.name(token, name_of(header));
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        connection.state = State::Open;
        connection.opening = Some(Op::Response);
        match connection.credit.peer_says(header.buf_alloc, header.fwd_cnt) {
            Ok(()) => {
                self.host.metrics.guest_streams.inc();
                self.enqueue(token);
            }
            Err(lie) => self.cut_off(token, lie.into()),
        }
    }

    fn cut_off(&mut self, token: Token, breach: StreamViolation) {
        let counter: &Counter = match breach {
            StreamViolation::Credit => &self.host.metrics.credit_lies,
            StreamViolation::Protocol => &self.host.metrics.protocol_errors,
        };
        counter.inc();
        self.reset(token);
        self.end(token);
    }

    /// Answers a packet with `RST`, unless it was one.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.replies.push_back(header.answer(Op::Reset));
        }
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

fn connection_of(table: &mut Table, token: Token, change: impl FnOnce(&mut Connection)) {
    if let Some(connection) = table.get_mut(token) {
        change(connection);
    }
}

/// The stream that a packet of the guest belongs to.
fn name_of(header: &Header) -> Name {
    Name {
        host: header.dst_port,
        guest: header.src_port,
    }
}
