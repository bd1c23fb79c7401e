//! Memory that comes and goes: blocks of virtio-mem where the guest has a driver for it, DIMMs otherwise.
//!
//! A guest needs free memory to describe memory: 64 bytes for each page of 4 KiB. Linux that has not enough of it fails to add a DIMM, keeps
//! what it has described of it, and kills its own processes. So a DIMM takes at most half of what the guest says that it has available
//! ([`ShrinkLimit`]). Where nobody says, the first one is small, since a guest may be asked to grow because it has nothing left: a unit, or a
//! [`FIRST`]th of what it has. Each next one is at most [`STEP`] times what has come before it: that is described in what came. virtio-mem
//! needs no such care: the driver takes a block after the other, and stops when it cannot.
//!
//! Of a guest that shrinks no more is asked than it says that it can spare. Either way nothing is asked any more once it has said that it
//! killed a process for want of memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::error_chain;
use husk_hotplug::outcome::{Outcome, OutcomeReceiver};
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, Plug};
use husk_virtio::balloon::BalloonHandle;
use husk_virtio::mem::{MemHandle, MemSize};
use serde_json::{Value, json};

use super::dimms::{DIMMS, DimmPlug, Dimms, Readying, filled};
use super::retry::Retry;
use super::shrink_limit::{AvailableMemory, MinimumSize, Room, ShrinkLimit};
use super::{Change, Latency, Refusal, ResizeError, Why, millis};
use crate::memory::{AddressSpace, MemoryError, Region, Step};
use crate::metrics::Ram;

/// A DIMM has at most so many times the memory that the guest has, or that has come for the same request where it does not say what it has
/// available: it takes an eighth of that to describe it.
const STEP: u64 = 8;
/// The first DIMM for a guest that does not say what it has available is such a part of what it has. To describe that takes a thousandth of its
/// memory, which Linux keeps free whatever its programs want (`min_free_kbytes`).
const FIRST: u64 = 16;
/// A byte describes so many: 64 bytes a page of 4 KiB (Linux, `struct page`).
const DESCRIBED: u64 = 64;
/// What a guest that has run out of memory gets again of what it gave back, in bytes.
const RELIEF: u64 = 64 << 20;
/// After so long KVM is asked again for memory that it did not give back.
const KEPT_AGAIN: Duration = Duration::from_secs(1);

/// What memory a machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct MemoryParts {
    /// RAM of the start, in bytes.
    pub boot_bytes: u64,
    /// The most that may be added, in bytes.
    pub more_bytes: u64,
    /// Unit of DIMMs, in bytes.
    pub unit: u64,
    /// Only virtio-mem may be used, driver or not.
    pub blocks_only: bool,
}

/// What the guest should have, and what it has made of it.
pub struct MemoryResize {
    parts: MemoryParts,
    space: Arc<AddressSpace>,
    blocks: Option<MemHandle>,
    /// What should be there beside the RAM of the start.
    wanted: u64,
    /// The last resize asked for it, and it has not come to its end.
    since: Option<Instant>,
    /// One DIMM at a time: each is proven before the next.
    in_flight: Option<PendingSlot>,
    /// The one that comes next, until it is there.
    readying: Option<Readying>,
    /// It has to wait for the place of one that the host has not again yet.
    is_held_up: bool,
    /// The guest has less than when it was looked at last, and the host has not all of that again.
    is_leaving: bool,
    /// KVM has not given back what the guest has let go of: it is asked again.
    has_unreturned_dimm: bool,
    /// What was there when it was looked at last.
    reported_bytes: u64,
    /// When the driver of virtio-mem is told to try again.
    retry: Retry,
    /// What the guest can do without.
    shrink_limit: ShrinkLimit,
    /// What has come as DIMMs since the last resize was asked for, and the guest has.
    proven: u64,
    /// What is asked for of `wanted` at present: more than that as long as the guest cannot spare the rest.
    goal_bytes: u64,
    /// Why it is more.
    held_reason: Option<String>,
    refusals: Vec<Refusal>,
    /// DIMMs that the guest did not let go of, since they were filled: others are asked for before them.
    refused_slots: BTreeSet<u32>,
    /// What it said of those that the last resize has asked for, as long as others may go in their place.
    open_refusals: BTreeMap<u32, Refusal>,
    /// Of each DIMM, by the guest's own word.
    present: Latency,
    gone: Latency,
    /// Of all that was asked for.
    plugged: Latency,
    unplugged: Latency,
}

#[derive(Debug)]
struct PendingSlot {
    slot: u32,
    bytes: u64,
    comes: bool,
    receiver: OutcomeReceiver,
}

impl MemoryResize {
    /// Whether RAM is of huge pages.
    pub fn has_huge_pages(&self) -> bool {
        self.space.has_huge_pages()
    }

    /// Nothing is added yet to `space`; `blocks` is the virtio-mem device, if there is one.
    pub fn new(parts: MemoryParts, space: Arc<AddressSpace>, blocks: Option<MemHandle>) -> Self {
        Self {
            parts,
            space,
            blocks,
            wanted: 0,
            since: None,
            in_flight: None,
            readying: None,
            is_held_up: false,
            is_leaving: false,
            has_unreturned_dimm: false,
            reported_bytes: 0,
            retry: Retry::default(),
            shrink_limit: ShrinkLimit::default(),
            proven: 0,
            goal_bytes: 0,
            held_reason: None,
            refusals: Vec::new(),
            refused_slots: BTreeSet::new(),
            open_refusals: BTreeMap::new(),
            present: Latency::default(),
            gone: Latency::default(),
            plugged: Latency::default(),
            unplugged: Latency::default(),
        }
    }

    /// The same, of a guest of which `guest` says what it has available.
    pub fn with_available_memory(mut self, guest: Option<impl AvailableMemory + 'static>) -> Self {
        self.shrink_limit = ShrinkLimit::new(guest.map(|guest| Box::new(guest) as Box<dyn AvailableMemory>));
        self
    }

    /// What the VM has if it is to have `bytes` bytes of RAM: not less than at its start, and whole blocks or DIMMs more.
    ///
    /// # Errors
    /// [`ResizeError::Ram`].
    pub fn check(&self, bytes: u64) -> Result<u64, ResizeError> {
        let boot_bytes = self.parts.boot_bytes;
        let most = self.max_added_bytes();
        let more = bytes.saturating_sub(boot_bytes);
        if more > most {
            let max = boot_bytes.saturating_add(most);
            return Err(ResizeError::Ram { found: bytes, max });
        }
        let blocks = self.blocks.as_ref().filter(|_| self.has_driver());
        let unit = blocks.map_or(self.parts.unit, |blocks| blocks.size().block_bytes);
        Ok(boot_bytes.saturating_add(more.next_multiple_of(unit.max(1))))
    }

    /// The most that may be added: what was asked for is there, and a little more where it is no whole unit, which can be asked for as
    /// well.
    fn max_added_bytes(&self) -> u64 {
        self.parts.more_bytes.next_multiple_of(self.parts.unit.max(1))
    }

    /// RAM is to be `bytes` bytes in all.
    ///
    /// # Errors
    /// [`ResizeError::Ram`], or there is no place, slot or thread for the first part of it, or the host cannot give it; then all is as before.
    /// What KVM or the host refuses later is a [`Refusal`].
    pub fn set(&mut self, dimms: &mut Dimms, bytes: u64, now: Instant) -> Result<(), ResizeError> {
        let wanted = self.check(bytes)?.saturating_sub(self.parts.boot_bytes);
        if wanted > self.wanted {
            self.afford(dimms, wanted)?;
        }
        let before = (self.wanted, self.since);
        (self.wanted, self.since) = (wanted, Some(now));
        self.retry.begin();
        self.shrink_limit.reset();
        self.proven = 0;
        // What the host has refused of another size fails that, and not this.
        self.readying = self.readying.take().and_then(Readying::unless_refused);
        let open_refusals = std::mem::take(&mut self.open_refusals);
        if let Err(error) = self.request_next(dimms) {
            (self.wanted, self.since) = before;
            self.open_refusals = open_refusals;
            return Err(error);
        }
        Ok(())
    }

    /// Whether the host can give what is not there yet of `wanted`, whichever way it comes.
    fn afford(&self, dimms: &Dimms, wanted: u64) -> Result<(), ResizeError> {
        let plug = dimms.as_ref().map(Hotplug::plug);
        let goes = plug.is_some_and(DimmPlug::is_giving_back);
        let blocks = self.blocks.as_ref().map_or(0, |blocks| blocks.size().plugged_bytes);
        let readying = self.readying.as_ref().map_or(0, |readying| readying.bytes);
        let there = filled(dimms).saturating_add(blocks).saturating_add(readying);
        // What is on its way to the host is in no figure of it yet: the kernel is to say then.
        let more = if goes { 0 } else { wanted.saturating_sub(there) };
        self.space.afford(more, wanted)?;
        self.space.warn_of_limits(wanted);
        Ok(())
    }

    /// RAM is to be `bytes` bytes in all again, as it was to be before: what was begun meanwhile goes, or comes again.
    pub fn restore_target(&mut self, dimms: &mut Dimms, bytes: u64) {
        self.wanted = bytes.saturating_sub(self.parts.boot_bytes);
        if let Err(error) = self.request_next(dimms) {
            log::error!("memory is not as it was: {}", error_chain(&error));
        }
    }

    /// RAM that there will be.
    pub fn wanted_bytes(&self) -> u64 {
        self.parts.boot_bytes.saturating_add(self.wanted)
    }

    /// RAM that the guest has.
    pub fn present_bytes(&self, dimms: &Dimms) -> u64 {
        self.parts.boot_bytes.saturating_add(self.added(dimms))
    }

    /// RAM of the start, and what the guest has of DIMMs.
    pub fn figures(&self, dimms: &Dimms) -> Ram {
        Ram {
            boot_bytes: self.parts.boot_bytes,
            dimm_bytes: dimm_bytes(dimms),
        }
    }

    /// Tells what the guest has answered, and asks for what comes next.
    pub fn advance(&mut self, dimms: &mut Dimms, changes: &mut Vec<Change>) {
        if let Some(dimms) = dimms
            && let Err(error) = dimms.reap()
        {
            log::error!("memory that the guest let go of stays: {}", error_chain(&error));
        }
        self.poll_answer(changes);
        if let Err(error) = self.request_next(dimms) {
            let why = error_chain(&error);
            log::error!("memory cannot be added: {why}");
            let what = format!("add memory: {why}");
            self.refuse(Refusal { what, why: Why::Host }, changes);
        }
        self.settle_refusals(dimms, changes);
        if !self.refusals.is_empty() && self.in_flight.is_none() {
            self.accept_current_size(dimms);
        }
        self.has_unreturned_dimm = dimms.as_ref().is_some_and(has_unreturned_dimm);
        let leaves = dimms.as_ref().is_some_and(|dimms| dimms.plug().has_leaving());
        self.is_leaving = (leaves || self.has_unreturned_dimm) && self.added(dimms) < self.reported_bytes;
        self.report_completion(dimms, changes);
        self.retry_driver(Instant::now());
    }

    /// Has the driver of virtio-mem try again, if it has stopped and it is time.
    fn retry_driver(&mut self, now: Instant) {
        let Some(blocks) = &self.blocks else { return };
        let size = blocks.size();
        let is_open = size.driver && owed(size).is_some();
        if self.retry.is_due(is_open.then_some(size.plugged_bytes), now) {
            blocks.retry();
        }
    }

    /// When to look again without having been woken.
    pub fn poll(&self) -> Option<Duration> {
        let due = [self.retry.due(), self.shrink_limit.next_poll()]
            .into_iter()
            .flatten()
            .min();
        let looks = due.map(|due| due.saturating_duration_since(Instant::now()));
        looks
            .into_iter()
            .chain(self.has_unreturned_dimm.then_some(KEPT_AGAIN))
            .min()
    }

    /// The guest is paused, or runs again.
    pub fn hold(&mut self, is_held: bool) {
        self.shrink_limit.hold(is_held, Instant::now());
    }

    /// Whether the guest is giving memory back, and has not stood still for long.
    pub fn is_shrinking(&self, dimms: &Dimms) -> bool {
        let is_at_work = self.in_flight.is_some() || self.retry.due().is_some();
        is_at_work && self.refusals.is_empty() && self.added(dimms) > self.wanted
    }

    /// The guest has said `why` it has no memory left: if that may be for what it gives back, it keeps the rest, and
    /// gets some of it again where that comes in blocks. A DIMM that it has been asked for already may still go.
    pub fn stop_shrinking(&mut self, dimms: &Dimms, why: &str) -> Option<Change> {
        if !self.is_shrinking(dimms) {
            return None;
        }
        if let Some(blocks) = &self.blocks {
            // It was the guest's a moment ago, and it may need the last of it to come to itself.
            let gone = self.reported_bytes.saturating_sub(self.added(dimms));
            self.request(blocks.size().plugged_bytes.saturating_add(gone.min(RELIEF)));
        }
        let what = format!("remove memory: the guest is out of memory: {why}");
        let mut changes = Vec::new();
        self.refuse(Refusal { what, why: Why::Host }, &mut changes);
        if self.in_flight.is_none() {
            self.accept_current_size(dimms);
        }
        changes.pop()
    }

    /// Whether a DIMM is to come that the guest has to describe.
    pub fn is_growing(&self, dimms: &Dimms) -> bool {
        let comes = match &self.in_flight {
            Some(in_flight) => in_flight.comes,
            None => dimms.is_some() && !self.has_driver() && self.dimm_goal_bytes() > filled(dimms),
        };
        comes && self.refusals.is_empty()
    }

    /// The guest has said `why` it has no memory left: if that may be for what comes, no more does. A DIMM that it has been told of may still
    /// come.
    pub fn stop_growing(&mut self, dimms: &mut Dimms, why: &str) -> Option<Change> {
        if !self.is_growing(dimms) {
            return None;
        }
        if let (Some(readying), Some(dimms)) = (self.readying.take(), dimms.as_mut()) {
            dimms.plug_mut().abandon(readying);
        }
        self.is_held_up = false;
        let what = format!("add memory: the guest is out of memory: {why}");
        let mut changes = Vec::new();
        self.refuse(Refusal { what, why: Why::Host }, &mut changes);
        self.accept_current_size(dimms);
        changes.pop()
    }

    fn poll_answer(&mut self, changes: &mut Vec<Change>) {
        let Some(in_flight) = self.in_flight.take() else { return };
        let verb = if in_flight.comes { "add" } else { "remove" };
        let why = match in_flight.receiver.wait(Instant::now()) {
            Outcome::TimedOut => {
                self.in_flight = Some(in_flight);
                return;
            }
            Outcome::Accepted => {
                let answers = if in_flight.comes {
                    &mut self.present
                } else {
                    &mut self.gone
                };
                answers.add(in_flight.receiver.latency().unwrap_or_default());
                let came = if in_flight.comes { in_flight.bytes } else { 0 };
                self.proven = self.proven.saturating_add(came);
                return;
            }
            Outcome::Withdrawn => return,
            Outcome::Refused { ost } => Why::Code(ost),
            Outcome::Unproven => Why::Unproven,
        };
        let what = format!("{verb} memory slot {} of {} MiB", in_flight.slot, in_flight.bytes >> 20);
        let refusal = Refusal { what, why };
        if in_flight.comes {
            self.refuse(refusal, changes);
        } else {
            self.refused_slots.insert(in_flight.slot);
            self.open_refusals.insert(in_flight.slot, refusal);
        }
    }

    /// What the guest keeps is a refusal if nothing could go in its place.
    fn settle_refusals(&mut self, dimms: &Dimms, changes: &mut Vec<Change>) {
        if self.in_flight.is_some() {
            return;
        }
        let open_refusals = std::mem::take(&mut self.open_refusals).into_values();
        if filled(dimms) > self.dimm_goal_bytes() {
            open_refusals.for_each(|refusal| self.refuse(refusal, changes));
        } else {
            open_refusals.for_each(|refusal| log::info!("{refusal}; another one went"));
        }
    }

    fn refuse(&mut self, refusal: Refusal, changes: &mut Vec<Change>) {
        self.refusals.push(refusal.clone());
        let took = self.since.map_or(Duration::ZERO, |since| since.elapsed());
        changes.push(Change::Refused(refusal, took));
    }

    /// What has been refused is not asked for again: what there is, is what there will be.
    fn accept_current_size(&mut self, dimms: &Dimms) {
        self.wanted = self.added(dimms).max(self.requested()).min(self.max_added_bytes());
        self.goal_bytes = self.wanted;
    }

    /// Tells of memory that is there, or is not any more, once nothing is to be waited for.
    fn report_completion(&mut self, dimms: &Dimms, changes: &mut Vec<Change>) {
        let added = self.added(dimms);
        let Some(since) = self.since.filter(|_| self.pending().is_none() && !self.is_short(added)) else {
            return;
        };
        self.since = None;
        let took = since.elapsed();
        let before = std::mem::replace(&mut self.reported_bytes, added);
        if added > before {
            self.plugged.add(took);
            changes.push(Change::MemoryPlugged(added - before, took));
        } else if added < before {
            self.unplugged.add(took);
            changes.push(Change::MemoryUnplugged(before - added, took));
        }
    }

    fn is_short(&self, added: u64) -> bool {
        added < self.wanted && self.refusals.is_empty()
    }

    /// Asks for the next part of what is wanted, if nothing is being waited for.
    fn request_next(&mut self, dimms: &mut Dimms) -> Result<(), ResizeError> {
        if let Some(dimms) = dimms {
            dimms.plug_mut().collect_unwanted();
        }
        self.withdraw_unseen(dimms);
        if self.in_flight.is_some() || !self.refusals.is_empty() {
            self.shrink_limit.reset();
            self.held_reason = None;
            return Ok(());
        }
        self.update_goal(dimms, Instant::now());
        let filled = filled(dimms);
        // A device without a driver is asked for no more than before.
        if self.has_driver() || self.goal_bytes < filled.saturating_add(self.requested()) {
            self.request(self.goal_bytes.saturating_sub(filled));
        }
        let dimm_goal = self.dimm_goal_bytes();
        let comes = dimms.is_some() && dimm_goal > filled && !self.has_driver();
        if !comes && self.added(dimms) <= self.wanted {
            self.shrink_limit.reset();
        }
        let Some(dimms) = dimms else { return Ok(()) };
        self.is_held_up = false;
        if let Some(readying) = self.readying.take_if(|_| !comes) {
            dimms.plug_mut().abandon(readying);
        }
        if comes {
            self.add_dimm(dimms, dimm_goal - filled, filled)
        } else if dimm_goal < filled {
            self.remove_dimm(dimms, filled - dimm_goal, filled)
        } else {
            Ok(())
        }
    }

    /// Asks the guest what it can do without, if something is to go.
    fn update_goal(&mut self, dimms: &Dimms, now: Instant) {
        let added = self.added(dimms);
        (self.goal_bytes, self.held_reason) = (self.wanted, None);
        if added <= self.wanted {
            return;
        }
        let boot_bytes = self.parts.boot_bytes;
        let wanted_mib = self.wanted_bytes() >> 20;
        let (needed, why) = match self.shrink_limit.poll(boot_bytes.saturating_add(added), now) {
            MinimumSize::Unknown => return,
            MinimumSize::Pending => (added, "the guest to say what memory it can spare".to_owned()),
            MinimumSize::Bytes(bytes) => (
                bytes.saturating_sub(boot_bytes).min(added),
                format!(
                    "the guest to need less memory: {} MiB, {wanted_mib} are wanted",
                    bytes >> 20
                ),
            ),
        };
        if needed > self.wanted {
            (self.goal_bytes, self.held_reason) = (needed, Some(why));
        }
    }

    /// What is to be there as DIMMs. What was asked for as blocks may be no whole unit.
    fn dimm_goal_bytes(&self) -> u64 {
        let bytes = self.goal_bytes.saturating_sub(self.requested());
        bytes.next_multiple_of(self.parts.unit.max(1))
    }

    /// Takes back what is not wanted any more and the guest has not heard of.
    fn withdraw_unseen(&mut self, dimms: &mut Dimms) {
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

    fn add_dimm(&mut self, dimms: &mut Hotplug<DimmPlug>, missing: u64, filled: u64) -> Result<(), ResizeError> {
        let Some(bytes) = self.next_dimm(missing, filled) else {
            self.held_reason = Some("the guest to say what memory it has available".into());
            return Ok(());
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

    /// How much of what is `missing` the guest can describe, with `filled` bytes of DIMMs; `None` until it has said what it has available.
    fn next_dimm(&mut self, missing: u64, filled: u64) -> Option<u64> {
        if let Some(readying) = &self.readying {
            return Some(missing.min(readying.bytes));
        }
        let has = self.parts.boot_bytes.saturating_add(filled);
        let most = match self.shrink_limit.room(has, Instant::now()) {
            Room::Pending => return None,
            Room::Bytes(available) => (available / 2).saturating_mul(DESCRIBED).min(has.saturating_mul(STEP)),
            Room::Unknown if self.proven == 0 => has / FIRST,
            Room::Unknown => self.proven.saturating_mul(STEP),
        };
        let unit = self.parts.unit.max(1);
        Some(missing.min((most / unit * unit).max(unit)))
    }

    /// A DIMM of `bytes` bytes at most, once there is one.
    fn region(&mut self, plug: &mut DimmPlug, bytes: u64) -> Result<Option<Region>, ResizeError> {
        match self.readying.take() {
            Some(larger) if larger.bytes > bytes => plug.abandon(larger),
            Some(readying) => match readying.finish()? {
                Ok(region) => return Ok(Some(region)),
                Err(pending) => {
                    self.readying = Some(pending);
                    return Ok(None);
                }
            },
            None => {}
        }
        self.readying = Some(plug.ready(bytes)?);
        Ok(None)
    }

    /// A DIMM goes as a whole, and only if it is not too much: the highest one that the guest has not kept before, if there is one.
    fn remove_dimm(&mut self, dimms: &mut Hotplug<DimmPlug>, excess: u64, filled: u64) -> Result<(), ResizeError> {
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

    /// Whether virtio-mem is what to use.
    fn has_driver(&self) -> bool {
        let driver = |blocks: &MemHandle| self.parts.blocks_only || blocks.size().driver;
        self.blocks.as_ref().is_some_and(driver)
    }

    fn request(&self, bytes: u64) {
        if let Some(blocks) = self.blocks.as_ref().filter(|_| bytes != self.requested()) {
            let size = blocks.size();
            let bytes = bytes.min(size.usable_bytes).next_multiple_of(size.block_bytes.max(1));
            if let Err(error) = blocks.request(bytes) {
                log::error!("{error}");
            }
        }
    }

    /// What the driver of virtio-mem has been asked for.
    fn requested(&self) -> u64 {
        self.blocks.as_ref().map_or(0, |blocks| blocks.size().requested_bytes)
    }

    /// What the guest has beside the RAM of the start.
    fn added(&self, dimms: &Dimms) -> u64 {
        let blocks = self.blocks.as_ref().map_or(0, |blocks| blocks.size().plugged_bytes);
        blocks.saturating_add(dimm_bytes(dimms))
    }

    /// What the guest would not do.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// A new resize begins. What the guest would not do before it.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    /// It has not begun after all: what [`Self::take_refusals`] has taken is still what the guest would not do.
    pub fn restore_refusals(&mut self, refusals: Vec<Refusal>) {
        self.refusals = refusals;
    }

    /// What the guest has not answered.
    pub fn pending(&self) -> Option<String> {
        if let Some(in_flight) = &self.in_flight {
            let verb = if in_flight.comes { "come" } else { "go" };
            return Some(format!(
                "memory slot {} of {} MiB to {verb}",
                in_flight.slot,
                in_flight.bytes >> 20
            ));
        }
        if let Some(readying) = &self.readying {
            return Some(format!("the host to find {} MiB of memory", readying.bytes >> 20));
        }
        if self.is_held_up || self.is_leaving {
            return Some("the host to take memory back".into());
        }
        if let Some(reason) = &self.held_reason {
            return Some(reason.clone());
        }
        owed(self.blocks.as_ref()?.size())
    }

    /// Whether a thread is at work on a DIMM that comes or goes.
    #[cfg(test)]
    pub fn is_busy(&self, dimms: &Dimms) -> bool {
        let mut plugs = dimms.iter().map(Hotplug::plug);
        self.readying.is_some() || plugs.any(DimmPlug::is_giving_back)
    }

    /// How long the guest has taken.
    pub fn latencies(&self) -> [(&'static str, &Latency); 2] {
        [("memory_plugged", &self.plugged), ("memory_unplugged", &self.unplugged)]
    }

    /// For `vm.resize-status`.
    pub fn status(&self, dimms: &Dimms, balloon: Option<&BalloonHandle>) -> Value {
        let slots = dimms.as_ref().map_or_else(Vec::new, |dimms| {
            let there = dimms.states().into_iter().filter(|(_, state)| state.name() != "absent");
            there
                .map(|(slot, state)| {
                    let extent = dimms.plug().extent(slot);
                    json!({"slot": slot, "base": extent.base, "bytes": extent.size_bytes, "state": state.name()})
                })
                .collect()
        });
        let blocks = self.blocks.as_ref().map(|blocks| {
            let size = blocks.size();
            json!({
                "requested_bytes": size.requested_bytes,
                "plugged_bytes": size.plugged_bytes,
                "usable_bytes": size.usable_bytes,
                "block_bytes": size.block_bytes,
                "driver": size.driver,
            })
        });
        let balloon = balloon.map(|balloon| {
            let size = balloon.size();
            let said = balloon.stats();
            let stats: serde_json::Map<String, Value> = said
                .named()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect();
            json!({
                "target_bytes": size.target_bytes,
                "actual_bytes": size.actual_bytes,
                "driver": size.driver,
                "stats": stats,
                "stats_age_ms": said.at.map(|at| millis(at.elapsed())),
            })
        });
        json!({
            "desired_bytes": self.wanted_bytes(),
            "present_bytes": self.present_bytes(dimms),
            "boot_bytes": self.parts.boot_bytes,
            "hotplug_bytes": self.max_added_bytes(),
            "dimms": slots,
            "virtio_mem": blocks,
            "balloon": balloon,
            "latency": {
                "present": self.present.json(),
                "gone": self.gone.json(),
                "plugged": self.plugged.json(),
                "unplugged": self.unplugged.json(),
            },
        })
    }
}

/// What the guest has of `dimms`.
fn dimm_bytes(dimms: &Dimms) -> u64 {
    dimms.as_ref().map_or(0, |dimms| {
        let there = dimms.states().into_iter().filter(|(_, state)| state.plugged());
        there.map(|(slot, _)| dimms.plug().bytes(slot)).sum()
    })
}

/// Whether there is a DIMM that the guest has let go of and the host has not: it is the VM's as before.
fn has_unreturned_dimm(dimms: &Hotplug<DimmPlug>) -> bool {
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

/// What the driver of virtio-mem has still to do.
fn owed(size: MemSize) -> Option<String> {
    let (plugged, requested) = (size.plugged_bytes, size.requested_bytes);
    if plugged != requested {
        return Some(format!("virtio-mem: {plugged} of {requested} bytes"));
    }
    (!size.settled).then(|| format!("virtio-mem: {plugged} bytes to be added"))
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
