//! The vsock device of a configuration.

use std::sync::Arc;

use husk_devices::memory::GuestMemory;
use husk_virtio::device::VirtioDevice;
use husk_virtio::threads::Threads;
use husk_virtio::vsock::{KernelVsock, Vsock};

use super::build::BuildError;
use crate::config::{Backend, VsockConfig};

/// Binds the socket of `config` and makes the device behind it, whose threads come from `threads`;
/// or takes its context from the host's kernel, which reaches `memory`.
///
/// # Errors
/// [`BuildError::Device`], where the socket cannot be, or the kernel does not serve this context.
pub fn open(
    config: &VsockConfig,
    memory: &GuestMemory,
    threads: &Arc<dyn Threads>,
) -> Result<Box<dyn VirtioDevice>, BuildError> {
    let opened: Result<Box<dyn VirtioDevice>, _> = match config.backend {
        Backend::Husk => Vsock::open(config.cid, &config.socket, threads).map(|vsock| Box::new(vsock) as _),
        Backend::Vhost => KernelVsock::open(config.cid, memory).map(|vsock| Box::new(vsock) as _),
    };
    opened.map_err(|error| BuildError::device("vsock", error))
}
