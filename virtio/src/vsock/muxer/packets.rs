//! Packets of the guest: which stream they are of, and what becomes of it.

use husk_devices::metrics::Counter;

use super::{CONNECTIONS_MAX, Muxer};
use crate::vsock::connection::{Connection, State, StreamViolation};
use crate::vsock::packet::{HOST_CID, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};
use crate::vsock::socket::Socket;
use crate::vsock::table::{Name, Table, Token};
use crate::vsock::vectors::Outgoing;

impl Muxer {
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
