//! Addresses for memory that comes while the guest runs: one range, reserved at boot, that costs
//! nothing until part of it is used.

use husk_firmware::layout;
use serde::Serialize;

use crate::config::{Hotplug, MemoryConfig};

/// The reserve as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// Where it begins in guest-physical addresses: a multiple of the unit.
    pub base: u64,
    /// How much may come: whole units.
    pub bytes: u64,
    /// What memory may come in: multiples of the block that Linux adds at once, and of the page.
    pub unit: u64,
    /// The part that is kept for the blocks of virtio-mem (base, bytes), if there may be any.
    pub blocks: Option<(u64, u64)>,
}

impl Reserved {
    /// What `config` asks for, above RAM that ends at `ram_end`. `None` if nothing may come.
    ///
    /// Where memory may come as DIMMs and as blocks, each has addresses for all of it: which way it
    /// comes is known when the guest has shown its drivers, and addresses cost nothing. Where those
    /// do not reach, below `limit`, there are only DIMMs.
    pub fn new(config: &MemoryConfig, ram_end: u64, limit: u64) -> Option<Self> {
        let asked = config.hotplug_size.filter(|bytes| *bytes > 0)?;
        let (base, unit) = beginning(config, ram_end)?;
        // What was asked for can come in whole units.
        let bytes = asked.checked_next_multiple_of(unit)?;
        let end = base.checked_add(bytes)?;
        let whole = Self {
            base,
            bytes,
            unit,
            blocks: None,
        };
        Some(match config.hotplug() {
            Hotplug::Dimms => whole,
            Hotplug::Blocks => Self {
                blocks: Some((base, bytes)),
                ..whole
            },
            Hotplug::Either => match end.checked_add(bytes).filter(|both| *both <= limit) {
                Some(_) => Self {
                    bytes: bytes.saturating_mul(2),
                    blocks: Some((end, bytes)),
                    ..whole
                },
                None => whole,
            },
        })
    }

    /// The most that may come, in whole units, to a VM with the RAM of `config`, below `limit`.
    pub fn room(config: &MemoryConfig, limit: u64) -> u64 {
        let ram_end = layout::ram_end(&layout::ram_ranges(config.size));
        let Some((base, unit)) = beginning(config, ram_end) else {
            return 0;
        };
        let room = limit.saturating_sub(base);
        room.saturating_sub(room.checked_rem(unit).unwrap_or_default())
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes)
    }
}

/// Where a reserve begins above RAM that ends at `ram_end`, and its unit.
fn beginning(config: &MemoryConfig, ram_end: u64) -> Option<(u64, u64)> {
    let unit = layout::memory_block(ram_end).max(config.page_bytes());
    let base = layout::hotplug_base(ram_end)?.checked_next_multiple_of(unit)?;
    Some((base, unit))
}
