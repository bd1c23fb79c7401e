//! A timer that an I/O thread watches among its other descriptors (timerfd_create(2)), and never waits for.
//!
//! Events that one epoll_wait(2) has returned are handled one after the other, and the first of them may set the timer
//! anew that the second one is of: what was readable is readable no longer then. A thread that reads it all the same
//! must not sleep until the timer rings, since it would see no kick, no reset and no request to stop as long; and how
//! long that is, a guest may choose.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::{read, retry_on_intr};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A timer. Readable once it has rung, until [`Timer::take_expiration`] is asked or it is set anew.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What the host says.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Has it ring once, `after` so long, and not when it was to ring before.
    ///
    /// # Errors
    /// What the host says.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let after = after.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Whether it has rung, of which it is made quiet. Returns at once.
    pub fn take_expiration(&self) -> bool {
        let mut count = [0; 8];
        retry_on_intr(|| read(&self.0, &mut count)).is_ok()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscall::is_ready;

    fn await_ring(timer: &Timer) {
        assert!(is_ready(timer.as_raw_fd(), libc::POLLIN, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn it_has_rung_once_and_rings_again_when_it_is_set_again() {
        let timer = Timer::new().unwrap();
        assert!(!timer.take_expiration());
        for after in [Duration::ZERO, Duration::from_millis(1)] {
            timer.set(after).unwrap();
            await_ring(&timer);
            assert!(timer.take_expiration());
            assert!(!timer.take_expiration(), "once");
        }
    }

    #[test]
    fn a_timer_that_has_rung_and_is_set_anew_has_not_rung() {
        let timer = Timer::new().unwrap();
        timer.set(Duration::ZERO).unwrap();
        await_ring(&timer);
        timer.set(Duration::MAX).unwrap();
        assert!(!timer.take_expiration(), "and nobody has waited for it");
    }
}
