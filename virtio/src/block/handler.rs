//! One request queue on its I/O thread: takes requests from the ring, keeps them moving, answers them in any order.
#![expect(
    unsafe_code,
    reason = "the engine works on guest memory that the jobs here keep alive"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ID_BYTES;
use super::config_space::Writeback;
use super::engine::{Completion, Engine, Op};
use super::image::Image;
use super::in_flight::InFlight;
use super::job::{Answer, Job, Step};
use super::metrics::BlockMetrics;
use super::request::{self, Limits, Status};
use super::scratch::Scratch;
use super::sync_order::SyncOrder;
use crate::device::{Handler, HandlerError, Hold, Watch};
use crate::rate_limit::{DeadlineTimer, Limiter, QueueLimiter};
use crate::ring::{Chain, Ring, RingError, RingState};

/// Most requests under way in one queue. Enough to keep a fast disk busy; what is beyond waits in the ring, where it
/// costs nothing.
const MAX_DEPTH: u16 = 128;

/// How often a turn goes on because what it has begun has ended already.
const ROUNDS: u32 = 8;

/// [`Watch`] token of the ring's doorbell.
const KICKED: u32 = 0;
/// [`Watch`] token of the engine's event.
const COMPLETED: u32 = 1;
/// [`Watch`] token of the rate limiter's timer.
const TIMER: u32 = 2;

/// What all queues of a disk share.
pub(super) struct Disk {
    /// The image.
    pub image: Arc<Image>,
    /// Answer to `VIRTIO_BLK_T_GET_ID`.
    pub id: [u8; ID_BYTES],
    /// Cache mode as it is now.
    pub writeback: Writeback,
    /// Rate limits.
    pub limiter: Option<Arc<Limiter>>,
    /// Counters.
    pub metrics: Arc<BlockMetrics>,
}

/// The running half of one queue.
pub(super) struct QueueHandler {
    // The engine is dropped first: that waits for the kernel to let go of what the other fields hold.
    engine: Engine,
    jobs: InFlight,
    sync_order: SyncOrder,
    /// Jobs that wait: for a bounce buffer, for what became of other syncs, or until the host has less to do.
    waiting: VecDeque<usize>,
    /// Cost of the operations that plain calls have carried out in this turn.
    done: usize,
    /// The queue ends: nothing is begun any more.
    ending: bool,
    /// The queue is held: nothing is begun for now.
    held: bool,
    /// Whether guest memory may be touched.
    bus_master: Arc<AtomicBool>,
    /// What has ended, and nobody has looked at.
    ended: Vec<Completion>,
    scratch: Scratch,
    disk: Disk,
    ring: Ring,
    limiter: QueueLimiter,
    timer: Option<DeadlineTimer>,
    want_uring: bool,
}

impl QueueHandler {
    /// Takes a ring. Everything that costs is left to the I/O thread.
    pub fn new(ring: Ring, disk: Disk, want_uring: bool) -> Self {
        Self {
            engine: Engine::Plain,
            jobs: InFlight::new(usize::from(ring.size().min(MAX_DEPTH))),
            sync_order: SyncOrder::default(),
            waiting: VecDeque::new(),
            done: 0,
            ending: false,
            held: false,
            bus_master: Arc::new(AtomicBool::new(true)),
            ended: Vec::new(),
            scratch: Scratch::new(disk.metrics.clone()),
            limiter: QueueLimiter::new(disk.limiter.clone()),
            timer: None,
            disk,
            ring,
            want_uring,
        }
    }

    /// Does all that can be done now. What the host has at hand ends while it is submitted, and is
    /// answered in the same turn: no more of it than may be under way.
    fn serve(&mut self) -> Result<(), HandlerError> {
        self.done = 0;
        self.proceed()?;
        self.begin_more()?;
        for _ in 1..ROUNDS {
            if !self.engine.has_ended() {
                break;
            }
            // It has rung for those. Whatever rings after this leads here again.
            self.engine.take_event();
            let ended = self.proceed()?;
            self.done = self.done.saturating_add(ended);
            self.begin_more()?;
        }
        Ok(())
    }

    /// Begins what is new, and tells the driver of what has ended.
    fn begin_more(&mut self) -> Result<(), HandlerError> {
        self.admit()?;
        self.submit()?;
        // Of what the host has begun it tells by itself.
        if self.is_at_limit() && self.jobs.cost() == 0 {
            self.ring.kick_self();
        }
        self.ring.signal()?;
        Ok(())
    }

    /// Has the host begin what is put up. What it has no resources for now is tried again in the next turn.
    fn submit(&mut self) -> Result<(), HandlerError> {
        let all = self.engine.submit().map_err(|source| HandlerError::Host {
            what: "cannot submit block requests",
            source,
        })?;
        if !all {
            self.ring.kick_self();
        }
        Ok(())
    }

    /// Goes on with every request whose host operation has ended, and with those that it makes room
    /// for. Returns what those operations have cost.
    fn proceed(&mut self) -> Result<usize, RingError> {
        let mut cost = 0_usize;
        let mut ended = std::mem::take(&mut self.ended);
        self.engine.reap(&mut ended);
        // All of them are told their results before one is answered: where the host has lost data, it has told so to
        // one sync only of those that ended with it.
        for Completion { slot, result } in &mut ended {
            cost = cost.saturating_add(self.jobs.end(*slot));
            self.sync_order.end(*slot);
            if let Some(job) = self.jobs.get_mut(*slot) {
                job.complete(&self.disk.image, std::mem::replace(result, Ok(0)));
            }
        }
        for Completion { slot, .. } in ended.drain(..) {
            self.advance(slot)?;
        }
        self.ended = ended;
        for slot in std::mem::take(&mut self.waiting) {
            if self.is_at_limit() && !self.ending {
                self.waiting.push_back(slot);
            } else {
                self.advance(slot)?;
            }
        }
        Ok(cost)
    }

    /// Takes new requests as long as there is room.
    fn admit(&mut self) -> Result<(), RingError> {
        loop {
            self.ring.disable_kicks()?;
            while self.has_room() {
                // No kick is wanted here either: the timer leads here again.
                if !self.limiter.allows(&self.disk.metrics.throttled) {
                    return Ok(());
                }
                let Some(chain) = self.ring.pop()? else { break };
                self.begin(chain)?;
            }
            // Without room no kick is wanted: the next completion leads here again, or the next turn.
            if !self.has_room() || !self.ring.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Whether another request may come in.
    fn has_room(&self) -> bool {
        self.jobs.has_room() && !self.is_at_limit()
    }

    /// Whether the host has enough to do, so that no operation should begin now.
    fn is_at_limit(&self) -> bool {
        self.held || self.done.saturating_add(self.jobs.cost()) >= self.engine.limit()
    }

    fn begin(&mut self, chain: Chain) -> Result<(), RingError> {
        if chain.writer().available_bytes() < request::STATUS_BYTES {
            self.disk.metrics.malformed.inc();
            return self.ring.push(chain.head(), 0);
        }
        let image = &self.disk.image;
        let job = match request::parse(&chain, Limits::of(image)) {
            Ok(request) => {
                self.limiter.spend(request.bytes());
                Job::new(chain, request, image, !self.disk.writeback.is_on(), &self.disk.id)
            }
            Err(status) => {
                self.limiter.spend(0);
                Job::refused(chain, status)
            }
        };
        let slot = self.jobs.insert(job);
        self.advance(slot)
    }

    /// Takes one request as far as it goes without waiting. Once the queue ends, what would need
    /// the host again has failed.
    fn advance(&mut self, slot: usize) -> Result<(), RingError> {
        let mut at_once = false;
        loop {
            let at_limit = self.is_at_limit();
            if !self.sync_order.is_settled(slot) {
                self.waiting.push_back(slot);
                return Ok(());
            }
            let Some(job) = self.jobs.get_mut(slot) else {
                return Ok(());
            };
            let status = match job.step(&self.disk.image, &mut self.scratch) {
                Step::Done(status) => status,
                Step::Run(_) | Step::Wait if self.ending => Status::IoError,
                Step::Run(op) if !at_limit => {
                    let cost = op.cost();
                    let (op, is_sync) = match op {
                        Op::Sync { .. } => {
                            let file = self.disk.image.sync_file(self.ring.index());
                            (Op::Sync { file }, true)
                        }
                        other => (other, false),
                    };
                    self.sync_order.forget(slot);
                    let others =
                        matches!(op, Op::Write { .. }) && (!self.waiting.is_empty() || self.ring.backlog()? > 0);
                    // SAFETY: file and bounce buffers, the array of buffers and, through its chain, guest memory belong
                    // to `disk`, `scratch` and the job. The job stays in its slot, untouched, until the operation's
                    // result has been told; on every way out of here the engine is dropped before any of them.
                    let Some(result) = (unsafe { self.engine.run(slot, op, others) }) else {
                        self.jobs.begin(slot, cost);
                        if is_sync {
                            self.sync_order.begin(slot);
                        }
                        return Ok(());
                    };
                    at_once = true;
                    job.complete(&self.disk.image, result);
                    self.done = self.done.saturating_add(cost);
                    continue;
                }
                Step::Run(_) | Step::Wait => {
                    self.waiting.push_back(slot);
                    return Ok(());
                }
            };
            self.sync_order.forget(slot);
            if let Some(job) = self.jobs.remove(slot) {
                self.answer(job, status)?;
                // What this thread has done itself took its time: the driver should not wait for
                // that of other requests as well.
                if at_once {
                    self.ring.signal()?;
                }
            }
        }
    }

    fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Waits for everything that the host has begun, and answers none of it.
    fn await_host(&mut self) -> io::Result<()> {
        while self.engine.is_busy() {
            self.engine.wait()?;
            self.engine.reap(&mut self.ended);
        }
        Ok(())
    }

    fn answer(&mut self, job: Job, status: Status) -> Result<(), RingError> {
        let Answer { head, written } = job.finish(status, &mut self.scratch, &self.disk.metrics);
        self.ring.push(head, written)
    }
}

impl Handler for QueueHandler {
    fn set_bus_master_flag(&mut self, bus_master: Arc<AtomicBool>) {
        self.bus_master = bus_master;
    }

    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let failed = |source| HandlerError::Host {
            what: "cannot watch the events of a block queue",
            source,
        };
        watch.readable(self.ring.kick().as_raw_fd(), KICKED).map_err(failed)?;
        if self.want_uring {
            self.engine = Engine::with_uring(self.jobs.depth(), !self.disk.image.is_direct());
        }
        if let Some(event) = self.engine.event() {
            watch.readable(event, COMPLETED).map_err(failed)?;
        }
        if self.limiter.is_limited() {
            let timer = DeadlineTimer::new().map_err(failed)?;
            watch.readable(timer.as_raw_fd(), TIMER).map_err(failed)?;
            self.timer = Some(timer);
        }
        // For what became available before there was a thread.
        self.ring.kick_self();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match (token, &mut self.timer) {
            (KICKED, _) => self.ring.take_kick(),
            (COMPLETED, _) => self.engine.take_event(),
            (TIMER, Some(timer)) => {
                timer.on_timer();
                self.limiter.on_timer();
            }
            _ => {}
        }
        if self.held {
            // What has ended is looked at by `hold`, and all else when it is released.
            return Ok(());
        }
        self.serve()?;
        let Some(timer) = &mut self.timer else { return Ok(()) };
        timer.set(self.limiter.until()).map_err(|source| HandlerError::Host {
            what: "cannot set the timer of a rate limiter",
            source,
        })
    }

    /// What the host has begun is finished. Requests that need more of it wait, as those still in
    /// the ring do: how much the driver has queued is no measure for a pause. Who may not be
    /// answered now is when the device may touch memory again.
    fn hold(&mut self, _watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        self.held = true;
        self.submit()?;
        if self.is_bus_master() {
            self.proceed()?;
            self.ring.signal()?;
        } else {
            self.engine.reap(&mut self.ended);
        }
        Ok(match self.engine.is_busy() {
            true => Hold::Pending,
            false => Hold::Held,
        })
    }

    fn release(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.held = false;
        // The completion that would have led back to the ring has been seen.
        self.ring.kick_self();
        Ok(())
    }

    /// What the host has begun is finished. Requests that need more of it have failed: how many the
    /// driver has made, and how long they are, is no measure for whoever waits. Each request that
    /// was taken is answered, if memory may be touched; those still in the ring are not taken.
    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        self.ending = true;
        let answers = self.is_bus_master();
        // Where that fails, the engine waits when it is dropped.
        let _ = self.await_host();
        if answers {
            // A ring that fails is told of to nobody any more.
            let _ = self.proceed();
        }
        let Self {
            engine,
            mut jobs,
            mut scratch,
            disk,
            mut ring,
            ended,
            ..
        } = *self;
        drop(engine);
        for Completion { slot, result } in &ended {
            if let Some(job) = jobs.get_mut(*slot) {
                job.note_lost(&disk.image, result);
            }
        }
        if !answers {
            return vec![ring.into_state()];
        }
        // None of them is with the kernel any more.
        for job in jobs.into_jobs() {
            let Answer { head, written } = job.finish(Status::IoError, &mut scratch, &disk.metrics);
            // A ring that failed before fails again.
            let _ = ring.push(head, written);
        }
        let _ = ring.signal();
        vec![ring.into_state()]
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;

#[cfg(test)]
#[path = "handler_flight_test.rs"]
mod flight_tests;

#[cfg(test)]
#[path = "handler_model_test.rs"]
mod model_tests;

#[cfg(test)]
#[path = "handler_rate_limit_test.rs"]
mod rate_limit_tests;
