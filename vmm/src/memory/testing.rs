//! What stands for KVM and for vhost-user back-ends in tests of memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use husk_devices::memory::{GuestMemory, GuestRegionMmap};
use husk_virtio::device::MemoryListener;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::host::Host;
use super::steps::Slots;
use super::{AddressSpace, MemoryError};
use crate::config::MemoryConfig;
use crate::kvm::KvmError;

/// Width of addresses.
pub(crate) const PHYS_BITS: u8 = 40;

/// Knows which slots are taken, as KVM does, and refuses when it is told to.
#[derive(Default)]
pub(crate) struct FakeSlots {
    taken: Mutex<BTreeMap<u32, (u64, u64)>>,
    refuse_map: AtomicBool,
    refuse_unmap: AtomicBool,
    refused: AtomicU32,
    /// Who may not wait for KVM.
    main: Mutex<Option<ThreadId>>,
}

/// Lets the thread call again, as it takes everything apart.
pub(crate) struct ForbiddenThread(Arc<FakeSlots>);

impl Drop for ForbiddenThread {
    fn drop(&mut self) {
        *self.0.main.lock().unwrap() = None;
    }
}

impl FakeSlots {
    /// What the guest can reach (address, bytes), by slot.
    pub fn taken(&self) -> BTreeMap<u32, (u64, u64)> {
        self.taken.lock().unwrap().clone()
    }

    /// Whether slots are refused, and whether they are kept, from now on.
    pub fn refuse(&self, map: bool, unmap: bool) {
        self.refuse_map.store(map, Ordering::Relaxed);
        self.refuse_unmap.store(unmap, Ordering::Relaxed);
    }

    /// How often it has refused something.
    pub fn refused(&self) -> u32 {
        self.refused.load(Ordering::Relaxed)
    }

    /// As long as what it returns is there, a call by this thread is a failure of the test: any may wait for a vCPU.
    pub fn forbid_this_thread(self: &Arc<Self>) -> ForbiddenThread {
        *self.main.lock().unwrap() = Some(thread::current().id());
        ForbiddenThread(self.clone())
    }

    /// Keeps whoever wants to add or remove a slot waiting, as long as what it returns is there.
    pub fn hang(&self) -> MutexGuard<'_, impl Sized> {
        self.taken.lock().unwrap()
    }

    fn enter(&self, refuses: &AtomicBool, what: &str) -> Result<(), KvmError> {
        let is_main = *self.main.lock().unwrap() == Some(thread::current().id());
        assert!(!is_main, "{what}: the main thread waits");
        refusal(refuses, what).inspect_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
        })
    }
}

fn refusal(refused: &AtomicBool, what: &str) -> Result<(), KvmError> {
    match refused.load(Ordering::Relaxed) {
        true => Err(KvmError::Refused {
            what: what.into(),
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        }),
        false => Ok(()),
    }
}

impl Slots for FakeSlots {
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError> {
        self.enter(&self.refuse_map, "map a slot")?;
        let range = (region.start_addr().0, region.len());
        let before = self.taken.lock().unwrap().insert(slot, range);
        assert_eq!(before, None, "slot {slot} is taken");
        Ok(())
    }

    fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        self.enter(&self.refuse_unmap, "take a slot back")?;
        self.taken.lock().unwrap().remove(&slot).expect("a slot in use");
        Ok(())
    }
}

/// A back-end: what it has been told last, and whether it takes more than it has.
#[derive(Default)]
pub(crate) struct FakeBackend {
    told: Mutex<Vec<Vec<u64>>>,
    refuse_more: AtomicBool,
}

impl FakeBackend {
    /// Where the regions begin of each memory it was told of.
    pub fn told(&self) -> Vec<Vec<u64>> {
        self.told.lock().unwrap().clone()
    }

    /// It takes no further region from now on.
    pub fn refuse_more(&self) {
        self.refuse_more.store(true, Ordering::Relaxed);
    }
}

impl MemoryListener for FakeBackend {
    fn memory_added(&self, memory: &GuestMemory, _: std::time::Instant) -> io::Result<()> {
        let regions = beginnings(memory);
        let mut told = self.told.lock().unwrap();
        if self.refuse_more.load(Ordering::Relaxed) && told.last().is_none_or(|last| last.len() < regions.len()) {
            return Err(io::Error::other("it takes no more regions"));
        }
        told.push(regions);
        Ok(())
    }

    fn memory_removed(&self, memory: &GuestMemory) -> io::Result<()> {
        self.told.lock().unwrap().push(beginnings(memory));
        Ok(())
    }
}

fn beginnings(memory: &GuestMemory) -> Vec<u64> {
    memory.memory().iter().map(|region| region.start_addr().0).collect()
}

/// An address space on a fake KVM.
pub(crate) fn space(config: &MemoryConfig) -> Result<(Arc<AddressSpace>, Arc<FakeSlots>), MemoryError> {
    let slots = Arc::<FakeSlots>::default();
    Ok((AddressSpace::new(config, slots.clone(), PHYS_BITS)?, slots))
}

/// As [`space`], on a host that is described by the files under `root`.
pub(crate) fn space_under(root: &Path, config: &MemoryConfig) -> Arc<AddressSpace> {
    AddressSpace::on(Host::at(root), config, Arc::<FakeSlots>::default(), PHYS_BITS).unwrap()
}

/// A back-end that hears of changes for as long as the listener lives.
pub(crate) fn listen(space: &AddressSpace) -> (Arc<FakeBackend>, Arc<dyn MemoryListener>) {
    let backend = Arc::<FakeBackend>::default();
    let listener: Arc<dyn MemoryListener> = backend.clone();
    space.listen(&listener);
    (backend, listener)
}
