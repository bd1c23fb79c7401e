//! Memory BARs (PCIe 5.0 §7.5.1.2.1).
//!
//! | bits of the first dword | meaning |
//! |---|---|
//! | 0 | 0: memory space |
//! | 2:1 | 0: 32-bit, 2: 64-bit, and the next BAR register holds the upper half |
//! | 3 | prefetchable |
//! | 31:4 | address; the bits below the size are read-only zeros |
//!
//! The sizing protocol needs nothing more: all ones written read back as the size's mask and these flags.

/// Bits 2:1 of a 64-bit BAR.
const TYPE_64: u64 = 2 << 1;
/// Bit 3.
const PREFETCHABLE: u64 = 1 << 3;
/// The smallest memory BAR that the register layout can express.
const MIN_SIZE: u64 = 16;
/// The largest 32-bit BAR: at least one address bit must be writable.
const MAX_SIZE_32: u64 = 1 << 31;
/// The largest 64-bit BAR: half of the widest physical address space of x86 (Intel SDM 3A §4.1.4).
const MAX_SIZE_64: u64 = 1 << 51;

/// A memory BAR of a function: how long, how wide, whether prefetchable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    size: u64,
    wide: bool,
    prefetchable: bool,
}

/// What a memory BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// First guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Bar {
    /// A BAR below 4 GiB, which no device of husk has. `size` is a power of two, 16 bytes to 2 GiB.
    #[cfg(any(test, feature = "test-utils"))]
    pub const fn memory32(size: u64) -> Self {
        Self {
            size,
            wide: false,
            prefetchable: false,
        }
    }

    /// A BAR anywhere, which takes two BAR registers. `size` is a power of two, 16 bytes to 2 PiB.
    pub const fn memory64(size: u64) -> Self {
        Self {
            size,
            wide: true,
            prefetchable: false,
        }
    }

    /// The same BAR, whose reads have no side effects.
    #[must_use]
    pub const fn prefetchable(self) -> Self {
        Self {
            prefetchable: true,
            ..self
        }
    }

    /// Length in bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Whether it may be placed above 4 GiB.
    pub const fn is_64bit(self) -> bool {
        self.wide
    }

    /// The largest size that fits the width.
    pub(super) const fn max_size(self) -> u64 {
        if self.wide { MAX_SIZE_64 } else { MAX_SIZE_32 }
    }

    pub(super) const fn is_valid(self) -> bool {
        self.size.is_power_of_two() && self.size >= MIN_SIZE && self.size <= self.max_size()
    }

    /// How many BAR registers it takes.
    pub(super) const fn registers(self) -> usize {
        if self.wide { 2 } else { 1 }
    }

    /// The address bits that the guest may change.
    pub(super) const fn mask(self) -> u64 {
        let mask = !self.size.wrapping_sub(1);
        if self.wide { mask } else { mask & 0xffff_ffff }
    }

    /// What its registers hold when it is at `base`.
    pub(super) const fn raw(self, base: u64) -> u64 {
        let width = if self.wide { TYPE_64 } else { 0 };
        let prefetchable = if self.prefetchable { PREFETCHABLE } else { 0 };
        (base & self.mask()) | width | prefetchable
    }

    /// The range that registers with value `raw` decode. Address 0 is what an unset BAR holds, and
    /// a range that would run past the last address decodes nothing.
    pub(super) fn decode(self, bar: u8, raw: u64) -> Option<BarRange> {
        let base = raw & self.mask();
        let fits = base.checked_add(self.size).is_some();
        (base != 0 && fits).then_some(BarRange {
            bar,
            base,
            size: self.size,
        })
    }
}
