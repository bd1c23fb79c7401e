//! The registers of one queue, and the ring that it becomes (virtio 1.2 §4.1.4.3, without the PCI parts).

use std::io;
use std::sync::Arc;

use husk_devices::memory::GuestMemory;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::StartError;
use crate::ring::{Notify, QueueProbe, Ring, RingState};

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
pub(super) struct QueueRegisters {
    max_size: u16,
    /// `queue_size`: a power of two up to the maximum.
    pub size: u16,
    /// `queue_enable`.
    pub enabled: bool,
    /// Guest-physical addresses of descriptor table, available ring and used ring. Checked when the ring is built.
    pub addresses: [u64; 3],
    kick: Option<Arc<EventFd>>,
    probe: Arc<QueueProbe>,
}

impl QueueRegisters {
    /// The reset state of a queue of at most `max_size` descriptors.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            addresses: [0; 3],
            kick: None,
            probe: Arc::default(),
        }
    }

    /// What looks at the queue, over resets too.
    pub fn probe(&self) -> &Arc<QueueProbe> {
        &self.probe
    }

    /// Goes back to the reset state. The doorbell stays: the host may have it connected.
    pub fn reset(&mut self) {
        let (kick, probe) = (self.kick.take(), self.probe.clone());
        probe.end();
        *self = Self {
            kick,
            probe,
            ..Self::new(self.max_size)
        };
    }

    /// The doorbell, if the queue was ever live.
    pub fn kick(&self) -> Option<&Arc<EventFd>> {
        self.kick.as_ref()
    }

    /// Takes a size if it is allowed; ignores it otherwise, and the driver reads the old one back.
    pub fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.max_size {
            self.size = size;
        }
    }

    /// The ring that these registers describe, from its beginning. It is kicked once: buffers that
    /// the driver offered before `DRIVER_OK` came without a kick.
    pub fn ring(&mut self, index: u16, event_idx: bool, notify: Notify, mem: &GuestMemory) -> Result<Ring, StartError> {
        let kick = self.doorbell().map_err(|source| StartError::Host {
            what: "make a doorbell",
            source,
        })?;
        // Fails only when the counter is full, and then the doorbell rings anyway.
        let _ = kick.write(1);
        let state = self.state(index, event_idx);
        // Also of one that leads nowhere.
        self.probe.begin(index, state.queue, kick.clone(), notify.clone());
        let ring = Ring::new(state, kick, notify, mem.clone())?;
        Ok(ring.with_counters(self.probe.counters().clone()))
    }

    /// The doorbell, made when first needed.
    fn doorbell(&mut self) -> io::Result<Arc<EventFd>> {
        match &self.kick {
            Some(kick) => Ok(kick.clone()),
            None => Ok(self.kick.insert(Arc::new(EventFd::new(EFD_NONBLOCK)?)).clone()),
        }
    }

    fn state(&self, index: u16, event_idx: bool) -> RingState {
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
