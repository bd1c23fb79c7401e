//! Why a device cannot be a PCI function.

use husk_devices::pci::ConfigError;

use crate::transport::ProfileError;

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
