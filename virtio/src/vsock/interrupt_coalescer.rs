//! When the driver hears that its packets have been taken: with the next packet that it gets, or soon.
//!
//! All that a driver does then is free memory, and an interrupt for it costs a guest as much as the
//! packet itself. Used buffers are in the used ring at once (virtio 1.2 §2.7.8); what waits is the
//! notification, as long as there are few of them, and not for long.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::ring::{Ring, RingError};
use crate::timer::Timer;

/// Buffers after which it is told at once. A driver whose queue is full waits for some of them: the
/// longest packets of Linux take 18 descriptors, so that a queue of 256 holds more than that.
const PENDING_MAX: u16 = 8;
/// How long it waits for its news at most.
const DELAY_MAX: Duration = Duration::from_millis(1);

/// The timer of news that wait.
pub(super) struct InterruptCoalescer {
    timer: Timer,
    /// It will ring.
    armed: bool,
}

impl InterruptCoalescer {
    /// Nothing waits.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        let timer = Timer::new()?;
        Ok(Self { timer, armed: false })
    }

    /// Tells the driver of `ring` what there is to tell: `now`, or when the timer rings.
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn notify(&mut self, ring: &mut Ring, now: bool) -> Result<(), RingError> {
        let waiting = ring.unannounced();
        if now || waiting >= PENDING_MAX {
            return ring.signal();
        }
        if waiting > 0 && !self.armed {
            // A timer that is running is left alone, whatever it was for: setting it costs as much as letting it ring.
            self.armed = self.timer.set(DELAY_MAX).is_ok();
            if !self.armed {
                return ring.signal();
            }
        }
        Ok(())
    }

    /// Whether it will ring.
    #[cfg(test)]
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// It has rung: makes it quiet.
    pub fn on_timer(&mut self) {
        // It is not set while it is armed: what was readable still is.
        self.timer.take_expiration();
        self.armed = false;
    }
}

impl AsRawFd for InterruptCoalescer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
