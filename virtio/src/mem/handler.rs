//! Requests of a memory device's driver (virtio 1.2 §5.15.6), and the thread that carries them out.
//!
//! One request may be for many GiB, which take the host seconds. So it is carried out in steps,
//! each of which has its place in the account when it is done. Between two of them the thread sees
//! whether it is to stop or to hold. The request stays in the ring until then: a reset finds it
//! unanswered, and the blocks as they are. What the host refuses half-way is undone, again in
//! steps, before the driver is told to try again.

use std::io;
use std::ops::Range;
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

/// Bytes that are plugged or unplugged in one wake, unless a block has more: what a Linux guest
/// asks for at once. Who stops or pauses the device waits for them.
pub(super) const STEP_BYTES: u64 = 128 << 20;

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
    /// What the first request in the ring has begun.
    pub change: Option<Change>,
}

/// A request to plug or unplug that has begun.
pub(super) struct Change {
    /// Blocks are plugged, else unplugged.
    plugs: bool,
    /// Blocks from here to `left` are done.
    from: u64,
    /// Blocks that are still to be done.
    left: Range<u64>,
    on_refusal: OnRefusal,
    /// The answer when all of it is done.
    response: u16,
}

/// What becomes of a change that the host refuses half-way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnRefusal {
    /// What is done is undone.
    Undo,
    /// What is done stays, and the runs of blocks that follow are left as they are.
    Stay,
    /// It undoes another change: the rest is tried all the same.
    GoOn,
}

impl Change {
    fn new(plugs: bool, blocks: Range<u64>, on_refusal: OnRefusal) -> Self {
        Self {
            plugs,
            from: blocks.start,
            left: blocks,
            on_refusal,
            response: RESP_ACK,
        }
    }

    /// The host has done `step`.
    fn note_done(&mut self, step: &Range<u64>) {
        self.left.start = step.end;
    }

    /// The host refuses `step`.
    fn note_refused(&mut self, step: &Range<u64>) {
        self.response = RESP_BUSY;
        match self.on_refusal {
            OnRefusal::Undo => {
                self.plugs = !self.plugs;
                self.left = self.from..step.start;
                self.on_refusal = OnRefusal::GoOn;
            }
            OnRefusal::Stay => {
                self.left.end = self.left.start;
                self.on_refusal = OnRefusal::GoOn;
            }
            OnRefusal::GoOn => self.left.start = step.end,
        }
    }
}

/// Carries requests out.
struct RequestExecutor<'a> {
    shared: &'a Mutex<Shared>,
    backing: &'a Mutex<dyn Backing>,
    metrics: &'a MemMetrics,
    change: Option<Change>,
    /// Bytes that may still be plugged or unplugged in this wake.
    budget: u64,
    changed: bool,
}

impl RequestExecutor<'_> {
    /// Answers one request, or goes on with the one that has begun; returns how many bytes of answer there are. `None`:
    /// more of it is to be done in another wake.
    fn answer(&mut self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Option<u32> {
        let has_room = writer.available_bytes() >= RESPONSE_BYTES;
        let begun = match self.change.take() {
            // Whatever the driver may have written over it since.
            Some(change) => Ok(change),
            None => match reader.read_obj::<[u8; REQUEST_BYTES]>().map(Request::parse) {
                Ok(request) if has_room => self.begin(request),
                _ => Err((RESP_ERROR, 0)),
            },
        };
        let (kind, state) = match begun {
            Ok(mut change) => {
                if !self.advance(&mut change) {
                    self.change = Some(change);
                    return None;
                }
                (change.response, 0)
            }
            Err(answer) => answer,
        };
        match kind {
            RESP_NACK => self.metrics.nacks.inc(),
            RESP_BUSY => self.metrics.busy.inc(),
            RESP_ERROR => self.metrics.bad_requests.inc(),
            _ => {}
        }
        if !has_room || writer.write_obj(response_bytes(kind, state)).is_err() {
            return Some(0);
        }
        Some(u32::try_from(RESPONSE_BYTES).expect("ten bytes"))
    }

    /// What is to be done.
    ///
    /// # Errors
    /// Nothing: the response type, and the state that was asked for.
    fn begin(&self, request: Request) -> Result<Change, (u16, u16)> {
        let Request { kind, addr, nb_blocks } = request;
        let begun = match kind {
            REQ_PLUG => self.plug(addr, nb_blocks),
            REQ_UNPLUG => self.unplug(addr, nb_blocks),
            REQ_UNPLUG_ALL => Ok(Change::new(false, 0..0, OnRefusal::Stay)),
            REQ_STATE => return Err(self.state(addr, nb_blocks)),
            _ => Err(RESP_ERROR),
        };
        begun.map_err(|response| (response, 0))
    }

    fn plug(&self, addr: u64, count: u16) -> Result<Change, u16> {
        let shared = lock(self.shared);
        let blocks = shared.region.blocks(addr, count).ok_or(RESP_ERROR)?;
        shared.region.may_plug(&blocks).map_err(response)?;
        Ok(Change::new(true, blocks, OnRefusal::Undo))
    }

    fn unplug(&self, addr: u64, count: u16) -> Result<Change, u16> {
        let shared = lock(self.shared);
        let blocks = shared.region.blocks(addr, count).ok_or(RESP_ERROR)?;
        shared.region.may_unplug(&blocks).map_err(response)?;
        Ok(Change::new(false, blocks, OnRefusal::Undo))
    }

    /// Carries `change` out as far as this wake goes. Returns whether that was all.
    fn advance(&mut self, change: &mut Change) -> bool {
        while let Some((step, offset, bytes)) = self.next_step(change) {
            if self.budget == 0 {
                return false;
            }
            self.budget = self.budget.saturating_sub(bytes);
            // Not under the lock: registers are served meanwhile. Blocks change on this thread only.
            let done = match change.plugs {
                true => self.backing().plug(offset, bytes),
                false => self.backing().unplug(offset, bytes),
            };
            match done {
                Ok(()) => {
                    self.record(&step, change.plugs);
                    change.note_done(&step);
                }
                Err(error) => {
                    self.put_off(change, &error);
                    change.note_refused(&step);
                }
            }
        }
        if change.response == RESP_ACK {
            self.metrics.requests.inc();
        }
        true
    }

    /// The blocks of the next step of `change`, and where in the region they are: offset and length in bytes.
    fn next_step(&self, change: &mut Change) -> Option<(Range<u64>, u64, u64)> {
        let shared = lock(self.shared);
        if change.left.is_empty() && change.on_refusal == OnRefusal::Stay {
            change.left = shared.region.next_plugged(change.left.end)?;
        }
        if change.left.is_empty() {
            return None;
        }
        let budget = self.budget.checked_div(shared.region.config().block_bytes);
        let count = budget.unwrap_or(0).max(1);
        let end = change.left.end.min(change.left.start.saturating_add(count));
        let step = change.left.start..end;
        let (offset, bytes) = shared.region.bytes(&step);
        Some((step, offset, bytes))
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

    /// Tells that the host refuses a step of `change`. A driver may ask again as often as it likes.
    fn put_off(&self, change: &Change, error: &io::Error) {
        let what = if change.plugs { "plug" } else { "unplug" };
        if change.on_refusal == OnRefusal::GoOn {
            log::error!(
                "memory device: what was begun cannot be undone, the host cannot {what} memory now: {}",
                error_chain(error)
            );
        } else if self.metrics.busy.get() == 0 {
            log::warn!(
                "memory device: the host cannot {what} memory now: {}; further ones are only counted",
                error_chain(error)
            );
        }
    }

    fn backing(&self) -> MutexGuard<'_, dyn Backing + 'static> {
        lock(self.backing)
    }

    fn record(&mut self, blocks: &Range<u64>, plugged: bool) {
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
            change: self.change.take(),
            budget: STEP_BYTES,
            changed: false,
        };
        let done = self.ring.drain(|reader, writer| {
            let answered = executor.answer(reader, writer);
            Ok(answered.map_or(Step::Later, Step::Used))
        });
        if executor.changed {
            (self.on_change)();
        }
        self.change = executor.change;
        if self.change.is_some() {
            self.ring.kick_self();
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
