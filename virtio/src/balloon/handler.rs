//! Requests of a balloon's driver (virtio 1.2 §5.5.6), and the thread that carries them out.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use husk_devices::lock;

use super::{BalloonHandle, BalloonMetrics, Discard, pages};
use crate::device::{Handler, HandlerError, Watch};
use crate::ring::{Ring, RingState, Step};

/// Ranges that are given back in one wake, and those of one more request: each costs the host some
/// microseconds, and who stops or pauses the device waits for them.
pub(super) const DISCARDS_PER_WAKE: usize = 4096;

pub(super) const INFLATE: u32 = 0;
pub(super) const DEFLATE: u32 = 1;
pub(super) const STATS: u32 = 2;
pub(super) const REPORTING: u32 = 3;
pub(super) const REFRESH: u32 = 4;

/// The running half of a balloon.
pub(super) struct BalloonHandler {
    pub inflate: Ring,
    pub deflate: Ring,
    pub stats: Option<Ring>,
    pub reporting: Option<Ring>,
    /// The head of the buffer with which the driver can be asked for statistics.
    pub held: Option<u16>,
    /// What the driver fills free pages with, if it has said that it may.
    pub poison: Option<Arc<AtomicU32>>,
    /// Whether guest memory may be touched.
    pub bus_master: Arc<AtomicBool>,
    pub handle: BalloonHandle,
    pub memory: Arc<dyn Discard>,
    pub metrics: Arc<BalloonMetrics>,
}

impl BalloonHandler {
    fn inflate(&mut self) -> Result<(), HandlerError> {
        let (memory, metrics) = (&*self.memory, &*self.metrics);
        let mut left = DISCARDS_PER_WAKE;
        self.inflate.drain(|reader, _| {
            if left == 0 {
                return Ok(Step::Later);
            }
            let given = pages::ranges(reader, |gpa, bytes| {
                left = left.saturating_sub(1);
                discard(memory, metrics, gpa, bytes);
            });
            match given {
                Ok(count) => metrics.inflated_pages.add(count as u64),
                Err(_) => metrics.bad_requests.inc(),
            }
            Ok(Step::Used(0))
        })?;
        if left == 0 {
            // Again, after whatever else waits.
            self.inflate.kick_self();
        }
        Ok(())
    }

    fn deflate(&mut self) -> Result<(), HandlerError> {
        let metrics = &*self.metrics;
        self.deflate.drain(|reader, _| {
            match pages::ranges(reader, |_, _| ()) {
                Ok(count) => metrics.deflated_pages.add(count as u64),
                Err(_) => metrics.bad_requests.inc(),
            }
            Ok(Step::Used(0))
        })
    }

    /// Keeps the buffer that came last, after a look into it. An earlier one that is still here goes back.
    fn read_stats(&mut self) -> Result<(), HandlerError> {
        let Some(ring) = &mut self.stats else { return Ok(()) };
        ring.take_kick();
        loop {
            while let Some(chain) = ring.pop()? {
                let mut shared = lock(&self.handle.shared);
                shared.stats.read(&mut chain.reader(), Instant::now());
                (shared.on_change)();
                drop(shared);
                if let Some(earlier) = self.held.replace(chain.head()) {
                    ring.push(earlier, 0)?;
                }
            }
            if !ring.enable_kicks()? {
                break;
            }
        }
        Ok(ring.signal()?)
    }

    /// Gives the buffer back, which asks for it to be filled again (virtio 1.2 §5.5.6.3).
    fn ask_for_stats(&mut self) -> Result<(), HandlerError> {
        // Fails only when nobody has asked.
        let _ = self.handle.refresh.read();
        if let (Some(ring), Some(head)) = (&mut self.stats, self.held.take()) {
            ring.push(head, 0)?;
            ring.signal()?;
        }
        Ok(())
    }

    /// Each buffer is memory that is free.
    fn take_report(&mut self) -> Result<(), HandlerError> {
        let Some(ring) = &mut self.reporting else { return Ok(()) };
        let poison = self.poison.as_ref().map_or(0, |poison| poison.load(Ordering::Acquire));
        let mut left = DISCARDS_PER_WAKE;
        ring.take_kick();
        loop {
            while let Some(chain) = ring.pop()? {
                for (gpa, bytes) in chain.writable_ranges().filter(|_| poison == 0) {
                    left = left.saturating_sub(1);
                    if discard(&*self.memory, &self.metrics, gpa, bytes) {
                        self.metrics.reported_bytes.add(bytes);
                    }
                }
                ring.push(chain.head(), 0)?;
                if left == 0 {
                    // Again, after whatever else waits.
                    ring.kick_self();
                    return Ok(ring.signal()?);
                }
            }
            if !ring.enable_kicks()? {
                break;
            }
        }
        Ok(ring.signal()?)
    }
}

/// Whether the host has it again. What it would not take is counted.
fn discard(memory: &dyn Discard, metrics: &BalloonMetrics, gpa: u64, bytes: u64) -> bool {
    let is_taken = memory.discard(gpa, bytes).is_ok();
    if !is_taken {
        metrics.discard_failures.inc();
    }
    is_taken
}

impl Handler for BalloonHandler {
    fn set_bus_master_flag(&mut self, bus_master: Arc<AtomicBool>) {
        self.bus_master = bus_master;
    }

    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let rings = [
            (Some(&self.inflate), INFLATE),
            (Some(&self.deflate), DEFLATE),
            (self.stats.as_ref(), STATS),
            (self.reporting.as_ref(), REPORTING),
        ];
        for (ring, token) in rings {
            if let Some(ring) = ring {
                watch
                    .readable(ring.kick().as_raw_fd(), token)
                    .map_err(HandlerError::watch)?;
            }
        }
        watch
            .readable(self.handle.refresh.as_raw_fd(), REFRESH)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match token {
            INFLATE => self.inflate(),
            DEFLATE => self.deflate(),
            STATS => self.read_stats(),
            REPORTING => self.take_report(),
            _ => self.ask_for_stats(),
        }
    }

    /// A driver that is gone has forgotten its balloon: whatever was in it is the guest's again.
    fn stop(self: Box<Self>) -> Vec<RingState> {
        let mut this = *self;
        let held = this.held.take().filter(|_| this.bus_master.load(Ordering::Acquire));
        if let (Some(ring), Some(head)) = (&mut this.stats, held) {
            // The ring ends; the driver need not hear of it.
            let _ = ring.push(head, 0);
        }
        let mut shared = lock(&this.handle.shared);
        shared.set_driver(None);
        shared.set_actual([0; 4]);
        shared.set_poison([0; 4]);
        drop(shared);
        let rings = [Some(this.inflate), Some(this.deflate), this.stats, this.reporting];
        rings.into_iter().flatten().map(Ring::into_state).collect()
    }
}
