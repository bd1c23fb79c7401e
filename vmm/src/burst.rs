//! How often something is told that a guest can cause at will: so much at once, and of the rest the number.

use std::time::{Duration, Instant};

/// At most so many in a window of time. What is beyond that is counted by whoever asks, and told later.
#[derive(Clone, Debug)]
pub struct Burst {
    most: u64,
    window: Duration,
    /// When the window began, once something was told.
    begun: Option<Instant>,
    told: u64,
    left_out: u64,
}

impl Burst {
    /// `most` in each `window`. The first window begins with the first that is told.
    pub fn new(most: u64, window: Duration) -> Self {
        Self {
            most,
            window,
            begun: None,
            told: 0,
            left_out: 0,
        }
    }

    /// Whether one more can be told at `now`.
    pub fn has_room(&self, now: Instant) -> bool {
        self.is_over(now) || self.told < self.most
    }

    /// Whether what was told before `now` counts no more.
    pub fn is_over(&self, now: Instant) -> bool {
        let over = |begun: Instant| now.saturating_duration_since(begun) >= self.window;
        self.begun.is_none_or(over)
    }

    /// One has been told at `now`.
    pub fn tell(&mut self, now: Instant) {
        if self.is_over(now) {
            (self.begun, self.told) = (Some(now), 0);
        }
        self.told = self.told.saturating_add(1);
    }

    /// `count` have not been told.
    pub fn leave_out(&mut self, count: u64) {
        self.left_out = self.left_out.saturating_add(count);
    }

    /// How many have not been told, and whose number has not either.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The same, and their number is told now.
    pub fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_told_in_a_window_and_the_rest_is_counted() {
        let (window, begun) = (Duration::from_secs(10), Instant::now());
        let mut burst = Burst::new(2, window);
        assert!(burst.is_over(begun));
        for at in [0, 9] {
            assert!(burst.has_room(begun + Duration::from_secs(at)));
            burst.tell(begun + Duration::from_secs(at));
        }
        assert!(!burst.has_room(begun + Duration::from_secs(9)));
        burst.leave_out(2);
        burst.leave_out(1);
        assert_eq!(
            (burst.left_out(), burst.take_left_out(), burst.take_left_out()),
            (3, 3, 0)
        );
        assert!(burst.has_room(begun + window) && burst.is_over(begun + window));
        burst.tell(begun + window);
        assert!(!burst.is_over(begun + window), "a new one has begun");
    }
}
