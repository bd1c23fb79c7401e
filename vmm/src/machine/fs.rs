//! Folders of the host, served by husk or by another process.

use std::error::Error;
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use husk_devices::memory::GuestMemory;
use husk_virtio::device::VirtioDevice;
use husk_virtio::fs::local::{Local, LocalConfig};
use husk_virtio::fs::server::Server;
use husk_virtio::fs::share::ShareConfig;
use husk_virtio::fs::{self, Fs};
use husk_virtio::threads::Threads;

use super::build::BuildError;
use crate::config::FsConfig;

/// How long a back-end that does not listen yet is waited for. The shims start theirs first and
/// wait for it; this is for people who start both at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes the device that `config` describes: opens its folder, to be served by `threads`, or
/// connects to its back-end, which reaches `memory`.
///
/// # Errors
/// [`BuildError::Device`], with tag and folder or socket.
pub fn open(
    config: &FsConfig,
    memory: GuestMemory,
    threads: &Arc<dyn Threads>,
) -> Result<Box<dyn VirtioDevice>, BuildError> {
    match &config.dir {
        Some(dir) => Ok(Box::new(local(config, dir, threads)?)),
        None => Ok(Box::new(remote(config, memory)?)),
    }
}

fn local(config: &FsConfig, dir: &Path, threads: &Arc<dyn Threads>) -> Result<Local, BuildError> {
    let failed = |error: Box<dyn Error + Send + Sync>| BuildError::device(format!("fs {}", config.tag), error);
    let share = share(config, dir).map_err(|error| failed(error.into()))?;
    let server = Server::open(&share).map_err(|error| failed(error.into()))?;
    if let Some(confinement) = server.confinement() {
        let readonly = if share.readonly { " read-only" } else { "" };
        log::info!(
            "fs {}: {} is served{readonly}; each thread's {confinement}",
            config.tag,
            dir.display()
        );
    }
    let device = LocalConfig {
        tag: config.tag.clone(),
        queues: config.num_queues,
        queue_size: config.queue_size,
        name: config.id.as_ref().unwrap_or(&config.tag).clone(),
    };
    Ok(Local::new(&device, Arc::new(server), threads))
}

/// What is to be shared. A label has no NUL, as validated.
fn share(config: &FsConfig, dir: &Path) -> Result<ShareConfig, std::ffi::NulError> {
    Ok(ShareConfig {
        readonly: config.readonly,
        cache: config.cache.into(),
        writeback: config.writeback,
        allow_direct_io: config.direct_io,
        allow_mmap: config.mmap,
        xattr: config.xattr,
        posix_acl: config.posix_acl,
        announce_submounts: config.submounts,
        locks: config.locks,
        security_label: config.security_label,
        confine: true,
        uid_map: config.translate_uid.iter().copied().map(Into::into).collect(),
        gid_map: config.translate_gid.iter().copied().map(Into::into).collect(),
        label: config.label.clone().map(CString::new).transpose()?,
        ..ShareConfig::new(dir)
    })
}

fn remote(config: &FsConfig, memory: GuestMemory) -> Result<Fs, BuildError> {
    let device = fs::FsConfig {
        tag: config.tag.clone(),
        socket: config.socket.clone(),
        queues: config.num_queues,
        queue_size: config.queue_size,
        patience: PATIENCE,
    };
    Fs::connect(&device, memory)
        .map_err(|e| BuildError::device(format!("fs {}: back-end at {}", config.tag, config.socket.display()), e))
}

#[cfg(test)]
#[path = "fs_test.rs"]
mod tests;
