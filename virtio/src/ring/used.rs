//! The used ring and the interrupt that follows it (virtio 1.2 §2.7.8, §2.7.7.2).
//!
//! | offset | bytes | field | |
//! |---|---|---|---|
//! | 0 | 2 | `flags` | virtio-queue's |
//! | 2 | 2 | `idx` | entries ever used, modulo 2^16 |
//! | 4 + 8 n | 4 | `ring[n].id` | head of the chain |
//! | 8 + 8 n | 4 | `ring[n].len` | bytes written to it |
//!
//! Behind the available ring's entries lies `used_event`: the driver wants to hear when the entry
//! of this number is used.

use std::sync::atomic::{Ordering, fence};

use husk_devices::memory::GuestMemoryMmap;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Ring, RingError};

/// Offset of `idx`, and of the available ring's own.
pub(super) const IDX: u64 = 2;
/// Offset of the first entry, in both rings.
pub(super) const ENTRIES: u64 = 4;
/// Bytes of an entry of the used ring.
pub(super) const USED_ENTRY: u64 = 8;
/// Bytes of an entry of the available ring.
pub(super) const AVAIL_ENTRY: u64 = 2;

impl Ring {
    /// Writes entries for `chains`, then shows all of them to the driver at once.
    pub(super) fn complete(&mut self, mem: &GuestMemoryMmap, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let (used, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        for &(head, len) in chains {
            let slot = u64::from(next.checked_rem(size).unwrap_or(0));
            let at = used
                .saturating_add(ENTRIES)
                .saturating_add(slot.saturating_mul(USED_ENTRY));
            let entry = (u64::from(len) << 32) | u64::from(head);
            mem.write_obj(entry.to_le(), GuestAddress(at))
                .map_err(|source| self.lost(source))?;
            next = next.wrapping_add(1);
        }
        mem.store(next.to_le(), GuestAddress(used.saturating_add(IDX)), Ordering::Release)
            .map_err(|source| self.lost(source))?;
        self.queue.set_next_used(next);
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        self.unannounced = self.unannounced.saturating_add(count);
        self.counters.add_chains(count);
        Ok(())
    }

    /// Interrupts if there is something new and the driver wants to know.
    pub(super) fn announce(&mut self, mem: &GuestMemoryMmap) -> Result<(), RingError> {
        let new = std::mem::take(&mut self.unannounced);
        if new == 0 {
            return Ok(());
        }
        // The used index goes out before what the driver says about interrupts is read: it does the
        // two in the other order.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let wanted = if self.queue.event_idx_enabled() {
            let entries = u64::from(self.queue.size()).saturating_mul(AVAIL_ENTRY);
            let event = self.driver_says(mem, avail.saturating_add(ENTRIES).saturating_add(entries))?;
            // Whether the entry asked for is among the new ones: entry `next_used - 1` is the
            // latest, `next_used - new` the first.
            self.queue.next_used().wrapping_sub(event).wrapping_sub(1) < new
        } else {
            u32::from(self.driver_says(mem, avail)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.notify.signal();
            self.counters.add_interrupt();
        }
        Ok(())
    }

    fn driver_says(&self, mem: &GuestMemoryMmap, at: u64) -> Result<u16, RingError> {
        let value: u16 = mem
            .load(GuestAddress(at), Ordering::Relaxed)
            .map_err(|source| self.lost(source))?;
        Ok(u16::from_le(value))
    }

    fn lost(&self, source: GuestMemoryError) -> RingError {
        RingError::Access {
            queue: self.index,
            source: virtio_queue::Error::GuestMemory(source),
        }
    }
}
