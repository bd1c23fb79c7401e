//! vCPUs that come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use husk_devices::error_chain;
use husk_hotplug::outcome::{Outcome, OutcomeReceiver};
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, HotplugError, Plug};
use serde_json::{Value, json};

use super::{Change, Latency, Refusal, Why};

/// How soon a vCPU that the guest is starting is looked at again, and how late at most.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_LAST: Duration = Duration::from_secs(1);
/// For how long the host is asked again for a vCPU that it could not make in place of one that went: that one's thread
/// may be about to end, and count until it has.
const AGAIN: Duration = Duration::from_millis(100);

/// vCPUs in their slots, as a resize has to know them.
pub trait Vcpus: Plug<Unit = ()> {
    /// How many there may be.
    fn max(&self) -> u32;

    /// Whether the host has what it takes to fill the slots `ids`, or has refused it, which the
    /// first of them that is filled in vain says. If not, a thread makes it, and the control thread
    /// is woken. Never waits.
    fn ready(&mut self, _ids: &[u32]) -> bool {
        true
    }

    /// Whether the guest has started vCPU `id`.
    fn is_online(&self, id: u32) -> bool;

    /// Whether the guest is about to start vCPU `id`, so that it is worth asking again soon.
    fn is_starting(&self, id: u32) -> bool;
}

/// What the guest has been asked for, and what it has answered.
#[derive(Debug, Default)]
pub struct CpuResize {
    in_flight: Vec<PendingSlot>,
    /// vCPUs that the guest has taken and not started yet.
    starting: BTreeMap<u32, Starting>,
    /// How many there should be, as long as it is not known whether there will.
    wanted: Option<u32>,
    /// Some of them have yet to be made by a thread before the guest is told.
    is_making: bool,
    /// What the host has refused since.
    failure: Option<String>,
    /// Since when it has been asked again.
    failing: Option<Instant>,
    /// vCPUs that were wanted back when the guest had been asked to let go of them, and when that was: it may do so
    /// all the same.
    reversed: BTreeMap<u32, Instant>,
    refusals: Vec<Refusal>,
    present: Latency,
    online: Latency,
    gone: Latency,
}

#[derive(Debug)]
struct Starting {
    /// When it was asked for.
    since: Instant,
    /// When the guest was first seen to be about to start it.
    begun: Option<Instant>,
}

impl Starting {
    /// When to look again, if the guest is about to start it. It takes a guest microseconds once it
    /// has begun; one that does not go on is looked at more and more seldom.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.begun?);
        Some((waited / 8).clamp(LOOK_FIRST, LOOK_LAST))
    }
}

#[derive(Debug)]
struct PendingSlot {
    slot: u32,
    comes: bool,
    receiver: OutcomeReceiver,
    since: Instant,
}

impl CpuResize {
    /// Asks for `wanted` vCPUs in all: those that come in ascending order, those that go in descending order.
    ///
    /// # Errors
    /// The host cannot create one of them: those that were added for this go again.
    pub fn set<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, wanted: u32, now: Instant) -> Result<(), HotplugError> {
        let mut filled = Vec::new();
        if let Err(error) = self.fill_to(cpus, wanted, now, &mut filled) {
            // Those, and not as many from the top: one of those may be the guest's for long.
            for slot in filled.into_iter().rev() {
                // One that the host does not take back is tried again by `advance`: neither is it
                // why this failed, nor do others stay for it.
                if let Err(error) = self.empty(cpus, slot, now) {
                    log::error!("vCPU {slot} is not taken back: {}", error_chain(&error));
                }
            }
            return Err(error);
        }
        while count(cpus) > wanted {
            let Some(slot) = cpus.removable() else { break };
            self.empty(cpus, slot, now)?;
        }
        (self.wanted, self.failure, self.failing) = (Some(wanted), None, None);
        Ok(())
    }

    /// Which slots it has `filled`, in order, also when it fails. None, as long as a thread has to
    /// make something for them.
    fn fill_to<V: Vcpus>(
        &mut self,
        cpus: &mut Hotplug<V>,
        wanted: u32,
        now: Instant,
        filled: &mut Vec<u32>,
    ) -> Result<(), HotplugError> {
        let missing = usize::try_from(wanted.saturating_sub(count(cpus))).unwrap_or(usize::MAX);
        let free = cpus.states().into_iter().filter(|(_, state)| !state.will_be_plugged());
        let free: Vec<u32> = free.map(|(slot, _)| slot).take(missing).collect();
        self.is_making = !free.is_empty() && !cpus.plug_mut().ready(&free);
        if self.is_making {
            return Ok(());
        }
        while count(cpus) < wanted {
            let Some((slot, state)) = cpus.lowest_free() else { break };
            let receiver = cpus.fill(slot, ())?;
            let removal = self
                .in_flight
                .iter()
                .rfind(|in_flight| in_flight.slot == slot && !in_flight.comes);
            if let (State::Asked { seen: true, .. }, Some(removal)) = (state, removal) {
                self.reversed.insert(slot, removal.since);
            }
            self.track_request(slot, true, receiver, now);
            filled.push(slot);
        }
        Ok(())
    }

    fn empty<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, slot: u32, now: Instant) -> Result<(), HotplugError> {
        let receiver = cpus.remove(slot)?;
        self.track_request(slot, false, receiver, now);
        Ok(())
    }

    fn track_request(&mut self, slot: u32, comes: bool, receiver: OutcomeReceiver, since: Instant) {
        self.in_flight.push(PendingSlot {
            slot,
            comes,
            receiver,
            since,
        });
    }

    /// Takes apart what the guest let go of, and tells what it has answered.
    pub fn advance<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, changes: &mut Vec<Change>) {
        let reaped = cpus.reap().unwrap_or_else(|error| {
            let why = error_chain(&error);
            log::error!("a vCPU that the guest let go of is not gone, or does not come again: {why}");
            self.failure = Some(why);
            Vec::new()
        });
        let now = Instant::now();
        for in_flight in std::mem::take(&mut self.in_flight) {
            match in_flight.receiver.wait(now) {
                Outcome::TimedOut => self.in_flight.push(in_flight),
                outcome => self.answered(&in_flight, outcome, changes),
            }
        }
        self.starting.retain(|slot, starting| {
            let plug = cpus.plug();
            let online = plug.is_online(*slot);
            if online {
                let took = starting.since.elapsed();
                self.online.add(took);
                changes.push(Change::VcpuOnline(*slot, took));
            }
            starting.begun = plug.is_starting(*slot).then_some(starting.begun.unwrap_or(now));
            // One that has gone again will not be started.
            !online && cpus.state(*slot).is_some_and(|state| state.plugged())
        });
        self.tell_reversed(cpus, &reaped, now, changes);
        if let Some(wanted) = self.wanted.filter(|_| self.is_making)
            && let Err(error) = self.fill_to(cpus, wanted, now, &mut Vec::new())
        {
            self.failure = Some(error_chain(&error));
        }
        self.settle(cpus, now, changes);
    }

    /// Tells of vCPUs that the guest has let go of though they are wanted again, of which no receiver will hear any
    /// more.
    fn tell_reversed<V: Vcpus>(&mut self, cpus: &Hotplug<V>, reaped: &[u32], now: Instant, changes: &mut Vec<Change>) {
        let is_asked = |slot: u32| {
            let last = self.in_flight.iter().rfind(|in_flight| in_flight.slot == slot);
            last.is_some_and(|in_flight| !in_flight.comes)
        };
        let is_told = |slot: u32, changes: &[Change]| {
            changes
                .iter()
                .any(|change| matches!(change, Change::VcpuGone(gone, _) if *gone == slot))
        };
        self.reversed.retain(|slot, since| {
            // Asked for anew, it has a receiver again.
            if is_asked(*slot) || is_told(*slot, changes) {
                return false;
            }
            let gone = reaped.contains(slot)
                || match cpus.state(*slot) {
                    Some(State::Asked { .. } | State::Ejected { .. }) => return true,
                    Some(State::Offered { .. } | State::Empty) => true,
                    _ => false,
                };
            if gone {
                changes.push(Change::VcpuGone(*slot, now.saturating_duration_since(*since)));
            }
            false
        });
    }

    /// Once nothing is to be waited for, there are as many as there should be, or somebody has said
    /// why not: a vCPU that the guest let go of, and that the host could not make again, comes to
    /// nothing without a word of the guest.
    fn settle<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, now: Instant, changes: &mut Vec<Change>) {
        let is_settled = self.in_flight.is_empty() && !self.is_making;
        let Some(wanted) = self.wanted.filter(|_| is_settled) else {
            return;
        };
        if count(cpus) < wanted && self.refusals.is_empty() && self.tries_again(cpus, wanted, now) {
            return;
        }
        (self.wanted, self.failing) = (None, None);
        let count = count(cpus);
        if count < wanted && self.refusals.is_empty() {
            let why = self.failure.take().unwrap_or_else(|| "the host could not".into());
            let refusal = Refusal {
                what: format!("{count} of {wanted} vCPUs: {why}"),
                why: Why::Host,
            };
            self.refusals.push(refusal.clone());
            changes.push(Change::Refused(refusal, Duration::ZERO));
        }
    }

    /// Asks the host again for what it has refused in place of vCPUs that went. Whether it is still to be seen what
    /// comes of that.
    fn tries_again<V: Vcpus>(&mut self, cpus: &mut Hotplug<V>, wanted: u32, now: Instant) -> bool {
        if self.failure.is_none() {
            return false;
        }
        let since = *self.failing.get_or_insert(now);
        if now.saturating_duration_since(since) > AGAIN {
            return false;
        }
        match self.fill_to(cpus, wanted, now, &mut Vec::new()) {
            Ok(()) if self.is_making => {}
            Ok(()) => (self.failure, self.failing) = (None, None),
            Err(error) => self.failure = Some(error_chain(&error)),
        }
        true
    }

    fn answered(&mut self, in_flight: &PendingSlot, outcome: Outcome, changes: &mut Vec<Change>) {
        let took = in_flight.receiver.latency().unwrap_or_default();
        match (outcome, in_flight.comes) {
            (Outcome::Accepted, true) => {
                self.present.add(took);
                let since = in_flight.since;
                self.starting.insert(in_flight.slot, Starting { since, begun: None });
                changes.push(Change::VcpuPresent(in_flight.slot, took));
            }
            (Outcome::Accepted, false) => {
                self.gone.add(took);
                changes.push(Change::VcpuGone(in_flight.slot, took));
            }
            (Outcome::Refused { ost }, comes) => self.refuse(in_flight.slot, comes, Why::Code(ost), took, changes),
            (Outcome::Unproven, comes) => self.refuse(in_flight.slot, comes, Why::Unproven, took, changes),
            (Outcome::Withdrawn | Outcome::TimedOut, _) => {}
        }
    }

    fn refuse(&mut self, slot: u32, comes: bool, why: Why, took: Duration, changes: &mut Vec<Change>) {
        let verb = if comes { "add" } else { "remove" };
        let refusal = Refusal {
            what: format!("{verb} vCPU {slot}"),
            why,
        };
        self.refusals.push(refusal.clone());
        changes.push(Change::Refused(refusal, took));
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
        let named = |comes| {
            let slots = self.in_flight.iter().filter(|in_flight| in_flight.comes == comes);
            slots
                .map(|in_flight| in_flight.slot.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (come, go) = (named(true), named(false));
        match (come.is_empty(), go.is_empty()) {
            (true, true) => {
                let waits = self.is_making || self.failing.is_some();
                waits.then(|| "the host to make vCPUs".into())
            }
            (false, true) => Some(format!("vCPUs to come: {come}")),
            (true, false) => Some(format!("vCPUs to go: {go}")),
            (false, false) => Some(format!("vCPUs to come: {come}, to go: {go}")),
        }
    }

    /// When to look again for a vCPU that the guest is about to start, though nothing wakes whoever looks.
    pub fn poll(&self, now: Instant) -> Option<Duration> {
        let starting = self.starting.values().filter_map(|starting| starting.pause(now));
        // What the guest has been asked comes first, and its answer is a wakeup.
        let again = self.failing.filter(|_| self.in_flight.is_empty());
        starting.chain(again.map(|_| LOOK_FIRST)).min()
    }

    /// How long the guest has taken.
    pub fn latencies(&self) -> [(&'static str, &Latency); 3] {
        [
            ("vcpu_present", &self.present),
            ("vcpu_online", &self.online),
            ("vcpu_removed", &self.gone),
        ]
    }

    /// vCPUs that there will be, those included that are still being made.
    pub fn target<V: Vcpus>(&self, cpus: &Hotplug<V>) -> u32 {
        let wanted = self.wanted.filter(|_| self.is_making);
        wanted.unwrap_or_else(|| count(cpus))
    }

    /// For `vm.resize-status`.
    pub fn status<V: Vcpus>(&self, cpus: &Hotplug<V>) -> Value {
        let online = |slot: u32| cpus.plug().is_online(slot);
        let states: Vec<&str> = cpus
            .states()
            .into_iter()
            .map(|(slot, state)| match state.name() {
                // The first vCPU runs since the start, and has nobody who starts it.
                "present" if slot == 0 || online(slot) => "online",
                name => name,
            })
            .collect();
        json!({
            "desired": self.target(cpus),
            "present": cpus.plugged(),
            "online": states.iter().filter(|state| **state == "online").count(),
            "max": cpus.plug().max(),
            "states": states,
            "latency": {
                "present": self.present.json(),
                "online": self.online.json(),
                "gone": self.gone.json(),
            },
        })
    }
}

/// vCPUs in their slots, once the guest has done what it was asked for.
pub fn count<V: Vcpus>(cpus: &Hotplug<V>) -> u32 {
    u32::try_from(cpus.target()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "cpus_test.rs"]
mod tests;
