//! The driver's side of a virtqueue, for unit tests: memory, a split ring in it, and what a guest would do with them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use virtio_queue::QueueState;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{Notify, Ring, RingState};

mod abuse;
mod device;
mod loops;
mod vectors;

pub(crate) use abuse::ABUSES;
pub(crate) use device::{Echo, EchoControl};
pub(crate) use husk_devices::testing::Loop;
pub(crate) use loops::LossyDevice;
pub(crate) use vectors::Vectors;

pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

/// Where the test's RAM ends. A second region follows directly at `SECOND`, then nothing.
pub(crate) const SECOND: u64 = 0x10_0000;
pub(crate) const END: u64 = 0x20_0000;

/// Two adjacent regions of 1 MiB: a buffer may cross from one to the other.
pub(crate) fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(SECOND), 0x10_0000)];
    GuestMemory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// Makes a FIFO.
pub(crate) fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Buf {
    /// Device-readable.
    Out(u64, u32),
    /// Device-writable.
    In(u64, u32),
}

/// A driver's view of one split virtqueue.
pub(crate) struct Driver {
    pub mem: GuestMemory,
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub event_idx: bool,
    /// The next ring's driver is always at work: see [`Driver::busy`].
    pub busy_heads: u16,
    pub kick: Arc<EventFd>,
    interrupts: Arc<AtomicUsize>,
    next_desc: u16,
    seen: u16,
}

impl Driver {
    /// Lays a ring of `size` entries out at `base`, which must be 4 KiB aligned; it takes less than
    /// 64 KiB for up to 1024.
    pub fn new(mem: &GuestMemory, base: u64, size: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        let zeros = vec![0; usize::try_from(used + 6 + 8 * u64::from(size) - base).unwrap()];
        mem.memory().write_slice(&zeros, GuestAddress(base)).unwrap();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            mem: mem.clone(),
            size,
            desc: base,
            avail,
            used,
            event_idx: false,
            busy_heads: 0,
            kick,
            interrupts: Arc::default(),
            next_desc: 0,
            seen: 0,
        }
    }

    pub fn state(&self) -> RingState {
        let queue = QueueState {
            max_size: self.size,
            size: self.size,
            ready: true,
            event_idx_enabled: self.event_idx,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
            ..QueueState::default()
        };
        RingState { index: 0, queue }
    }

    /// The device's side of the same queue.
    pub fn ring(&self) -> Ring {
        let interrupts = self.interrupts.clone();
        let notify = Notify::new(move || {
            interrupts.fetch_add(1, Ordering::SeqCst);
        });
        let mut ring = Ring::new(self.state(), self.kick.clone(), notify, self.mem.clone()).unwrap();
        ring.busy_driver = (self.busy_heads > 0).then(|| self.busy(self.busy_heads));
        ring
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> usize {
        self.interrupts.swap(0, Ordering::SeqCst)
    }

    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.mem.memory().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    pub fn load(&self, gpa: u64) -> u16 {
        self.mem.memory().read_obj(GuestAddress(gpa)).unwrap()
    }

    pub fn store(&self, gpa: u64, value: u16) {
        self.mem.memory().write_obj(value, GuestAddress(gpa)).unwrap();
    }

    /// Writes one raw descriptor into the table at guest-physical address `table`.
    pub fn put(&self, table: u64, index: u16, descriptor: Descriptor) {
        self.mem
            .memory()
            .write_obj(descriptor, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    /// Makes a chain of the next free descriptors available and returns its head. Descriptors are
    /// reused round and round.
    pub fn add(&mut self, bufs: &[Buf]) -> u16 {
        let at = |n: usize| (self.next_desc + u16::try_from(n).unwrap()) % self.size;
        for (n, buf) in bufs.iter().enumerate() {
            let (addr, len, write) = match *buf {
                Buf::Out(addr, len) => (addr, len, 0),
                Buf::In(addr, len) => (addr, len, F_WRITE),
            };
            let next = if n + 1 < bufs.len() { F_NEXT } else { 0 };
            self.put(self.desc, at(n), Descriptor::new(addr, len, write | next, at(n + 1)));
        }
        let head = at(0);
        self.next_desc = at(bufs.len());
        self.offer(head);
        head
    }

    /// A driver that makes its first `heads` chains available again as fast as they are used, for
    /// [`Ring::busy_driver`]. Ends the test if it is asked more often than any turn of a thread
    /// may.
    pub fn busy(&self, heads: u16) -> Box<dyn FnMut() + Send> {
        for entry in 0..self.size {
            self.store(self.avail + 4 + 2 * u64::from(entry), entry % heads);
        }
        let (mem, avail, used) = (self.mem.clone(), self.avail, self.used);
        let mut looks = 0;
        Box::new(move || {
            looks += 1;
            assert!(looks < 50_000, "the thread is never let go");
            let mem = mem.memory();
            let taken: u16 = mem.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
            mem.store(taken.wrapping_add(heads), GuestAddress(avail + 2), Ordering::Release)
                .unwrap();
        })
    }

    /// Puts `head` into the available ring as it is.
    pub fn offer(&self, head: u16) {
        let idx = self.load(self.avail + 2);
        self.store(self.avail + 4 + 2 * u64::from(idx % self.size), head);
        self.store(self.avail + 2, idx.wrapping_add(1));
    }

    /// The next entry of the used ring, head and length, that has not been seen yet.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.load(self.used + 2) == self.seen {
            return None;
        }
        let entry = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let mem = self.mem.memory();
        Some((
            mem.read_obj(GuestAddress(entry)).unwrap(),
            mem.read_obj(GuestAddress(entry + 4)).unwrap(),
        ))
    }

    /// `VIRTQ_AVAIL_F_NO_INTERRUPT`, for rings without event index.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail, flags);
    }

    pub fn used_flags(&self) -> u16 {
        self.load(self.used)
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }
}
