//! Feature negotiation: what is offered, what the driver takes, whether the two fit (virtio 1.2 §2.2, §6).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// What the transport itself offers (virtio 1.2 §6): the modern interface, event indices and indirect descriptors.
const TRANSPORT_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

/// The feature bits of one device.
pub(super) struct Features {
    offered: u64,
    accepted: u64,
}

impl Features {
    /// Offers the device's own bits together with the transport's.
    pub fn new(device: u64) -> Self {
        Self {
            offered: device | TRANSPORT_FEATURES,
            accepted: 0,
        }
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// What the driver wrote.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Takes the driver's choice, to be judged by [`Features::acceptable`].
    pub fn accept(&mut self, features: u64) {
        self.accepted = features;
    }

    /// Whether the device can work with the driver's choice: nothing that was not offered, and the modern interface
    /// (virtio 1.2 §6.1).
    pub fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.negotiated(VIRTIO_F_VERSION_1)
    }

    /// Whether the driver took feature number `bit`.
    pub fn negotiated(&self, bit: u32) -> bool {
        self.accepted.checked_shr(bit).is_some_and(|features| features & 1 != 0)
    }
}
