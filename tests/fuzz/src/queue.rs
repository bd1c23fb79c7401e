//! The driver's view of one split virtqueue (virtio 1.2 §2.7): where its parts are, and what is written there.

use std::sync::Arc;

use husk_devices::memory::GuestMemory;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::op::{Buffer, Place};

/// Bytes of RAM that a queue of [`SIZE_MAX`] entries has.
pub const QUEUE_BYTES: usize = 0x1000;
/// So that a queue's parts have room in its page.
pub const SIZE_MAX: u16 = 64;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const INDIRECT: u64 = 0x1_0000;
/// An indirect table's entries, and its bytes.
const TABLE_SIZE: u16 = 16;
const TABLE_BYTES: u64 = 256;
const TABLES: u16 = 64;
const DATA: u64 = 0x2_0000;
const PAGE: u64 = 0x1000;

/// Descriptor flags (virtio 1.2 §2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TO_TABLE: u16 = 4;

/// One queue, and its doorbell. It may be anywhere, also where addresses end.
pub struct Queue {
    /// Where it is.
    pub state: QueueState,
    /// The doorbell.
    pub kick: Arc<EventFd>,
    mem: GuestMemory,
    next_descriptor: u16,
    next_table: u16,
}

impl Queue {
    /// A queue of `size` entries out of at most `max_size`, in zeroed RAM at `base`.
    pub fn new(mem: &GuestMemory, base: u64, max_size: u16, size: u16) -> Self {
        let state = QueueState {
            max_size,
            size,
            ready: true,
            desc_table: base,
            avail_ring: base + AVAILABLE,
            used_ring: base + USED,
            ..QueueState::default()
        };
        let queue = Self {
            state,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).expect("a descriptor is free: nothing leaks them")),
            mem: mem.clone(),
            next_descriptor: 0,
            next_table: 0,
        };
        queue.write(base, &[0; QUEUE_BYTES]);
        queue
    }

    /// Writes a chain into the descriptor table, or into a table of its own, and makes it available.
    pub fn add(&mut self, buffers: &[Buffer<'_>], indirect: bool) {
        let head = self.next_descriptor;
        if indirect {
            let table = INDIRECT + TABLE_BYTES * u64::from(self.next_table);
            self.next_table = (self.next_table + 1) % TABLES;
            self.write_chain(buffers, table, 0, TABLE_SIZE);
            let bytes = u32::try_from(16 * buffers.len()).unwrap_or(u32::MAX);
            self.write_descriptor(head, &descriptor(table, bytes, TO_TABLE, 0));
            self.next_descriptor = (head + 1) % self.state.size;
        } else {
            self.next_descriptor = self.write_chain(buffers, self.state.desc_table, head, self.state.size);
        }
        self.offer(head);
    }

    /// Writes `buffers` and their payload; the entries follow each other from `first` on, round and
    /// round in a table of `size`. Returns the entry behind the last.
    fn write_chain(&self, buffers: &[Buffer<'_>], table: u64, first: u16, size: u16) -> u16 {
        let mut at = first;
        for (number, buffer) in buffers.iter().enumerate() {
            let next = (at + 1) % size;
            let gpa = match buffer.place {
                Place::Slot(slot) => DATA + PAGE * u64::from(slot),
                Place::Raw(gpa) => gpa,
            };
            let more = if number + 1 < buffers.len() { NEXT } else { 0 };
            let write = if buffer.write { WRITE } else { 0 };
            let raw = descriptor(gpa, buffer.len, more | write, next);
            self.write(table.wrapping_add(16 * u64::from(at)), &raw);
            self.write(gpa, buffer.payload);
            at = next;
        }
        at
    }

    /// Writes one descriptor.
    pub fn write_descriptor(&self, index: u16, raw: &[u8; 16]) {
        self.write(self.state.desc_table.wrapping_add(16 * u64::from(index)), raw);
    }

    /// Puts `head` into the available ring.
    pub fn offer(&self, head: u16) {
        let idx = GuestAddress(self.state.avail_ring.wrapping_add(2));
        let next: u16 = self.mem.memory().read_obj(idx).unwrap_or(0);
        self.poke(4 + 2 * u64::from(next % self.state.size), head);
        self.poke(2, next.wrapping_add(1));
    }

    /// Writes two bytes of the available ring.
    pub fn poke(&self, offset: u64, value: u16) {
        self.write(self.state.avail_ring.wrapping_add(offset), &value.to_le_bytes());
    }

    /// Asks for an interrupt when the used index passes `value`.
    pub fn set_used_event(&self, value: u16) {
        self.poke(4 + 2 * u64::from(self.state.size), value);
    }

    /// Writes as much as there is RAM for.
    fn write(&self, gpa: u64, bytes: &[u8]) {
        let _ = self.mem.memory().write(bytes, GuestAddress(gpa));
    }
}

fn descriptor(gpa: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&gpa.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}
