//! The registers of one queue before it becomes a ring (virtio 1.2 §4.1.4.3, without the PCI parts).

use virtio_queue::QueueState;

use crate::ring::RingState;

/// The parts of a queue that have addresses, in register order (virtio 1.2 §4.1.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePart {
    /// `queue_desc`: descriptor table.
    Descriptors,
    /// `queue_driver`: available ring.
    Available,
    /// `queue_device`: used ring.
    Used,
}

/// What the driver has written about one queue.
#[derive(Clone, Debug)]
pub(super) struct QueueRegisters {
    max_size: u16,
    /// `queue_size`: a power of two up to the maximum.
    pub size: u16,
    /// `queue_enable`.
    pub enabled: bool,
    /// Guest-physical addresses of descriptor table, available ring and used ring. Checked when the ring is built.
    pub addresses: [u64; 3],
}

impl QueueRegisters {
    /// The reset state of a queue of at most `max_size` descriptors.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            addresses: [0; 3],
        }
    }

    /// Takes a size if it is allowed; ignores it otherwise, and the driver reads the old one back.
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    /// Where a ring with these registers begins.
    pub fn state(&self, index: u16, event_idx: bool) -> RingState {
        let [desc_table, avail_ring, used_ring] = self.addresses;
        let queue = QueueState {
            max_size: self.max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.enabled,
            desc_table,
            avail_ring,
            used_ring,
        };
        RingState { index, queue }
    }
}
