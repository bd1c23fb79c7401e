//! A virtqueue as `vhost_user_backend` has it, with two differences.
//!
//! Its worker threads end, without a word and with all of their queues, when a kick cannot be read
//! (`VringEpollHandler::run` of 0.24). There may be none to read: the front-end has an end of it as well and may empty
//! it, and a worker takes several events at once, of which the last may be of a kick that another has replaced
//! meanwhile. Here that is no kick, and a look at the queue too many.
//!
//! And it tells nobody which virtqueues it makes, but the workers that are woken by one: a queue whose worker is busy
//! would not be known.

use std::cell::RefCell;
use std::fs::File;
use std::io;

use husk_devices::memory::GuestMemory;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;

thread_local! {
    /// Those that this thread has made and nobody has taken.
    static MADE: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

/// A virtqueue.
#[derive(Clone)]
pub(super) struct Vring(VringMutex<GuestMemory>);

impl Vring {
    /// The virtqueues that were made on the calling thread since this was last asked, in the order of their numbers.
    pub fn take_made() -> Vec<Self> {
        MADE.take()
    }
}

impl<'a> VringStateGuard<'a, GuestMemory> for Vring {
    type G = <VringMutex<GuestMemory> as VringStateGuard<'a, GuestMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, GuestMemory> for Vring {
    type G = <VringMutex<GuestMemory> as VringStateMutGuard<'a, GuestMemory>>::G;
}

impl VringT<GuestMemory> for Vring {
    fn new(mem: GuestMemory, max_queue_size: u16) -> Result<Self, Error> {
        let vring = Self(VringMutex::new(mem, max_queue_size)?);
        MADE.with_borrow_mut(|made| made.push(vring.clone()));
        Ok(vring)
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(self.get_ref().is_enabled()),
            read => read,
        }
    }

    // All that follows is the other's.

    fn get_ref(&self) -> <Self as VringStateGuard<'_, GuestMemory>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, GuestMemory>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.0.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.0.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use husk_devices::memory::GuestMemoryMmap;

    use super::*;

    #[test]
    fn a_kick_that_is_gone_is_none_and_ends_nobody() {
        let vring = Vring::new(GuestMemory::new(GuestMemoryMmap::new()), 8).unwrap();
        // Another that is read without waiting, and has nothing.
        let (kick, _other) = UnixStream::pair().unwrap();
        kick.set_nonblocking(true).unwrap();
        vring.set_kick(Some(OwnedFd::from(kick).into()));
        assert!(!vring.read_kick().unwrap());
        vring.set_enabled(true);
        assert!(vring.read_kick().unwrap(), "the queue is looked at");
    }

    #[test]
    fn those_that_are_made_are_told_of_once() {
        Vring::take_made();
        let memory = GuestMemory::new(GuestMemoryMmap::new());
        let made = [8, 16].map(|size| Vring::new(memory.clone(), size).unwrap());
        made[1].set_enabled(true);
        let told: Vec<bool> = Vring::take_made()
            .iter()
            .map(|vring| vring.get_ref().is_enabled())
            .collect();
        assert_eq!(told, [false, true]);
        assert!(Vring::take_made().is_empty());
    }
}
