//! The wait for requests that a back-end ends after it has given their ring back, as one does whose
//! requests are with a pool of threads.
//!
//! By the protocol a ring that is given back is done with. virtiofsd with `--thread-pool-size`
//! answers `GET_VRING_BASE` as soon as it takes no more requests, and drops the call eventfd then:
//! nothing says when those that it has taken end. The used ring shows it. Each of them is worth one
//! step of its index (virtio 1.2 §2.7.8), so that all have ended when the index has come to the
//! position that the back-end has stopped at. It is looked at from time to time, for a while:
//! requests may also be kept on purpose, as by `husk fs` those that wait for a lock, and nothing
//! tells them apart.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use husk_devices::memory::GuestMemoryMmap;
use virtio_queue::QueueState;

use super::deadline::Deadline;
use crate::call_event::used_index;
use crate::device::Watch;
use crate::timer::Timer;

/// How long such requests are waited for. A pause has five times as long for a device.
pub(super) const LIMIT: Duration = Duration::from_secs(1);
/// Until the second look. Each pause after that is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// Requests that were taken from a ring that has come back, and are not in its used ring yet. None
/// where the two positions are further apart than the ring is long: then somebody has spoilt the
/// ring, and there is nothing to wait for.
pub(super) fn late_requests(ring: &QueueState, mem: &GuestMemoryMmap) -> u16 {
    let late = ring.next_avail.wrapping_sub(used_index(mem, ring.used_ring));
    if late <= ring.size { late } else { 0 }
}

/// One wait. Never sleeps: its timer is watched by whoever has it, and looks again then.
#[derive(Default)]
pub(super) struct LateRequestWait {
    /// There once it was needed.
    timer: Option<Timer>,
    /// While it lasts: its end, and the pause until the next look.
    state: Option<(Deadline, Duration)>,
}

impl LateRequestWait {
    /// Whether it lasts: what was asked of the back-end has been answered.
    pub fn is_begun(&self) -> bool {
        self.state.is_some()
    }

    /// Begins, or goes on until the next look, with its timer watched as `token`. Returns whether
    /// there will be one: not after `limit`.
    ///
    /// # Errors
    /// The host refuses a timer.
    pub fn pause(&mut self, limit: Duration, token: u32, watch: &mut dyn Watch) -> io::Result<bool> {
        let (deadline, pause) = *self.state.get_or_insert_with(|| (Deadline::after(limit), FIRST_PAUSE));
        let Some(left) = deadline.left() else {
            return Ok(false);
        };
        if self.timer.is_none() {
            let timer = Timer::new()?;
            watch.readable(timer.as_raw_fd(), token)?;
            self.timer = Some(timer);
        }
        if let Some(timer) = &self.timer {
            timer.set(pause.min(left))?;
        }
        self.state = Some((deadline, pause.saturating_mul(2).min(LONGEST_PAUSE)));
        Ok(true)
    }

    /// To be called when the timer was readable: makes it quiet.
    pub fn on_timer(&self) {
        self.timer.as_ref().map(Timer::take_expiration);
    }

    /// Is over, for whatever reason. A timer that was set may still ring.
    pub fn end(&mut self) {
        self.state = None;
    }
}

/// A pause for a thread that may sleep.
pub(super) fn sleep(deadline: Deadline) -> bool {
    let left = deadline.left();
    std::thread::sleep(left.unwrap_or_default().min(FIRST_PAUSE));
    left.is_some()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

    use super::super::testing::shared_memory;
    use super::*;

    #[test]
    fn late_are_those_that_were_taken_and_are_not_used() {
        let mem = shared_memory(&[]).memory();
        for (next_avail, used, late) in [
            (0, 0, 0),
            (7, 7, 0),
            (7, 5, 2),
            (16, 0, 16),
            (1, 0xffff, 2),
            (17, 0, 0),
            (5, 7, 0),
        ] {
            mem.write_obj::<u16>(used, GuestAddress(0x1002)).unwrap();
            let ring = QueueState {
                max_size: 16,
                size: 16,
                next_avail,
                next_used: 0,
                event_idx_enabled: false,
                ready: true,
                desc_table: 0,
                avail_ring: 0,
                used_ring: 0x1000,
            };
            assert_eq!(late_requests(&ring, &mem), late, "{used} of {next_avail}");
        }
    }
}
