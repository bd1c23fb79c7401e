//! Tells a driver the size of its window although nothing has changed.
//!
//! Linux reads the size when it hears that the configuration has changed, and at no other time, and
//! keeps it only for a port that is ready by then (drivers/char/virtio_console.c:
//! `config_work_handler`, `find_port_by_id`). Nothing of the device says when that is; the port's
//! first output comes a little before or after. So the size is told a moment after output, a few
//! times, each moment twice as long as the one before: a size that the driver has already does
//! nothing to its terminal.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::rate_limit::DeadlineTimer;
use crate::ring::Notify;

/// From the first output to the first time.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// How often.
const REPEATS: u32 = 8;

/// What tells the driver of one life.
pub(super) struct SizeNotifier {
    config_changed: Notify,
    timer: DeadlineTimer,
    is_set: bool,
    told: u32,
}

impl SizeNotifier {
    /// One that tells by `config_changed`.
    ///
    /// # Errors
    /// The host has no timer.
    pub fn new(config_changed: Notify) -> io::Result<Self> {
        let timer = DeadlineTimer::new()?;
        Ok(Self {
            config_changed,
            timer,
            is_set: false,
            told: 0,
        })
    }

    /// The driver has printed something.
    ///
    /// # Errors
    /// What the host says of the timer.
    pub fn on_output(&mut self) -> io::Result<()> {
        if self.is_set || self.told == REPEATS {
            return Ok(());
        }
        self.is_set = true;
        let moment = FIRST_DELAY.saturating_mul(1 << self.told.min(REPEATS));
        self.timer.set(Instant::now().checked_add(moment))
    }

    /// The timer has rung.
    pub fn on_timer(&mut self) {
        self.timer.on_timer();
        self.is_set = false;
        self.told = self.told.saturating_add(1).min(REPEATS);
        self.config_changed.signal();
    }
}

impl AsRawFd for SizeNotifier {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::syscall::is_ready;

    #[test]
    fn a_guest_that_goes_on_printing_is_told_a_few_times_and_later_each_time() {
        let told = Arc::new(AtomicU32::new(0));
        let counter = told.clone();
        let notify = Notify::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let mut size_notifier = SizeNotifier::new(notify).unwrap();
        let mut least = Duration::ZERO;
        for times in 1..=REPEATS {
            size_notifier.on_output().unwrap();
            let at = size_notifier.timer.at().unwrap();
            size_notifier.on_output().unwrap();
            assert_eq!(size_notifier.timer.at(), Some(at), "more output does not put it off");
            let wait = at.saturating_duration_since(Instant::now());
            assert!(wait > least, "{wait:?}");
            least = wait;
            // Nobody waits so long here.
            size_notifier.timer.set(Some(Instant::now())).unwrap();
            assert!(is_ready(size_notifier.as_raw_fd(), libc::POLLIN, Duration::from_secs(60)).unwrap());
            size_notifier.on_timer();
            assert_eq!(told.load(Ordering::SeqCst), times);
        }
        size_notifier.on_output().unwrap();
        assert_eq!(size_notifier.timer.at(), None, "it has been told");
    }
}
