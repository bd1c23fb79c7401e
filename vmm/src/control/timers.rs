//! What the control loop has to do at a certain time: a queue of deadlines, one for each thing that can be due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Deadlines by what is due then. Setting one again moves it.
#[derive(Debug)]
pub(super) struct Timers<Due> {
    by_time: BTreeSet<(Instant, Due)>,
    by_due: BTreeMap<Due, Instant>,
}

impl<Due: Copy + Ord> Timers<Due> {
    /// Nothing will ever be due.
    pub(super) fn new() -> Self {
        Self {
            by_time: BTreeSet::new(),
            by_due: BTreeMap::new(),
        }
    }

    /// `due` will be at `at`, and at no other time.
    pub(super) fn set(&mut self, due: Due, at: Instant) {
        self.cancel(due);
        self.by_due.insert(due, at);
        self.by_time.insert((at, due));
    }

    /// `due` will be at `at`, or when it is already, if that is sooner.
    pub(super) fn set_if_sooner(&mut self, due: Due, at: Instant) {
        if self.by_due.get(&due).is_none_or(|known| at < *known) {
            self.set(due, at);
        }
    }

    /// `due` will not be.
    pub(super) fn cancel(&mut self, due: Due) {
        if let Some(at) = self.by_due.remove(&due) {
            self.by_time.remove(&(at, due));
        }
    }

    /// Takes all that is due at `now`, the earliest first. What is set while these are served is
    /// for the next call, so that a timer that sets itself again keeps nobody from his turn.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let due: Vec<Due> = self
            .by_time
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, due)| *due)
            .collect();
        for due in &due {
            self.cancel(*due);
        }
        due
    }

    /// How long from `now` nothing is due; `None` when nothing ever is.
    pub(super) fn until_next(&self, now: Instant) -> Option<Duration> {
        self.by_time.first().map(|(at, _)| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time_and_once() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set('b', now + 2 * SECOND);
        timers.set('c', now + 3 * SECOND);
        timers.set('a', now + SECOND);
        assert_eq!(timers.until_next(now), Some(SECOND));
        assert_eq!(timers.take_due(now), []);
        assert_eq!(timers.take_due(now + 2 * SECOND), ['a', 'b']);
        assert_eq!(timers.take_due(now + 2 * SECOND), []);
        assert_eq!(timers.until_next(now + 2 * SECOND), Some(SECOND));
        assert_eq!(timers.take_due(now + 9 * SECOND), ['c']);
        assert_eq!(timers.until_next(now), None);
    }

    #[test]
    fn a_timer_that_is_set_again_moves() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set('a', now);
        timers.set('a', now + SECOND);
        assert_eq!(timers.take_due(now), []);
        timers.cancel('a');
        assert_eq!(timers.take_due(now + SECOND), []);
        timers.set_if_sooner('a', now);
        assert_eq!(timers.take_due(now), ['a']);
    }

    #[test]
    fn a_timer_is_brought_forward_and_not_put_off() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set_if_sooner('a', now + 2 * SECOND);
        timers.set_if_sooner('a', now + 3 * SECOND);
        assert_eq!(timers.until_next(now), Some(2 * SECOND));
        timers.set_if_sooner('a', now + SECOND);
        assert_eq!(timers.take_due(now + SECOND), ['a']);
        assert_eq!(timers.until_next(now), None);
    }

    #[test]
    fn what_is_late_leaves_no_time_to_wait() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set('a', now);
        assert_eq!(timers.until_next(now + SECOND), Some(Duration::ZERO));
    }

    #[test]
    fn two_things_of_one_time_are_two() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set('b', now);
        timers.set('a', now);
        assert_eq!(timers.take_due(now), ['a', 'b']);
    }
}
