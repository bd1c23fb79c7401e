//! File system device (virtio 1.2 §5.11): a folder of the host, served by husk itself ([`local`])
//! or by a vhost-user back-end such as virtiofsd.
//!
//! | queue  | carries                                                                      |
//! |--------|------------------------------------------------------------------------------|
//! | 0      | `hiprio`: FUSE requests that must not wait, such as `FUSE_FORGET`            |
//! | 1 to N | FUSE requests                                                                |
//!
//! | configuration | field                    | meaning                                     |
//! |---------------|--------------------------|---------------------------------------------|
//! | 0x00          | `u8 tag[36]`             | name to mount by, UTF-8, padded with zeroes |
//! | 0x24          | `le32 num_request_queues`| N                                           |
//!
//! The notification queue (`VIRTIO_FS_F_NOTIFICATION`) and the DAX window are not offered. How
//! requests get to the back-end, and what becomes of them when it is gone, is told in
//! [`vhost_user`](crate::vhost_user).

pub(crate) mod filesystem;
mod fuse;
pub mod local;
#[cfg(test)]
mod model;
mod protocol;
pub mod serve;
pub mod server;
pub mod share;
pub(crate) mod tree;
pub mod xattr_map;

#[cfg(any(test, feature = "test-utils"))]
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::MetricsSource;
use vmm_sys_util::eventfd::EventFd;

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, MemoryListener, Profile, Retire, StartError, VirtioDevice};
use crate::threads::ThreadClass;
use crate::vhost_user::{BackendError, Link, VhostUserHandler, VhostUserMetrics};

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_FS: u32 = 26;
/// "Other mass storage controller": base class 01h, sub-class 80h.
const PCI_CLASS: u32 = 0x01_80_00;
/// Bytes of `tag` (virtio 1.2 §5.11.4).
pub const TAG_BYTES: usize = 36;

/// What a file system device is to be.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// The name that the guest mounts. Cut to [`TAG_BYTES`].
    pub tag: String,
    /// The back-end's listening socket.
    pub socket: PathBuf,
    /// Request queues, at least 1; a high-priority queue comes on top.
    pub queues: u16,
    /// Entries of every queue: a power of two up to 32768.
    pub queue_size: u16,
    /// How long a back-end that does not listen yet is waited for.
    pub patience: Duration,
}

/// A file system device, connected to its back-end.
pub struct Fs {
    profile: Profile,
    config: Arc<Mutex<ConfigBytes>>,
    link: Arc<Link>,
}

impl Fs {
    /// Connects to the back-end and comes to terms with it. Its rings follow when the driver starts
    /// the device, and with them `memory`: all that the back-end may be asked to reach, more
    /// perhaps than the device does by then.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub fn connect(config: &FsConfig, memory: GuestMemory) -> Result<Self, BackendError> {
        // One for urgent requests.
        let queues = config.queues.saturating_add(1);
        let link = Link::connect(&config.socket, queues, config.patience)?;
        link.share(memory);
        Ok(Self::over(link, config))
    }

    /// The same over a connection that is already made; `config.socket` is where the next one would be.
    ///
    /// # Errors
    /// See [`BackendError`].
    #[cfg(any(test, feature = "test-utils"))]
    pub fn on_socket(config: &FsConfig, stream: UnixStream) -> Result<Self, BackendError> {
        let queues = config.queues.saturating_add(1);
        let link = Link::from_stream(stream, &config.socket, queues, crate::vhost_user::REPLY_TIMEOUT)?;
        Ok(Self::over(link, config))
    }

    fn over(link: Arc<Link>, config: &FsConfig) -> Self {
        Self {
            profile: profile(config.queues, config.queue_size),
            config: Arc::new(Mutex::new(ConfigBytes::new(config_space(&config.tag, config.queues)))),
            link,
        }
    }

    /// What the device counts.
    pub fn metrics(&self) -> Arc<VhostUserMetrics> {
        self.link.metrics().clone()
    }
}

/// A device with `queues` request queues.
fn profile(queues: u16, queue_size: u16) -> Profile {
    Profile {
        id: VIRTIO_ID_FS,
        class: PCI_CLASS,
        features: 0,
        // One for urgent requests.
        queue_sizes: vec![queue_size; usize::from(queues).saturating_add(1)],
    }
}

/// The configuration space of a device with `queues` request queues (virtio 1.2 §5.11.4). The tag
/// is cut to [`TAG_BYTES`].
pub fn config_space(tag: &str, queues: u16) -> Vec<u8> {
    let mut fields = tag.as_bytes().to_vec();
    fields.resize(TAG_BYTES, 0);
    fields.extend_from_slice(&u32::from(queues).to_le_bytes());
    fields
}

impl VirtioDevice for Fs {
    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::RemoteFiles
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn memory_listener(&self) -> Option<Arc<dyn MemoryListener>> {
        Some(self.link.clone())
    }

    fn doorbell(&self, queue: u16) -> Option<Arc<EventFd>> {
        let doorbell = self.link.doorbell(queue);
        // Without one, kicks arrive at the queue's own eventfd, and are passed on.
        doorbell.ok().map(|doorbell| doorbell.event().clone())
    }

    fn on_retire(&self) -> Option<Arc<dyn Retire>> {
        Some(self.link.clone())
    }

    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        // A driver with fewer processors than request queues leaves the others alone.
        let handler = VhostUserHandler::new(self.link.clone(), activation, &[0, 1], &fuse::Fuse)?;
        Ok(vec![Box::new(handler)])
    }
}

#[cfg(test)]
#[path = "fs_test.rs"]
mod tests;
