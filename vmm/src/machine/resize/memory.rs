//! Memory that comes and goes: blocks of virtio-mem where the guest has a driver for it, DIMMs otherwise.
//!
//! How large a DIMM may be stands in `memory/dimm_requests.rs`. virtio-mem needs no such care: the
//! driver takes a block after the other, and stops when it cannot.
//!
//! Of a guest that shrinks no more is asked than it says that it can spare. Either way nothing is
//! asked any more once it has said that it killed a process for want of memory
//! (`memory/shortage.rs`).

mod dimm_requests;
mod report;
mod shortage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::error_chain;
use husk_hotplug::Hotplug;
use husk_hotplug::outcome::{Outcome, OutcomeReceiver};
use husk_virtio::mem::MemHandle;

use super::dimms::{DimmPlug, Dimms, Readying, filled, plugged};
use super::retry::Retry;
use super::shrink_limit::{AvailableMemory, MinimumSize, ShrinkLimit};
use super::{Change, Latency, Refusal, ResizeError, Why};
use crate::memory::AddressSpace;
use dimm_requests::{RecentDimms, has_unreturned_dimm};
use report::owed;

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
    /// DIMMs that the guest may not have brought online yet.
    recent: RecentDimms,
    /// When more DIMMs may come, while none may because of those.
    next_dimm_at: Option<Instant>,
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
            recent: RecentDimms::default(),
            next_dimm_at: None,
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

    /// What the VM has if it is to have `bytes` bytes of RAM: not less than at its start, and whole
    /// blocks or DIMMs more.
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

    /// The most that may be added: what was asked for is there, and a little more where it is no
    /// whole unit, which can be asked for as well.
    fn max_added_bytes(&self) -> u64 {
        self.parts.more_bytes.next_multiple_of(self.parts.unit.max(1))
    }

    /// RAM is to be `bytes` bytes in all.
    ///
    /// # Errors
    /// [`ResizeError::Ram`], or there is no place, slot or thread for the first part of it, or the
    /// host cannot give it; then all is as before. What KVM or the host refuses later is a
    /// [`Refusal`].
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
        let due = [self.retry.due(), self.shrink_limit.next_poll(), self.next_dimm_at]
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
                self.recent.add(came, Instant::now());
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
        (self.is_held_up, self.next_dimm_at) = (false, None);
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
        blocks.saturating_add(plugged(dimms))
    }

    /// Whether a thread is at work on a DIMM that comes or goes.
    #[cfg(test)]
    pub fn is_busy(&self, dimms: &Dimms) -> bool {
        let mut plugs = dimms.iter().map(Hotplug::plug);
        self.readying.is_some() || plugs.any(DimmPlug::is_giving_back)
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
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
