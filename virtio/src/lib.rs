//! What speaks virtio: devices, their queues, their I/O threads and the virtio-pci transport.
//!
//! A device is a [`device::VirtioDevice`]: plain data ([`device::Profile`]) until the driver sets `DRIVER_OK`, then a
//! [`device::Handler`] that owns its [`ring::Ring`]s on a [`worker::Worker`] thread. The transport in between is
//! [`transport::core`] (status, features, queue registers) with the PCI face [`transport::pci`] around it.
//!
//! Section numbers refer to *Virtual I/O Device (VIRTIO) Version 1.2*.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        reason = "a test that breaks its own arithmetic fails, as it should"
    )
)]

pub mod balloon;
pub mod block;
mod call_event;
pub mod config;
pub mod console;
pub mod device;
mod durability;
pub mod fs;
mod hold_point;
mod iovecs;
pub mod mem;
pub mod net;
pub mod pmem;
pub mod rate_limit;
pub mod ring;
pub mod rng;
mod syscall;
pub mod threads;
mod timer;
pub mod transport;
pub mod unix;
pub mod vhost;
pub mod vhost_user;
pub mod vsock;
pub mod worker;

#[cfg(test)]
pub(crate) mod testing;
