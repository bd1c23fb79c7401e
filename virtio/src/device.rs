//! The contract between a virtio device, its transport and the thread that runs it.
//!
//! Identity is data ([`Profile`]), runtime is ownership: at `DRIVER_OK` the transport builds the
//! [`Ring`]s and gives them to [`VirtioDevice::start`], which moves them into [`Handler`]s; reset,
//! pause and unplug take them back by [`Handler::stop`].

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use husk_devices::MetricsSource;
use husk_devices::memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use crate::ring::{Notify, Ring, RingState};
use crate::threads::ThreadClass;

/// What a device is, before any driver has spoken to it.
#[derive(Clone, Debug)]
pub struct Profile {
    /// virtio device ID (virtio 1.2 §5), for example 2 for block.
    pub id: u32,
    /// PCI class code: class, subclass, programming interface in the low 24 bits.
    pub class: u32,
    /// Device-type feature bits offered (virtio 1.2 §6). The transport adds `VIRTIO_F_VERSION_1` and the ring features.
    pub features: u64,
    /// Largest size of each virtqueue, in descriptors: powers of two up to 32768.
    pub queue_sizes: Vec<u16>,
}

/// The device configuration space (virtio 1.2 §2.5), shared between transport and device.
pub trait ConfigAccess: Send {
    /// Fills `data` from `offset`; bytes beyond the end of the configuration read as 0.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes a driver's write; most devices ignore it. Called on a vCPU thread.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// `config_generation` (virtio 1.2 §4.1.4.3): changes whenever a multi-byte field could have been read torn.
    fn generation(&self) -> u8;
}

/// Everything a device gets when the driver sets `DRIVER_OK`.
pub struct Activation {
    /// Guest RAM that the device may reach. `mem.memory()` yields it as it is at that moment; it may grow and shrink.
    pub mem: GuestMemory,
    /// Negotiated feature bits: offered by the device or the transport, and accepted by the driver.
    pub features: u64,
    /// The enabled queues in index order; `None` where the driver left a queue disabled.
    pub rings: Vec<Option<Ring>>,
    /// Raises the configuration change interrupt (virtio 1.2 §2.3). Never blocks; any thread.
    pub config_changed: Notify,
}

impl Activation {
    /// Takes the ring of a queue that the device cannot work without.
    ///
    /// # Errors
    /// [`StartError::QueueMissing`] when the driver left it disabled, or it was taken before.
    pub fn take_ring(&mut self, queue: u16) -> Result<Ring, StartError> {
        let slot = self.rings.get_mut(usize::from(queue));
        slot.and_then(Option::take).ok_or(StartError::QueueMissing(queue))
    }
}

/// Why a device could not start. The transport sets `DEVICE_NEEDS_RESET`; the VM goes on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The driver left out a queue that the device cannot work without.
    #[error("queue {0} is not enabled")]
    QueueMissing(u16),
    /// The driver put a queue where none can be.
    #[error(transparent)]
    Ring(#[from] crate::ring::RingError),
    /// The host refused a resource.
    #[error("cannot {what}")]
    Host {
        /// What was being done, in the infinitive.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// Why a handler gave up. The transport sets `DEVICE_NEEDS_RESET` (virtio 1.2 §2.1.2), and the
/// worker stops calling the handler unless it survives ([`Handler::survive`]).
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The driver broke the ring's rules.
    #[error(transparent)]
    Ring(#[from] crate::ring::RingError),
    /// The host failed in a way that this device cannot turn into a request status.
    #[error("{what}")]
    Host {
        /// What failed.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl HandlerError {
    /// The error of a handler that could not add a descriptor to its epoll set; `source` is the host's answer.
    pub fn watch(source: std::io::Error) -> Self {
        Self::Host {
            what: "cannot watch a file descriptor",
            source,
        }
    }
}

/// How far a handler has come that was asked to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing of the device writes guest memory.
    Held,
    /// Something that was begun has not ended yet.
    Pending,
}

/// A virtio device of any kind, without its transport.
pub trait VirtioDevice: Send {
    /// Identity, class, features and queue sizes. The same at each call.
    fn profile(&self) -> Profile;

    /// The class of threads that serve the device: by it they are confined
    /// ([`Threads::confine`](crate::threads::Threads::confine)). The same at each call.
    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Stream
    }

    /// The device's counters, to be read at any time from any thread without a lock, also while it runs and across
    /// resets. The same counters at each call.
    fn metrics_source(&self) -> Arc<dyn MetricsSource>;

    /// What the device has counted since it was made (name, value).
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.metrics_source().metrics()
    }

    /// The configuration space. Locked for one access at a time.
    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>>;

    /// Who has to know of changes of guest RAM, if anybody.
    fn memory_listener(&self) -> Option<Arc<dyn MemoryListener>> {
        None
    }

    /// What the kernel is to signal when the driver rings the doorbell of `queue`, in place of the
    /// queue's own kick, which remains for doorbells that the kernel does not catch. For a device
    /// that has started and whose rings another process serves. Never changes once it is there.
    fn doorbell(&self, _queue: u16) -> Option<Arc<EventFd>> {
        None
    }

    /// Who has to know that the device will not be started again, if anybody. Constant.
    fn on_retire(&self) -> Option<Arc<dyn Retire>> {
        None
    }

    /// Takes the rings and returns what serves them: each handler gets an I/O thread of its own, named
    /// `io-<device>` or `io-<device>-<n>`. Called on a vCPU thread; must not block.
    ///
    /// # Errors
    /// See [`StartError`]. The device stays as it was and may be started again after a reset.
    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError>;
}

/// Part of a device that waits for another process, and stops waiting when the device is not to be started again.
///
/// Apart from the device, so that it can be told while a vCPU uses the device's registers.
pub trait Retire: Send + Sync {
    /// The device will not be started again. Called before its handlers are asked to stop, on any thread; must not
    /// block.
    fn retire(&self);
}

/// Part of a device that has to know of changes of guest RAM, because it passes memory on to
/// another process, or keeps it from one request to the next.
///
/// Apart from the device, so that it can be told without holding up vCPUs that use the device's registers.
pub trait MemoryListener: Send + Sync {
    /// Guest RAM is to grow to `memory`. Called before the guest may use memory that is new, on a
    /// thread that may wait. Returns by `deadline`; whoever tells several gives all of them the
    /// same one.
    ///
    /// # Errors
    /// The other process does not take the change. It has nothing of what is new then, as before,
    /// and the device goes on: the caller gives the change up, and tells the listeners that took it
    /// of the memory that stays. What is gone and not given back is asked for again with the next
    /// change. Only a process that does not answer, or not to the point, is left, and its device
    /// fails.
    fn memory_added(&self, memory: &GuestMemory, deadline: Instant) -> std::io::Result<()>;

    /// Guest RAM has shrunk to `memory`. Called after the guest has let go of what is no longer
    /// there, on any thread: it is said and not waited for, at the latest when whoever speaks to
    /// the other process at present has done so.
    ///
    /// # Errors
    /// It cannot be said. It is said again with the next change.
    fn memory_removed(&self, memory: &GuestMemory) -> std::io::Result<()>;
}

/// What a handler is waiting for: file descriptors, each with a token of the handler's choosing.
pub trait Watch {
    /// Calls [`Handler::wake`] with `token` whenever `fd` is readable.
    fn readable(&mut self, fd: RawFd, token: u32) -> std::io::Result<()>;
    /// Calls [`Handler::wake`] with `token` when `fd` becomes readable or writable, and when its
    /// state changes otherwise; not again as long as it stays so. Whoever uses this goes on until
    /// the descriptor would block. (Where nobody ever waits, as in unit tests, it is the same as
    /// [`Watch::readable`].)
    fn edges(&mut self, fd: RawFd, token: u32) -> std::io::Result<()> {
        self.readable(fd, token)
    }
    /// Stops watching `fd`.
    fn forget(&mut self, fd: RawFd) -> std::io::Result<()>;
}

/// The running half of a device: owns rings, lives on one I/O thread.
pub trait Handler: Send {
    /// Called once, before [`Handler::watch`], with the flag that is set while the driver lets the device be a bus
    /// master (PCIe 5.0 §7.5.1.1.3). While it is clear the device must not touch guest memory, and [`Handler::wake`] is
    /// not called unless a hold is pending: a handler that answers in one of the other methods, or whose work other
    /// threads do as well, has to look.
    fn set_bus_master_flag(&mut self, _bus_master: Arc<AtomicBool>) {}

    /// Registers what to wait for. Called once, on the I/O thread, before anything else. The kick
    /// of every ring is among it.
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError>;

    /// Something became readable. Handles all of it, signals the driver, returns. May change what is watched.
    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError>;

    /// Begins nothing more. With [`Hold::Held`] what was begun has ended as well, here and elsewhere: nothing of the
    /// device writes guest memory until [`Handler::release`], and nothing else is called but that or [`Handler::stop`].
    ///
    /// Does not wait for what was begun, since whoever asked may think better of it: with [`Hold::Pending`] the handler
    /// goes on being woken, by what ends last at the latest, and is asked again after each [`Handler::wake`], which
    /// begins nothing.
    ///
    /// # Errors
    /// The handler gave up; it is not held.
    fn hold(&mut self, _watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        Ok(Hold::Held)
    }

    /// Goes on after [`Handler::hold`], whether it was held or that was still pending.
    ///
    /// # Errors
    /// As [`Handler::wake`].
    fn release(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        Ok(())
    }

    /// Asked after any of these gave up: whether to go on all the same, until the driver resets the
    /// device. The failure is reported in either case, but only the first one.
    ///
    /// For a handler that can still tell the driver no: requests that nobody answers would hold the
    /// guest's processes for ever.
    fn survive(&mut self, _watch: &mut dyn Watch) -> bool {
        false
    }

    /// Waits for requests in flight, then gives the rings' positions back. Nothing touches guest
    /// memory afterwards. Without the right to touch it ([`Handler::set_bus_master_flag`]) nobody
    /// is answered.
    fn stop(self: Box<Self>) -> Vec<RingState>;
}
