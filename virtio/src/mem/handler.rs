//! Requests of a memory device's driver (virtio 1.2 §5.15.6), and the thread that carries them out.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use husk_devices::{error_chain, lock};

use super::region::{BlockState, Denied};
use super::{Backing, MemMetrics, Shared, tell};
use crate::device::{Handler, HandlerError, Watch};
use crate::ring::{Reader, Ring, RingState, Step, Writer};

/// Request types (virtio 1.2 §5.15.6).
pub(super) const REQ_PLUG: u16 = 0;
pub(super) const REQ_UNPLUG: u16 = 1;
pub(super) const REQ_UNPLUG_ALL: u16 = 2;
pub(super) const REQ_STATE: u16 = 3;
/// Response types (virtio 1.2 §5.15.6).
pub(super) const RESP_ACK: u16 = 0;
pub(super) const RESP_NACK: u16 = 1;
pub(super) const RESP_BUSY: u16 = 2;
pub(super) const RESP_ERROR: u16 = 3;
/// States of blocks in a response (virtio 1.2 §5.15.6.4).
pub(super) const STATE_PLUGGED: u16 = 0;
pub(super) const STATE_UNPLUGGED: u16 = 1;
pub(super) const STATE_MIXED: u16 = 2;

pub(super) const KICK: u32 = 0;

/// Length of `struct virtio_mem_req` (virtio 1.2 §5.15.6).
const REQUEST_BYTES: usize = 24;
/// Length of `struct virtio_mem_resp`, whose last two bytes are meant for one kind of request only.
const RESPONSE_BYTES: usize = 10;

/// `struct virtio_mem_req` without its padding.
#[derive(Clone, Copy, Debug)]
struct Request {
    kind: u16,
    addr: u64,
    nb_blocks: u16,
}

impl Request {
    fn parse(bytes: [u8; REQUEST_BYTES]) -> Self {
        let [k0, k1, _, _, _, _, _, _, addr @ .., n0, n1, _, _, _, _, _, _] = bytes;
        Self {
            kind: u16::from_le_bytes([k0, k1]),
            addr: u64::from_le_bytes(addr),
            nb_blocks: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// The bytes of a `struct virtio_mem_resp`.
fn response_bytes(kind: u16, state: u16) -> [u8; RESPONSE_BYTES] {
    let ([k0, k1], [s0, s1]) = (kind.to_le_bytes(), state.to_le_bytes());
    [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
}

pub(super) struct MemHandler {
    pub ring: Ring,
    pub shared: Arc<Mutex<Shared>>,
    pub backing: Arc<Mutex<dyn Backing>>,
    pub on_change: Arc<dyn Fn() + Send + Sync>,
    pub metrics: Arc<MemMetrics>,
}

/// Carries requests out.
struct RequestExecutor<'a> {
    shared: &'a Mutex<Shared>,
    backing: &'a Mutex<dyn Backing>,
    metrics: &'a MemMetrics,
    changed: bool,
}

impl RequestExecutor<'_> {
    /// Answers one request; returns how many bytes of answer there are.
    fn answer(&mut self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> u32 {
        let request = reader.read_obj::<[u8; REQUEST_BYTES]>().map(Request::parse);
        let has_room = writer.available_bytes() >= RESPONSE_BYTES;
        let (kind, state) = match request {
            Ok(request) if has_room => self.carry_out(request),
            _ => (RESP_ERROR, 0),
        };
        match kind {
            RESP_NACK => self.metrics.nacks.inc(),
            RESP_BUSY => self.metrics.busy.inc(),
            RESP_ERROR => self.metrics.bad_requests.inc(),
            _ => {}
        }
        if !has_room || writer.write_obj(response_bytes(kind, state)).is_err() {
            return 0;
        }
        u32::try_from(RESPONSE_BYTES).expect("ten bytes")
    }

    /// The response type, and the state that was asked for.
    fn carry_out(&mut self, request: Request) -> (u16, u16) {
        let Request { kind, addr, nb_blocks } = request;
        let done = match kind {
            REQ_PLUG => self.plug(addr, nb_blocks),
            REQ_UNPLUG => self.unplug(addr, nb_blocks),
            REQ_UNPLUG_ALL => self.unplug_all(),
            REQ_STATE => return self.state(addr, nb_blocks),
            _ => Err(RESP_ERROR),
        };
        match done {
            Ok(()) => {
                self.metrics.requests.inc();
                (RESP_ACK, 0)
            }
            Err(response) => (response, 0),
        }
    }

    fn plug(&mut self, addr: u64, count: u16) -> Result<(), u16> {
        let (blocks, (offset, bytes)) = {
            let shared = lock(self.shared);
            let blocks = shared.region.blocks(addr, count).ok_or(RESP_ERROR)?;
            shared.region.may_plug(&blocks).map_err(response)?;
            let bytes = shared.region.bytes(&blocks);
            (blocks, bytes)
        };
        // Not under the lock: registers are served meanwhile. Blocks change on this thread only.
        let done = self.backing().plug(offset, bytes);
        done.map_err(|error| self.put_off("plug", &error))?;
        self.record(&blocks, true);
        Ok(())
    }

    fn unplug(&mut self, addr: u64, count: u16) -> Result<(), u16> {
        let blocks = {
            let shared = lock(self.shared);
            let blocks = shared.region.blocks(addr, count).ok_or(RESP_ERROR)?;
            shared.region.may_unplug(&blocks).map_err(response)?;
            blocks
        };
        self.give_back(&blocks)
    }

    fn unplug_all(&mut self) -> Result<(), u16> {
        let next = |shared: &Mutex<Shared>, from| lock(shared).region.next_plugged(from);
        let mut from = 0;
        while let Some(blocks) = next(self.shared, from) {
            self.give_back(&blocks)?;
            from = blocks.end;
        }
        Ok(())
    }

    fn give_back(&mut self, blocks: &std::ops::Range<u64>) -> Result<(), u16> {
        let (offset, bytes) = lock(self.shared).region.bytes(blocks);
        let done = self.backing().unplug(offset, bytes);
        done.map_err(|error| self.put_off("unplug", &error))?;
        self.record(blocks, false);
        Ok(())
    }

    fn state(&self, addr: u64, count: u16) -> (u16, u16) {
        let shared = lock(self.shared);
        let Some(blocks) = shared.region.blocks(addr, count) else {
            return (RESP_ERROR, 0);
        };
        let state = match shared.region.state(&blocks) {
            BlockState::Plugged => STATE_PLUGGED,
            BlockState::Unplugged => STATE_UNPLUGGED,
            BlockState::Mixed => STATE_MIXED,
        };
        (RESP_ACK, state)
    }

    /// A driver may ask again as often as it likes.
    fn put_off(&self, what: &str, error: &io::Error) -> u16 {
        if self.metrics.busy.get() == 0 {
            log::warn!(
                "memory device: the host cannot {what} memory now: {}; further ones are only counted",
                error_chain(error)
            );
        }
        RESP_BUSY
    }

    fn backing(&self) -> MutexGuard<'_, dyn Backing + 'static> {
        lock(self.backing)
    }

    fn record(&mut self, blocks: &std::ops::Range<u64>, plugged: bool) {
        let mut shared = lock(self.shared);
        shared.region.set(blocks, plugged);
        shared.publish();
        if plugged {
            shared.settled.store(false, Ordering::Relaxed);
            if shared.region.plugged_bytes() == shared.region.requested_bytes() {
                tell(&shared);
            }
        }
        self.changed = true;
    }
}

fn response(denied: Denied) -> u16 {
    match denied {
        Denied::Nack => RESP_NACK,
        Denied::Error => RESP_ERROR,
    }
}

impl Handler for MemHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.ring.kick().as_raw_fd(), KICK)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, _token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let mut executor = RequestExecutor {
            shared: &self.shared,
            backing: &*self.backing,
            metrics: &self.metrics,
            changed: false,
        };
        let done = self
            .ring
            .drain(|reader, writer| Ok(Step::Used(executor.answer(reader, writer))));
        if executor.changed {
            (self.on_change)();
        }
        done
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        let mut shared = lock(&self.shared);
        shared.config_changed = None;
        shared.settled.store(true, Ordering::Relaxed);
        drop(shared);
        vec![self.ring.into_state()]
    }
}
