//! One virtqueue at run time: ring, kick, call and memory together (virtio 1.2 §2.7, split rings).
//!
//! Notification suppression, the used ring and the interrupt are handled here and nowhere else; a
//! device is a closure given to [`Ring::drain`], or, where requests complete out of order, a user
//! of [`Ring::pop`], [`Ring::push`] and [`Ring::signal`].
//!
//! The driver is not trusted: every index, address and chain is checked, chains in flight are
//! tracked, and what breaks the rules is a [`RingError`] that ends in `DEVICE_NEEDS_RESET`, not in
//! a panic or in a silent loss.

mod budget;
mod buffers;
mod chain;
mod counters;
mod error;
mod inspect;
mod notify;
mod recovery;
mod take;
mod used;

pub use buffers::{Reader, SplitError, Writer};
pub use chain::Chain;
pub use counters::{QueueCounters, QueueStats};
pub use error::RingError;
pub use inspect::{QueueProbe, QueueStatus, RingStatus, ServedBy};
pub use notify::{Notify, Signal};
pub use recovery::{Protocol, Recovered, ReplyState};

use std::sync::Arc;
use std::sync::atomic::Ordering;

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryLoadGuard};
use vmm_sys_util::eventfd::EventFd;

use crate::device::HandlerError;
use budget::{Budget, Look};

/// What the callback of [`Ring::drain`] did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Done; so many bytes were written to the chain (virtio 1.2 §2.7.8).
    Used(u32),
    /// Not now: put the chain back and stop draining, with kicks suppressed. The device drains again when it can go on.
    Later,
}

/// Position and addresses of a queue, as plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingState {
    /// Queue index within the device.
    pub index: u16,
    /// What virtio-queue keeps of it.
    pub queue: QueueState,
}

/// What a [`Ring`] is made of.
pub struct RingParts {
    /// Position and addresses.
    pub state: RingState,
    /// The doorbell, an eventfd: readable once the driver has kicked.
    pub kick: Arc<EventFd>,
    /// How the driver is told.
    pub notify: Notify,
}

/// A virtqueue in use (split ring, virtio 1.2 §2.7). One thread at a time owns it.
pub struct Ring {
    index: u16,
    queue: Queue,
    kick: Arc<EventFd>,
    notify: Notify,
    mem: GuestMemory,
    /// By head: popped and not yet pushed.
    in_flight: Vec<bool>,
    /// Chains pushed since the driver was last told.
    unannounced: u16,
    budget: Budget,
    counters: Arc<QueueCounters>,
    /// Called before each look at the available ring: a driver that is always at work, for tests.
    #[cfg(test)]
    pub(crate) busy_driver: Option<Box<dyn FnMut() + Send>>,
}

impl Ring {
    /// Joins a queue with its doorbell, its interrupt and guest memory. `kick` must be non-blocking.
    ///
    /// # Errors
    /// When size or alignment are not allowed, or a part of the ring is outside guest RAM.
    pub fn new(state: RingState, kick: Arc<EventFd>, notify: Notify, mem: GuestMemory) -> Result<Self, RingError> {
        let RingState { index, queue: state } = state;
        let queue = Queue::try_from(state).map_err(|source| RingError::Config { queue: index, source })?;
        if !queue.ready() || queue.avail_ring() == 0 {
            return Err(RingError::Config {
                queue: index,
                source: virtio_queue::Error::QueueNotReady,
            });
        }
        check_placement(index, &state, &mem.memory())?;
        Ok(Self {
            index,
            kick,
            notify,
            mem,
            in_flight: vec![false; usize::from(queue.size())],
            unannounced: 0,
            budget: Budget::new(queue.size()),
            counters: Arc::default(),
            queue,
            #[cfg(test)]
            busy_driver: None,
        })
    }

    /// Has what the ring does be counted in `counters`, which are those of its queue.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<QueueCounters>) -> Self {
        counters.set_by_edges(false);
        counters.set_counts(true);
        self.counters = counters;
        self.tell_position();
        self
    }

    /// The queue's index within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries of the descriptor table, as the driver chose: a power of two, 1 to 32768.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The doorbell: readable when the driver kicked, or when the ring's turn is over and there is
    /// more. [`Ring::drain`] and [`Ring::take_kick`] reset it.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The doorbell, for another thread that is to see it ring.
    pub(crate) fn doorbell(&self) -> Arc<EventFd> {
        self.kick.clone()
    }

    /// Resets the doorbell and begins another turn: as many chains as the ring has entries may be taken.
    pub fn take_kick(&mut self) {
        // Fails only when nobody has kicked.
        if self.kick.read().is_ok() {
            self.counters.add_wakeup();
        }
        self.budget.refill();
    }

    /// Begins another turn because the doorbell rang, and leaves it as it is: for those who watch its edges.
    pub fn note_kick(&mut self) {
        self.counters.set_by_edges(true);
        self.counters.add_wakeup();
        self.budget.refill();
    }

    /// Rings the doorbell on the device's own behalf, to be called again after whatever else waits.
    pub fn kick_self(&self) {
        // Fails only when the counter is full, and then the doorbell rings anyway.
        let _ = self.kick.write(1);
    }

    /// Whether there may be more, but the turn is over. The ring has rung its own doorbell then,
    /// gives no more chains and asks for no kicks until [`Ring::take_kick`] or [`Ring::note_kick`].
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// Guest RAM as it is now.
    pub fn memory(&self) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
        self.mem.memory()
    }

    /// Handles every available chain with `f`, fills the used ring and interrupts the driver at most once.
    ///
    /// Takes the doorbell, so call it on every kick. At most one ring's worth of chains is handled;
    /// when more are waiting the ring has kicked itself.
    ///
    /// # Errors
    /// When the driver broke the rules or `f` gave up. Chains handled before are announced all the same.
    pub fn drain(
        &mut self,
        f: impl FnMut(&mut Reader<'_>, &mut Writer<'_>) -> Result<Step, HandlerError>,
    ) -> Result<(), HandlerError> {
        self.take_kick();
        let mem = self.mem.memory();
        let drained = self.drain_chains(&mem, f);
        let announced = self.announce(&mem);
        drained.and(announced.map_err(HandlerError::from))
    }

    fn drain_chains(
        &mut self,
        mem: &GuestMemoryMmap,
        mut f: impl FnMut(&mut Reader<'_>, &mut Writer<'_>) -> Result<Step, HandlerError>,
    ) -> Result<(), HandlerError> {
        let (mut reader, mut writer) = (Reader::default(), Writer::default());
        let (queue, limit) = (self.index, self.queue.max_size());
        loop {
            self.suppress_kicks(mem)?;
            while let Some(chain) = self.next_chain(mem)? {
                let head = chain.head_index();
                reader.clear();
                writer.clear();
                chain::for_each_descriptor(queue, limit, chain, |descriptor| {
                    chain::for_each_slice(queue, mem, descriptor, |slice| match descriptor.is_write_only() {
                        true => writer.push(slice),
                        false => reader.push(slice),
                    })
                })?;
                match f(&mut reader, &mut writer)? {
                    Step::Used(len) => self.complete(mem, &[(head, len)])?,
                    Step::Later => {
                        self.queue.go_to_previous_position();
                        self.tell_position();
                        return Ok(());
                    }
                }
            }
            if !self.allow_kicks(mem)? {
                return Ok(());
            }
        }
    }

    /// Takes the next available chain, for a request that completes later. `None` when there is
    /// none, or the turn is over: see [`Ring::is_spent`].
    ///
    /// # Errors
    /// When the driver broke the rules. At most the queue size of chains is ever in flight.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let (queue, limit) = (self.index, self.queue.max_size());
        let mem = self.mem.memory().into_inner();
        let chain = Chain::new(queue, limit, mem, |mem| self.next_chain(mem))?;
        if let Some(flag) = chain
            .as_ref()
            .and_then(|chain| self.in_flight.get_mut(usize::from(chain.head())))
        {
            *flag = true;
        }
        Ok(chain)
    }

    /// Returns a popped chain to the driver: `len` bytes were written to it. Does not interrupt: see [`Ring::signal`].
    ///
    /// # Errors
    /// When `head` is not in flight or the used ring cannot be written.
    pub fn push(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        self.push_all(&[(head, len)])
    }

    /// Returns several chains to the driver, head and length each, which sees all of them at once
    /// or none: what belongs together must not be seen in part. Does not interrupt: see
    /// [`Ring::signal`].
    ///
    /// # Errors
    /// When one is not in flight or the used ring cannot be written. The driver then sees none of them.
    pub fn push_all(&mut self, chains: &[(u16, u32)]) -> Result<(), RingError> {
        for &(head, _) in chains {
            match self.in_flight.get_mut(usize::from(head)) {
                Some(flag) if *flag => *flag = false,
                _ => {
                    return Err(RingError::NotInFlight {
                        queue: self.index,
                        head,
                    });
                }
            }
        }
        let mem = self.mem.memory();
        self.complete(&mem, chains)
    }

    /// Interrupts the driver if something was pushed since the last time and the driver wants to
    /// know (virtio 1.2 §2.7.7).
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn signal(&mut self) -> Result<(), RingError> {
        let mem = self.mem.memory();
        self.announce(&mem)
    }

    /// Chains that are available now.
    ///
    /// # Errors
    /// When the available ring cannot be read.
    pub fn backlog(&self) -> Result<u16, RingError> {
        let queue = self.index;
        let found = self.queue.avail_idx(&*self.mem.memory(), Ordering::Acquire);
        let found = found.map_err(|source| RingError::Access { queue, source })?.0;
        Ok(found.wrapping_sub(self.queue.next_avail()))
    }

    /// Chains pushed since the last [`Ring::signal`], 0 to the ring's size.
    pub fn unannounced(&self) -> u16 {
        self.unannounced
    }

    /// Asks the driver for kicks. `true` when chains became available meanwhile: they come without
    /// a kick (virtio 1.2 §2.7.10). `false` also when the turn is over: the ring's own kick is on
    /// its way.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        let mem = self.mem.memory();
        self.allow_kicks(&mem)
    }

    /// Tells the driver that it need not kick. It may all the same.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        let mem = self.mem.memory();
        self.suppress_kicks(&mem)
    }

    /// The ring's addresses and its positions in the available and used ring, as [`Ring::new`] takes them.
    pub fn state(&self) -> RingState {
        RingState {
            index: self.index,
            queue: self.queue.state(),
        }
    }

    /// Ends the ring and gives its position back. All popped chains must have been pushed.
    pub fn into_state(self) -> RingState {
        self.state()
    }

    /// Takes the ring apart, for something else to serve it from the position in its state, which nobody counts here.
    pub fn into_parts(self) -> RingParts {
        self.counters.set_counts(false);
        let Self { kick, notify, .. } = &self;
        RingParts {
            kick: kick.clone(),
            notify: notify.clone(),
            state: self.into_state(),
        }
    }

    fn next_chain<'m>(
        &mut self,
        mem: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, RingError> {
        let (queue, size, next) = (self.index, self.queue.size(), self.queue.next_avail());
        let access = |source| RingError::Access { queue, source };
        #[cfg(test)]
        self.busy_driver.iter_mut().for_each(|work| work());
        let found = self.queue.avail_idx(mem, Ordering::Acquire).map_err(access)?.0;
        if found == next || !self.may_look() {
            return Ok(None);
        }
        let chain = match self.queue.iter(mem) {
            Ok(mut iter) => iter.next(),
            Err(virtio_queue::Error::InvalidAvailRingIndex) => {
                return Err(RingError::AvailIndex {
                    queue,
                    found,
                    next,
                    size,
                });
            }
            Err(source) => return Err(access(source)),
        };
        // The iterator hides an unreadable entry behind `None`.
        let chain = chain.ok_or_else(|| access(virtio_queue::Error::InvalidAvailRingIndex))?;
        self.counters.set_next_avail(next.wrapping_add(1));
        match self.in_flight.get(usize::from(chain.head_index())) {
            Some(false) => Ok(Some(chain)),
            Some(true) => Err(RingError::HeadInFlight {
                queue,
                head: chain.head_index(),
            }),
            None => Err(RingError::HeadOutside {
                queue,
                head: chain.head_index(),
                size,
            }),
        }
    }

    /// Shows whoever asks where the ring stands.
    fn tell_position(&self) {
        self.counters.set_next_avail(self.queue.next_avail());
    }

    /// Pays for one look at what the driver has made available. The look that cannot be paid for ends the turn.
    fn may_look(&mut self) -> bool {
        let look = self.budget.pay();
        if look == Look::Over {
            self.kick_self();
        }
        look == Look::Allowed
    }

    fn allow_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<bool, RingError> {
        if self.is_spent() {
            return Ok(false);
        }
        #[cfg(test)]
        self.busy_driver.iter_mut().for_each(|work| work());
        let more = self.queue.enable_notification(mem);
        let more = more.map_err(|source| RingError::Access {
            queue: self.index,
            source,
        })?;
        Ok(more && self.may_look())
    }

    fn suppress_kicks(&mut self, mem: &GuestMemoryMmap) -> Result<(), RingError> {
        self.queue
            .disable_notification(mem)
            .map_err(|source| RingError::Access {
                queue: self.index,
                source,
            })
    }
}

/// A part of a ring: what it is, where it begins, and its bytes.
pub(crate) type Part = (&'static str, u64, u64);

/// The three parts of a ring: descriptor table, available ring, used ring (virtio 1.2 §2.7; +2 for the event index).
pub(crate) fn parts(state: &QueueState) -> [Part; 3] {
    let entries = u64::from(state.size);
    let size = |entry: u64, fixed| entries.saturating_mul(entry).saturating_add(fixed);
    [
        ("descriptor table", state.desc_table, size(16, 0)),
        ("available ring", state.avail_ring, size(2, 6)),
        ("used ring", state.used_ring, size(8, 6)),
    ]
}

/// Checks that the three parts of the ring lie in guest RAM.
fn check_placement(queue: u16, state: &QueueState, mem: &GuestMemoryMmap) -> Result<(), RingError> {
    parts(state)
        .into_iter()
        .try_for_each(|part| check_part(queue, part, mem))
}

/// Checks that a part of the ring lies in guest RAM.
fn check_part(queue: u16, (what, gpa, size): Part, mem: &GuestMemoryMmap) -> Result<(), RingError> {
    let len = usize::try_from(size).expect("usize has 64 bits");
    match mem.check_range(GuestAddress(gpa), len) {
        true => Ok(()),
        false => Err(RingError::OutsideMemory { queue, what, gpa, size }),
    }
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
