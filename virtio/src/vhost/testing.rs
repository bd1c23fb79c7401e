//! A kernel for tests: notes what it is asked, refuses what the test says, and has the eventfds of its rings.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use vm_memory::GuestMemoryBackend;
use vmm_sys_util::eventfd::EventFd;

use super::handles::VhostHandles;
use super::rings::{KernelRings, Vring};

/// What a recent kernel says of vhost-net: rings' own features, and buffers that are merged.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 27 | 1 << 26 | 1 << 15;

/// A handle as a test sees it.
pub(crate) struct FakeKernel {
    features: u64,
    asked: Mutex<Vec<String>>,
    refused: Mutex<Option<&'static str>>,
    events: Mutex<Vec<Events>>,
    positions: [AtomicU16; 2],
}

/// The eventfds of a ring.
pub(crate) struct Events {
    pub kick: EventFd,
    pub call: EventFd,
    pub fault: EventFd,
}

impl FakeKernel {
    /// A handle that has `features`.
    pub fn new(features: u64) -> Arc<Self> {
        Arc::new(Self {
            features,
            asked: Mutex::default(),
            refused: Mutex::default(),
            events: Mutex::default(),
            positions: [AtomicU16::new(0), AtomicU16::new(0)],
        })
    }

    /// The handles of a device.
    pub fn handles(handles: &[Arc<Self>], memory: &GuestMemory) -> Arc<VhostHandles> {
        let handles = handles
            .iter()
            .map(|handle| Box::new(handle.clone()) as Box<dyn KernelRings>);
        VhostHandles::new(handles.collect(), memory.clone())
    }

    /// What has been asked since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.asked))
    }

    /// Refuses whatever begins so.
    pub fn refuse(&self, what: &'static str) {
        *lock(&self.refused) = Some(what);
    }

    /// Looks at the eventfds of ring `number`.
    pub fn with_events<T>(&self, number: usize, look: impl FnOnce(&Events) -> T) -> T {
        look(lock(&self.events).get(number).unwrap())
    }

    /// Stands at `position` of ring `number`.
    pub fn go_to(&self, number: usize, position: u16) {
        self.positions[number].store(position, Ordering::SeqCst);
    }

    fn note(&self, what: String) -> io::Result<()> {
        let refused = lock(&self.refused).is_some_and(|refused| what.starts_with(refused));
        lock(&self.asked).push(what);
        match refused {
            true => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            false => Ok(()),
        }
    }
}

impl KernelRings for Arc<FakeKernel> {
    fn features(&self) -> u64 {
        self.features
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        self.note(format!("features {features:#x}"))
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        self.note(format!("memory of {} regions", memory.num_regions()))
    }

    fn set_ring(&self, number: usize, ring: &Vring<'_>) -> io::Result<()> {
        let mut events = lock(&self.events);
        events.truncate(number);
        events.push(Events {
            kick: ring.kick.try_clone()?,
            call: ring.call.try_clone()?,
            fault: ring.fault.try_clone()?,
        });
        let queue = ring.queue;
        self.note(format!("ring {number} of {} from {}", queue.size, queue.next_avail))
    }

    fn run(&self, on: bool) -> io::Result<()> {
        self.note(format!("run {on}"))
    }

    fn position(&self, number: usize) -> io::Result<u16> {
        self.note(format!("position of {number}"))?;
        Ok(self.positions[number].load(Ordering::SeqCst))
    }
}
