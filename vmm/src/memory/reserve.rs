//! Addresses for memory that comes while the guest runs: one range, reserved at boot, that costs nothing until part of it is used.

use husk_firmware::layout;
use serde::Serialize;

use crate::config::MemoryConfig;

/// The reserve as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// Where it begins in guest-physical addresses: a multiple of the unit.
    pub base: u64,
    /// How much may come: whole units.
    pub bytes: u64,
    /// What memory may come in: multiples of the block that Linux adds at once, and of the page.
    pub unit: u64,
}

impl Reserved {
    /// What `config` asks for, above RAM that ends at `ram_end`. `None` if nothing may come.
    pub fn new(config: &MemoryConfig, ram_end: u64) -> Option<Self> {
        let asked = config.hotplug_size.filter(|bytes| *bytes > 0)?;
        let unit = layout::memory_block(ram_end).max(config.page_bytes());
        let base = layout::hotplug_base(ram_end)?.checked_next_multiple_of(unit)?;
        // What was asked for can come in whole units.
        let bytes = asked.checked_next_multiple_of(unit)?;
        base.checked_add(bytes)?;
        Some(Self { base, bytes, unit })
    }

    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes)
    }
}
