//! One request queue on its I/O thread: takes requests from the ring, keeps them moving, answers them in any order.
#![expect(
    unsafe_code,
    reason = "the engine works on guest memory that the jobs here keep alive"
)]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::ID_BYTES;
use super::config_space::Writeback;
use super::engine::{Completion, Engine};
use super::image::Image;
use super::in_flight::InFlight;
use super::job::{Answer, Job, Step};
use super::metrics::BlockMetrics;
use super::request::{self, Limits, Status};
use super::scratch::Scratch;
use crate::device::{Handler, HandlerError, Watch};
use crate::rate_limit::{Alarm, Limiter, Pace};
use crate::ring::{Chain, Ring, RingError, RingState};

/// Most requests under way in one queue. Enough to keep a fast disk busy; what is beyond waits in the ring, where it
/// costs nothing.
const MAX_DEPTH: u16 = 128;

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
    /// Jobs that wait for a bounce buffer.
    waiting: VecDeque<usize>,
    ended: Vec<Completion>,
    scratch: Scratch,
    disk: Disk,
    ring: Ring,
    pace: Pace,
    alarm: Option<Alarm>,
    want_uring: bool,
}

impl QueueHandler {
    /// Takes a ring. Everything that costs is left to the I/O thread.
    pub fn new(ring: Ring, disk: Disk, want_uring: bool) -> Self {
        Self {
            engine: Engine::Plain,
            jobs: InFlight::new(usize::from(ring.size().min(MAX_DEPTH))),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            scratch: Scratch::new(disk.metrics.clone()),
            pace: Pace::new(disk.limiter.clone()),
            alarm: None,
            disk,
            ring,
            want_uring,
        }
    }

    /// Does all that can be done now: finishes what has ended, begins what is new, tells the driver.
    fn serve(&mut self) -> Result<(), HandlerError> {
        self.proceed()?;
        self.admit()?;
        let all = self.engine.submit().map_err(|source| HandlerError::Host {
            what: "cannot submit block requests",
            source,
        })?;
        if !all {
            self.kick_self();
        }
        self.ring.signal()?;
        Ok(())
    }

    /// Goes on with every request whose host operation has ended, and with those that it makes room for.
    fn proceed(&mut self) -> Result<(), RingError> {
        let mut ended = std::mem::take(&mut self.ended);
        self.engine.reap(&mut ended);
        for Completion { slot, result } in ended.drain(..) {
            if let Some(job) = self.jobs.get_mut(slot) {
                job.complete(&self.disk.image, result);
            }
            self.advance(slot)?;
        }
        self.ended = ended;
        for slot in std::mem::take(&mut self.waiting) {
            self.advance(slot)?;
        }
        Ok(())
    }

    /// Takes new requests as long as there is room. At most one ring's worth: a driver that never pauses must not keep
    /// the thread from being stopped.
    fn admit(&mut self) -> Result<(), RingError> {
        let mut budget = self.ring.size();
        loop {
            self.ring.disable_kicks()?;
            while self.jobs.has_room() {
                let Some(left) = budget.checked_sub(1) else {
                    self.kick_self();
                    return Ok(());
                };
                // No kick is wanted here either: the timer leads here again.
                if !self.pace.allows(&self.disk.metrics.throttled) {
                    return Ok(());
                }
                let Some(chain) = self.ring.pop()? else { break };
                budget = left;
                self.begin(chain)?;
            }
            // Without room no kick is wanted: the next completion leads here again.
            if !self.jobs.has_room() || !self.ring.enable_kicks()? {
                return Ok(());
            }
        }
    }

    fn begin(&mut self, chain: Chain) -> Result<(), RingError> {
        if chain.writer().available_bytes() < request::STATUS_BYTES {
            self.disk.metrics.malformed.inc();
            return self.ring.push(chain.head(), 0);
        }
        let image = &self.disk.image;
        let job = match request::parse(&chain, Limits::of(image)) {
            Ok(request) => {
                self.pace.spend(request.bytes());
                Job::new(chain, request, image, !self.disk.writeback.is_on(), &self.disk.id)
            }
            Err(status) => {
                self.pace.spend(0);
                Job::refused(chain, status)
            }
        };
        let slot = self.jobs.insert(job);
        self.advance(slot)
    }

    /// Takes one request as far as it goes without waiting.
    fn advance(&mut self, slot: usize) -> Result<(), RingError> {
        while let Some(job) = self.jobs.get_mut(slot) {
            match job.step(&self.disk.image, &mut self.scratch) {
                Step::Run(op) => {
                    // SAFETY: file and bounce buffers, the array of buffers and, through its chain, guest memory belong
                    // to `disk`, `scratch` and the job. The job stays in its slot, untouched, until the operation's
                    // result has been told; on every way out of here the engine is dropped before any of them.
                    match unsafe { self.engine.run(slot, op) } {
                        Some(result) => job.complete(&self.disk.image, result),
                        None => return Ok(()),
                    }
                }
                Step::Wait => {
                    self.waiting.push_back(slot);
                    return Ok(());
                }
                Step::Done(status) => {
                    if let Some(job) = self.jobs.remove(slot) {
                        self.answer(job, status)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, job: Job, status: Status) -> Result<(), RingError> {
        let Answer { head, written } = job.finish(status, &mut self.scratch, &self.disk.metrics);
        self.ring.push(head, written)?;
        // Where every operation blocks, the driver should not wait for those of other requests.
        if matches!(self.engine, Engine::Plain) {
            self.ring.signal()?;
        }
        Ok(())
    }

    fn kick_self(&self) {
        // Fails only when the counter is full, and then the doorbell rings anyway.
        let _ = self.ring.kick().write(1);
    }
}

impl Handler for QueueHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let failed = |source| HandlerError::Host {
            what: "cannot watch the events of a block queue",
            source,
        };
        watch.readable(self.ring.kick().as_raw_fd(), KICKED).map_err(failed)?;
        if self.want_uring {
            self.engine = Engine::with_uring(self.jobs.depth());
        }
        if let Some(event) = self.engine.event() {
            watch.readable(event, COMPLETED).map_err(failed)?;
        }
        if self.pace.is_limited() {
            let alarm = Alarm::new().map_err(failed)?;
            watch.readable(alarm.as_raw_fd(), TIMER).map_err(failed)?;
            self.alarm = Some(alarm);
        }
        // For what became available before there was a thread.
        self.kick_self();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match (token, &mut self.alarm) {
            (KICKED, _) => self.ring.take_kick(),
            (TIMER, Some(alarm)) => alarm.rang(),
            _ => {}
        }
        self.serve()?;
        let Some(alarm) = &mut self.alarm else { return Ok(()) };
        alarm.set(self.pace.until()).map_err(|source| HandlerError::Host {
            what: "cannot set the timer of a rate limiter",
            source,
        })
    }

    /// Requests under way are finished, those still in the ring are not begun.
    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        while !self.jobs.is_empty() && self.engine.wait().is_ok() && self.proceed().is_ok() {}
        let Self {
            engine,
            jobs,
            mut scratch,
            disk,
            mut ring,
            ..
        } = *self;
        drop(engine);
        // Only if the host or the ring failed: the kernel has let go of them, and nobody can say what became of them.
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
#[path = "handler_pace_test.rs"]
mod pace_tests;
