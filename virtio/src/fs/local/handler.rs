//! The own thread of one queue of a share: its doorbell, and the time at which requests that wait are tried again.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::lane::Lane;
use super::session::Session;
use crate::device::{Handler, HandlerError, Watch};
use crate::fs::serve::RETRY;
use crate::rate_limit::Alarm;
use crate::ring::RingState;

/// [`Watch`] token of the doorbell.
const KICKED: u32 = 0;
/// [`Watch`] token of the timer.
const TIMER: u32 = 1;

/// The lane that nobody waits for when a share is mounted: it has interruptions, and nodes that are forgotten (virtio 1.2 §5.11.2).
const HIGH_PRIORITY: usize = 0;

/// The running half of one queue.
pub(super) struct LaneHandler {
    session: Arc<Session>,
    /// Number of the lane.
    lane: usize,
    alarm: Option<Alarm>,
}

impl LaneHandler {
    /// For the lane of this number.
    pub fn new(session: Arc<Session>, lane: usize) -> Self {
        let alarm = None;
        Self { session, lane, alarm }
    }

    fn lane(&self) -> Option<&Lane> {
        self.session.lanes.get(self.lane)
    }

    fn check(&self) -> Result<(), HandlerError> {
        let failure = self.lane().and_then(Lane::failure);
        failure.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl Handler for LaneHandler {
    fn set_bus_master_flag(&mut self, bus_master: Arc<AtomicBool>) {
        self.lane()
            .into_iter()
            .for_each(|lane| lane.set_bus_master_flag(bus_master.clone()));
    }

    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.session.enter().map_err(|source| HandlerError::Host {
            what: "cannot prepare a thread that serves files",
            source,
        })?;
        if self.lane == HIGH_PRIORITY {
            self.session.make_room();
        }
        let alarm = Alarm::new().map_err(HandlerError::watch)?;
        watch.readable(alarm.as_raw_fd(), TIMER).map_err(HandlerError::watch)?;
        self.alarm = Some(alarm);
        let Some(lane) = self.lane() else { return Ok(()) };
        let doorbell = lane.doorbell().as_raw_fd();
        watch.readable(doorbell, KICKED).map_err(HandlerError::watch)?;
        // For what became available before there was a thread.
        lane.ring();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == TIMER {
            self.alarm.iter_mut().for_each(Alarm::rang);
            // Those that are tried again ring the doorbell.
            self.lane().into_iter().for_each(Lane::try_again);
        } else {
            self.session.answer(self.lane);
        }
        self.check()?;
        let waiting = self.lane().is_some_and(|lane| lane.waiting() > 0);
        let Some(alarm) = self.alarm.as_mut().filter(|alarm| waiting && !alarm.is_set()) else {
            return Ok(());
        };
        let retry = Instant::now().checked_add(RETRY);
        alarm.set(retry).map_err(|source| HandlerError::Host {
            what: "cannot set the timer of requests that wait",
            source,
        })
    }

    /// What has been begun is finished; what waits, and what is in the ring, stays where it is.
    fn hold(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.lane().into_iter().for_each(Lane::hold);
        self.check()
    }

    fn release(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.lane().into_iter().for_each(Lane::release);
        Ok(())
    }

    /// What has been begun is finished; what waits for a lock is refused, and what is in the ring is not taken.
    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.session.finish(self.lane).into_iter().collect()
    }
}
