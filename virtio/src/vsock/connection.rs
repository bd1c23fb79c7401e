//! One stream between a program of the guest and a socket of the host.

use std::io;
use std::net::Shutdown;

use super::buf_alloc::BufAllocPool;
use super::command::Command;
use super::credit::{Credit, CreditViolation};
use super::outbox::Outbox;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::socket::Socket;
use super::table::Name;
use super::vectors::Outgoing;

/// How far a connection has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// The host's program has not said yet what it wants.
    Command(Command),
    /// The guest is to be asked, or has been.
    Requested {
        /// It has been.
        asked: bool,
    },
    /// Data may flow.
    Open,
    /// The guest is done and knows it; the rest of what it has sent is still to go.
    Lingering,
}

/// A packet that the state of its stream does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamViolation {
    /// More data than there was credit for, or credit for what was never sent.
    Credit,
    /// Anything else.
    Protocol,
}

impl From<CreditViolation> for StreamViolation {
    fn from(_: CreditViolation) -> Self {
        Self::Credit
    }
}

/// One connection.
pub(super) struct Connection {
    /// The host's end.
    pub socket: Socket,
    /// Both ports, once there is a stream.
    pub name: Name,
    /// How far it is.
    pub state: State,
    /// Flow control.
    pub credit: Credit,
    /// What waits for the host's program.
    pub outbox: Outbox,
    /// Chains to take for the next read: grows while they are filled.
    pub burst: usize,
    /// Is in the queue of those with something for the guest.
    pub queued: bool,
    /// Is told when the socket has room again.
    pub awaits_room: bool,
    /// `OK` was sent, and the host's program may not have read it. Nothing may follow before that:
    /// shims take what comes in one piece with the line for a part of it.
    pub greeting: bool,
    /// `REQUEST` or `RESPONSE`, to be sent before anything else.
    pub opening: Option<Op>,
    /// The guest wants to know our credit.
    pub credit_wanted: bool,
    /// The guest was asked for its credit, and nothing has been sent since.
    pub credit_asked: bool,
    /// There may be something to read.
    pub readable: bool,
    /// The host's program has sent data out of band. The kernel ends a read before such a byte, whatever is behind it.
    pub urgent: bool,
    /// The host's program sends no more: what is there is the rest.
    pub last: bool,
    /// The rest has been read.
    pub ended: bool,
    /// The host's program has closed its socket.
    pub gone: bool,
    /// The host's program takes no more: what comes is thrown away.
    pub deaf: bool,
    /// What the guest has shut down.
    pub guest_shutdown: u32,
    /// What the guest was told to be shut down on the host.
    pub host_shutdown: u32,
}

impl Connection {
    /// A dial of the host, with a part of `pool` for what the guest will send.
    pub fn new(socket: Socket, pool: BufAllocPool) -> Self {
        Self {
            socket,
            name: Name::default(),
            state: State::Command(Command::default()),
            credit: Credit::new(pool),
            outbox: Outbox::default(),
            burst: 1,
            queued: false,
            awaits_room: false,
            greeting: false,
            opening: None,
            credit_wanted: false,
            credit_asked: false,
            readable: false,
            urgent: false,
            last: false,
            ended: false,
            gone: false,
            deaf: false,
            guest_shutdown: 0,
            host_shutdown: 0,
        }
    }

    /// A packet of this stream to context `cid`; the guest learns our credit with it.
    pub fn header(&mut self, cid: u64, op: Op, len: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.announce();
        self.credit_wanted = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: self.name.host,
            dst_port: self.name.guest,
            len,
            kind: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Whether the guest is owed a packet.
    pub fn wants_turn(&self) -> bool {
        self.opening.is_some()
            || self.owes_credit()
            || self.shutdown_due().is_some()
            || (self.can_read() && (self.credit.free() > 0 || !self.credit_asked))
    }

    /// Whether the guest should be told our credit now.
    pub fn owes_credit(&self) -> bool {
        matches!(self.state, State::Open) && (self.credit_wanted || self.credit.is_update_due())
    }

    /// Whether reading from the host makes sense.
    pub fn can_read(&self) -> bool {
        matches!(self.state, State::Open) && self.readable && !self.ended && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Flags of the `SHUTDOWN` that the guest is owed, if any. It is not told what it has said itself.
    pub fn shutdown_due(&self) -> Option<u32> {
        let send = if self.ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.deaf || (self.gone && self.ended) {
            SHUTDOWN_RECEIVE
        } else {
            0
        };
        let flags = send | receive;
        let said = ((self.guest_shutdown << 1) | (self.guest_shutdown >> 1)) & SHUTDOWN_BOTH;
        let news = flags & !self.host_shutdown & !said;
        (matches!(self.state, State::Open) && news != 0).then_some(flags)
    }

    /// The socket is at its end, or broken.
    pub fn end_of_input(&mut self) {
        self.readable = false;
        self.ended = true;
    }

    /// Takes data from the guest: to the socket as far as it goes, the rest to the outbox.
    ///
    /// # Errors
    /// When the guest may not send this.
    pub fn data(&mut self, packet: &mut Outgoing<'_, '_>, len: u32) -> Result<(), StreamViolation> {
        if !matches!(self.state, State::Open) || self.opening.is_some() || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Err(StreamViolation::Protocol);
        }
        self.credit.received(len)?;
        if len == 0 {
            return Ok(());
        }
        let whole = usize::try_from(len).expect("usize has 64 bits");
        let mut sent = 0;
        if self.outbox.is_empty() && !self.deaf && !self.is_greeting() {
            match packet.send(&self.socket, whole) {
                Ok(done) => sent = done,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            sent = whole;
        } else if sent < whole {
            packet.store(&mut self.outbox, sent, whole);
        }
        self.forwarded(sent);
        Ok(())
    }

    /// Moves what is in the outbox on.
    pub fn flush(&mut self) {
        if self.is_greeting() {
            return;
        }
        match self.outbox.flush(&self.socket) {
            Ok(sent) => self.forwarded(sent),
            Err(_) => {
                self.deaf = true;
                let lost = self.outbox.clear();
                self.forwarded(lost);
            }
        }
        self.pass_shutdown_on();
    }

    /// Whether the host's program must read its `OK` before it is sent more.
    fn is_greeting(&mut self) -> bool {
        self.greeting = self.greeting && !self.socket.is_drained();
        self.greeting
    }

    /// Takes the guest's `SHUTDOWN`.
    pub fn shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        self.pass_shutdown_on();
    }

    fn pass_shutdown_on(&mut self) {
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && !self.ended {
            self.socket.shutdown(Shutdown::Read);
            self.end_of_input();
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.outbox.is_empty() && !self.deaf {
            self.socket.shutdown(Shutdown::Write);
            self.deaf = true;
        }
    }

    fn forwarded(&mut self, bytes: usize) {
        // The outbox and a packet are both bounded by a credit of 32 bits.
        self.credit.forwarded(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}
