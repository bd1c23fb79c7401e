//! Folders of the host, served by another process.

use std::time::Duration;

use husk_devices::memory::GuestMemory;
use husk_virtio::fs;

use super::build::BuildError;
use crate::config::FsConfig;

/// How long a back-end that does not listen yet is waited for. The shims start theirs first and wait for it; this is for people
/// who start both at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connects to the back-end of the device that `config` describes, which reaches `memory`.
///
/// # Errors
/// [`BuildError::Device`], with tag and socket.
pub fn open(config: &FsConfig, memory: GuestMemory) -> Result<fs::Fs, BuildError> {
    let device = fs::FsConfig {
        tag: config.tag.clone(),
        socket: config.socket.clone(),
        queues: config.num_queues,
        queue_size: config.queue_size,
        patience: PATIENCE,
    };
    fs::Fs::connect(&device, memory)
        .map_err(|e| BuildError::device(format!("fs {}: back-end at {}", config.tag, config.socket.display()), e))
}
