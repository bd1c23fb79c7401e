//! What can be told of a queue while it is served, by anybody who asks: where driver and device stand, and what is on
//! its way between them.
//!
//! A device that stands still has lost a kick or an interrupt, or its thread is elsewhere. The figures here tell these
//! apart: chains that are available and were not taken, a kick that nobody has looked at, used chains and the one of
//! which the driver wants to hear.

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use husk_devices::lock;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_devices::pci::MaskState;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use super::used::{AVAIL_ENTRY, ENTRIES, IDX, USED_ENTRY};
use super::{Notify, Part, QueueCounters, QueueStats, RingError, check_part, parts};
use crate::syscall::is_ready;

/// Looks at one queue, over all the rings that it becomes. Whoever serves the queue is not held up: there is a lock,
/// for the moment that it takes to copy a pointer, when a driver begins or ends and when somebody looks.
#[derive(Debug, Default)]
pub struct QueueProbe {
    counters: Arc<QueueCounters>,
    live: Mutex<Option<Arc<Live>>>,
}

/// What a driver has set up.
#[derive(Debug)]
struct Live {
    index: u16,
    queue: QueueState,
    kick: Arc<EventFd>,
    /// What the driver's kicks go to instead, which another process takes.
    doorbell: Option<Arc<EventFd>>,
    notify: Notify,
}

/// Who takes the chains of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServedBy {
    /// A thread of this process.
    Husk,
    /// Another process, by vhost-user.
    BackEnd,
    /// The kernel, by vhost; or nobody, since the device could not start.
    Kernel,
}

/// A queue at one moment. Of what a driver and a device write meanwhile some may be older than the rest.
#[derive(Debug)]
pub struct QueueStatus {
    /// Who takes its chains.
    pub served_by: ServedBy,
    /// Entries that the driver chose.
    pub size: u16,
    /// `VIRTIO_F_EVENT_IDX` was agreed on (virtio 1.2 §2.7.7, §2.7.10): events say who is to be told, and not flags.
    pub event_idx: bool,
    /// Guest-physical addresses of descriptor table, available ring and used ring.
    pub addresses: [u64; 3],
    /// The entry of the available ring that the device takes next, modulo 2^16; `None` where that is known elsewhere.
    pub next_avail: Option<u16>,
    /// The driver has kicked, and nobody has looked yet; `None` where kicks are the kernel's, or are heard of and left
    /// in the doorbell.
    pub kick_pending: Option<bool>,
    /// What the driver has written.
    pub avail: Result<RingStatus, RingError>,
    /// What the device has written.
    pub used: Result<RingStatus, RingError>,
    /// What holds interrupts back; `None` for a queue without a vector.
    pub interrupt: Option<MaskState>,
    /// What was counted, if husk serves the queue.
    pub figures: Option<QueueStats>,
}

/// One of the two rings that are written from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStatus {
    /// `flags`.
    pub flags: u16,
    /// `idx`: entries ever written, modulo 2^16.
    pub idx: u16,
    /// Behind the entries, where events were agreed on: `used_event` in the available ring, `avail_event` in the used
    /// one. Its writer wants to hear when the other's entry of this number is there.
    pub event: Option<u16>,
}

impl QueueProbe {
    /// What the queue counts.
    pub fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// A driver has set the queue up.
    pub(crate) fn begin(&self, index: u16, queue: QueueState, kick: Arc<EventFd>, notify: Notify) {
        self.set(Some(Arc::new(Live {
            index,
            queue,
            kick,
            doorbell: None,
            notify,
        })));
    }

    /// Another process takes the driver's kicks from `doorbell`.
    pub(crate) fn lend(&self, doorbell: Arc<EventFd>) {
        let lent = self.live().map(|live| Live {
            doorbell: Some(doorbell),
            kick: live.kick.clone(),
            notify: live.notify.clone(),
            ..*live
        });
        self.set(lent.map(Arc::new));
    }

    /// The driver is gone.
    pub(crate) fn end(&self) {
        self.set(None);
    }

    /// The queue as it is, in the guest's memory `mem`; `None` if no driver has set it up. May wait for the host to
    /// have a page of the guest there: not for a thread that must not.
    pub fn status(&self, mem: &GuestMemory) -> Option<QueueStatus> {
        let live = self.live()?;
        let mem = &*mem.memory();
        let QueueState {
            size,
            event_idx_enabled: event_idx,
            desc_table,
            avail_ring,
            used_ring,
            ..
        } = live.queue;
        let [_, avail, used] = parts(&live.queue);
        let figures = self.counters.snapshot();
        let (served_by, kick) = match (&live.doorbell, figures) {
            (_, Some(_)) => (
                ServedBy::Husk,
                Some(&live.kick).filter(|_| !self.counters.is_by_edges()),
            ),
            (Some(doorbell), None) => (ServedBy::BackEnd, Some(doorbell)),
            (None, None) => (ServedBy::Kernel, None),
        };
        Some(QueueStatus {
            served_by,
            size,
            event_idx,
            addresses: [desc_table, avail_ring, used_ring],
            next_avail: figures.map(|_| self.counters.next_avail()),
            kick_pending: kick.map(|kick| is_ready(kick.as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap_or(false)),
            avail: live.look(mem, avail, AVAIL_ENTRY),
            used: live.look(mem, used, USED_ENTRY),
            interrupt: live.notify.mask_state(),
            figures,
        })
    }

    fn live(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone()
    }

    fn set(&self, live: Option<Arc<Live>>) {
        // What was there is dropped by whoever has it last, and not under the lock.
        let _before = std::mem::replace(&mut *lock(&self.live), live);
    }
}

impl Live {
    /// One of the queue's rings, with entries of so many bytes.
    fn look(&self, mem: &GuestMemoryMmap, part: Part, entry: u64) -> Result<RingStatus, RingError> {
        let gpa = part.1;
        check_part(self.index, part, mem)?;
        let read = |offset: u64| {
            let value = mem.load::<u16>(GuestAddress(gpa.saturating_add(offset)), Ordering::Acquire);
            value.map(u16::from_le).map_err(|source| RingError::Access {
                queue: self.index,
                source: virtio_queue::Error::GuestMemory(source),
            })
        };
        let entries = u64::from(self.queue.size).saturating_mul(entry);
        Ok(RingStatus {
            flags: read(0)?,
            idx: read(IDX)?,
            event: match self.queue.event_idx_enabled {
                true => Some(read(ENTRIES.saturating_add(entries))?),
                false => None,
            },
        })
    }
}

#[cfg(test)]
#[path = "inspect_test.rs"]
mod tests;
