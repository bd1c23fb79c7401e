//! When a queue may go on: its rate limiter, and until when to wait for it.

use std::sync::Arc;
use std::time::Instant;

use husk_devices::metrics::Counter;

use super::Limiter;

/// The pace of one queue, on its I/O thread.
#[derive(Debug, Default)]
pub(crate) struct Pace {
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

    /// Whether the next request may pass. Counts in `waits` when it begins to wait.
    pub fn allows(&mut self, waits: &Counter) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        let now = Instant::now();
        let until = limiter.wait(now).and_then(|wait| now.checked_add(wait));
        if until.is_some() && self.until.is_none() {
            waits.inc();
        }
        self.until = until;
        until.is_none()
    }

    /// Pays for a request of so many bytes.
    pub fn spend(&self, bytes: u64) {
        if let Some(limiter) = &self.limiter {
            limiter.spend(bytes);
        }
    }

    /// When to try again, if it waits.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}
