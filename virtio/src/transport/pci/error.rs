//! Why a device cannot be a PCI function.

use std::fmt;

use husk_devices::pci::ConfigError;

use crate::device::VirtioDevice;
use crate::transport::ProfileError;

/// A device that cannot be put on the PCI bus. It comes back, since to drop it may take long: that waits for the file
/// systems behind its files.
pub struct RefusedDevice {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Why.
    pub source: VirtioPciError,
}

impl fmt::Debug for RefusedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedDevice")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Why a device cannot be put on the PCI bus.
#[derive(Debug, thiserror::Error)]
pub enum VirtioPciError {
    /// The device's profile is not one that this transport can serve.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A virtio device ID that has no PCI device ID.
    #[error("{device}: virtio device ID {id} is above {allowed}")]
    DeviceId {
        /// Name of the device.
        device: String,
        /// What the profile says.
        id: u32,
        /// The largest that fits.
        allowed: u16,
    },
    /// The configuration space has no room.
    #[error("{device}: cannot set the PCI function up")]
    Pci {
        /// Name of the device.
        device: String,
        /// What does not fit.
        source: ConfigError,
    },
}
