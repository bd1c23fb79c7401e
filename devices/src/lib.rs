//! What sits on a bus of a husk machine, and the seam to the host.
//!
//! A device sees offsets into its own window and answers with an [`Effect`]; it never sees an address, a vCPU or KVM. What it
//! needs of the machine it asks of a [`Host`].

pub mod bus;
pub mod host;
pub mod memory;

pub use bus::{BusDevice, Effect};
pub use host::{Host, Irq, MsiMessage, MsiVector};
pub use memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};
