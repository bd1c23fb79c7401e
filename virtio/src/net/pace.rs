//! When one direction of a queue pair may go on: its rate limiter, and until when to wait for it.

use std::sync::Arc;
use std::time::Instant;

use crate::rate_limit::Limiter;

/// The pace of one direction.
#[derive(Default)]
pub(super) struct Pace {
    limiter: Option<Arc<Limiter>>,
    /// When to try again.
    until: Option<Instant>,
}

impl Pace {
    /// As fast as `limiter` allows.
    pub fn new(limiter: Option<Arc<Limiter>>) -> Self {
        Self { limiter, until: None }
    }

    /// Whether there is anything to wait for, ever.
    pub fn is_limited(&self) -> bool {
        self.limiter.is_some()
    }

    /// Whether the next frame may pass.
    pub fn allows(&mut self) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        let now = Instant::now();
        self.until = limiter.wait(now).and_then(|wait| now.checked_add(wait));
        self.until.is_none()
    }

    /// Pays for a frame.
    pub fn spend(&self, bytes: usize) {
        if let Some(limiter) = &self.limiter {
            limiter.spend(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }

    /// When to try again, if it waits.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}
