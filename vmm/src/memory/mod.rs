//! Guest-physical memory: one owner of every range, from the host's pages to the guest's memory slot.
//!
//! [`AddressSpace`] has the whole of it; a [`Region`] is a part that comes and goes while the guest
//! runs. What a region is made of is told by [`Kind`]. The mappings carry names in
//! `/proc/<pid>/smaps` ([`RAM_NAME`], [`RESERVE_NAME`]), so that the VMM's own memory can be told
//! from the guest's.
//!
//! | file | its one reason |
//! |---|---|
//! | `space.rs` | what the rest of husk sees |
//! | `region.rs` | a region in the hands of its owner |
//! | `blocks.rs` | the blocks of a virtio-mem device, on few regions |
//! | `steps.rs`, `change.rs` | the steps by which memory comes and goes, forward and back |
//! | `address_map.rs` | what is taken, and what is on its way out |
//! | `reserve.rs` | addresses for memory that comes later |
//! | `mapping.rs` | host addresses |
//! | `backing.rs` | what is behind them |
//! | `host.rs` | what the host can give, in words |

mod address_map;
mod backing;
mod blocks;
mod change;
mod host;
mod mapping;
mod region;
mod reserve;
mod space;
mod steps;
#[cfg(test)]
pub(crate) mod testing;

use std::error::Error;
use std::ffi::CStr;
use std::fmt;

use serde::Serialize;

pub use address_map::MapGeneration;
pub use blocks::Blocks;
pub(crate) use host::read_from_start;
pub use host::{GroupLimit, HostError};
pub use region::{Placed, Region, RemoveError};
pub use reserve::Reserved;
pub use space::{AddressSpace, Files};
pub use steps::{Slots, Step};

use crate::config::Size;

/// What every mapping of guest RAM is called in `/proc/<pid>/smaps`: `[anon:guest-ram]` or `/memfd:guest-ram`.
pub const RAM_NAME: &CStr = c"guest-ram";
/// What the memory that may come later is called there.
pub const RESERVE_NAME: &CStr = c"guest-ram-hotplug";

/// A guest maps memory by huge pages: what is added by address begins and ends at a multiple of one.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// What a region of guest-physical memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// RAM that the guest starts with.
    Boot,
    /// A memory block that ACPI tells the guest of.
    Dimm,
    /// Blocks of a virtio-mem device.
    VirtioMem,
    /// A file of the host.
    Pmem,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "guest RAM",
            Self::Dimm => "hot-plugged memory",
            Self::VirtioMem => "virtio-mem memory",
            Self::Pmem => "persistent memory",
        })
    }
}

/// A region as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegionInfo {
    /// Why the region is there: boot RAM, a DIMM, blocks of virtio-mem, or persistent memory.
    pub kind: Kind,
    /// Where it begins in guest-physical addresses.
    pub gpa: u64,
    /// How long it is.
    pub bytes: u64,
    /// Bytes of a page of the host behind it.
    pub page_bytes: u64,
    /// Whether other processes can map it.
    pub shared: bool,
    /// What it belongs to, if that has a name: the file of persistent memory.
    pub of: Option<String>,
}

impl RegionInfo {
    /// Whether `gpa` is in it.
    pub fn contains(&self, gpa: u64) -> bool {
        gpa.checked_sub(self.gpa).is_some_and(|offset| offset < self.bytes)
    }
}

/// Why memory could not be added. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A step failed; those before it are undone.
    #[error("cannot add {} of {kind}: {step}", Size(*bytes))]
    Add {
        /// What was to be added.
        kind: Kind,
        /// How much.
        bytes: u64,
        /// Which step failed.
        step: Step,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Memory that KVM does not give back. It is as it was.
    #[error("cannot take {} of {kind} back from the guest", Size(*bytes))]
    Remove {
        /// What was to be removed.
        kind: Kind,
        /// How much.
        bytes: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The ranges make no memory map.
    #[error("RAM of {0} bytes does not fit this machine's address map")]
    Layout(u64),
    /// No whole number of units.
    #[error("{bytes} bytes at {gpa:#x} are not whole units of {unit} bytes")]
    Unit {
        /// Where.
        gpa: u64,
        /// How much.
        bytes: u64,
        /// The unit, which is the guest's and the page's.
        unit: u64,
    },
    /// Addresses that are not, or not all, RAM whose pages can be given back.
    #[error("{} at {gpa:#x} are not RAM that can be given back", Size(*bytes))]
    NoRam {
        /// Where.
        gpa: u64,
        /// How much.
        bytes: u64,
    },
    /// A range that is not in the region.
    #[error("{bytes} bytes at {offset:#x} are not in a region of {of} bytes")]
    Outside {
        /// From the region's start.
        offset: u64,
        /// How much.
        bytes: u64,
        /// The region's length.
        of: u64,
    },
    /// The host refuses what was asked of memory that is there.
    #[error("cannot {what} {} of {kind}", Size(*bytes))]
    Host {
        /// In the infinitive.
        what: &'static str,
        /// What memory.
        kind: Kind,
        /// How much.
        bytes: u64,
        /// Why.
        source: HostError,
    },
}
