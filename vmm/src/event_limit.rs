//! How often something is told that a guest can cause at will: so much at once, and of the rest the number.

use std::time::{Duration, Instant};

/// At most so many in a window of time. What is beyond that is counted by whoever asks, and told later.
#[derive(Clone, Debug)]
pub struct EventLimit {
    max_events: u64,
    window: Duration,
    /// When the window began, once something was told.
    begun: Option<Instant>,
    told: u64,
    suppressed: u64,
}

impl EventLimit {
    /// `max_events` in each `window`. The first window begins with the first that is told.
    pub fn new(max_events: u64, window: Duration) -> Self {
        Self {
            max_events,
            window,
            begun: None,
            told: 0,
            suppressed: 0,
        }
    }

    /// Whether one more can be told at `now`.
    pub fn allows(&self, now: Instant) -> bool {
        self.is_over(now) || self.told < self.max_events
    }

    /// Whether what was told before `now` counts no more.
    pub fn is_over(&self, now: Instant) -> bool {
        let over = |begun: Instant| now.saturating_duration_since(begun) >= self.window;
        self.begun.is_none_or(over)
    }

    /// One has been told at `now`.
    pub fn record(&mut self, now: Instant) {
        if self.is_over(now) {
            (self.begun, self.told) = (Some(now), 0);
        }
        self.told = self.told.saturating_add(1);
    }

    /// `count` have not been told.
    pub fn suppress(&mut self, count: u64) {
        self.suppressed = self.suppressed.saturating_add(count);
    }

    /// How many have not been told, and whose number has not either.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// The same, and their number is told now.
    pub fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_in_a_window_and_the_rest_is_counted() {
        let (window, begun) = (Duration::from_secs(10), Instant::now());
        let mut limit = EventLimit::new(2, window);
        assert!(limit.is_over(begun));
        for at in [0, 9] {
            assert!(limit.allows(begun + Duration::from_secs(at)));
            limit.record(begun + Duration::from_secs(at));
        }
        assert!(!limit.allows(begun + Duration::from_secs(9)));
        limit.suppress(2);
        limit.suppress(1);
        assert_eq!(
            (limit.suppressed(), limit.take_suppressed(), limit.take_suppressed()),
            (3, 3, 0)
        );
        assert!(limit.allows(begun + window) && limit.is_over(begun + window));
        limit.record(begun + window);
        assert!(!limit.is_over(begun + window), "a new one has begun");
    }
}
