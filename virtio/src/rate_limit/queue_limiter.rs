//! When a queue may go on: its rate limiter, and until when to wait for it.

use std::sync::Arc;
use std::time::Instant;

use husk_devices::metrics::Counter;

use super::Limiter;

/// The pace of one queue, on its I/O thread.
#[derive(Debug, Default)]
pub(crate) struct QueueLimiter {
    limiter: Option<Arc<Limiter>>,
    /// The last request had to wait.
    waits: bool,
    /// When to try again.
    until: Option<Instant>,
}

impl QueueLimiter {
    /// As fast as `limiter` allows.
    pub fn new(limiter: Option<Arc<Limiter>>) -> Self {
        Self {
            limiter,
            ..Self::default()
        }
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
        if until.is_some() && !self.waits {
            waits.inc();
        }
        self.waits = until.is_some();
        self.until = until;
        !self.waits
    }

    /// The timer has rung. Whoever waited for it tries again now; where that leads to no request,
    /// because something else is in its way, there is nothing to wait for here.
    pub fn on_timer(&mut self) {
        let now = Instant::now();
        self.until = self.until.filter(|until| *until > now);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{BucketConfig, LimiterConfig};
    use super::*;

    #[test]
    fn a_wait_is_counted_once_and_over_when_its_timer_has_rung() {
        let ops = Some(BucketConfig {
            size: 1,
            one_time_burst: 0,
            refill: Duration::from_secs(3600),
        });
        let limiter = Limiter::new(LimiterConfig { ops, bandwidth: None }, Instant::now());
        let mut limiter = QueueLimiter::new(limiter.map(Arc::new));
        let waits = Counter::default();
        assert!(limiter.allows(&waits));
        limiter.spend(1);
        assert!(!limiter.allows(&waits));
        limiter.on_timer();
        assert!(limiter.until().is_some(), "it rang for somebody else");
        limiter.until = Some(Instant::now());
        limiter.on_timer();
        assert_eq!(limiter.until(), None);
        assert!(!limiter.allows(&waits) && limiter.until().is_some());
        assert_eq!(waits.get(), 1);
    }
}
