//! What the guest has been told of, and what became of it.

use std::time::{Duration, Instant};

use husk_hotplug::ticket::{Outcome, Ticket};

/// After how long it is said, once, that the guest has not answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the guest was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To take a device.
    Add,
    /// To let go of one.
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
pub enum News {
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

impl News {
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
    ticket: Ticket,
    since: Instant,
    overdue: bool,
}

impl Pending {
    /// The guest has just been told.
    pub(super) fn new(id: impl Into<String>, request: Request, ticket: Ticket) -> Self {
        Self {
            id: id.into(),
            request,
            ticket,
            since: Instant::now(),
            overdue: false,
        }
    }

    /// Whether the guest was asked to let go of the device called `id`.
    pub fn is_removal_of(&self, id: &str) -> bool {
        self.request == Request::Remove && self.id == id
    }

    /// What has become of it by `now`, if that is new.
    pub fn news(&mut self, now: Instant) -> Option<News> {
        match self.ticket.wait(Instant::now()) {
            Outcome::Accepted => Some(News::Done(self.ticket.latency().unwrap_or_default())),
            Outcome::Refused { ost } => Some(News::Refused(ost)),
            Outcome::Unproven => Some(News::Unproven),
            Outcome::Withdrawn => Some(News::Withdrawn),
            Outcome::TimedOut => {
                let waited = now.saturating_duration_since(self.since);
                let news = !self.overdue && waited >= PATIENCE;
                self.overdue |= news;
                news.then_some(News::Overdue(waited))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use husk_hotplug::ticket::Promise;

    use super::*;

    fn pending() -> (Promise, Pending) {
        let (promise, ticket) = Ticket::new();
        (promise, Pending::new("disk", Request::Remove, ticket))
    }

    #[test]
    fn a_refusal_comes_with_its_code() {
        let (promise, mut pending) = pending();
        assert_eq!(pending.news(Instant::now()), None);
        promise.keep(Outcome::Refused { ost: 0x81 });
        let news = pending.news(Instant::now()).unwrap();
        assert_eq!(news, News::Refused(0x81));
        assert!(news.is_last());
    }

    #[test]
    fn silence_is_told_once_and_does_not_hide_the_answer() {
        let (promise, mut pending) = pending();
        let late = pending.since + PATIENCE;
        assert_eq!(pending.news(late - Duration::from_millis(1)), None);
        let news = pending.news(late).unwrap();
        assert_eq!(news, News::Overdue(PATIENCE));
        assert!(!news.is_last());
        assert_eq!(pending.news(late + PATIENCE), None);
        promise.keep(Outcome::Accepted);
        assert!(matches!(pending.news(late + PATIENCE), Some(News::Done(_))));
    }

    #[test]
    fn what_nobody_can_answer_any_more_is_withdrawn() {
        let (promise, mut pending) = pending();
        drop(promise);
        assert_eq!(pending.news(Instant::now()), Some(News::Withdrawn));
    }
}
