//! The steps by which memory becomes the guest's, each with the one that undoes it.
//!
//! | step | forward | back |
//! |---|---|---|
//! | [`Step::Place`] | a range of guest-physical addresses, a slot number | both are free again |
//! | [`Step::Host`] | pages: mapped, huge ones set aside; or what lies over all of it where the blocks that are plugged take their own | given back, once nothing in flight uses them |
//! | [`Step::Backends`] | vhost-user back-ends acknowledge it | they are told that it is gone |
//! | [`Step::Slot`] | KVM maps it into the guest | and takes it out |
//! | [`Step::Devices`] | devices reach it | a descriptor into it is refused |
//!
//! Then the guest is told, by whoever owns the [`Region`](super::Region).

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use husk_devices::memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryRegion};

use super::backing::PlaceholderPages;
use super::mapping::Mapping;
use super::{Kind, RegionInfo};
use crate::kvm::{Access, KvmError, Vm};

/// How far memory is on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It has a place among guest-physical addresses.
    Place,
    /// The host has given what the region takes: the mapping, its huge pages, and of boot RAM every page if `prefault`
    /// asks for them.
    Host,
    /// Every vhost-user back-end has it.
    Backends,
    /// KVM has a memory slot for it (`KVM_SET_USER_MEMORY_REGION`): the guest can reach it.
    Slot,
    /// It is in the memory map that devices use for DMA.
    Devices,
}

impl Step {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Place, Self::Host, Self::Backends, Self::Slot, Self::Devices];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Place => "there is no place for it",
            Self::Host => "the host does not give it",
            Self::Backends => "a vhost-user back-end does not take it",
            Self::Slot => "KVM does not take it",
            Self::Devices => "devices cannot be given it",
        })
    }
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

#[expect(unsafe_code, reason = "KVM takes the address of the region on trust")]
impl Slots for Vm {
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError> {
        let (gpa, bytes) = (region.start_addr().0, region.len());
        // SAFETY: `Parts` holds the region, and so its addresses, until `unmap` has taken the slot back.
        unsafe { Self::map(self, slot, gpa, region.as_ptr(), bytes, Access::ReadWrite) }
    }

    fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        Self::unmap(self, slot)
    }
}

/// A region on its way in or out: what it has taken so far.
#[derive(Debug)]
pub(super) struct Parts {
    pub info: RegionInfo,
    pub slot: u32,
    /// The last step that is done.
    pub reached: Option<Step>,
    /// What users of the memory hold. Goes before the mapping.
    pub memory: Option<Arc<GuestRegionMmap>>,
    pub mapping: Arc<Mapping>,
    /// Where it is in the mapping.
    pub part: Range<u64>,
    /// What lies over all of it at first; without one the host gives its pages.
    pub placeholder: Option<Arc<PlaceholderPages>>,
}

impl Parts {
    /// Nothing is done yet.
    pub fn new(kind: Kind, of: Option<String>, mapping: Arc<Mapping>, part: Range<u64>) -> Self {
        let backing = mapping.backing();
        let info = RegionInfo {
            kind,
            gpa: 0,
            bytes: part.end.saturating_sub(part.start),
            page_bytes: backing.page_bytes(),
            shared: backing.is_shared(),
            of,
        };
        Self {
            info,
            slot: 0,
            reached: None,
            memory: None,
            mapping,
            part,
            placeholder: None,
        }
    }
}

/// Puts `region` into what `view` shows.
pub(super) fn show(view: &GuestMemory, region: &Arc<GuestRegionMmap>) -> Result<(), Fault> {
    change(view, |memory| memory.insert_region(region.clone()))
}

/// Takes the region of `bytes` bytes at `gpa` out of what `view` shows.
pub(super) fn hide(view: &GuestMemory, gpa: u64, bytes: u64) -> Result<(), Fault> {
    change(view, |memory| {
        memory.remove_region(GuestAddress(gpa), bytes).map(|(memory, _)| memory)
    })
}

/// Why a step failed.
pub(super) type Fault = Box<dyn Error + Send + Sync>;

fn change<E: Error + Send + Sync + 'static>(
    view: &GuestMemory,
    change: impl FnOnce(&GuestMemoryMmap) -> Result<GuestMemoryMmap, E>,
) -> Result<(), Fault> {
    // Whoever held the lock and panicked has replaced the memory, or has not.
    let exclusive = view.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let changed = change(&view.memory())?;
    exclusive.replace(changed);
    Ok(())
}
