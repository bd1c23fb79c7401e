//! What the guest has been told of, and what became of it.

use std::time::{Duration, Instant};

use husk_hotplug::outcome::{Outcome, OutcomeReceiver};

/// After how long it is said, once, that the guest has not answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the guest was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The guest was notified (ACPI device check) to bring a new device into use.
    Add,
    /// The guest was notified (ACPI eject request) to release a device.
    Remove,
}

impl Request {
    /// Its name in events and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

/// What is new of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// The guest did what was asked, so long after it was.
    Done(Duration),
    /// It refused, with this `_OST` status code (ACPI 6.5 §6.3.5).
    Refused(u32),
    /// It said that it did, and nothing shows that it has.
    Unproven,
    /// A later request took its place.
    Withdrawn,
    /// It has not answered for long. It still may.
    Overdue(Duration),
}

impl Update {
    /// Whether nothing will follow.
    pub const fn is_last(self) -> bool {
        !matches!(self, Self::Overdue(_))
    }
}

/// A request that the guest has been told of and has not answered yet.
#[derive(Debug)]
pub struct Pending {
    /// The device's name.
    pub id: String,
    /// What was asked.
    pub request: Request,
    receiver: OutcomeReceiver,
    since: Instant,
    overdue: bool,
}

impl Pending {
    /// The guest has just been told.
    pub(super) fn new(id: impl Into<String>, request: Request, receiver: OutcomeReceiver) -> Self {
        Self {
            id: id.into(),
            request,
            receiver,
            since: Instant::now(),
            overdue: false,
        }
    }

    /// Takes the place of `earlier`, which asked the same: the guest is given no more time, unless
    /// its silence has been told of.
    pub fn follow(&mut self, earlier: &Self) {
        if !earlier.overdue {
            self.since = earlier.since;
        }
    }

    /// Whether the guest was asked to let go of the device called `id`.
    pub fn is_removal_of(&self, id: &str) -> bool {
        self.request == Request::Remove && self.id == id
    }

    /// When silence will be told of, unless it has been.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.overdue).then_some(self.since + PATIENCE)
    }

    /// What has become of it by `now`, if that is new.
    pub fn update(&mut self, now: Instant) -> Option<Update> {
        match self.receiver.wait(Instant::now()) {
            Outcome::Accepted => Some(Update::Done(self.receiver.latency().unwrap_or_default())),
            Outcome::Refused { ost } => Some(Update::Refused(ost)),
            Outcome::Unproven => Some(Update::Unproven),
            Outcome::Withdrawn => Some(Update::Withdrawn),
            Outcome::TimedOut => {
                let waited = now.saturating_duration_since(self.since);
                let first = !self.overdue && waited >= PATIENCE;
                self.overdue |= first;
                first.then_some(Update::Overdue(waited))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use husk_hotplug::outcome::OutcomeSender;

    use super::*;

    fn pending() -> (OutcomeSender, Pending) {
        let (sender, receiver) = OutcomeReceiver::new();
        (sender, Pending::new("disk", Request::Remove, receiver))
    }

    #[test]
    fn a_refusal_comes_with_its_code() {
        let (sender, mut pending) = pending();
        assert_eq!(pending.update(Instant::now()), None);
        sender.send(Outcome::Refused { ost: 0x81 });
        let update = pending.update(Instant::now()).unwrap();
        assert_eq!(update, Update::Refused(0x81));
        assert!(update.is_last());
    }

    #[test]
    fn silence_is_told_once_and_does_not_hide_the_answer() {
        let (sender, mut pending) = pending();
        let late = pending.since + PATIENCE;
        assert_eq!(pending.update(late - Duration::from_millis(1)), None);
        let update = pending.update(late).unwrap();
        assert_eq!(update, Update::Overdue(PATIENCE));
        assert!(!update.is_last());
        assert_eq!(pending.update(late + PATIENCE), None);
        sender.send(Outcome::Accepted);
        assert!(matches!(pending.update(late + PATIENCE), Some(Update::Done(_))));
    }

    #[test]
    fn asking_again_puts_silence_off_only_once_it_was_told() {
        let ((_first_promise, mut first), (_promise, mut second)) = (pending(), pending());
        let begun = first.since - PATIENCE / 2;
        first.since = begun;
        second.follow(&first);
        assert_eq!(second.deadline(), Some(begun + PATIENCE));
        assert!(second.update(begun + PATIENCE).is_some());
        let (_third_promise, mut third) = pending();
        third.follow(&second);
        assert!(third.deadline() > second.since.checked_add(PATIENCE));
    }

    #[test]
    fn what_nobody_can_answer_any_more_is_withdrawn() {
        let (sender, mut pending) = pending();
        drop(sender);
        assert_eq!(pending.update(Instant::now()), Some(Update::Withdrawn));
    }
}
