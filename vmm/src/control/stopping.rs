//! Devices that were asked to stop and have not: which of them has been given long enough.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The devices of one machine that are on their way out, by name.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    /// When each will be told of as late, unless it has been.
    deadlines: BTreeMap<String, Option<Instant>>,
}

impl Stopping {
    /// `names` are on their way out at `now`, and no others. Those that are new have `limit` from now on.
    pub(super) fn update(&mut self, names: Vec<String>, now: Instant, limit: Duration) {
        self.deadlines.retain(|name, _| names.contains(name));
        for name in names {
            self.deadlines.entry(name).or_insert(Some(now + limit));
        }
    }

    /// Whether the device called `name` has been told of as late.
    pub(super) fn is_told(&self, name: &str) -> bool {
        matches!(self.deadlines.get(name), Some(None))
    }

    /// When the next of them is late.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.values().flatten().min().copied()
    }

    /// Those that have become late by `now`, each once.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<String> {
        let late = self.deadlines.iter_mut().filter_map(|(name, deadline)| {
            deadline.take_if(|deadline| *deadline <= now)?;
            Some(name.clone())
        });
        late.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);
    const SECOND: Duration = Duration::from_secs(1);

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn a_device_that_is_late_is_told_of_once() {
        let (mut stopping, now) = (Stopping::default(), Instant::now());
        stopping.update(names(&["a"]), now, LIMIT);
        stopping.update(names(&["a", "b"]), now + SECOND, LIMIT);
        assert_eq!(
            stopping.deadline(),
            Some(now + LIMIT),
            "asking again gives no more time"
        );
        assert!(stopping.take_late(now + SECOND).is_empty());
        assert_eq!(stopping.take_late(now + LIMIT), ["a"]);
        assert!(stopping.take_late(now + LIMIT).is_empty());
        assert_eq!(["a", "b", "c"].map(|name| stopping.is_told(name)), [true, false, false]);
        assert_eq!(stopping.deadline(), Some(now + SECOND + LIMIT));
        stopping.update(names(&["a", "b"]), now + LIMIT, LIMIT);
        assert_eq!(stopping.take_late(now + 9 * LIMIT), ["b"]);
        assert_eq!(stopping.deadline(), None);
    }

    #[test]
    fn a_device_that_stopped_in_time_is_not_late() {
        let (mut stopping, now) = (Stopping::default(), Instant::now());
        stopping.update(names(&["a"]), now, LIMIT);
        stopping.update(Vec::new(), now + SECOND, LIMIT);
        assert_eq!(stopping.deadline(), None);
        stopping.update(names(&["a"]), now + LIMIT, LIMIT);
        assert!(stopping.take_late(now + LIMIT).is_empty(), "another one of its name");
    }
}
