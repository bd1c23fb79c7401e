//! The timer that wakes a thread whose queues wait for a rate limiter.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A timer that is set to the first of several moments. Readable when it rings.
pub(crate) struct DeadlineTimer {
    timer: TimerFd,
    at: Option<Instant>,
}

impl DeadlineTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self { timer, at: None })
    }

    /// Sets it to `at`. A timer that nobody waits for any more may still ring.
    ///
    /// # Errors
    /// What the host says.
    pub fn set(&mut self, at: Option<Instant>) -> io::Result<()> {
        if at == self.at {
            return Ok(());
        }
        self.at = at;
        let Some(at) = at else { return Ok(()) };
        // Zero would disarm it.
        let wait = at
            .saturating_duration_since(Instant::now())
            .max(Duration::from_nanos(1));
        Ok(self.timer.reset(wait, None)?)
    }

    /// It has rung: makes it quiet.
    pub fn on_timer(&mut self) {
        // Readable, so this only resets it.
        let _ = self.timer.wait();
        self.at = None;
    }

    /// Whether it will ring.
    pub fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// When it will ring.
    #[cfg(test)]
    pub fn at(&self) -> Option<Instant> {
        self.at
    }
}

impl AsRawFd for DeadlineTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
