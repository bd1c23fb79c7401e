//! The way to the guest: turns of the connections, and buffers of the driver's receive queue.

use std::io;

use husk_devices::memory::GuestMemoryMmap;

use super::connection::State;
use super::metrics::VsockMetrics;
use super::muxer::Muxer;
use super::packet::{Header, Op};
use super::socket::Received;
use super::table::Token;
use super::vectors::{Taken, Vectors};
use crate::ring::{Ring, RingError};

/// Most bytes of one connection before others have their turn.
const TURN_BYTES: usize = 32 << 10;
/// Most chains of one read.
const BURST_MAX: usize = 16;

/// What a connection's turn has come to.
enum Turn {
    /// It is done for now.
    Done,
    /// It should have another one.
    Again,
    /// It found no buffer.
    NoBuffers,
}

/// The receive queue.
pub(super) struct Receive {
    pub ring: Ring,
    vectors: Vectors,
    /// Whether the driver kicks when it adds buffers.
    kicks: bool,
    /// The guest has got a packet since somebody asked last.
    pub gave: bool,
}

impl Receive {
    /// Takes the queue.
    pub fn new(ring: Ring) -> Self {
        Self {
            ring,
            vectors: Vectors::default(),
            kicks: true,
            gave: false,
        }
    }

    /// Gives the connections of `muxer` their turns, until nobody has anything for the guest, or
    /// there are no buffers for it: the driver kicks when it has some, and the ring itself when its
    /// turn is over.
    pub fn serve(&mut self, muxer: &mut Muxer, metrics: &VsockMetrics) -> Result<(), RingError> {
        let mem = self.ring.memory();
        while !(muxer.replies().is_empty() && muxer.ready().is_empty()) {
            if self.turn(muxer, &mem, metrics)? {
                continue;
            }
            // No buffers: ask to be told of new ones, unless some came just now.
            self.kicks = true;
            if !self.ring.enable_kicks()? {
                return Ok(());
            }
        }
        if std::mem::take(&mut self.kicks) {
            self.ring.disable_kicks()?;
        }
        Ok(())
    }

    /// Sends the next `RST`, or gives the next connection its turn. `false` if there was no buffer.
    fn turn(&mut self, muxer: &mut Muxer, mem: &GuestMemoryMmap, metrics: &VsockMetrics) -> Result<bool, RingError> {
        if let Some(header) = muxer.replies().front().copied() {
            let sent = self.send(mem, metrics, |_| header)?;
            if sent {
                muxer.replies().pop_front();
            }
            return Ok(sent);
        }
        let Some(token) = muxer.ready().pop_front() else {
            return Ok(true);
        };
        match self.connection_turn(muxer, token, mem, metrics)? {
            Turn::NoBuffers => {
                muxer.ready().push_front(token);
                return Ok(false);
            }
            Turn::Again => muxer.ready().push_back(token),
            Turn::Done => {
                if let Some(connection) = muxer.get_mut(token) {
                    connection.queued = false;
                }
            }
        }
        Ok(true)
    }

    fn connection_turn(
        &mut self,
        muxer: &mut Muxer,
        token: Token,
        mem: &GuestMemoryMmap,
        metrics: &VsockMetrics,
    ) -> Result<Turn, RingError> {
        let cid = muxer.cid();
        let Some(connection) = muxer.get_mut(token) else {
            return Ok(Turn::Done);
        };
        if let Some(op) = connection.opening {
            if !self.send(mem, metrics, |_| connection.header(cid, op, 0))? {
                return Ok(Turn::NoBuffers);
            }
            connection.opening = None;
            if let State::Requested { asked } = &mut connection.state {
                *asked = true;
            }
        }
        if connection.can_read() && connection.credit.free() > 0 {
            if !self.data(muxer, token, mem, metrics)? {
                return Ok(Turn::NoBuffers);
            }
        } else if connection.can_read() && !connection.credit_asked {
            if !self.send(mem, metrics, |_| connection.header(cid, Op::CreditRequest, 0))? {
                return Ok(Turn::NoBuffers);
            }
            connection.credit_asked = true;
        }
        let Some(connection) = muxer.get_mut(token) else {
            return Ok(Turn::Done);
        };
        if connection.owes_credit() && !self.send(mem, metrics, |_| connection.header(cid, Op::CreditUpdate, 0))? {
            return Ok(Turn::NoBuffers);
        }
        if let Some(flags) = connection.shutdown_due() {
            let header = |_| Header {
                flags,
                ..connection.header(cid, Op::Shutdown, 0)
            };
            if !self.send(mem, metrics, header)? {
                return Ok(Turn::NoBuffers);
            }
            connection.host_shutdown = flags;
        }
        Ok(if connection.wants_turn() {
            Turn::Again
        } else {
            Turn::Done
        })
    }

    /// Reads from a connection's socket into as many buffers as it can use. `false` if there was none.
    fn data(
        &mut self,
        muxer: &mut Muxer,
        token: Token,
        mem: &GuestMemoryMmap,
        metrics: &VsockMetrics,
    ) -> Result<bool, RingError> {
        let cid = muxer.cid();
        let Some(connection) = muxer.get_mut(token) else {
            return Ok(true);
        };
        let free = usize::try_from(connection.credit.free()).expect("usize has 64 bits");
        let limit = free.min(TURN_BYTES);
        let mut batch = self.vectors.incoming(mem);
        while batch.chains() < connection.burst && batch.room() < limit {
            match batch.take(&mut self.ring)? {
                Taken::Yes => {}
                Taken::TooSmall => metrics.malformed_chains.inc(),
                Taken::NoneLeft => break,
            }
        }
        if batch.chains() == 0 {
            return Ok(false);
        }
        let room = batch.room().min(limit);
        if room == 0 {
            // Headers fit, and nothing else: with these in front no data would ever pass.
            metrics.malformed_chains.add(batch.chains() as u64);
            batch.discard(&mut self.ring)?;
            return Ok(true);
        }
        let (read, cut) = match batch.receive(&connection.socket, room) {
            Ok(Received {
                bytes: bytes @ 1..,
                cut,
            }) => (bytes, cut),
            result => {
                batch.cancel(&mut self.ring);
                match result {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.readable = false,
                    result => {
                        connection.gone |= result.is_err();
                        connection.end_of_input();
                    }
                }
                return Ok(true);
            }
        };
        let used = batch.finish(&mut self.ring, read, |len| connection.header(cid, Op::Data, len))?;
        self.gave = true;
        // So that the guest works on these while the next are read.
        self.ring.signal()?;
        let count = u32::try_from(read).expect("at most TURN_BYTES");
        connection.credit.sent(count);
        connection.credit_asked = false;
        if read == room {
            connection.burst = connection.burst.saturating_mul(2).min(BURST_MAX);
        } else {
            // A read that comes short has emptied the socket, unless something ended it: the next
            // byte, or the end, is an event of its own.
            connection.burst = used.max(1);
            connection.readable = connection.last || cut || connection.urgent;
        }
        metrics.rx_packets.add(used as u64);
        metrics.rx_bytes.add(count.into());
        Ok(true)
    }

    /// Sends a packet without payload. `false` if there was no buffer for it.
    fn send(
        &mut self,
        mem: &GuestMemoryMmap,
        metrics: &VsockMetrics,
        header: impl FnMut(u32) -> Header,
    ) -> Result<bool, RingError> {
        let mut batch = self.vectors.incoming(mem);
        loop {
            match batch.take(&mut self.ring)? {
                Taken::Yes => break,
                Taken::TooSmall => metrics.malformed_chains.inc(),
                Taken::NoneLeft => return Ok(false),
            }
        }
        batch.finish(&mut self.ring, 0, header)?;
        self.gave = true;
        metrics.rx_packets.inc();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_length_of_a_turn_is_the_real_one() {
        let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/devices.md")).unwrap();
        let kib = TURN_BYTES >> 10;
        for said in [
            format!("Streams take turns of up to {kib} KiB."),
            format!("there are bytes, up to {kib} KiB, in one `recvmsg`."),
        ] {
            assert!(documented.contains(&said), "{said:?} is not in docs/devices.md");
        }
    }
}
