//! Memory of a virtio-mem device: small blocks, plugged and unplugged one by one, on few memory slots.
//!
//! The device's range is cut into chunks. A chunk is a [`Region`] while any block in it is plugged,
//! and nothing otherwise: only then has KVM a memory slot for it, which it cannot cut while vCPUs
//! run. So a chunk that is there is cut behind the slot, into units of a block or a few: over one
//! without a plugged block lies the [`PlaceholderPages`], which is the same for all. A guest that
//! touches what is not plugged reaches that, and costs the host a unit's pages at most, however
//! much it touches. A chunk begins with that over all of it, so that the host is asked for the
//! blocks that are plugged and for no others.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use husk_devices::error_chain;
use husk_virtio::mem::Backing;

use super::backing::PlaceholderPages;
use super::{AddressSpace, Kind, MemoryError, Region};

/// The least of a chunk: what a Linux guest asks for at once.
const CHUNK_MIN: u64 = 128 << 20;
/// The most chunks of a device. Each is a memory slot, and a region of what devices see.
const CHUNKS_MAX: u64 = 256;
/// The most units of a chunk: each may take one of the mappings that a process may have
/// (`vm.max_map_count`, 65530 by default).
const UNITS_MAX: u64 = 64;

/// The blocks of one device.
#[derive(Debug)]
pub struct Blocks {
    space: Arc<AddressSpace>,
    /// Guest-physical.
    window: Range<u64>,
    block: u64,
    chunk: u64,
    /// What the placeholder is laid over or not, as a whole: blocks.
    unit: u64,
    placeholder: Arc<PlaceholderPages>,
    /// Said once.
    is_uncovered: bool,
    /// By number, from the window's start.
    chunks: BTreeMap<u64, Chunk>,
}

/// A chunk with something plugged in it.
#[derive(Debug)]
struct Chunk {
    region: Region,
    /// By number, from the chunk's start.
    plugged: Vec<bool>,
}

impl Blocks {
    /// Blocks of `block` bytes, a power of two of at least 2 MiB and no smaller than the page, in
    /// the guest-physical range `window` of the reserve, whole blocks. Nothing is plugged.
    ///
    /// # Errors
    /// [`MemoryError::Unit`], or the host has no pages for the placeholder.
    pub fn new(space: Arc<AddressSpace>, window: Range<u64>, block: u64) -> Result<Self, MemoryError> {
        let bytes = window.end.saturating_sub(window.start);
        let unit = space.block_bytes();
        let whole = block.is_power_of_two() && block >= unit;
        if !whole || bytes == 0 || !bytes.is_multiple_of(block) || !window.start.is_multiple_of(block) {
            let gpa = window.start;
            let unit = if whole { block } else { unit };
            return Err(MemoryError::Unit { gpa, bytes, unit });
        }
        let chunk = bytes.div_ceil(CHUNKS_MAX).next_power_of_two();
        let chunk = chunk.max(CHUNK_MIN).max(block);
        let unit = (chunk / UNITS_MAX).max(block);
        let placeholder = PlaceholderPages::new(unit).map_err(|error| MemoryError::Host {
            what: "reserve",
            kind: Kind::VirtioMem,
            bytes: unit,
            source: space.explain_file(unit, error),
        })?;
        Ok(Self {
            space,
            window,
            block,
            chunk,
            unit,
            placeholder: Arc::new(placeholder),
            is_uncovered: false,
            chunks: BTreeMap::new(),
        })
    }

    /// Plugs the blocks in `range`, counted from the window's start. They are empty, whatever a
    /// guest or a vhost-user back-end has done to them before.
    ///
    /// # Errors
    /// [`MemoryError::Outside`], [`MemoryError::Unit`], or the host's refusal, with figures. Nothing of
    /// it is plugged then.
    pub fn plug(&mut self, range: &Range<u64>) -> Result<(), MemoryError> {
        self.check(range)?;
        let mut done = range.start;
        for part in self.parts(range) {
            if let Err(error) = self.plug_part(part) {
                self.unplug(&(range.start..done)).unwrap_or_else(|again| {
                    log::error!("virtio-mem: {}", error_chain(&again));
                });
                return Err(error);
            }
            done = part.start(self.chunk) + part.len;
        }
        Ok(())
    }

    /// Unplugs the blocks in `range`, counted from the window's start: their pages are the host's again.
    ///
    /// # Errors
    /// As [`Blocks::plug`]. All of it is plugged then, as before, but what comes before the failure is empty.
    pub fn unplug(&mut self, range: &Range<u64>) -> Result<(), MemoryError> {
        self.check(range)?;
        let mut undone = Vec::new();
        for part in self.parts(range) {
            let was_plugged = self.chunks.get(&part.chunk).map(|chunk| chunk.marks(part, self.block));
            if let Err(error) = self.unplug_part(part) {
                for (part, marks) in undone {
                    self.plug_again(part, marks);
                }
                return Err(error);
            }
            undone.extend(was_plugged.map(|marks| (part, marks)));
        }
        Ok(())
    }

    fn unplug_part(&mut self, part: Part) -> Result<(), MemoryError> {
        let (unit, block, inside) = (self.unit, self.block, part.inside());
        let Some(chunk) = self.chunks.get_mut(&part.chunk) else {
            return Ok(());
        };
        let marks = chunk.marks(part, block);
        if !chunk.region.is_shared() {
            // The placeholder takes the place of these pages, and of those that a vCPU has touched since.
            chunk.region.discard_committed(&inside)?;
            mark(chunk, part, block, false);
        } else {
            // The pages of a file stay when something else is mapped over them. A vCPU that touched
            // them after they had been given back would have new ones made, which nobody gives
            // back: so the placeholder comes first.
            chunk.region.touch_reserved(&inside);
            mark(chunk, part, block, false);
            self.cover(part.chunk, &inside);
            let chunk = self.chunks.get_mut(&part.chunk).expect("nothing is dropped between");
            if let Err(error) = chunk.region.discard(&inside) {
                let bare = chunk.bare(&inside, unit, block);
                let uncovered = bare.iter().try_for_each(|unit| chunk.region.uncover(unit));
                let restored = uncovered.and_then(|()| chunk.region.restore(&inside));
                restored.unwrap_or_else(|again| log::error!("virtio-mem: {}", error_chain(&again)));
                chunk.put_marks(part, block, &marks);
                return Err(error);
            }
        }
        self.drop_if_empty(part.chunk);
        self.cover(part.chunk, &inside);
        Ok(())
    }

    /// Plugs those blocks of `part` again that had `marks`.
    fn plug_again(&mut self, part: Part, marks: Vec<bool>) {
        for (number, _) in (0..).zip(marks).filter(|(_, plugged)| *plugged) {
            let again = self.plug_part(Part {
                offset: part.offset + number * self.block,
                len: self.block,
                ..part
            });
            again.unwrap_or_else(|error| log::error!("virtio-mem: {}", error_chain(&error)));
        }
    }

    /// Bytes that are plugged.
    pub fn plugged_bytes(&self) -> u64 {
        let plugged = self.chunks.values().flat_map(|chunk| &chunk.plugged);
        plugged.filter(|plugged| **plugged).map(|_| self.block).sum()
    }

    fn plug_part(&mut self, part: Part) -> Result<(), MemoryError> {
        if !self.chunks.contains_key(&part.chunk) {
            let start = self.window.start.saturating_add(part.chunk.saturating_mul(self.chunk));
            let bytes = self.chunk.min(self.window.end.saturating_sub(start));
            let region = self.space.grow_covered(start, bytes, &self.placeholder)?;
            let plugged = vec![false; index(bytes / self.block)];
            self.chunks.insert(part.chunk, Chunk { region, plugged });
        }
        let Some(chunk) = self.chunks.get_mut(&part.chunk) else {
            return Ok(());
        };
        // What shares a unit with a plugged block was within the guest's reach, and the pages of a
        // file are within that of a vhost-user back-end, plugged or not.
        let emptied = match self.unit > self.block || chunk.region.is_shared() {
            true => chunk.region.discard(&part.inside()),
            false => Ok(()),
        };
        let bare = chunk.bare(&part.inside(), self.unit, self.block);
        let uncovered = emptied.and_then(|()| bare.iter().try_for_each(|unit| chunk.region.uncover(unit)));
        let restored = uncovered.and_then(|()| chunk.region.restore(&part.inside()));
        if restored.is_ok() {
            mark(chunk, part, self.block, true);
        }
        self.drop_if_empty(part.chunk);
        self.cover(part.chunk, &part.inside());
        restored
    }

    /// Lays the placeholder over what has no plugged block and overlaps `range`, counted from the start of chunk
    /// `number`.
    fn cover(&mut self, number: u64, range: &Range<u64>) {
        let Some(chunk) = self.chunks.get(&number) else {
            return;
        };
        let bare = chunk.bare(range, self.unit, self.block);
        let covered = bare
            .iter()
            .try_for_each(|unit| chunk.region.cover(unit, &self.placeholder));
        if let Err(error) = covered
            && !std::mem::replace(&mut self.is_uncovered, true)
        {
            log::warn!(
                "virtio-mem: the guest can touch what is not plugged: {}",
                error_chain(&error)
            );
        }
    }

    /// A chunk without plugged blocks is no longer the guest's, and its pages are the host's. One
    /// that KVM does not give back stays, without pages.
    fn drop_if_empty(&mut self, number: u64) {
        let empty = |chunk: &Chunk| !chunk.plugged.contains(&true);
        let Some(chunk) = self.chunks.remove(&number) else {
            return;
        };
        if !empty(&chunk) {
            self.chunks.insert(number, chunk);
            return;
        }
        let Chunk { region, plugged } = chunk;
        let Err(error) = region.remove() else { return };
        log::warn!("virtio-mem: {}", error_chain(&error));
        let region = *error.region;
        let whole = 0..region.info().bytes;
        if let Err(error) = region.discard(&whole) {
            log::warn!("virtio-mem: {}", error_chain(&error));
        }
        self.chunks.insert(number, Chunk { region, plugged });
        self.cover(number, &whole);
    }

    fn check(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let of = self.window.end.saturating_sub(self.window.start);
        let (offset, bytes) = (range.start, range.end.saturating_sub(range.start));
        if range.start > range.end || range.end > of {
            return Err(MemoryError::Outside { offset, bytes, of });
        }
        let unit = self.block;
        if !offset.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            let gpa = self.window.start.saturating_add(offset);
            return Err(MemoryError::Unit { gpa, bytes, unit });
        }
        Ok(())
    }

    /// `range` by chunks.
    fn parts(&self, range: &Range<u64>) -> Vec<Part> {
        let chunk = self.chunk;
        let numbers = range.start / chunk..range.end.div_ceil(chunk);
        let parts = numbers.filter_map(|number| {
            let start = number * chunk;
            let from = range.start.max(start);
            let to = range.end.min(start.saturating_add(chunk));
            (from < to).then(|| Part {
                chunk: number,
                offset: from - start,
                len: to - from,
            })
        });
        parts.collect()
    }
}

impl Chunk {
    /// Which blocks of `part` are plugged.
    fn marks(&self, part: Part, block: u64) -> Vec<bool> {
        let (first, count) = (index(part.offset / block), index(part.len / block));
        self.plugged.iter().skip(first).take(count).copied().collect()
    }

    /// Undoes [`mark`].
    fn put_marks(&mut self, part: Part, block: u64, marks: &[bool]) {
        let of_part = self.plugged.iter_mut().skip(index(part.offset / block));
        of_part.zip(marks).for_each(|(of, was)| *of = *was);
    }

    /// Its units of `unit` bytes that overlap `range` and have no plugged block. The last one may be short.
    fn bare(&self, range: &Range<u64>, unit: u64, block: u64) -> Vec<Range<u64>> {
        let end = self.region.info().bytes.min(range.end);
        let starts = (range.start / unit..end.div_ceil(unit)).map(|number| number * unit);
        let units = starts.map(|start| start..(start + unit).min(self.region.info().bytes));
        let mut units: Vec<_> = units.collect();
        units.retain(|unit| {
            let of_unit = self.plugged.iter().skip(index(unit.start / block));
            !of_unit
                .take(index(unit.end.div_ceil(block) - unit.start / block))
                .any(|plugged| *plugged)
        });
        units
    }
}

fn index(blocks: u64) -> usize {
    usize::try_from(blocks).expect("x86_64: usize has 64 bits")
}

impl Backing for Blocks {
    fn plug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        Self::plug(self, &(offset..offset.saturating_add(bytes))).map_err(io::Error::other)
    }

    fn unplug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        Self::unplug(self, &(offset..offset.saturating_add(bytes))).map_err(io::Error::other)
    }
}

/// A range in one chunk.
#[derive(Clone, Copy, Debug)]
struct Part {
    chunk: u64,
    offset: u64,
    len: u64,
}

impl Part {
    /// Counted from the chunk's start.
    fn inside(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// Counted from the window's start, with chunks of `chunk` bytes.
    fn start(&self, chunk: u64) -> u64 {
        self.chunk * chunk + self.offset
    }
}

fn mark(chunk: &mut Chunk, part: Part, block: u64, plugged: bool) {
    let (first, count) = (index(part.offset / block), index(part.len / block));
    let of_part = chunk.plugged.iter_mut().skip(first).take(count);
    of_part.for_each(|of| *of = plugged);
}

#[cfg(test)]
#[path = "blocks_test.rs"]
mod tests;
