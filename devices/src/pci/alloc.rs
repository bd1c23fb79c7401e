//! Addresses for BARs, from one of the machine's PCI windows.

use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::Window;

/// Why an address could not be had or given back.
#[derive(Debug, thiserror::Error)]
pub enum AllocError {
    /// An empty window, or one that wraps around.
    #[error("{size:#x} bytes at {base:#x} are no usable PCI window")]
    Window {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// The allocator's answer.
        source: vm_allocator::Error,
    },
    /// No room.
    #[error("no room for a BAR of {size:#x} bytes in the PCI window {first:#x}..={last:#x}")]
    Full {
        /// Length in bytes.
        size: u64,
        /// First address of the window.
        first: u64,
        /// Last address of the window.
        last: u64,
        /// The allocator's answer.
        source: vm_allocator::Error,
    },
    /// Nothing in just this extent was handed out.
    #[error("no BAR of {size:#x} bytes was placed at {base:#x}")]
    Unknown {
        /// First address.
        base: u64,
        /// Length in bytes.
        size: u64,
        /// The allocator's answer.
        source: vm_allocator::Error,
    },
}

/// Hands out naturally aligned addresses, lowest first.
#[derive(Debug)]
pub struct BarAllocator {
    space: AddressAllocator,
}

impl BarAllocator {
    /// An allocator for all of `window`, which must not contain address 0: that is what an unset BAR holds.
    ///
    /// # Errors
    /// [`AllocError::Window`].
    pub fn new(window: Window) -> Result<Self, AllocError> {
        let Window { base, size } = window;
        let space = if base == 0 {
            Err(vm_allocator::Error::InvalidRange(base, size))
        } else {
            AddressAllocator::new(base, size)
        };
        Ok(Self {
            space: space.map_err(|source| AllocError::Window { base, size, source })?,
        })
    }

    /// An address for a BAR of `size` bytes, a power of two: a multiple of `size`.
    ///
    /// # Errors
    /// [`AllocError::Full`], also for a size that is no power of two.
    pub fn allocate(&mut self, size: u64) -> Result<u64, AllocError> {
        let (first, last) = (self.space.base(), self.space.end());
        let range = self.space.allocate(size, size, AllocPolicy::FirstMatch);
        range.map(|range| range.start()).map_err(|source| AllocError::Full {
            size,
            first,
            last,
            source,
        })
    }

    /// Gives back what [`BarAllocator::allocate`] has placed. A stretch that is free in just this extent stays free.
    ///
    /// # Errors
    /// [`AllocError::Unknown`].
    pub fn free(&mut self, base: u64, size: u64) -> Result<(), AllocError> {
        let last = base.saturating_add(size.saturating_sub(1));
        let range = RangeInclusive::new(base, last).and_then(|range| self.space.free(&range));
        range.map_err(|source| AllocError::Unknown { base, size, source })
    }
}

#[cfg(test)]
#[path = "alloc_test.rs"]
mod tests;
