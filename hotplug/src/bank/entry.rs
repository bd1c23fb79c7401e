//! One slot of a bank: where it is, what the guest is to be told of it, and what the guest's answers are worth.

use super::{Extent, SlotKind};
use crate::outcome::{Outcome, OutcomeSender};
use crate::slot::{Event, NotAllowed, State};

/// What a slot's device is notified of to have the guest let go (ACPI 6.5 §5.6.6).
const EJECT_REQUEST: u8 = 3;

/// How often a guest is told again of memory that it says it has, before it is not believed. Each
/// time it tries to add what is missing, so the second attempt may succeed and the third event then
/// prove it.
const CHECKS: u8 = 3;

/// One slot.
pub(super) struct Entry {
    pub state: State,
    pub pinned: bool,
    pub extent: Extent,
    /// `_SUN` has been evaluated since the slot was offered.
    pub signed: bool,
    /// `_CRS` has been evaluated since the guest was last told of the slot.
    pub looked_at: bool,
    /// How often the guest has been told again.
    checks: u8,
    /// The guest has let go and not yet seen that the unit has gone.
    pub unverified: bool,
    /// The guest has taken the request to let go, and is to be told of it once more.
    pub again: bool,
    add: Option<OutcomeSender>,
    remove: Option<OutcomeSender>,
}

impl Entry {
    pub fn new() -> Self {
        Self {
            state: State::Empty,
            pinned: false,
            extent: Extent::default(),
            signed: false,
            looked_at: false,
            checks: 0,
            unverified: false,
            again: false,
            add: None,
            remove: None,
        }
    }

    /// What the guest is to be told of.
    pub fn news(&self) -> Option<u8> {
        let again = self.again.then_some(EJECT_REQUEST);
        self.state.notification().or(again)
    }

    /// What it is to be told of now.
    pub fn notification(&self) -> Option<u8> {
        self.news().filter(|_| !self.unverified)
    }

    /// What an answer of the guest's is worth: see [`SlotKind`]. `signs` tells whether it is one that evaluates `_SUN`.
    pub fn judge(&mut self, kind: SlotKind, signs: bool, event: Event) -> Event {
        match (kind, self.state, event) {
            (SlotKind::Cpu, _, Event::Inserted) if signs && !self.signed => Event::InsertUnproven,
            (SlotKind::Memory, State::Offered { seen: true }, Event::Inserted) => Event::Reported,
            (SlotKind::Memory, State::Reported { seen: true }, Event::Inserted | Event::InsertRefused { .. }) => {
                // Linux 6.1 refuses what it has already, 6.12 takes it for done.
                if !self.looked_at {
                    Event::Inserted
                } else if self.checks < CHECKS {
                    Event::Reported
                } else {
                    Event::InsertUnproven
                }
            }
            (_, _, event) => event,
        }
    }

    pub fn step(&mut self, event: Event, sender: Option<OutcomeSender>) -> Result<State, NotAllowed> {
        let step = self.state.step(event)?;
        if let Some(sender) = sender {
            // The sender that was here before, if any, is dropped, and its request thereby withdrawn: the last one who
            // asks is answered.
            match event {
                Event::Ask => self.remove = Some(sender),
                _ => self.add = Some(sender),
            }
        }
        match (self.state, step.state) {
            (State::Offered { .. }, State::Reported { .. }) => self.checks = 1,
            (State::Reported { seen: true }, State::Reported { seen: false }) => {
                self.checks = self.checks.saturating_add(1);
            }
            (_, State::Offered { seen: false }) => self.signed = false,
            _ => {}
        }
        send_outcome(&mut self.add, step.add);
        send_outcome(&mut self.remove, step.remove);
        self.state = step.state;
        self.again &= is_heard(step.state);
        Ok(step.state)
    }
}

/// Whether the guest has taken the request to let go, and nobody wants the slot again.
pub(super) fn is_heard(state: State) -> bool {
    matches!(
        state,
        State::Asked {
            seen: true,
            wanted: false,
            ..
        }
    )
}

fn send_outcome(sender: &mut Option<OutcomeSender>, outcome: Option<Outcome>) {
    if let Some(outcome) = outcome
        && let Some(sender) = sender.take()
    {
        sender.send(outcome);
    }
}
