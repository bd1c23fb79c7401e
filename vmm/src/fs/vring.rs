//! A virtqueue as `vhost_user_backend` has it, with three differences.
//!
//! Its worker threads end, without a word and with all of their queues, when a kick cannot be read
//! (`VringEpollHandler::run` of 0.24). There may be none to read: the front-end has an end of it as well and may empty
//! it, and a worker takes several events at once, of which the last may be of a kick that another has replaced
//! meanwhile. Here that is no kick, and a look at the queue too many.
//!
//! It reads kicks and writes calls as they are. Both eventfds are one open file description in two processes: the
//! front-end may have made them blocking, or do so at any time. A worker that waits in one serves none of its queues,
//! and never ends. Here a kick is read without waiting, which the call itself says (`RWF_NOWAIT`, preadv2(2)). No write
//! to an eventfd can say so: there is a look first (poll(2)) whether it has room, and one that has none is signalled
//! already. A front-end that fills a blocking one between the two calls holds up its own server.
//!
//! And it tells nobody which virtqueues it makes, but the workers that are woken by one: a queue whose worker is busy
//! would not be known.

#![expect(
    unsafe_code,
    reason = "vmm-sys-util 0.15 lends the descriptors of events by number alone"
)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use husk_devices::memory::GuestMemory;
use rustix::io::{Errno, ReadWriteFlags, preadv2, read};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use crate::terminal::{NO_OFFSET, ready_within};

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
        let vring = self.get_ref();
        if let Some(kick) = vring.get_kick() {
            read_now(kick)?;
        }
        Ok(vring.is_enabled())
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        let vring = self.get_ref();
        let Some(call) = vring.get_call() else { return Ok(()) };
        if has_room(call) { call.notify() } else { Ok(()) }
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

/// Reads a kick, if there is one at this moment.
fn read_now(kick: &EventConsumer) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `kick`, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
    let mut count = [0; 8];
    let mut taken = preadv2(
        fd,
        &mut [IoSliceMut::new(&mut count)],
        NO_OFFSET,
        ReadWriteFlags::NOWAIT,
    );
    // Not of this kind of descriptor, or no call of the kind at all.
    if let Err(Errno::OPNOTSUPP | Errno::NOSYS) = taken {
        if !ready_within(fd, libc::POLLIN, 0) {
            return Ok(());
        }
        taken = read(fd, &mut count);
    }
    match taken {
        // There will be no other.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether `call` can be signalled without waiting.
fn has_room(call: &EventNotifier) -> bool {
    // SAFETY: the descriptor is open as long as `call`, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(call.as_raw_fd()) };
    ready_within(fd, libc::POLLOUT, 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::thread;

    use husk_devices::memory::GuestMemoryMmap;
    use husk_devices::testing::PATIENCE;
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

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

    /// What `call` answers, which has to be without a wait for another thread.
    fn at_once<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        thread::spawn(move || answer.send(call()).unwrap());
        answered.recv_timeout(PATIENCE).unwrap()
    }

    #[test]
    fn eventfds_that_the_front_end_has_made_blocking_hold_nobody_up() {
        let vring = Vring::new(GuestMemory::new(GuestMemoryMmap::new()), 8).unwrap();
        let [kick, call] = [0, 1].map(|_| {
            let event = EventFd::new(EFD_CLOEXEC).unwrap().into_raw_fd();
            // SAFETY: the eventfd has given its descriptor up.
            unsafe { OwnedFd::from_raw_fd(event) }
        });
        vring.set_kick(Some(kick.try_clone().unwrap().into()));
        vring.set_call(Some(call.try_clone().unwrap().into()));
        vring.set_enabled(true);
        let (reading, signalling) = (vring.clone(), vring);
        rustix::io::write(&kick, &3_u64.to_ne_bytes()).unwrap();
        for _ in 0..2 {
            let kicked = reading.clone();
            assert!(at_once(move || kicked.read_kick().unwrap()), "the queue is looked at");
        }
        let counted = |event: &OwnedFd| {
            let mut count = [0; 8];
            read(event, &mut count).unwrap();
            u64::from_ne_bytes(count)
        };
        let called = signalling.clone();
        at_once(move || called.signal_used_queue().unwrap());
        assert_eq!(counted(&call), 1);
        rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        at_once(move || signalling.signal_used_queue().unwrap());
        assert_eq!(counted(&call), u64::MAX - 1, "it is signalled already");
        assert!(!ready_within(kick.as_fd(), libc::POLLIN, 0), "the kick was read");
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
