//! Configuration space of the block device (virtio 1.2 §5.2.4), with the driver's cache switch.
//!
//! | offset | width | R/W | field | value |
//! |---|---|---|---|---|
//! | 0 | 8 | R | `capacity` | sectors of 512 bytes |
//! | 8 | 4 | R | `size_max` | 0: `VIRTIO_BLK_F_SIZE_MAX` is not offered |
//! | 12 | 4 | R | `seg_max` | queue size less header and status |
//! | 16 | 4 | R | `geometry` | 0: `VIRTIO_BLK_F_GEOMETRY` is not offered |
//! | 20 | 4 | R | `blk_size` | logical block, bytes |
//! | 24 | 1 | R | `physical_block_exp` | log2 of logical blocks in a physical one |
//! | 25 | 1 | R | `alignment_offset` | 0 |
//! | 26 | 2 | R | `min_io_size` | logical blocks |
//! | 28 | 4 | R | `opt_io_size` | logical blocks |
//! | 32 | 1 | RW | `writeback` | 1: writes are stable after a flush; 0: when they complete |
//! | 33 | 1 | R | unused | 0 |
//! | 34 | 2 | R | `num_queues` | request queues |
//! | 36 | 4 | R | `max_discard_sectors` | most sectors of one discard range |
//! | 40 | 4 | R | `max_discard_seg` | most ranges of one discard |
//! | 44 | 4 | R | `discard_sector_alignment` | sectors |
//! | 48 | 4 | R | `max_write_zeroes_sectors` | most sectors of one range |
//! | 52 | 4 | R | `max_write_zeroes_seg` | most ranges of one request |
//! | 56 | 1 | R | `write_zeroes_may_unmap` | 1: zeroes may free space on the host |
//! | 57 | 3 | R | unused | 0 |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::BlockConfig;
use super::image::{Image, SECTOR_BYTES};
use super::request::{MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS};
use crate::device::ConfigAccess;

/// Offset of the only field that a driver may write.
const WRITEBACK: usize = 32;
/// Length of the configuration space.
const LENGTH: usize = 60;

/// The cache mode, shared between configuration space and queues: `true` means that a write is stable after the next
/// flush, `false` that it is stable when it completes.
#[derive(Clone, Debug)]
pub(super) struct Writeback(Arc<AtomicBool>);

impl Writeback {
    /// A cache mode to start with.
    pub fn new(on: bool) -> Self {
        Self(Arc::new(AtomicBool::new(on)))
    }

    /// The mode now.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes the mode for writes that begin after this.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }
}

/// What the driver reads, and its one switch.
pub(super) struct ConfigSpace {
    bytes: [u8; LENGTH],
    writeback: Writeback,
}

impl ConfigSpace {
    /// The configuration of a disk on `image`.
    pub fn new(config: &BlockConfig, image: &Image, writeback: Writeback) -> Self {
        let sizes = image.sizes();
        let blocks = |bytes: u32| bytes.checked_div(sizes.logical).unwrap_or(0);
        let physical = blocks(sizes.physical).checked_ilog2().unwrap_or(0);
        let if_discard = |value: u32| if image.discard() { value } else { 0 };
        let if_writable = |value: u32| if image.readonly() { 0 } else { value };

        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend(image.sectors().to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(u32::from(config.queue_size.saturating_sub(2)).to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(sizes.logical.to_le_bytes());
        bytes.push(u8::try_from(physical).unwrap_or(0));
        bytes.push(0);
        bytes.extend(u16::try_from(blocks(sizes.min_io)).unwrap_or(0).to_le_bytes());
        bytes.extend(blocks(sizes.opt_io).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(config.queues.to_le_bytes());
        bytes.extend(if_discard(MAX_DISCARD_SECTORS).to_le_bytes());
        bytes.extend(if_discard(MAX_DISCARD_RANGES).to_le_bytes());
        bytes.extend(if_discard(sizes.logical / SECTOR_BYTES).to_le_bytes());
        bytes.extend(if_writable(MAX_ZERO_SECTORS).to_le_bytes());
        bytes.extend(if_writable(MAX_ZERO_RANGES).to_le_bytes());
        bytes.push(u8::from(image.discard()));
        bytes.extend([0; 3]);
        let bytes = bytes.try_into().expect("the fields above are the table's");
        Self { bytes, writeback }
    }
}

impl ConfigAccess for ConfigSpace {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = self.bytes;
        if let Some(byte) = bytes.get_mut(WRITEBACK) {
            *byte = u8::from(self.writeback.is_on());
        }
        let mut source = bytes.into_iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.fill_with(|| source.next().unwrap_or(0));
    }

    /// Only `writeback` is writable (virtio 1.2 §5.2.5). Where `VIRTIO_BLK_F_CONFIG_WCE` was not negotiated nobody
    /// looks at it.
    fn write(&mut self, offset: u64, data: &[u8]) {
        let index = usize::try_from(offset)
            .ok()
            .and_then(|offset| WRITEBACK.checked_sub(offset));
        if let Some(byte) = index.and_then(|at| data.get(at)) {
            self.writeback.set(*byte != 0);
        }
    }

    /// Constant: no multi-byte field ever changes.
    fn generation(&self) -> u8 {
        0
    }
}
