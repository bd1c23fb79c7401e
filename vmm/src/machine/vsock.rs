//! The vsock device of a configuration.

use std::sync::Arc;

use husk_virtio::threads::Threads;
use husk_virtio::vsock::Vsock;

use super::build::BuildError;
use crate::config::VsockConfig;

/// Binds the socket of `config` and makes the device behind it. Its threads come from `threads`.
///
/// # Errors
/// [`BuildError::Device`], where the socket cannot be.
pub fn open(config: &VsockConfig, threads: &Arc<dyn Threads>) -> Result<Vsock, BuildError> {
    Vsock::open(config.cid, &config.socket, threads).map_err(|error| BuildError::device("vsock", error))
}
