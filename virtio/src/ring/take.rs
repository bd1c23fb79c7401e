//! Chains taken several at a time, for devices that gather and scatter with one host call (virtio 1.2 §2.7.13).

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::VolatileSlice;

use virtio_queue::{QueueOwnedT, QueueT};

use super::chain::{for_each_descriptor, for_each_slice};
use super::{Ring, RingError};

impl Ring {
    /// Takes the next available chain and calls `each` for its host slices in order: whether the
    /// device may write to it, and the slice. Allocates nothing. Returns the head, which is in
    /// flight until [`Ring::push`] or [`Ring::put_back`]; `None` when there is none, or the turn is
    /// over: see [`Ring::is_spent`].
    ///
    /// # Errors
    /// When the driver broke the rules.
    pub fn take<'m>(
        &mut self,
        mem: &'m GuestMemoryMmap,
        mut each: impl FnMut(bool, VolatileSlice<'m>),
    ) -> Result<Option<u16>, RingError> {
        let (queue, limit) = (self.index, self.queue.max_size());
        let Some(chain) = self.next_chain(mem)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        for_each_descriptor(queue, limit, chain, |descriptor| {
            let writable = descriptor.is_write_only();
            for_each_slice(queue, mem, descriptor, |slice| each(writable, slice))
        })?;
        if let Some(flag) = self.in_flight.get_mut(usize::from(head)) {
            *flag = true;
        }
        Ok(Some(head))
    }

    /// Puts back the chain taken last of those that were not pushed: it is available again. Several
    /// go back in reverse order.
    pub fn put_back(&mut self, head: u16) {
        if let Some(flag) = self.in_flight.get_mut(usize::from(head))
            && std::mem::take(flag)
        {
            self.queue.go_to_previous_position();
            self.tell_position();
        }
    }
}
