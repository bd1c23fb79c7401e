//! What sits on a bus of a husk machine, and the seam to the host.
//!
//! A device sees offsets into its own window and answers with an [`Effect`]; it never sees an
//! address, a vCPU or KVM. What it needs of the machine it asks of a [`Host`].
//!
//! Every number that reaches this crate may come from a hostile guest, hence the two lints below:
//! no indexing, no arithmetic that could overflow.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod bus;
pub mod debug_port;
mod error_chain;
pub mod host;
pub mod i8042;
pub mod ioapic;
mod lock;
pub mod log_once;
pub mod memory;
pub mod metrics;
mod path_handle;
pub mod pci;
pub mod power;
pub mod pvpanic;
pub mod serial;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;

pub use bus::{Bus, BusDevice, BusError, Effect};
pub use error_chain::{causes, error_chain};
pub use host::{Host, Irq, MsiMessage, MsiVector};
pub use lock::{lock, read, write};
pub use memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};
pub use metrics::{Counter, Gauge, MetricsSource};
pub use path_handle::PathHandle;
