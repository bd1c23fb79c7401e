//! A region in the hands of its owner: a DIMM, blocks of virtio-mem, a device of persistent memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::address_map::Placement;
use super::backing::PlaceholderPages;
use super::steps::Parts;
use super::{AddressSpace, HostError, MemoryError, RegionInfo};

/// Addresses that a region is to have. Dropping it frees them, for which nobody is waited for.
#[derive(Debug)]
pub struct Placed {
    space: Arc<AddressSpace>,
    /// `None` once it is filled.
    parts: Option<Box<Parts>>,
}

impl Placed {
    pub(super) fn new(space: Arc<AddressSpace>, parts: Box<Parts>) -> Self {
        Self {
            space,
            parts: Some(parts),
        }
    }

    /// Makes it memory. The guest can reach that, and knows nothing of it. For a thread that nobody
    /// waits for: KVM takes a slot when no vCPU is in the middle of a page fault any more.
    ///
    /// # Errors
    /// [`MemoryError::Add`] with the step that failed; the addresses are free again.
    pub fn fill(mut self) -> Result<Region, MemoryError> {
        let parts = self.parts.take().expect("taken by this and `drop` alone");
        let placement = Placement::At(parts.info.gpa);
        let parts = self.space.add(parts, placement)?;
        Ok(Region::new(self.space.clone(), parts))
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.space.free(*parts);
        }
    }
}

/// Memory that the guest can reach. Dropping it takes it back, so the guest must have let go of it.
/// That waits for KVM as [`Placed::fill`] does.
pub struct Region {
    space: Arc<AddressSpace>,
    /// `None` once it is removed.
    parts: Option<Box<Parts>>,
}

/// A region that KVM does not give back. It is as it was.
#[derive(Debug, thiserror::Error)]
#[error("{} at {:#x} stays", region.info().kind, region.info().gpa)]
pub struct RemoveError {
    /// The region that could not be removed: it is the guest's as before.
    pub region: Box<Region>,
    /// Why.
    source: Box<MemoryError>,
}

impl Region {
    pub(super) fn new(space: Arc<AddressSpace>, parts: Box<Parts>) -> Self {
        Self {
            space,
            parts: Some(parts),
        }
    }

    /// What it is and where.
    pub fn info(&self) -> &RegionInfo {
        &self.parts().info
    }

    /// Gives the pages of `range`, counted from the region's start, back to the host. The guest
    /// reads zeroes there, and has new pages when it writes; with huge pages it must not before
    /// [`Region::restore`]. Not for files.
    ///
    /// # Errors
    /// [`MemoryError::Outside`], [`MemoryError::Unit`] for what is no whole pages, or the host refuses.
    pub fn discard(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let part = self.part(range)?;
        let discarded = self.parts().mapping.discard(&part);
        discarded.map_err(|error| self.refused("give back", range, error.into()))
    }

    /// As [`Region::discard`], of what was [restored](Region::restore) or never discarded: huge
    /// pages that were set aside for it and not touched are free again, too.
    ///
    /// # Errors
    /// As [`Region::discard`].
    pub(super) fn discard_committed(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let part = self.part(range)?;
        let discarded = self.parts().mapping.discard_committed(&part);
        discarded.map_err(|error| self.refused("give back", range, error.into()))
    }

    /// Has the host find the huge pages that were set aside for `range`, committed memory in a
    /// file: a hole in the file would leave them set aside, and frees those that are there.
    pub(super) fn touch_reserved(&self, range: &Range<u64>) {
        if let Ok(part) = self.part(range) {
            self.parts().mapping.touch_reserved(&part);
        }
    }

    /// Whether its pages are those of a file that others may have mapped.
    pub(super) fn is_shared(&self) -> bool {
        self.parts().mapping.backing().is_shared()
    }

    /// Has the host promise pages for `range` again after [`Region::discard`]: huge ones are set
    /// aside, with `prefault` all are there.
    ///
    /// # Errors
    /// As [`Region::discard`]; the host's refusal has figures.
    pub fn restore(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let part = self.part(range)?;
        let mapping = &self.parts().mapping;
        let restored = self.space.promise(mapping, &part);
        restored.map_err(|why| self.refused("reserve", range, why))
    }

    /// Has the host find every page of it, which [`AddressSpace::prefaults`] asks for: gigabytes
    /// take it seconds, so this is for a thread that nobody waits for.
    ///
    /// # Errors
    /// The host's refusal, with figures.
    pub fn prefault(&self) -> Result<(), MemoryError> {
        let Parts {
            mapping, part, info, ..
        } = self.parts();
        let found = self.space.prefault(mapping, part);
        found.map_err(|why| self.refused("allocate", &(0..info.bytes), why))
    }

    /// Lays `placeholder` over `range`, counted from the region's start, whose pages were given back: who touches it
    /// reaches that, and no memory. `range` has no more bytes than `placeholder`.
    ///
    /// # Errors
    /// As [`Region::discard`].
    pub(super) fn cover(&self, range: &Range<u64>, placeholder: &PlaceholderPages) -> Result<(), MemoryError> {
        let part = self.part(range)?;
        let covered = self.parts().mapping.cover(&part, placeholder);
        covered.map_err(|error| self.refused("cover", range, error.into()))
    }

    /// Makes `range` memory again after [`Region::cover`]. It is empty; with huge pages it must not
    /// be touched before [`Region::restore`].
    ///
    /// # Errors
    /// As [`Region::restore`].
    pub(super) fn uncover(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let part = self.part(range)?;
        let uncovered = self.space.uncover(&self.parts().mapping, &part);
        uncovered.map_err(|why| self.refused("reserve", range, why))
    }

    /// Takes it from the guest, which has let go of it, and gives it back to the host: gigabytes
    /// take that a while. Requests in flight keep their pages until they are done. Waits for KVM as
    /// [`Placed::fill`] does.
    ///
    /// # Errors
    /// KVM does not give it back: it is in the error, as it was.
    pub fn remove(mut self) -> Result<(), RemoveError> {
        let parts = self.parts.take().expect("taken by this and `drop` alone");
        match self.space.withdraw(parts) {
            Ok(parts) => {
                self.space.release(parts);
                Ok(())
            }
            Err((parts, source)) => {
                self.parts = Some(parts);
                Err(RemoveError {
                    region: Box::new(self),
                    source: Box::new(source),
                })
            }
        }
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("taken by `remove` and `drop` alone")
    }

    /// Where `range` is in the mapping.
    fn part(&self, range: &Range<u64>) -> Result<Range<u64>, MemoryError> {
        let Parts { part, info, .. } = self.parts();
        let bytes = range.end.saturating_sub(range.start);
        if range.start > range.end || range.end > info.bytes {
            return Err(MemoryError::Outside {
                offset: range.start,
                bytes,
                of: info.bytes,
            });
        }
        let unit = info.page_bytes;
        if !range.start.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            let gpa = info.gpa.saturating_add(range.start);
            return Err(MemoryError::Unit { gpa, bytes, unit });
        }
        Ok(part.start.saturating_add(range.start)..part.start.saturating_add(range.end))
    }

    fn refused(&self, what: &'static str, range: &Range<u64>, source: HostError) -> MemoryError {
        MemoryError::Host {
            what,
            kind: self.info().kind,
            bytes: range.end.saturating_sub(range.start),
            source,
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match self.parts.take().map(|parts| self.space.withdraw(parts)) {
            Some(Ok(parts)) => self.space.release(parts),
            Some(Err((parts, error))) => self.space.keep(*parts, &error),
            None => {}
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}
