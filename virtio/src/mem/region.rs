//! The blocks of a memory device and what may become of them: a pure account without memory, ring or lock.

use std::ops::Range;

/// `struct virtio_mem_config` (virtio 1.2 §5.15.4) in bytes.
pub(super) const CONFIG_BYTES: usize = 56;
/// Offset of `plugged_size` in it.
pub(super) const PLUGGED_SIZE: usize = 40;
/// Offset of `requested_size` in it.
pub(super) const REQUESTED_SIZE: usize = 48;

/// What a device is made of: where, how much at most, and in which units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemConfig {
    /// First guest-physical address, a multiple of `block_bytes`.
    pub base: u64,
    /// Length of the region in bytes, a multiple of `block_bytes`.
    pub region_bytes: u64,
    /// Unit in which memory comes and goes, in bytes: a power of two, 2 MiB or more for Linux to use it fully.
    pub block_bytes: u64,
}

/// A configuration that no device can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemConfigError {
    /// Not a power of two.
    #[error("a block of {0} bytes is not a power of two")]
    Block(u64),
    /// Base or length are not whole blocks, or there is not one block.
    #[error("{region_bytes} bytes at {base:#x} are not whole blocks of {block_bytes} bytes")]
    Region {
        /// First address.
        base: u64,
        /// Length in bytes.
        region_bytes: u64,
        /// Unit in bytes.
        block_bytes: u64,
    },
}

/// Why a request is turned down (virtio 1.2 §5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// `VIRTIO_MEM_RESP_NACK`: more than was asked for.
    Nack,
    /// `VIRTIO_MEM_RESP_ERROR`: no such blocks, or not in the state that the request is for.
    Error,
}

/// In which state a range of blocks is (virtio 1.2 §5.15.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// All are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

/// The account.
#[derive(Clone, Debug)]
pub(super) struct Region {
    config: MemConfig,
    /// One bit a block, set while it is plugged.
    plugged: Vec<u64>,
    plugged_bytes: u64,
    requested_bytes: u64,
}

impl Region {
    pub(super) fn new(config: MemConfig) -> Result<Self, MemConfigError> {
        let MemConfig {
            base,
            region_bytes,
            block_bytes,
        } = config;
        if !block_bytes.is_power_of_two() {
            return Err(MemConfigError::Block(block_bytes));
        }
        let whole = base.is_multiple_of(block_bytes) && region_bytes.is_multiple_of(block_bytes);
        if !whole || region_bytes == 0 || base.checked_add(region_bytes).is_none() {
            return Err(MemConfigError::Region {
                base,
                region_bytes,
                block_bytes,
            });
        }
        let words = region_bytes.checked_div(block_bytes).unwrap_or(0).div_ceil(64);
        Ok(Self {
            config,
            plugged: vec![0; usize::try_from(words).expect("x86_64: usize has 64 bits")],
            plugged_bytes: 0,
            requested_bytes: 0,
        })
    }

    pub(super) fn config(&self) -> MemConfig {
        self.config
    }

    pub(super) fn plugged_bytes(&self) -> u64 {
        self.plugged_bytes
    }

    pub(super) fn requested_bytes(&self) -> u64 {
        self.requested_bytes
    }

    /// Sets how much the guest should have.
    pub(super) fn request(&mut self, bytes: u64) {
        self.requested_bytes = bytes;
    }

    /// `struct virtio_mem_config`: the node is 0, and all of the region is usable.
    pub(super) fn config_bytes(&self) -> Vec<u8> {
        let MemConfig {
            base,
            region_bytes,
            block_bytes,
        } = self.config;
        let fields = [
            block_bytes,
            0,
            base,
            region_bytes,
            region_bytes,
            self.plugged_bytes,
            self.requested_bytes,
        ];
        fields.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// The blocks that `count` blocks from `addr` on are, as numbers; `None` where there are none.
    pub(super) fn blocks(&self, addr: u64, count: u16) -> Option<Range<u64>> {
        let offset = addr.checked_sub(self.config.base)?;
        if count == 0 || !offset.is_multiple_of(self.config.block_bytes) {
            return None;
        }
        let first = offset.checked_div(self.config.block_bytes)?;
        let end = first.checked_add(count.into())?;
        let all = self.config.region_bytes.checked_div(self.config.block_bytes)?;
        (end <= all).then_some(first..end)
    }

    /// Where in the region `blocks` are: offset and length in bytes.
    pub(super) fn bytes(&self, blocks: &Range<u64>) -> (u64, u64) {
        let unit = self.config.block_bytes;
        let count = blocks.end.saturating_sub(blocks.start);
        (blocks.start.saturating_mul(unit), count.saturating_mul(unit))
    }

    /// Whether the guest may plug these blocks now.
    pub(super) fn may_plug(&self, blocks: &Range<u64>) -> Result<(), Denied> {
        let (_, bytes) = self.bytes(blocks);
        if self.state(blocks) != BlockState::Unplugged {
            return Err(Denied::Error);
        }
        match self.plugged_bytes.checked_add(bytes) {
            Some(sum) if sum <= self.requested_bytes => Ok(()),
            _ => Err(Denied::Nack),
        }
    }

    /// Whether the guest may unplug these blocks.
    pub(super) fn may_unplug(&self, blocks: &Range<u64>) -> Result<(), Denied> {
        match self.state(blocks) {
            BlockState::Plugged => Ok(()),
            _ => Err(Denied::Error),
        }
    }

    pub(super) fn state(&self, blocks: &Range<u64>) -> BlockState {
        let (mut some, mut all) = (false, true);
        for block in blocks.clone() {
            let plugged = self.is_plugged(block);
            some |= plugged;
            all &= plugged;
        }
        match (some, all) {
            (_, true) => BlockState::Plugged,
            (false, _) => BlockState::Unplugged,
            _ => BlockState::Mixed,
        }
    }

    /// Records that `blocks` are plugged now, or are not any more.
    pub(super) fn set(&mut self, blocks: &Range<u64>, plugged: bool) {
        for block in blocks.clone() {
            let (word, bit) = place(block);
            let Some(word) = self.plugged.get_mut(word) else { return };
            let changed = (*word & bit != 0) != plugged;
            if changed {
                *word ^= bit;
                let unit = self.config.block_bytes;
                self.plugged_bytes = if plugged {
                    self.plugged_bytes.saturating_add(unit)
                } else {
                    self.plugged_bytes.saturating_sub(unit)
                };
            }
        }
    }

    /// The first run of plugged blocks from block `from` on.
    pub(super) fn next_plugged(&self, from: u64) -> Option<Range<u64>> {
        let all = self.config.region_bytes.checked_div(self.config.block_bytes)?;
        let start = (from..all).find(|block| self.is_plugged(*block))?;
        let end = (start..all).find(|block| !self.is_plugged(*block)).unwrap_or(all);
        Some(start..end)
    }

    fn is_plugged(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.plugged.get(word).is_some_and(|word| word & bit != 0)
    }
}

/// The word of the map that has a block's bit, and that bit.
fn place(block: u64) -> (usize, u64) {
    let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
    (word, 1u64.rotate_left(u32::try_from(block % 64).unwrap_or(0)))
}

#[cfg(test)]
#[path = "region_test.rs"]
mod tests;
