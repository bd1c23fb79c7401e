//! The I/O threads of one device, apart from its registers: a control thread holds and stops them without the
//! function's lock.
//!
//! A vCPU has that lock while it uses the registers, and may have it for as long as another process likes:
//! `KVM_IOEVENTFD`, which connects doorbells at `DRIVER_OK`, waits until no vCPU is in the middle of a page fault, and
//! that waits for the file system behind the page.

use std::sync::{Arc, Mutex, MutexGuard};

use husk_devices::lock;

use crate::device::Retire;
use crate::worker::Worker;

/// The workers of one device, none before `DRIVER_OK`. No method waits for a thread, and whoever has its lock walks a
/// list.
pub struct Workers {
    list: Mutex<List>,
    device: Option<Arc<dyn Retire>>,
}

#[derive(Default)]
struct List {
    workers: Vec<Worker>,
    /// Each that comes is to stop.
    is_retired: bool,
}

impl Workers {
    /// None yet; `device` is told of [`Workers::retire`].
    pub(super) fn new(device: Option<Arc<dyn Retire>>) -> Self {
        Self {
            list: Mutex::default(),
            device,
        }
    }

    /// Asks the device to finish what it has begun, here, in the kernel and in other processes, and to begin nothing
    /// until [`Workers::release`]: connections, and requests that it has not begun, stay as they are. Returns at once;
    /// the waker of the device's [`Threads`](crate::threads::Threads) is woken when [`Workers::is_held`] may have
    /// become true. For control threads, once no vCPU runs.
    pub fn hold(&self) {
        self.list().workers.iter().for_each(Worker::hold);
    }

    /// Whether nothing of the device writes guest memory any more, after [`Workers::hold`].
    pub fn is_held(&self) -> bool {
        self.list().workers.iter().all(Worker::is_held)
    }

    /// Lets the device go on after [`Workers::hold`].
    pub fn release(&self) {
        self.list().workers.iter().for_each(Worker::release);
    }

    /// Asks the device to stop, for good: whatever a driver still writes does not start it again, and what it is
    /// starting at this moment stops. Returns at once; the waker of the device's [`Threads`](crate::threads::Threads)
    /// is woken when [`Workers::is_stopped`] may have become true.
    pub fn retire(&self) {
        self.list().is_retired = true;
        // Before they are asked to stop: one may wait for another process.
        if let Some(device) = &self.device {
            device.retire();
        }
        self.stop();
    }

    /// Whether [`Workers::retire`] was called.
    pub(super) fn is_retired(&self) -> bool {
        self.list().is_retired
    }

    /// Whether no I/O thread touches guest memory any more. Final after [`Workers::retire`] once nobody has the
    /// function's lock: a vCPU may be in the middle of starting the device.
    pub fn is_stopped(&self) -> bool {
        self.list().workers.iter().all(Worker::is_stopped)
    }

    /// Asks those that there are to stop.
    pub(super) fn stop(&self) {
        self.list().workers.iter().for_each(Worker::stop);
    }

    /// One more.
    pub(super) fn add(&self, worker: Worker) {
        let mut list = self.list();
        // Either this sees that the device is retired, or whoever retires it finds the worker.
        if list.is_retired {
            worker.stop();
        }
        list.workers.push(worker);
    }

    /// Gives them to whoever waits for their end.
    pub(super) fn take(&self) -> Vec<Worker> {
        std::mem::take(&mut self.list().workers)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        lock(&self.list)
    }
}
