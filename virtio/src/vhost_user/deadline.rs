//! One end for all that a back-end is asked on one occasion, however many exchanges that takes.

use std::time::{Duration, Instant};

/// A point in time, and how far away it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    /// `None`: too far away to come.
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    /// In `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self {
            at: Instant::now().checked_add(limit),
            limit,
        }
    }

    /// At `at`.
    pub fn at(at: Instant) -> Self {
        Self {
            at: Some(at),
            limit: at.saturating_duration_since(Instant::now()),
        }
    }

    /// How much time there was in all.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How much is left; `None` if there is nothing.
    pub fn left(&self) -> Option<Duration> {
        let Some(at) = self.at else { return Some(self.limit) };
        at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}
