//! The eventfd by which a driver kicks a back-end: the kernel's to signal and the back-end's to read.
//!
//! It is one open file description in two processes. The back-end can make it blocking, and fill or
//! empty its counter at any time; so no thread that anybody waits for reads or writes it. The
//! kernel's own signals never block. A kick that the kernel did not catch arrives at the queue's
//! own eventfd, which no other process has, and is passed on by the device's I/O thread, if there
//! is room.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::syscall::is_ready;

/// A doorbell that the back-end has as well. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<EventFd>);

impl Doorbell {
    /// One that has not rung.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(|event| Self(Arc::new(event)))
    }

    /// What the kernel signals.
    pub fn event(&self) -> &Arc<EventFd> {
        &self.0
    }

    /// Rings, for a kick that the kernel did not catch. For I/O threads: a back-end that makes the
    /// eventfd blocking and fills it between the two calls here holds up its own device's thread.
    pub fn ring(&self) {
        // A counter without room is one that is readable already.
        if let Ok(true) = is_ready(self.as_raw_fd(), libc::POLLOUT, Duration::ZERO) {
            // Fails only when the room has gone in that moment.
            let _ = self.0.write(1);
        }
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::testing::spoil;

    #[test]
    fn a_doorbell_that_the_back_end_has_made_blocking_and_filled_holds_nobody_up() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.ring();
        assert_eq!(doorbell.event().read().unwrap(), 1);
        spoil(doorbell.event());
        doorbell.ring();
        assert_eq!(doorbell.event().read().unwrap(), u64::MAX - 1, "it rings already");
    }
}
