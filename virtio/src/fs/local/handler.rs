//! The own thread of one queue of a share: its doorbell, and the time at which requests that wait are tried again.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::request_queue::RequestQueue;
use super::session::Session;
use crate::device::{Handler, HandlerError, Hold, Watch};
use crate::fs::serve::RETRY;
use crate::rate_limit::DeadlineTimer;
use crate::ring::RingState;

/// [`Watch`] token of the doorbell.
const KICKED: u32 = 0;
/// [`Watch`] token of the timer.
const TIMER: u32 = 1;

/// The queue that nobody waits for when a share is mounted: it has interruptions, and nodes that are forgotten (virtio
/// 1.2 §5.11.2).
const HIGH_PRIORITY: usize = 0;

/// The running half of one queue.
pub(super) struct RequestQueueHandler {
    session: Arc<Session>,
    /// Number of the queue.
    queue: usize,
    timer: Option<DeadlineTimer>,
}

impl RequestQueueHandler {
    /// For the queue of this number.
    pub fn new(session: Arc<Session>, queue: usize) -> Self {
        let timer = None;
        Self { session, queue, timer }
    }

    fn queue(&self) -> Option<&RequestQueue> {
        self.session.queues.get(self.queue)
    }

    fn check(&self) -> Result<(), HandlerError> {
        let failure = self.queue().and_then(RequestQueue::failure);
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Handler for RequestQueueHandler {
    fn set_bus_master_flag(&mut self, bus_master: Arc<AtomicBool>) {
        self.queue()
            .into_iter()
            .for_each(|queue| queue.set_bus_master_flag(bus_master.clone()));
    }

    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.session.enter().map_err(|source| HandlerError::Host {
            what: "cannot prepare a thread that serves files",
            source,
        })?;
        if self.queue == HIGH_PRIORITY {
            self.session.reserve_fds();
        }
        let timer = DeadlineTimer::new().map_err(HandlerError::watch)?;
        watch.readable(timer.as_raw_fd(), TIMER).map_err(HandlerError::watch)?;
        self.timer = Some(timer);
        let Some(queue) = self.queue() else { return Ok(()) };
        let doorbell = queue.doorbell().as_raw_fd();
        watch.readable(doorbell, KICKED).map_err(HandlerError::watch)?;
        // For what became available before there was a thread.
        queue.ring();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == TIMER {
            self.timer.iter_mut().for_each(DeadlineTimer::on_timer);
            // Those that are tried again ring the doorbell.
            self.queue().into_iter().for_each(RequestQueue::try_again);
        } else {
            self.session.answer(self.queue);
        }
        self.check()?;
        let waiting = self.queue().is_some_and(|queue| queue.waiting() > 0);
        let Some(timer) = self.timer.as_mut().filter(|timer| waiting && !timer.is_set()) else {
            return Ok(());
        };
        let retry = Instant::now().checked_add(RETRY);
        timer.set(retry).map_err(|source| HandlerError::Host {
            what: "cannot set the timer of requests that wait",
            source,
        })
    }

    /// What has been begun is finished; what waits, and what is in the ring, stays where it is.
    fn hold(&mut self, _watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        let hold = self.queue().map_or(Hold::Held, RequestQueue::hold);
        self.check()?;
        Ok(hold)
    }

    fn release(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.queue().into_iter().for_each(RequestQueue::release);
        Ok(())
    }

    /// What has been begun is finished; what waits for a lock is refused, and what is in the ring is not taken.
    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.session.finish(self.queue).into_iter().collect()
    }
}
