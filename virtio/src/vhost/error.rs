//! Why the kernel does not serve a device.

use std::io;

/// Why a device cannot have the kernel as its back-end.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The driver is not loaded, or the container has no such device.
    #[error("there is no {device} here (kernel module {module})")]
    Missing {
        /// The character device.
        device: &'static str,
        /// What brings it.
        module: &'static str,
    },
    /// It belongs to others.
    #[error("not allowed to read and write {device}")]
    NotAllowed {
        /// The character device.
        device: &'static str,
    },
    /// Without these a ring would be laid out otherwise than the guest thinks.
    #[error("{device} lacks virtio features {missing:#x}")]
    Features {
        /// The character device.
        device: &'static str,
        /// The bits (virtio 1.2 §6).
        missing: u64,
    },
    /// Another guest of this host has it.
    #[error("cid {0} is in use on this host")]
    CidInUse(u32),
    /// The host refused otherwise.
    #[error("{device}: cannot {what}")]
    Host {
        /// The character device.
        device: &'static str,
        /// What was being done, in the infinitive.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// What the crate says of an ioctl, as the error that it is.
pub(super) fn plain(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(source) | vhost::Error::IoctlError(source) | vhost::Error::IOError(source) => source,
        other => io::Error::other(other),
    }
}
