//! One descriptor chain taken from a ring, valid until it is pushed back (virtio 1.2 §2.7.4, §2.7.5).

use std::sync::Arc;

use husk_devices::memory::GuestMemoryMmap;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Reader, RingError, Writer};

/// A descriptor chain whose request completes later: [`super::Ring::push`] its head when done.
///
/// The chain was read from guest memory once and checked: every buffer lies in RAM, readable
/// buffers come before writable ones. It keeps the memory it refers to mapped.
pub struct Chain {
    head: u16,
    mem: Arc<GuestMemoryMmap>,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

/// Bytes of a descriptor (virtio 1.2 §2.7.5).
const DESCRIPTOR: u32 = 16;

#[derive(Clone, Copy)]
struct Buffer {
    addr: GuestAddress,
    len: usize,
}

impl Chain {
    pub(super) fn new(
        queue: u16,
        limit: u16,
        mem: Arc<GuestMemoryMmap>,
        walk: impl FnOnce(&GuestMemoryMmap) -> Result<Option<DescriptorChain<&GuestMemoryMmap>>, RingError>,
    ) -> Result<Option<Self>, RingError> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let Some(descriptors) = walk(&mem)? else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        for_each_descriptor(queue, limit, descriptors, |descriptor| {
            for_each_slice(queue, &mem, descriptor, |_| ())?;
            let buffers = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            buffers.push(Buffer {
                addr: descriptor.addr(),
                len: length(descriptor),
            });
            Ok(())
        })?;
        Ok(Some(Self {
            head,
            mem,
            readable,
            writable,
        }))
    }

    /// The chain that the table has at `head`, whether or not it was ever made available. `None` if
    /// there is none that keeps the rules, or the walk would read more descriptors than `budget`
    /// has left.
    pub(super) fn at(mem: &Arc<GuestMemoryMmap>, queue: &QueueState, head: u16, budget: &mut u32) -> Option<Self> {
        let (mut table, mut entries, mut index) = (queue.desc_table, u32::from(queue.size), u32::from(head));
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let (mut bytes, mut nested) = (0u32, false);
        // As many as the device accepts, and one that leads to an indirect table.
        for _ in 0..=queue.max_size {
            *budget = budget.checked_sub(1)?;
            let offset = Some(index).filter(|index| *index < entries)?.checked_mul(DESCRIPTOR)?;
            let at = table.checked_add(offset.into())?;
            let descriptor: Descriptor = mem.read_obj(GuestAddress(at)).ok()?;
            if descriptor.refers_to_indirect_table() {
                if std::mem::replace(&mut nested, true) {
                    return None;
                }
                (table, entries, index) = (descriptor.addr().0, descriptor.len().checked_div(DESCRIPTOR)?, 0);
                continue;
            }
            let (addr, len) = (descriptor.addr(), length(&descriptor));
            bytes = bytes.checked_add(descriptor.len())?;
            if !mem.check_range(addr, len) || !descriptor.is_write_only() && !writable.is_empty() {
                return None;
            }
            let buffers = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            buffers.push(Buffer { addr, len });
            if !descriptor.has_next() {
                let mem = mem.clone();
                return Some(Self {
                    head,
                    mem,
                    readable,
                    writable,
                });
            }
            index = descriptor.next().into();
        }
        None
    }

    /// Index of the first descriptor: the chain's name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The device-readable bytes.
    pub fn reader(&self) -> Reader<'_> {
        let mut reader = Reader::default();
        self.readable().for_each(|slice| reader.push(slice));
        reader
    }

    /// The device-writable bytes.
    pub fn writer(&self) -> Writer<'_> {
        let mut writer = Writer::default();
        self.writable().for_each(|slice| writer.push(slice));
        writer
    }

    /// What the device-writable bytes are at present.
    pub(crate) fn written(&self) -> Reader<'_> {
        let mut reader = Reader::default();
        self.writable().for_each(|slice| reader.push(slice));
        reader
    }

    /// Where the device-writable bytes begin, if there are any.
    pub(super) fn room(&self) -> Option<GuestAddress> {
        self.writable.first().map(|buffer| buffer.addr)
    }

    /// The device-readable buffers as host slices, in order. They stay valid as long as the chain.
    pub fn readable(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.slices(&self.readable)
    }

    /// The device-writable buffers as host slices, in order. They stay valid as long as the chain.
    pub fn writable(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.slices(&self.writable)
    }

    /// Where the device-writable buffers are in guest RAM (first address, bytes), in order: for
    /// devices to which buffers are not places for data, but memory to be dealt with.
    pub fn writable_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.writable.iter().map(|buffer| (buffer.addr.0, buffer.len as u64))
    }

    /// The guest memory that the chain lies in.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.mem
    }

    fn slices<'a>(&'a self, buffers: &'a [Buffer]) -> impl Iterator<Item = VolatileSlice<'a>> {
        // No slice is lost to `flatten`: all resolved when the chain was built, and this memory map never changes.
        buffers
            .iter()
            .flat_map(|buffer| self.mem.get_slices(buffer.addr, buffer.len).flatten())
    }
}

/// Calls `each` for every buffer of a chain; refuses chains that do not end well, exceed `limit` descriptors, or have a
/// readable buffer after a writable one (virtio 1.2 §2.7.4.2, §2.7.5.3).
pub(super) fn for_each_descriptor(
    queue: u16,
    limit: u16,
    chain: DescriptorChain<&GuestMemoryMmap>,
    mut each: impl FnMut(&Descriptor) -> Result<(), RingError>,
) -> Result<(), RingError> {
    let head = chain.head_index();
    let mut count = 0u16;
    let mut open = true;
    let mut writable = false;
    for descriptor in chain {
        if count == limit {
            return Err(RingError::ChainTooLong { queue, head, limit });
        }
        count = count.saturating_add(1);
        if writable && !descriptor.is_write_only() {
            return Err(RingError::ReadAfterWrite { queue, head });
        }
        writable = descriptor.is_write_only();
        open = descriptor.has_next();
        each(&descriptor)?;
    }
    // The iterator stops silently at a loop, an index outside the table, a nested or empty indirect
    // table and at 2^32 bytes. In all of these the last descriptor, if any, promised another one.
    if open {
        return Err(RingError::ChainBroken {
            queue,
            head,
            after: count,
        });
    }
    Ok(())
}

/// Calls `each` for the host slices of one buffer: more than one where it crosses from one memory region to the next.
pub(super) fn for_each_slice<'a>(
    queue: u16,
    mem: &'a GuestMemoryMmap,
    descriptor: &Descriptor,
    mut each: impl FnMut(VolatileSlice<'a>),
) -> Result<(), RingError> {
    for slice in mem.get_slices(descriptor.addr(), length(descriptor)) {
        each(slice.map_err(|_| RingError::OutsideMemory {
            queue,
            what: "buffer",
            gpa: descriptor.addr().0,
            size: u64::from(descriptor.len()),
        })?);
    }
    Ok(())
}

fn length(descriptor: &Descriptor) -> usize {
    usize::try_from(descriptor.len()).expect("usize has 64 bits")
}
