//! What is taken of a VM's guest-physical addresses and memory slots, and what is on its way out.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Weak};

use husk_devices::memory::GuestRegionMmap;
use husk_firmware::layout;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::mapping::Mapping;
use super::reserve::Reserved;
use super::steps::{Fault, Parts};
use super::{BLOCK_BYTES, Kind, RegionInfo};
use crate::config::Size;

/// How the guest-physical address of a new region is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Placement {
    /// At exactly this guest-physical address, which is in the reserve.
    At(u64),
    /// At the lowest free multiple of so many bytes in the reserve.
    Reserve(u64),
    /// At the lowest free multiple of [`BLOCK_BYTES`] in the window of persistent memory.
    Pmem,
}

/// Which guest-physical addresses and memory slots of an address space are taken, and by what.
#[derive(Debug)]
pub(super) struct AddressMap {
    slots: BTreeSet<u32>,
    /// `None` when addresses are too narrow for any.
    pmem: Option<AddressAllocator>,
    /// `None` without a reserve.
    reserve: Option<AddressAllocator>,
    /// Where in it the addresses begin that are kept for blocks, if there are others before them.
    dimms_end: Option<u64>,
    /// What the guest can reach.
    regions: Vec<MappedRegion>,
    /// What requests used that were in flight when it was removed.
    retired: Vec<RetiredRegion>,
    /// Of the region that came last to the guest.
    generation: MapGeneration,
    /// What is never removed: RAM of the start, and what KVM would not give back.
    pub kept: Vec<Parts>,
}

/// Memory that the guest can reach.
#[derive(Clone, Debug)]
pub(super) struct MappedRegion {
    pub info: RegionInfo,
    pub mapping: Arc<Mapping>,
    /// Where it is in the mapping.
    pub part: Range<u64>,
    /// The generation in which it came to the guest: accesses of an earlier one cannot mean it.
    pub added_in: MapGeneration,
}

/// A moment, by how many regions had come to the guest until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapGeneration(pub(super) u64);

/// Memory that is no longer the guest's.
#[derive(Debug)]
pub(super) struct RetiredRegion {
    kind: Kind,
    mapping: Arc<Mapping>,
    part: Range<u64>,
    users: Weak<GuestRegionMmap>,
}

impl AddressMap {
    /// Nothing is taken. Addresses have `phys_bits` bits.
    pub fn new(phys_bits: u8, reserve: Option<Reserved>) -> Self {
        let allocator = |(base, bytes)| AddressAllocator::new(base, bytes).ok();
        let blocks = reserve.and_then(|reserve| reserve.blocks.filter(|(base, _)| *base > reserve.base));
        Self {
            slots: BTreeSet::new(),
            pmem: layout::pmem_window(u32::from(phys_bits)).and_then(allocator),
            reserve: reserve.and_then(|reserve| allocator((reserve.base, reserve.bytes))),
            dimms_end: blocks.map(|(base, _)| base),
            regions: Vec::new(),
            retired: Vec::new(),
            generation: MapGeneration::default(),
            kept: Vec::new(),
        }
    }

    /// Takes `bytes` bytes of addresses; where they begin.
    pub fn take(&mut self, placement: Placement, bytes: u64) -> Result<u64, Fault> {
        let of = match placement {
            Placement::Pmem => "for persistent memory",
            Placement::Reserve(_) => "in the hot-plug reserve",
            Placement::At(_) => "there in the hot-plug reserve",
        };
        let range = self.allocate(placement, bytes);
        let range = range.ok_or_else(|| format!("no {} of addresses are free {of}", Size(bytes)))?;
        Ok(range.start())
    }

    /// The largest multiple of `unit`, up to `most` bytes, that [`AddressMap::take`] would find in the reserve in one
    /// piece.
    pub fn room(&mut self, unit: u64, most: u64) -> u64 {
        let mut fits = |units: u64| {
            let range = self.allocate(Placement::Reserve(unit), units.saturating_mul(unit));
            range.is_some_and(|range| {
                self.reserve
                    .as_mut()
                    .is_some_and(|reserve| reserve.free(&range).is_ok())
            })
        };
        // What fits, and what does not.
        let (mut least, mut above) = (0, most.checked_div(unit).unwrap_or_default().saturating_add(1));
        while above - least > 1 {
            let units = least.midpoint(above);
            if fits(units) {
                least = units;
            } else {
                above = units;
            }
        }
        least.saturating_mul(unit)
    }

    fn allocate(&mut self, placement: Placement, bytes: u64) -> Option<RangeInclusive> {
        let (allocator, align, policy) = match placement {
            Placement::Pmem => (&mut self.pmem, BLOCK_BYTES, AllocPolicy::FirstMatch),
            Placement::Reserve(unit) => (&mut self.reserve, unit, AllocPolicy::FirstMatch),
            Placement::At(gpa) => (&mut self.reserve, BLOCK_BYTES, AllocPolicy::ExactMatch(gpa)),
        };
        let allocator = allocator.as_mut()?;
        let range = allocator.allocate(bytes, align, policy).ok()?;
        // The first that fits is the lowest: where that is beyond, there is none.
        if matches!(placement, Placement::Reserve(_)) && self.dimms_end.is_some_and(|end| range.end() >= end) {
            let _ = allocator.free(&range);
            return None;
        }
        Some(range)
    }

    /// Gives back what [`AddressMap::take`] has taken.
    pub fn free(&mut self, info: &RegionInfo) {
        let allocator = match info.kind {
            Kind::Boot => return,
            Kind::Dimm | Kind::VirtioMem => &mut self.reserve,
            Kind::Pmem => &mut self.pmem,
        };
        let range = RangeInclusive::new(info.gpa, info.gpa.saturating_add(info.bytes.saturating_sub(1)));
        let freed = match (allocator, range) {
            (Some(allocator), Ok(range)) => allocator.free(&range),
            _ => Ok(()),
        };
        if let Err(error) = freed {
            log::warn!("{} at {:#x}: {error}", info.kind, info.gpa);
        }
    }

    /// The guest can reach `region` from now on: a generation begins.
    pub fn enter(&mut self, region: &Parts) -> MapGeneration {
        self.generation = MapGeneration(self.generation.0.saturating_add(1));
        self.regions.push(MappedRegion {
            info: region.info.clone(),
            mapping: region.mapping.clone(),
            part: region.part.clone(),
            added_in: self.generation,
        });
        self.generation
    }

    /// It cannot any more.
    pub fn withdraw(&mut self, region: &Parts) {
        self.regions.retain(|mapped| mapped.info.gpa != region.info.gpa);
    }

    /// What the guest can reach, in no order.
    pub fn mapped(&self) -> impl Iterator<Item = &MappedRegion> {
        self.regions.iter()
    }

    /// The first free number of a memory slot, taken.
    pub fn take_slot(&mut self) -> u32 {
        let slot = (0..).find(|slot| !self.slots.contains(slot)).unwrap_or(u32::MAX);
        self.slots.insert(slot);
        slot
    }

    /// Gives a slot's number back.
    pub fn free_slot(&mut self, slot: u32) {
        self.slots.remove(&slot);
    }

    /// `region` is the guest's no longer, but requests in flight may still use it.
    pub fn retire(&mut self, region: Parts) {
        self.retired.push(RetiredRegion {
            kind: region.info.kind,
            users: region.memory.as_ref().map(Arc::downgrade).unwrap_or_default(),
            mapping: region.mapping,
            part: region.part,
        });
    }

    /// `part` of `mapping` is used again: it is not to be taken apart when the last request of its former life is done.
    pub fn reuse(&mut self, mapping: &Arc<Mapping>, part: &Range<u64>) {
        for old in std::mem::take(&mut self.retired) {
            if !Arc::ptr_eq(&old.mapping, mapping) || old.part.end <= part.start || part.end <= old.part.start {
                self.retired.push(old);
                continue;
            }
            for rest in [old.part.start..part.start, part.end..old.part.end] {
                if rest.start < rest.end {
                    self.retired.push(RetiredRegion {
                        kind: old.kind,
                        mapping: old.mapping.clone(),
                        part: rest,
                        users: old.users.clone(),
                    });
                }
            }
        }
    }

    /// Whether anything has left and is not taken apart yet.
    pub fn has_left(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Whether something of `kind` has left and is not taken apart yet.
    pub fn is_leaving(&self, kind: Kind) -> bool {
        self.retired.iter().any(|region| region.kind == kind)
    }

    /// What has left, of the kinds that are `wanted`, and is not used by anyone any more.
    pub fn left(&mut self, wanted: impl Fn(Kind) -> bool) -> Vec<RetiredRegion> {
        let (left, retired) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|region| wanted(region.kind) && region.users.strong_count() == 0);
        self.retired = retired;
        left
    }
}

impl RetiredRegion {
    /// Takes it apart.
    pub fn take_apart(self) {
        // A file's mapping ends with its last user.
        if self.kind != Kind::Pmem
            && let Err(error) = self.mapping.decommit(&self.part)
        {
            log::warn!("{} is not given back to the host: {error}", self.kind);
        }
    }
}
