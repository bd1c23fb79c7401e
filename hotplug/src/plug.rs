//! The host's side of a bank: units are created before the guest is told, and destroyed after it let go.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use crate::bank::{Bank, BankError, Extent};
use crate::ged::GedNotifier;
use crate::outcome::OutcomeReceiver;
use crate::slot::{Event, State};
use husk_devices::lock;

/// What comes and goes: vCPUs, memory blocks, PCI devices. All methods are called on the control
/// thread, with no lock held.
pub trait Plug: Send {
    /// What is needed to create one.
    type Unit;

    /// Makes the unit real, before the guest is told.
    ///
    /// # Errors
    /// The host refused. Nothing may be left of the unit.
    fn create(&mut self, slot: u32, unit: Self::Unit) -> Result<(), PlugError>;

    /// Takes `unit` apart, which was to fill a slot and does not. Must not wait.
    fn discard(&mut self, _unit: Self::Unit) {}

    /// Begins to take the unit away, after the guest let go: out of the guest's reach, its threads
    /// asked to stop. Whether [`Plug::destroy`] would wait for nothing. Called again by each
    /// [`Hotplug::reap`] until it does; must not wait itself.
    fn retire(&mut self, _slot: u32) -> bool {
        true
    }

    /// Takes the unit away, once it is [retired](Plug::retire).
    ///
    /// # Errors
    /// The host refused. The slot stays taken, and a later [`Hotplug::reap`] tries again.
    fn destroy(&mut self, slot: u32) -> Result<(), PlugError>;

    /// The guest-physical range of the unit just created, for memory.
    fn extent(&self, _slot: u32) -> Extent {
        Extent::default()
    }
}

/// The host could not create or destroy a unit.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct PlugError {
    /// What was being done, in the infinitive.
    pub what: String,
    /// The host's answer.
    pub source: Box<dyn Error + Send + Sync>,
}

/// Why an operation was not even begun, or ended on the host's side.
#[derive(Debug, thiserror::Error)]
pub enum HotplugError {
    /// The slot is not there, or not ready for it.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// The host refused.
    #[error("slot {slot}")]
    Plug {
        /// Which slot.
        slot: u32,
        /// Why.
        source: PlugError,
    },
}

/// Slots of one kind and what fills them. Belongs to the control thread; holds the bank's lock only
/// for moments, and never while it calls the [`Plug`].
pub struct Hotplug<P: Plug> {
    plug: P,
    bank: Arc<Mutex<Bank>>,
    notifier: GedNotifier,
    /// Woken by every outcome.
    waker: Waker,
    /// What to create in wanted slots once the guest has let go of what is there.
    successors: BTreeMap<u32, P::Unit>,
}

impl<P: Plug> Hotplug<P> {
    /// Drives `bank`, which is also on the bus, and has `notifier` raise the event of its kind.
    pub fn new(plug: P, bank: Arc<Mutex<Bank>>, notifier: GedNotifier) -> Self {
        Self {
            plug,
            bank,
            notifier,
            waker: Waker::noop().clone(),
            successors: BTreeMap::new(),
        }
    }

    /// From now on `waker` is woken by every answer of the guest ([`OutcomeReceiver::with`]).
    pub fn set_waker(&mut self, waker: Waker) {
        self.waker = waker;
    }

    /// Fills an empty slot before the guest starts: no event, no answer.
    ///
    /// # Errors
    /// The slot is not empty, or the host cannot create the unit.
    pub fn present(&mut self, slot: u32, unit: P::Unit) -> Result<(), HotplugError> {
        self.create(slot, unit, Event::Boot)?;
        self.bank().apply(slot, Event::Boot, None)?;
        Ok(())
    }

    /// Fills an empty slot and tells the guest. The outcome comes with the guest's `_OST`; when it is refused, the unit
    /// goes with the next [`Hotplug::reap`].
    ///
    /// # Errors
    /// The slot is not empty, or the host cannot create the unit; the guest has heard nothing.
    pub fn add(&mut self, slot: u32, unit: P::Unit) -> Result<OutcomeReceiver, HotplugError> {
        if self.state(slot) == Some(State::Ejected { wanted: false })
            && let Err(error) = self.complete_eject(slot)
        {
            self.plug.discard(unit);
            return Err(error);
        }
        self.create(slot, unit, Event::Offer)?;
        let (sender, receiver) = OutcomeReceiver::with(self.waker.clone());
        self.bank().apply(slot, Event::Offer, Some(sender))?;
        self.notify_guest(slot);
        Ok(receiver)
    }

    /// Wants a slot back whose removal is pending. If the guest has not heard of the removal it never will; if it has,
    /// it either refuses, and so keeps the unit, or lets go, and `unit` is offered in its place. The removal's outcome
    /// is [`Outcome::Withdrawn`](crate::outcome::Outcome::Withdrawn).
    ///
    /// # Errors
    /// The slot is empty, or the successor could not be created at once.
    pub fn reclaim(&mut self, slot: u32, unit: P::Unit) -> Result<OutcomeReceiver, HotplugError> {
        let (sender, receiver) = OutcomeReceiver::with(self.waker.clone());
        let applied = self.bank().apply(slot, Event::Reclaim, Some(sender));
        let unneeded = match applied {
            Ok(state) if wanted(state) => self.successors.insert(slot, unit),
            _ => Some(unit),
        };
        if let Some(unit) = unneeded {
            self.plug.discard(unit);
        }
        let state = applied?;
        if matches!(state, State::Ejected { .. }) {
            self.complete_eject(slot)?;
        }
        Ok(receiver)
    }

    /// Wants `slot` to stay after all, if the guest has not heard that it is to let go of it.
    /// Whether it was so: otherwise nothing has changed. The removal's outcome is
    /// [`Outcome::Withdrawn`](crate::outcome::Outcome::Withdrawn).
    pub fn take_back(&mut self, slot: u32) -> bool {
        // The guest takes events under this lock, so what it has not heard it never will.
        let mut bank = self.bank();
        let is_unheard = matches!(bank.state(slot), Some(State::Asked { seen: false, .. }));
        is_unheard && bank.apply(slot, Event::Reclaim, None).is_ok()
    }

    /// Asks the guest to let go of a slot. The outcome comes with its `_EJ0`, or with the `_OST` that refuses. A unit
    /// that the guest has not yet heard of goes at once. A guest that has been asked for a PCI function before, and has
    /// not answered, is told again.
    ///
    /// # Errors
    /// The slot is empty or pinned.
    pub fn remove(&mut self, slot: u32) -> Result<OutcomeReceiver, HotplugError> {
        let (sender, receiver) = OutcomeReceiver::with(self.waker.clone());
        let state = self.bank().apply(slot, Event::Ask, Some(sender))?;
        self.discard_successor(slot);
        if matches!(state, State::Ejected { .. }) {
            self.complete_eject(slot)?;
        }
        self.notify_guest(slot);
        Ok(receiver)
    }

    /// Gives up waiting: what the guest has not seen is undone, what it has seen it may still finish.
    ///
    /// # Errors
    /// There is no such slot, or the host cannot destroy an offered unit.
    pub fn expire(&mut self, slot: u32) -> Result<State, HotplugError> {
        let state = self.bank().apply(slot, Event::Expire, None)?;
        self.discard_successor(slot);
        if matches!(state, State::Ejected { .. }) {
            self.complete_eject(slot)?;
        }
        Ok(self.state(slot).unwrap_or(state))
    }

    /// Destroys what the guest let go of, offers anew what is wanted again, and says which slots those were; what is
    /// not yet [retired](Plug::retire) is left to a later call. To be called when the bank's `on_eject` has spoken, and
    /// whenever a unit may have become ready.
    ///
    /// # Errors
    /// The first failure of the host; the other slots are served all the same, and those that
    /// failed will be tried again.
    pub fn reap(&mut self) -> Result<Vec<u32>, HotplugError> {
        self.discard_unneeded();
        let slots: Vec<u32> = self.matching(|state| matches!(state, State::Ejected { .. }));
        let mut failure = None;
        let mut reaped = Vec::new();
        for slot in slots {
            match self.complete_eject(slot) {
                Ok(true) => reaped.push(slot),
                Ok(false) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(reaped), Err)
    }

    /// Where a slot is, or `None` if there is no such slot.
    pub fn state(&self, slot: u32) -> Option<State> {
        self.bank().state(slot)
    }

    /// How many slots the guest has: what to report as the present size.
    pub fn plugged(&self) -> usize {
        self.matching(State::plugged).len()
    }

    /// How many slots will be filled when everything asked for is done: what a resize has to start from.
    pub fn target(&self) -> usize {
        self.matching(State::will_be_plugged).len()
    }

    /// The lowest slot for [`Hotplug::add`].
    pub fn vacant(&self) -> Option<u32> {
        self.matching(|state| matches!(state, State::Empty | State::Ejected { wanted: false }))
            .first()
            .copied()
    }

    /// The lowest slot that will not be filled when everything asked for is done, and where it is: the next to fill, by
    /// [`Hotplug::add`] if it is empty, else by [`Hotplug::reclaim`].
    pub fn lowest_free(&self) -> Option<(u32, State)> {
        self.bank().states().find(|(_, state)| !state.will_be_plugged())
    }

    /// Fills `slot` with `unit`, whatever is going on there: see [`Hotplug::add`] and [`Hotplug::reclaim`].
    ///
    /// # Errors
    /// The slot is filled, or the host cannot create the unit.
    pub fn fill(&mut self, slot: u32, unit: P::Unit) -> Result<OutcomeReceiver, HotplugError> {
        match self.state(slot) {
            Some(State::Asked { .. } | State::Ejected { .. }) => self.reclaim(slot, unit),
            _ => self.add(slot, unit),
        }
    }

    /// Every slot, and where it is.
    pub fn states(&self) -> Vec<(u32, State)> {
        self.bank().states().collect()
    }

    /// The lowest slot for [`Hotplug::reclaim`]: its removal is pending.
    pub fn reclaimable(&self) -> Option<u32> {
        self.matching(|state| matches!(state, State::Asked { wanted: false, .. }))
            .first()
            .copied()
    }

    /// The highest slot for [`Hotplug::remove`]: filled, or about to be, and not pinned.
    pub fn removable(&self) -> Option<u32> {
        let slots = self.matching(State::will_be_plugged);
        let bank = self.bank();
        slots.into_iter().rev().find(|slot| !bank.pinned(*slot))
    }

    /// What fills the slots.
    pub fn plug(&self) -> &P {
        &self.plug
    }

    /// The same, to change it.
    pub fn plug_mut(&mut self) -> &mut P {
        &mut self.plug
    }

    fn bank(&self) -> MutexGuard<'_, Bank> {
        // A slot changes by one assignment, so there is no half-done state that a panic could have left behind.
        lock(&self.bank)
    }

    fn matching(&self, mut wanted: impl FnMut(State) -> bool) -> Vec<u32> {
        self.bank()
            .states()
            .filter_map(|(slot, state)| wanted(state).then_some(slot))
            .collect()
    }

    /// Announces what the guest is to be told of `slot`, if there is anything.
    fn notify_guest(&self, slot: u32) {
        let bank = self.bank();
        if bank.waits(slot) {
            self.notifier.notify(bank.kind().event());
        }
    }

    /// Creates a unit for `event`. Only the control thread fills an empty slot, so what was allowed
    /// before is allowed after.
    fn create(&mut self, slot: u32, unit: P::Unit, event: Event) -> Result<(), HotplugError> {
        let allowed = self.bank().check(slot, event);
        if let Err(error) = allowed {
            self.plug.discard(unit);
            return Err(error.into());
        }
        self.plug
            .create(slot, unit)
            .map_err(|source| HotplugError::Plug { slot, source })?;
        let extent = self.plug.extent(slot);
        self.bank().describe(slot, extent)?;
        Ok(())
    }

    /// Where the guest would not let go of what was wanted again, that stays and nothing takes its place.
    fn discard_unneeded(&mut self) {
        let slots: Vec<u32> = self.successors.keys().copied().collect();
        for slot in slots {
            if !self.state(slot).is_some_and(wanted) {
                self.discard_successor(slot);
            }
        }
    }

    /// Nobody wants anything in `slot` once the guest has let go of what is there.
    fn discard_successor(&mut self, slot: u32) {
        if let Some(unit) = self.successors.remove(&slot) {
            self.plug.discard(unit);
        }
    }

    /// Destroys an ejected unit and, if the slot is wanted, creates and offers its successor.
    /// Whether the unit was ready for that.
    fn complete_eject(&mut self, slot: u32) -> Result<bool, HotplugError> {
        if !self.plug.retire(slot) {
            return Ok(false);
        }
        self.plug
            .destroy(slot)
            .map_err(|source| HotplugError::Plug { slot, source })?;
        self.bank().describe(slot, Extent::default())?;
        let mut created = Ok(());
        if !self.state(slot).is_some_and(wanted) {
            self.discard_successor(slot);
        } else if let Some(unit) = self.successors.remove(&slot) {
            created = self.create(slot, unit, Event::Destroyed);
            if created.is_err() {
                // Nothing will come, so nobody may wait for it: the grow is withdrawn and the slot becomes empty.
                self.bank().apply(slot, Event::Ask, None)?;
            }
        }
        self.bank().apply(slot, Event::Destroyed, None)?;
        self.notify_guest(slot);
        created.map(|()| true)
    }
}

fn wanted(state: State) -> bool {
    matches!(
        state,
        State::Asked { wanted: true, .. } | State::Ejected { wanted: true }
    )
}

#[cfg(test)]
#[path = "plug_test.rs"]
mod tests;
