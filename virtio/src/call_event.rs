//! What a ring needs while somebody else serves it: a way to interrupt the driver, and where it
//! stands when it comes back.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use husk_devices::Irq;
use husk_devices::memory::GuestMemoryMmap;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::ring::Notify;
use crate::syscall::is_ready;

/// How whoever serves a ring interrupts its driver.
pub(crate) enum CallEvent {
    /// By an eventfd that is connected to the MSI-X vector.
    Direct(Irq),
    /// By an eventfd that this process watches, and never reads: there is no message, or not yet.
    Relayed(EventFd),
}

impl CallEvent {
    /// The way for `notify`. To be asked when [`Notify::share`] may be.
    ///
    /// # Errors
    /// When the host refuses an eventfd.
    pub fn new(notify: &Notify) -> io::Result<Self> {
        match notify.share() {
            Some(irq) => Ok(Self::Direct(irq)),
            None => EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self::Relayed),
        }
    }

    /// What is signalled to interrupt.
    pub fn event(&self) -> &EventFd {
        match self {
            Self::Direct(irq) => irq.event(),
            Self::Relayed(event) => event,
        }
    }

    /// What has to be watched for its edges, and passed on by [`CallEvent::relay`].
    pub fn watched(&self) -> Option<RawFd> {
        match self {
            Self::Direct(_) => None,
            Self::Relayed(event) => Some(event.as_raw_fd()),
        }
    }

    /// Passes an interrupt on to `notify`, if there was one. It is not read, since it may be
    /// another process's as well: one interrupt too many is harmless.
    pub fn relay(&self, notify: &Notify) {
        if let Some(event) = self.watched()
            && let Ok(true) = is_ready(event, libc::POLLIN, Duration::ZERO)
        {
            notify.signal();
        }
    }
}

/// `idx` of a used ring (virtio 1.2 §2.7.8); 0 where there is no such ring.
pub(crate) fn used_index(mem: &GuestMemoryMmap, used_ring: u64) -> u16 {
    let at = used_ring.checked_add(2).map(GuestAddress);
    let index = at.and_then(|at| mem.load::<u16>(at, Ordering::Acquire).ok());
    u16::from_le(index.unwrap_or_default())
}
