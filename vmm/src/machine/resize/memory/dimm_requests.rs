//! Which DIMM comes next, and which one goes.
//!
//! A guest needs free memory to describe memory: 64 bytes for each page of 4 KiB. Linux that has not
//! enough of it fails to add a DIMM, keeps what it has described of it, and kills its own processes.
//! So a DIMM takes at most half of what the guest says that it has available
//! ([`ShrinkLimit`](super::ShrinkLimit)). Where nobody says, the first one is small, since a guest
//! may be asked to grow because it has nothing left: a unit, or a [`FIRST`]th of what it has. Each
//! next one is at most [`STEP`] times what has come before it: that is described in what came.
//!
//! In what came, once the guest has brought it online. Kernels that leave that to a program do so
//! when an agent has been told, which Kata's shims do when a resize has been answered: until then
//! all is described in what there was before. So within [`ONLINE`] no more comes than [`RECENT`]
//! times what has been there for longer, or [`RECENT_LEAST`].

use std::time::{Duration, Instant};

use husk_devices::error_chain;
use husk_hotplug::Hotplug;
use husk_hotplug::outcome::OutcomeReceiver;
use husk_hotplug::slot::State;

use super::super::ResizeError;
use super::super::dimms::{DIMMS, DimmPlug, Dimms, filled, tell_anew};
use super::super::shrink_limit::Room;
use super::{MemoryResize, PendingSlot};
use crate::memory::{MemoryError, Region, Step};

/// A DIMM has at most so many times the memory that the guest has, or that has come for the same
/// request where it does not say what it has available: it takes an eighth of that to describe it.
const STEP: u64 = 8;
/// The first DIMM for a guest that does not say what it has available is such a part of what it
/// has. To describe that takes a thousandth of its memory, which Linux keeps free whatever its
/// programs want (`min_free_kbytes`).
pub(super) const FIRST: u64 = 16;
/// For so long a DIMM may not have been brought online: agents look every 50 ms, once told.
pub(super) const ONLINE: Duration = Duration::from_secs(1);
/// DIMMs that may not be online have at most so many times the memory that is, or [`RECENT_LEAST`].
/// To describe them takes a sixteenth of that.
const RECENT: u64 = 4;
/// In bytes: 16 MiB describe as much, which every guest has that can be made larger.
const RECENT_LEAST: u64 = 1 << 30;
/// A byte describes so many: 64 bytes a page of 4 KiB (Linux, `struct page`).
const DESCRIBED: u64 = 64;

/// DIMMs that the guest may not have brought online yet.
#[derive(Debug, Default)]
pub(super) struct RecentDimms {
    bytes: u64,
    /// Until then; `None` without any.
    until: Option<Instant>,
}

impl RecentDimms {
    /// One of `bytes` bytes has come.
    pub fn add(&mut self, bytes: u64, now: Instant) {
        if bytes > 0 {
            self.bytes = self.bytes(now).saturating_add(bytes);
            self.until = now.checked_add(ONLINE);
        }
    }

    fn bytes(&self, now: Instant) -> u64 {
        self.until.filter(|until| now < *until).map_or(0, |_| self.bytes)
    }

    /// A second has passed.
    #[cfg(test)]
    pub fn age(&mut self) {
        *self = Self::default();
    }
}

impl MemoryResize {
    /// What is to be there as DIMMs. What was asked for as blocks may be no whole unit.
    pub(super) fn dimm_goal_bytes(&self) -> u64 {
        let bytes = self.goal_bytes.saturating_sub(self.requested());
        bytes.next_multiple_of(self.parts.unit.max(1))
    }

    /// Takes back what is not wanted any more and the guest has not heard of.
    pub(super) fn withdraw_unseen(&mut self, dimms: &mut Dimms) {
        let filled = filled(dimms).saturating_add(self.requested());
        let (Some(in_flight), Some(dimms)) = (&self.in_flight, dimms) else {
            return;
        };
        let taken_back = match dimms.state(in_flight.slot) {
            Some(State::Offered { seen: false }) if filled > self.wanted => dimms.remove(in_flight.slot),
            Some(State::Ejected { wanted: true }) if filled.saturating_add(in_flight.bytes) > self.wanted => {
                dimms.remove(in_flight.slot)
            }
            Some(State::Asked { seen: false, .. }) if filled < self.wanted => {
                // Should the guest hear of it in this moment, it goes, and another one comes.
                if dimms.take_back(in_flight.slot) {
                    self.in_flight = None;
                }
                return;
            }
            _ => return,
        };
        if let Err(error) = taken_back {
            // The guest never had it. What the host does not give back is tried again at the next wakeup.
            log::error!(
                "memory slot {} is not taken apart: {}",
                in_flight.slot,
                error_chain(&error)
            );
        }
        self.in_flight = None;
    }

    pub(super) fn add_dimm(
        &mut self,
        dimms: &mut Hotplug<DimmPlug>,
        missing: u64,
        filled: u64,
    ) -> Result<(), ResizeError> {
        let bytes = match self.next_dimm(missing, filled) {
            Ok(bytes) => bytes,
            Err(reason) => {
                self.held_reason = Some(reason.into());
                return Ok(());
            }
        };
        // One that is empty waits for nothing that is still on its way to the host.
        let empty = dimms.states().into_iter().find(|(_, state)| *state == State::Empty);
        let Some((slot, _)) = empty.or_else(|| dimms.lowest_free()) else {
            return Err(ResizeError::NoSlot(DIMMS));
        };
        let plug = dimms.plug_mut();
        let region = match self.region(plug, bytes) {
            // What went before has its place until the host has it again.
            Err(error) if is_without_place(&error) && plug.is_giving_back() => {
                self.is_held_up = true;
                None
            }
            // DIMMs that stayed have cut it up. What is left over comes as the next one.
            Err(error) if is_without_place(&error) => match plug.space.room(bytes) {
                0 => return Err(error),
                room => self.region(plug, room)?,
            },
            region => region?,
        };
        let Some(region) = region else { return Ok(()) };
        let bytes = region.info().bytes;
        let receiver = dimms.fill(slot, region)?;
        self.refused_slots.remove(&slot);
        // Before the next one comes, the guest is asked again.
        self.shrink_limit.reset();
        self.track_request(slot, bytes, true, receiver);
        Ok(())
    }

    /// How much of what is `missing` the guest can describe, with `filled` bytes of DIMMs.
    ///
    /// # Errors
    /// That is not known yet: what is waited for.
    fn next_dimm(&mut self, missing: u64, filled: u64) -> Result<u64, &'static str> {
        if let Some(readying) = &self.readying {
            return Ok(missing.min(readying.bytes));
        }
        let (has, now) = (self.parts.boot_bytes.saturating_add(filled), Instant::now());
        let most = match self.shrink_limit.room(has, now) {
            Room::Pending => return Err("the guest to say what memory it has available"),
            Room::Bytes(available) => (available / 2).saturating_mul(DESCRIBED).min(has.saturating_mul(STEP)),
            Room::Unknown => self.most_unasked(has, now)?,
        };
        let unit = self.parts.unit.max(1);
        Ok(missing.min((most / unit * unit).max(unit)))
    }

    /// The most that may come next to a guest that does not say what it has available, and has `has` bytes.
    ///
    /// # Errors
    /// None may come for the moment: what is waited for.
    fn most_unasked(&mut self, has: u64, now: Instant) -> Result<u64, &'static str> {
        let step = match self.proven {
            0 => has / FIRST,
            proven => proven.saturating_mul(STEP),
        };
        let recent = self.recent.bytes(now);
        let most = has.saturating_sub(recent).saturating_mul(RECENT).max(RECENT_LEAST);
        let room = most.saturating_sub(recent);
        if recent > 0 && room < self.parts.unit {
            self.next_dimm_at = self.recent.until;
            return Err("the guest to bring online what has come");
        }
        Ok(step.min(room))
    }

    /// A DIMM of `bytes` bytes at most, once there is one.
    fn region(&mut self, plug: &mut DimmPlug, bytes: u64) -> Result<Option<Region>, ResizeError> {
        match self.readying.take() {
            Some(larger) if larger.bytes > bytes => plug.abandon(larger),
            Some(readying) => {
                let is_of_earlier = readying.is_of_earlier;
                match readying.finish() {
                    Ok(Ok(region)) => return Ok(Some(region)),
                    Ok(Err(pending)) => {
                        self.readying = Some(pending);
                        return Ok(None);
                    }
                    Err(error) if is_of_earlier => tell_anew(&error),
                    Err(error) => return Err(error.into()),
                }
            }
            None => {}
        }
        self.readying = Some(plug.ready(bytes)?);
        Ok(None)
    }

    /// A DIMM goes as a whole, and only if it is not too much: the highest one that the guest has
    /// not kept before, if there is one.
    pub(super) fn remove_dimm(
        &mut self,
        dimms: &mut Hotplug<DimmPlug>,
        excess: u64,
        filled: u64,
    ) -> Result<(), ResizeError> {
        let slots = dimms.states().into_iter().filter(|(_, state)| state.will_be_plugged());
        let fit = slots.map(|(slot, _)| slot).filter(|slot| {
            let fits = (1..=excess).contains(&dimms.plug().bytes(*slot));
            fits && !self.open_refusals.contains_key(slot)
        });
        let Some(slot) = fit.max_by_key(|slot| (!self.refused_slots.contains(slot), *slot)) else {
            // What the guest keeps is told of first, and what it cannot spare yet may go later.
            if self.open_refusals.is_empty() && self.held_reason.is_none() {
                self.wanted = self.wanted.max(filled.saturating_add(self.requested()));
            }
            return Ok(());
        };
        let bytes = dimms.plug().bytes(slot);
        let receiver = dimms.remove(slot)?;
        // Before the next one goes, the guest is asked again.
        self.shrink_limit.reset();
        self.track_request(slot, bytes, false, receiver);
        Ok(())
    }

    fn track_request(&mut self, slot: u32, bytes: u64, comes: bool, receiver: OutcomeReceiver) {
        self.in_flight = Some(PendingSlot {
            slot,
            bytes,
            comes,
            receiver,
        });
    }
}

/// Whether there is a DIMM that the guest has let go of and the host has not: it is the VM's as before.
pub(super) fn has_unreturned_dimm(dimms: &Hotplug<DimmPlug>) -> bool {
    let mut ejected = dimms
        .states()
        .into_iter()
        .filter(|(_, state)| matches!(state, State::Ejected { .. }));
    ejected.any(|(slot, _)| dimms.plug().bytes(slot) > 0)
}

/// Whether it is addresses in one piece that are missing.
fn is_without_place(error: &ResizeError) -> bool {
    matches!(error, ResizeError::Memory(MemoryError::Add { step: Step::Place, .. }))
}
