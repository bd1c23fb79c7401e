//! What a device may claim to be, checked before a driver sees it.

use crate::device::Profile;

/// Largest queue (virtio 1.2 §2.7).
const QUEUE_SIZE_MAX: u16 = 32768;
/// Feature bits 24 to 49 belong to queues and negotiation, not to a device type (virtio 1.2 §2.2).
const TRANSPORT_BITS: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

/// Why a device cannot be put behind a transport.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A queue size that virtio does not know.
    #[error("{device}: queue {queue} has {size} descriptors: allowed are powers of two up to 32768")]
    QueueSize {
        /// Name of the device.
        device: String,
        /// Queue index.
        queue: usize,
        /// What the profile says.
        size: u16,
    },
    /// More queues than the transport has room for.
    #[error("{device}: {found} queues: at most {allowed} are allowed")]
    QueueCount {
        /// Name of the device.
        device: String,
        /// What the profile says.
        found: usize,
        /// What fits.
        allowed: u16,
    },
    /// A feature bit that belongs to the transport.
    #[error("{device}: feature bits {bits:#x} are the transport's to offer")]
    Features {
        /// Name of the device.
        device: String,
        /// Bits 24 to 49 that the profile claims (virtio 1.2 §6).
        bits: u64,
    },
}

/// Refuses a profile that cannot be served with at most `allowed` queues. Returns how many it has.
pub(super) fn check(profile: &Profile, device: &str, allowed: u16) -> Result<u16, ProfileError> {
    let device = device.to_owned();
    let found = profile.queue_sizes.len();
    let Some(queues) = u16::try_from(found).ok().filter(|queues| *queues <= allowed) else {
        return Err(ProfileError::QueueCount { device, found, allowed });
    };
    let bad = |size: &u16| !size.is_power_of_two() || *size > QUEUE_SIZE_MAX;
    if let Some((queue, size)) = profile.queue_sizes.iter().enumerate().find(|(_, size)| bad(size)) {
        return Err(ProfileError::QueueSize {
            device,
            queue,
            size: *size,
        });
    }
    match profile.features & TRANSPORT_BITS {
        0 => Ok(queues),
        bits => Err(ProfileError::Features { device, bits }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(features: u64, queue_sizes: &[u16]) -> Result<u16, String> {
        let profile = Profile {
            id: 4,
            class: 0,
            features,
            queue_sizes: queue_sizes.to_vec(),
        };
        check(&profile, "rng", 2).map_err(|error| error.to_string())
    }

    #[test]
    fn powers_of_two_and_device_bits_are_accepted() {
        assert_eq!(checked(0xff_ffff | 1 << 50, &[1, 32768]), Ok(2));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let size = "rng: queue 1 has 48 descriptors: allowed are powers of two up to 32768";
        assert_eq!(checked(0, &[16, 48]).unwrap_err(), size);
        assert!(checked(0, &[0]).is_err());
        assert_eq!(
            checked(0, &[1, 1, 1]).unwrap_err(),
            "rng: 3 queues: at most 2 are allowed"
        );
        assert_eq!(
            checked(1 << 32, &[1]).unwrap_err(),
            "rng: feature bits 0x100000000 are the transport's to offer"
        );
    }
}
