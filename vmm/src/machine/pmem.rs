//! Persistent memory: files of the host in the guest's address space, above everything else.

#![expect(unsafe_code, reason = "KVM slots that point into a file's mapping")]

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex};

use husk_devices::memory::{GuestMemory, GuestRegionMmap};
use husk_firmware::layout;
use husk_virtio::pmem::Pmem;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryRegion};

use super::board::lock;
use super::build::BuildError;
use crate::config::PmemConfig;
use crate::kvm::{Access, KvmError, Vm};

/// A guest maps persistent memory by huge pages: start and length are multiples of one.
pub const PMEM_UNIT_BYTES: u64 = 2 << 20;
/// KVM's memory slots from this one on are for persistent memory; RAM has those before.
const FIRST_SLOT: u32 = 256;

/// Why a file cannot be persistent memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened, or has no size.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// No whole number of units, or nothing.
    #[error("{bytes} bytes are not a multiple of {PMEM_UNIT_BYTES}, and at least that")]
    Unit {
        /// The size asked for, or the file's.
        bytes: u64,
    },
    /// More than there is.
    #[error("size is {asked} bytes, the file has {found}")]
    Short {
        /// What was asked for.
        asked: u64,
        /// What there is.
        found: u64,
    },
    /// The guest's address space is full.
    #[error("no {bytes} bytes are left of the guest's address space")]
    Space {
        /// What was asked for.
        bytes: u64,
    },
    /// The host would not map it.
    #[error("cannot map it")]
    Map(#[source] MmapRegionError),
    /// It overlaps other memory.
    #[error("cannot add it to the guest's memory")]
    Memory(#[source] vm_memory::GuestRegionCollectionError),
    /// KVM would not take it.
    #[error(transparent)]
    Slot(#[from] KvmError),
}

/// What maps memory into the guest: the VM, or what stands for it in a test.
pub trait Slots: Send + Sync {
    /// Makes `region` the guest's, as slot `slot`.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError>;

    /// Takes a slot back.
    ///
    /// # Errors
    /// [`KvmError::Refused`]; the guest still has it.
    fn unmap(&self, slot: u32) -> Result<(), KvmError>;
}

impl Slots for Vm {
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError> {
        // SAFETY: the guest's memory holds the region until `Mapping` has taken the slot back.
        unsafe {
            Self::map(
                self,
                slot,
                region.start_addr().0,
                region.as_ptr(),
                region.len(),
                Access::ReadWrite,
            )
        }
    }

    fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        Self::unmap(self, slot)
    }
}

/// Where a VM's persistent memory is.
pub struct PmemSpace {
    vm: Arc<dyn Slots>,
    memory: GuestMemory,
    taken: Mutex<Taken>,
}

struct Taken {
    /// `None` when addresses are too narrow for any.
    addresses: Option<AddressAllocator>,
    slots: BTreeSet<u32>,
}

impl PmemSpace {
    /// The space of a VM whose guest-physical addresses have `phys_bits` bits. Devices reach what is put there through `memory`.
    pub fn new(vm: Arc<dyn Slots>, memory: GuestMemory, phys_bits: u8) -> Arc<Self> {
        let window = layout::pmem_window(u32::from(phys_bits));
        let addresses = window.and_then(|(base, bytes)| AddressAllocator::new(base, bytes).ok());
        let taken = Mutex::new(Taken {
            addresses,
            slots: BTreeSet::new(),
        });
        Arc::new(Self { vm, memory, taken })
    }

    /// Maps `bytes` bytes of `file` into the guest.
    fn map(self: &Arc<Self>, file: File, bytes: u64, keep: bool) -> Result<Mapping, PmemError> {
        let (base, slot) = lock(&self.taken).take(bytes).ok_or(PmemError::Space { bytes })?;
        // From here on, dropping it undoes what has been done.
        let mut mapping = Mapping {
            space: self.clone(),
            base,
            bytes,
            slot,
            in_guest: false,
            in_memory: false,
        };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let kind = if keep { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let len = usize::try_from(bytes).expect("x86_64: usize has 64 bits");
        let region = MmapRegion::build(Some(FileOffset::new(file, 0)), len, prot, kind | libc::MAP_NORESERVE);
        let region = region.map_err(PmemError::Map)?;
        let region = Arc::new(GuestRegionMmap::new(region, GuestAddress(base)).ok_or(PmemError::Space { bytes })?);
        self.change_memory(|memory| memory.insert_region(region.clone()))
            .map_err(PmemError::Memory)?;
        mapping.in_memory = true;
        self.vm.map(slot, &region)?;
        mapping.in_guest = true;
        Ok(mapping)
    }

    fn change_memory<E>(
        &self,
        change: impl FnOnce(&husk_devices::memory::GuestMemoryMmap) -> Result<husk_devices::memory::GuestMemoryMmap, E>,
    ) -> Result<(), E> {
        // Whoever held the lock and panicked has replaced the memory, or has not.
        let exclusive = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = change(&self.memory.memory())?;
        exclusive.replace(changed);
        Ok(())
    }
}

impl Taken {
    fn take(&mut self, bytes: u64) -> Option<(u64, u32)> {
        let addresses = self.addresses.as_mut()?;
        let range = addresses
            .allocate(bytes, PMEM_UNIT_BYTES, AllocPolicy::FirstMatch)
            .ok()?;
        let slot = (FIRST_SLOT..).find(|slot| !self.slots.contains(slot))?;
        self.slots.insert(slot);
        Some((range.start(), slot))
    }

    fn give_back(&mut self, base: u64, bytes: u64, slot: u32) {
        self.slots.remove(&slot);
        let range = RangeInclusive::new(base, base.saturating_add(bytes.saturating_sub(1)));
        let freed = match (&mut self.addresses, range) {
            (Some(addresses), Ok(range)) => addresses.free(&range),
            _ => Ok(()),
        };
        if let Err(error) = freed {
            log::warn!("persistent memory at {base:#x}: {error}");
        }
    }
}

/// Keeps a file in the guest's address space.
struct Mapping {
    space: Arc<PmemSpace>,
    base: u64,
    bytes: u64,
    slot: u32,
    in_guest: bool,
    in_memory: bool,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Self {
            space,
            base,
            bytes,
            slot,
            ..
        } = self;
        if self.in_guest
            && let Err(error) = space.vm.unmap(*slot)
        {
            // The guest can still reach it: then it must stay mapped here as well.
            log::error!("persistent memory at {base:#x}: {error}");
            return;
        }
        if self.in_memory {
            // Requests in flight hold the memory they began with, so the file stays mapped until the last of them is done.
            let removed = space.change_memory(|memory| {
                memory
                    .remove_region(GuestAddress(*base), *bytes)
                    .map(|(memory, _)| memory)
            });
            if let Err(error) = removed {
                log::error!("persistent memory at {base:#x}: {error}");
                return;
            }
        }
        lock(&space.taken).give_back(*base, *bytes, *slot);
    }
}

/// Makes the device that `config` describes, its memory mapped into the guest.
///
/// # Errors
/// [`BuildError::Device`], named by the file.
pub fn open(config: &PmemConfig, space: &Arc<PmemSpace>) -> Result<Pmem, BuildError> {
    device(config, space).map_err(|e| BuildError::device(format!("pmem {}", config.file.display()), e))
}

fn device(config: &PmemConfig, space: &Arc<PmemSpace>) -> Result<Pmem, PmemError> {
    let keep = !config.discard_writes;
    let (file, found) = open_file(&config.file, keep).map_err(PmemError::Open)?;
    let bytes = config.size.unwrap_or(found);
    if bytes == 0 || !bytes.is_multiple_of(PMEM_UNIT_BYTES) {
        return Err(PmemError::Unit { bytes });
    }
    if bytes > found {
        return Err(PmemError::Short { asked: bytes, found });
    }
    let flushed = if keep {
        Some(file.try_clone().map_err(PmemError::Open)?)
    } else {
        None
    };
    let mapping = space.map(file, bytes, keep)?;
    Ok(Pmem::new(mapping.base, bytes, flushed, Box::new(mapping)))
}

/// Opens a file or block device; says how long it is.
fn open_file(path: &Path, write: bool) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(write).open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    Ok((file, length))
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
