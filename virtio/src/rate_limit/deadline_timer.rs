//! The timer that wakes a thread whose queues wait for a rate limiter.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use crate::timer::Timer;

/// A timer that is set to the first of several moments. Readable when it rings.
pub(crate) struct DeadlineTimer {
    timer: Timer,
    at: Option<Instant>,
}

impl DeadlineTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        let timer = Timer::new()?;
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
        self.timer.set(at.saturating_duration_since(Instant::now()))
    }

    /// To be called when it was readable: makes it quiet. One that was set to another moment since is left alone, and
    /// rings then.
    pub fn on_timer(&mut self) {
        if self.timer.take_expiration() {
            self.at = None;
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::syscall::is_ready;

    fn await_ring(timer: &DeadlineTimer) {
        assert!(is_ready(timer.as_raw_fd(), libc::POLLIN, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn a_timer_that_rang_and_was_set_to_another_moment_meanwhile_stays_set() {
        let mut timer = DeadlineTimer::new().unwrap();
        timer.set(Some(Instant::now())).unwrap();
        await_ring(&timer);
        let later = Instant::now() + Duration::from_secs(3600);
        timer.set(Some(later)).unwrap();
        timer.on_timer();
        assert_eq!(timer.at(), Some(later));
        timer.set(Some(Instant::now())).unwrap();
        await_ring(&timer);
        timer.on_timer();
        assert!(!timer.is_set(), "it has rung for what it was set to");
    }
}
