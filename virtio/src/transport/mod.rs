//! Between a driver and a device: discovery, negotiation, queues, life and death (virtio 1.2 §3, §4).

mod bus_master;
pub mod core;
mod features;
pub mod pci;
mod profile;
mod queue;
mod running;
mod words;
mod workers;

pub use pci::{RefusedDevice, VirtioPci, VirtioPciError};
pub use profile::ProfileError;
pub use queue::QueuePart;
pub use workers::Workers;
