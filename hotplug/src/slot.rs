//! The life of one hot-plug slot: a pure state machine without lock, clock or device.
//!
//! `Empty -offer-> Offered -_OST ok-> Present -ask-> Asked -_EJ0-> Ejected -destroy-> Empty`, and
//! what may go otherwise. Where `_OST` proves nothing by itself, `Reported` lies between `Offered`
//! and `Present` ([`SlotKind`](crate::bank::SlotKind) says which). A dash is an event that the
//! state refuses: an error for the host, a shrug for the guest.
//!
//! | state | offer | ask | reclaim | expire | destroyed | take | reported | inserted | insert refused (2) | eject refused | eject |
//! |---|---|---|---|---|---|---|---|---|---|---|---|
//! | `Empty` | `Offered` | - | - | same | - | - | - | - | - | - | - |
//! | `Offered` unseen | - | `Ejected` | same | `Ejected` | - | seen | - | - | - | - | - |
//! | `Offered` seen | - | `Asked` unconfirmed | same | same | - | - | `Reported` | `Present` | `Ejected` | - | - |
//! | `Reported` unseen | - | `Asked` unconfirmed | same | same | - | seen | - | - | - | - | - |
//! | `Reported` seen | - | `Asked` unconfirmed | same | same | - | - | unseen | `Present` | `Ejected` | - | - |
//! | `Present` | - | `Asked` | same | same | - | - | - | - | - | - | - |
//! | `Asked` unseen | - | same | `Present` | `Present` | - | seen | - | confirmed | `Ejected` (1) | - | `Ejected` |
//! | `Asked` seen | - | same | wanted | same | - | - | - | confirmed | `Ejected` (1) | `Present` | `Ejected` |
//! | `Asked` wanted | - | seen | same | seen | - | - | - | confirmed | `Ejected` wanted (1) | `Present` | `Ejected` wanted |
//! | `Ejected` | - | same | wanted | same | `Empty` | - | - | - | - | - | - |
//! | `Ejected` wanted | - | not wanted | same | not wanted | `Offered` | - | - | - | - | - | - |
//!
//! (1) only while unconfirmed: the insertion itself is still unanswered. From an unconfirmed
//! `Asked`, `Present` in the table means `Offered` seen. (2) also when success was reported and
//! nothing else shows it. `Boot` leads from `Empty` to `Present` and nowhere else.
//!
//! Three rules made the table. *What the guest has not seen can be withdrawn* without its ever
//! knowing, so a time-out undoes it; what it has seen it may still finish, late. *The guest lets go
//! only of what it was asked for*: `_EJ0` counts in `Asked` and nowhere else. *A grow never waits
//! behind a shrink*: reclaiming a slot either takes the question back or, when the guest has
//! already been asked, wants the slot again as soon as the guest has let go.

use crate::outcome::Outcome;

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing is there.
    Empty,
    /// The host created a unit and offers it; the guest has not answered.
    Offered {
        /// The guest has taken the event.
        seen: bool,
    },
    /// The guest says that it has the unit, and is told of it once more: how it takes that shows whether it does.
    Reported {
        /// The guest has taken the second event.
        seen: bool,
    },
    /// The guest has it, and nobody wants it back.
    Present,
    /// The guest has it, or is taking it in, and was or will be asked to let go.
    Asked {
        /// The guest has taken the event.
        seen: bool,
        /// A later grow wants the slot again. Implies `seen`: an unseen question is taken back instead.
        wanted: bool,
        /// The guest answered the insertion that came before.
        confirmed: bool,
    },
    /// The guest let go, or never had it. The host must destroy the unit.
    Ejected {
        /// A later grow wants the slot again: it is offered anew as soon as the old unit is gone.
        wanted: bool,
    },
}

/// What can happen to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Host: the unit is there when the guest starts.
    Boot,
    /// Host: a unit was created, tell the guest.
    Offer,
    /// Host: the guest shall let go.
    Ask,
    /// Host: the slot is wanted after all, whatever was asked before.
    Reclaim,
    /// Host: waited long enough.
    Expire,
    /// Host: the unit is gone and, if the slot is wanted, its successor created.
    Destroyed,
    /// Guest: its scan method has taken the waiting event.
    Take,
    /// Guest: `_OST` reports that the insertion succeeded, which has to be checked.
    Reported,
    /// Guest: `_OST` reports that the insertion succeeded, and that is proof enough, or the second sign is there.
    Inserted,
    /// Guest: `_OST` reports that the insertion succeeded, but the second sign is missing.
    InsertUnproven,
    /// Guest: `_OST` reports that the insertion failed.
    InsertRefused {
        /// The status code.
        ost: u32,
    },
    /// Guest: `_OST` reports that it will not let go.
    EjectRefused {
        /// The status code.
        ost: u32,
    },
    /// Guest: `_EJ0`.
    Eject,
}

/// What an event does: the next state, and the outcomes it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the slot is now.
    pub state: State,
    /// The answer to whoever asked for the slot to be filled.
    pub add: Option<Outcome>,
    /// The answer to whoever asked for the slot to be emptied.
    pub remove: Option<Outcome>,
}

/// The event is not allowed in the state; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not allowed while the slot is {state:?}")]
pub struct NotAllowed {
    /// Where the slot is.
    pub state: State,
    /// What was tried.
    pub event: Event,
}

/// `_OST` source events: Notify values 0 to 0xff and processing codes (ACPI 6.5 §6.3.5, table "OST
/// source event codes").
mod source {
    pub const BUS_CHECK: u32 = 0;
    pub const DEVICE_CHECK: u32 = 1;
    pub const EJECT_REQUEST: u32 = 3;
    pub const EJECTION_PROCESSING: u32 = 0x103;
    pub const INSERTION_PROCESSING: u32 = 0x200;
}

/// `_OST` status codes (ACPI 6.5 §6.3.5).
const OST_SUCCESS: u32 = 0;
const OST_INSERTION_IN_PROGRESS: u32 = 0x80;
const OST_EJECTION_PENDING: u32 = 0x84;

impl Event {
    /// What an `_OST` evaluation says, or `None` if it decides nothing: progress reports, events
    /// that no slot is concerned with, and the success of an ejection, whose proof is `_EJ0` and
    /// not a report.
    pub fn from_ost(source_event: u32, status: u32) -> Option<Self> {
        match (source_event, status) {
            (source::BUS_CHECK | source::DEVICE_CHECK | source::INSERTION_PROCESSING, status) => match status {
                OST_SUCCESS => Some(Self::Inserted),
                OST_INSERTION_IN_PROGRESS => None,
                ost => Some(Self::InsertRefused { ost }),
            },
            (source::EJECT_REQUEST | source::EJECTION_PROCESSING, status) => match status {
                OST_SUCCESS | OST_EJECTION_PENDING => None,
                ost => Some(Self::EjectRefused { ost }),
            },
            _ => None,
        }
    }
}

impl Step {
    fn to(state: State) -> Self {
        Self {
            state,
            add: None,
            remove: None,
        }
    }

    fn add(self, outcome: Outcome) -> Self {
        Self {
            add: Some(outcome),
            ..self
        }
    }

    fn remove(self, outcome: Outcome) -> Self {
        Self {
            remove: Some(outcome),
            ..self
        }
    }
}

impl State {
    /// What happens on `event`.
    ///
    /// # Errors
    /// [`NotAllowed`] where the table has a dash.
    pub fn step(self, event: Event) -> Result<Step, NotAllowed> {
        let step = match self {
            Self::Empty => empty(event),
            Self::Offered { seen } => offered(seen, event),
            Self::Reported { seen } => reported(seen, event),
            Self::Present => present(event),
            Self::Asked {
                seen,
                wanted,
                confirmed,
            } => asked(seen, wanted, confirmed, event),
            Self::Ejected { wanted } => ejected(wanted, event),
        };
        step.ok_or(NotAllowed { state: self, event })
    }

    /// What the scan method shall notify the slot's device of (ACPI 6.5 §5.6.6): 1, device check, or 3, eject request.
    pub fn notification(self) -> Option<u8> {
        match self {
            Self::Offered { seen: false } | Self::Reported { seen: false } => Some(1),
            Self::Asked { seen: false, .. } => Some(3),
            _ => None,
        }
    }

    /// Whether `_STA` shows the unit. An offer is hidden until the guest takes the event: a guest that enumerates its
    /// namespace in between would find the unit by itself and then refuse the event as old news, without any fault.
    pub fn enabled(self) -> bool {
        !matches!(self, Self::Empty | Self::Offered { seen: false } | Self::Ejected { .. })
    }

    /// Whether the guest has said that it has the unit, or started with it.
    pub fn plugged(self) -> bool {
        matches!(self, Self::Present | Self::Asked { confirmed: true, .. })
    }

    /// The state in one word, for those who watch from outside.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "absent",
            Self::Offered { .. } | Self::Reported { .. } => "offered",
            Self::Present => "present",
            Self::Asked { .. } => "asked",
            Self::Ejected { .. } => "ejected",
        }
    }

    /// Whether the slot will be filled once everything asked for has been answered well.
    pub fn will_be_plugged(self) -> bool {
        match self {
            Self::Offered { .. } | Self::Reported { .. } | Self::Present => true,
            Self::Asked { wanted, .. } | Self::Ejected { wanted } => wanted,
            Self::Empty => false,
        }
    }
}

fn empty(event: Event) -> Option<Step> {
    match event {
        Event::Boot => Some(Step::to(State::Present)),
        Event::Offer => Some(Step::to(State::Offered { seen: false })),
        Event::Expire => Some(Step::to(State::Empty)),
        _ => None,
    }
}

/// The guest has to let go of what it may not even have.
fn asked_early() -> Step {
    let asked = State::Asked {
        seen: false,
        wanted: false,
        confirmed: false,
    };
    Step::to(asked).add(Outcome::Withdrawn)
}

fn offered(seen: bool, event: Event) -> Option<Step> {
    let same = Step::to(State::Offered { seen });
    let let_go = Step::to(State::Ejected { wanted: false });
    match event {
        Event::Ask if seen => Some(asked_early()),
        // The guest lets go of nothing.
        Event::Ask => Some(let_go.add(Outcome::Withdrawn).remove(Outcome::Withdrawn)),
        Event::Reclaim => Some(same),
        Event::Expire if seen => Some(same),
        Event::Expire => Some(let_go.add(Outcome::TimedOut)),
        Event::Take if !seen => Some(Step::to(State::Offered { seen: true })),
        Event::Reported if seen => Some(Step::to(State::Reported { seen: false })),
        Event::Inserted if seen => Some(Step::to(State::Present).add(Outcome::Accepted)),
        Event::InsertRefused { ost } if seen => Some(let_go.add(Outcome::Refused { ost })),
        Event::InsertUnproven if seen => Some(let_go.add(Outcome::Unproven)),
        _ => None,
    }
}

fn reported(seen: bool, event: Event) -> Option<Step> {
    let let_go = Step::to(State::Ejected { wanted: false });
    match event {
        Event::Ask => Some(asked_early()),
        Event::Reclaim | Event::Expire => Some(Step::to(State::Reported { seen })),
        Event::Take if !seen => Some(Step::to(State::Reported { seen: true })),
        Event::Reported if seen => Some(Step::to(State::Reported { seen: false })),
        Event::Inserted if seen => Some(Step::to(State::Present).add(Outcome::Accepted)),
        Event::InsertRefused { ost } if seen => Some(let_go.add(Outcome::Refused { ost })),
        Event::InsertUnproven if seen => Some(let_go.add(Outcome::Unproven)),
        _ => None,
    }
}

fn present(event: Event) -> Option<Step> {
    match event {
        Event::Ask => Some(Step::to(State::Asked {
            seen: false,
            wanted: false,
            confirmed: true,
        })),
        Event::Reclaim => Some(regained(true)),
        Event::Expire => Some(Step::to(State::Present)),
        _ => None,
    }
}

fn asked(seen: bool, wanted: bool, confirmed: bool, event: Event) -> Option<Step> {
    let asked = |wanted| {
        Step::to(State::Asked {
            seen,
            wanted,
            confirmed,
        })
    };
    match event {
        Event::Ask if wanted => Some(asked(false).add(Outcome::Withdrawn)),
        Event::Ask => Some(asked(wanted)),
        Event::Reclaim if wanted => Some(asked(true)),
        Event::Reclaim if seen => Some(asked(true).remove(Outcome::Withdrawn)),
        Event::Reclaim => Some(regained(confirmed).remove(Outcome::Withdrawn)),
        Event::Expire if wanted => Some(asked(false).add(Outcome::TimedOut)),
        Event::Expire if seen => Some(asked(false)),
        Event::Expire => Some(kept(confirmed).remove(Outcome::TimedOut)),
        Event::Take if !seen => Some(Step::to(State::Asked {
            seen: true,
            wanted,
            confirmed,
        })),
        Event::Inserted if !confirmed => Some(Step::to(State::Asked {
            seen,
            wanted,
            confirmed: true,
        })),
        Event::InsertRefused { .. } | Event::InsertUnproven if !confirmed => Some(gone(wanted)),
        Event::EjectRefused { .. } if wanted => Some(regained(confirmed)),
        Event::EjectRefused { ost } if seen => Some(kept(confirmed).remove(Outcome::Refused { ost })),
        Event::Eject => Some(gone(wanted)),
        _ => None,
    }
}

/// The question is off the table: back to what was before it.
fn kept(confirmed: bool) -> Step {
    Step::to(if confirmed {
        State::Present
    } else {
        State::Offered { seen: true }
    })
}

/// The same for a grow, which has what it wants and of which the guest hears nothing; if the
/// insertion before is still unanswered, that answer is its own.
fn regained(confirmed: bool) -> Step {
    Step {
        add: confirmed.then_some(Outcome::Withdrawn),
        ..kept(confirmed)
    }
}

/// The guest let go. Whoever wants the slot again goes on waiting, for the answer to the next offer.
fn gone(wanted: bool) -> Step {
    let step = Step::to(State::Ejected { wanted });
    if wanted { step } else { step.remove(Outcome::Accepted) }
}

fn ejected(wanted: bool, event: Event) -> Option<Step> {
    let ejected = |wanted| Step::to(State::Ejected { wanted });
    match event {
        Event::Ask if wanted => Some(ejected(false).add(Outcome::Withdrawn).remove(Outcome::Accepted)),
        Event::Ask => Some(ejected(false).remove(Outcome::Accepted)),
        Event::Reclaim => Some(ejected(true)),
        Event::Expire if wanted => Some(ejected(false).add(Outcome::TimedOut)),
        Event::Expire => Some(ejected(false)),
        Event::Destroyed if wanted => Some(Step::to(State::Offered { seen: false })),
        Event::Destroyed => Some(Step::to(State::Empty)),
        _ => None,
    }
}

#[cfg(test)]
#[path = "slot_test.rs"]
mod tests;
