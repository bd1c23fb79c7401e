//! Tells a driver the size of its window although nothing has changed.
//!
//! Linux reads the size when it hears that the configuration has changed, and at no other time, and keeps it only for a port that is
//! ready by then (drivers/char/virtio_console.c: `config_work_handler`, `find_port_by_id`). Nothing of the device says when that is; the
//! port's first output comes a little before or after. So the size is told a moment after output, a few times, each moment twice as long
//! as the one before: a size that the driver has already does nothing to its terminal.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::rate_limit::Alarm;
use crate::ring::Notify;

/// From the first output to the first time.
const SOON: Duration = Duration::from_millis(50);
/// How often.
const TIMES: u32 = 8;

/// What tells the driver of one life.
pub(super) struct Teller {
    config_changed: Notify,
    alarm: Alarm,
    is_set: bool,
    told: u32,
}

impl Teller {
    /// One that tells by `config_changed`.
    ///
    /// # Errors
    /// The host has no timer.
    pub fn new(config_changed: Notify) -> io::Result<Self> {
        let alarm = Alarm::new()?;
        Ok(Self {
            config_changed,
            alarm,
            is_set: false,
            told: 0,
        })
    }

    /// The driver has printed something.
    ///
    /// # Errors
    /// What the host says of the timer.
    pub fn printed(&mut self) -> io::Result<()> {
        if self.is_set || self.told == TIMES {
            return Ok(());
        }
        self.is_set = true;
        let moment = SOON.saturating_mul(1 << self.told.min(TIMES));
        self.alarm.set(Instant::now().checked_add(moment))
    }

    /// The timer has rung.
    pub fn rang(&mut self) {
        self.alarm.rang();
        self.is_set = false;
        self.told = self.told.saturating_add(1).min(TIMES);
        self.config_changed.signal();
    }
}

impl AsRawFd for Teller {
    fn as_raw_fd(&self) -> RawFd {
        self.alarm.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_guest_that_goes_on_printing_is_told_a_few_times_and_later_each_time() {
        let told = Arc::new(AtomicU32::new(0));
        let counter = told.clone();
        let notify = Notify::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let mut teller = Teller::new(notify).unwrap();
        let mut least = Duration::ZERO;
        for times in 1..=TIMES {
            teller.printed().unwrap();
            let at = teller.alarm.at().unwrap();
            teller.printed().unwrap();
            assert_eq!(teller.alarm.at(), Some(at), "more output does not put it off");
            let wait = at.saturating_duration_since(Instant::now());
            assert!(wait > least, "{wait:?}");
            least = wait;
            // Nobody waits so long here.
            teller.alarm.set(Some(Instant::now())).unwrap();
            teller.rang();
            assert_eq!(told.load(Ordering::SeqCst), times);
        }
        teller.printed().unwrap();
        assert_eq!(teller.alarm.at(), None, "it has been told");
    }
}
