//! The doorbells of the receive queues, rung when guest memory is gone: a queue keeps the driver's
//! buffers mapped from one frame to the next, and nobody says when the next one comes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::lock;
use husk_devices::memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use crate::device::MemoryListener;

/// Doorbells of the receive queues that the driver has started last.
#[derive(Default)]
pub(super) struct Doorbells(Mutex<Vec<Arc<EventFd>>>);

impl Doorbells {
    /// From now on it is these.
    pub fn set(&self, doorbells: Vec<Arc<EventFd>>) {
        *lock(&self.0) = doorbells;
    }
}

impl MemoryListener for Doorbells {
    /// Nobody keeps what is new.
    fn memory_added(&self, _memory: &GuestMemory, _deadline: Instant) -> io::Result<()> {
        Ok(())
    }

    /// The I/O threads let go of what is gone, and look at what there is.
    fn memory_removed(&self, _memory: &GuestMemory) -> io::Result<()> {
        for doorbell in lock(&self.0).iter() {
            // Fails only when the counter is full, and then the doorbell rings anyway.
            let _ = doorbell.write(1);
        }
        Ok(())
    }
}
