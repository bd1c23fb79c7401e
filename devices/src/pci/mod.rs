//! PCI functions and what they share: configuration space, BARs, MSI-X, the root they sit below.
//!
//! Configuration space is reached through the memory-mapped ECAM window only (PCIe 5.0 §7.2.2): one
//! exit an access. The older mechanism of ports 0xcf8 and 0xcfc, which takes two, does not exist in
//! a husk machine.

mod alloc;
mod bar;
mod config;
mod function;
mod msix;
mod registers;
mod removable;
mod root;

use std::fmt;

pub use alloc::{AllocError, BarAllocator};
pub use bar::{Bar, BarRange};
pub use config::{CAP_VENDOR, ConfigError, ConfigSpace, Identity};
pub use function::{BarWindow, PciFunction};
pub use msix::{BarPlace, MaskState, Msix, Vector};
pub use removable::Removable;
pub use root::{ECAM_SIZE, Ecam, PciError, PciRoot};

/// Where a function sits: bus 0 to 255, device 0 to 31, function 0 to 7. Displayed as `0000:00:05.0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    /// Bus number.
    pub bus: u8,
    /// Device number, also called slot.
    pub device: u8,
    /// Function number.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{:x}", self.bus, self.device, self.function)
    }
}

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}
