//! Memory of a virtio-mem device: small blocks, plugged and unplugged one by one, on few memory slots.
//!
//! The device's range is cut into chunks. A chunk is a [`Region`] while any block in it is plugged, and nothing otherwise. An
//! unplugged block of a chunk that is there has no pages: the guest, which has no business with it, reads zeroes.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use husk_devices::chain;
use husk_virtio::mem::Backing;

use super::{AddressSpace, Kind, MemoryError, Region};

/// The least of a chunk: what a Linux guest asks for at once.
const CHUNK_MIN: u64 = 128 << 20;
/// The most chunks of a device. Each is a memory slot, and a region of what devices see.
const CHUNKS_MAX: u64 = 256;

/// The blocks of one device.
#[derive(Debug)]
pub struct Blocks {
    space: Arc<AddressSpace>,
    /// Guest-physical.
    window: Range<u64>,
    block: u64,
    chunk: u64,
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
    /// Blocks of `block` bytes, a power of two of at least 2 MiB and no smaller than the page, in the guest-physical range `window` of
    /// the reserve, whole blocks. Nothing is plugged.
    ///
    /// # Errors
    /// [`MemoryError::Unit`].
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
        Ok(Self {
            space,
            window,
            block,
            chunk: chunk.max(CHUNK_MIN).max(block),
            chunks: BTreeMap::new(),
        })
    }

    /// Plugs the blocks in `range`, counted from the window's start. They are empty.
    ///
    /// # Errors
    /// [`MemoryError::Outside`], [`MemoryError::Unit`], or what [`AddressSpace::grow_at`] and [`Region::restore`] say. Nothing of
    /// it is plugged then.
    pub fn plug(&mut self, range: &Range<u64>) -> Result<(), MemoryError> {
        self.check(range)?;
        let mut done = range.start;
        for part in self.parts(range) {
            if let Err(error) = self.plug_part(part) {
                self.unplug(&(range.start..done)).unwrap_or_else(|again| {
                    log::error!("virtio-mem: {}", chain(&again));
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
    /// As [`Blocks::plug`]; what comes before the failure is unplugged.
    pub fn unplug(&mut self, range: &Range<u64>) -> Result<(), MemoryError> {
        self.check(range)?;
        for part in self.parts(range) {
            let Some(chunk) = self.chunks.get_mut(&part.chunk) else {
                continue;
            };
            chunk.region.discard(&part.inside())?;
            mark(chunk, part, self.block, false);
            self.drop_if_empty(part.chunk);
        }
        Ok(())
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
            let region = self.space.grow_at(Kind::VirtioMem, start, bytes)?;
            let count = usize::try_from(bytes / self.block).expect("x86_64: usize has 64 bits");
            let plugged = vec![false; count];
            self.chunks.insert(part.chunk, Chunk { region, plugged });
        }
        let Some(chunk) = self.chunks.get_mut(&part.chunk) else {
            return Ok(());
        };
        let restored = chunk.region.restore(&part.inside());
        if restored.is_ok() {
            mark(chunk, part, self.block, true);
        }
        self.drop_if_empty(part.chunk);
        restored
    }

    /// A chunk without plugged blocks is no longer the guest's. One that KVM does not give back stays, without pages.
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
        if let Err(error) = region.remove() {
            log::warn!("virtio-mem: {}", chain(&error));
            let region = *error.region;
            self.chunks.insert(number, Chunk { region, plugged });
        }
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
    let blocks = chunk.plugged.iter_mut().zip(0_u64..);
    for (of, number) in blocks {
        if part.inside().contains(&(number * block)) {
            *of = plugged;
        }
    }
}

#[cfg(test)]
#[path = "blocks_test.rs"]
mod tests;
