//! What a share that husk serves counts, beside what its server does.

use husk_devices::metrics::{Counter, MetricsSource};

/// Counters of one share since it was made.
#[derive(Debug, Default)]
pub struct LocalMetrics {
    /// Times that a request was put aside because another owner held the lock that it wanted.
    pub(super) waits: Counter,
    /// Requests that would have waited, and were refused because too many did.
    pub(super) refused_waits: Counter,
    /// Threads started to help.
    pub(super) helpers: Counter,
    /// Chains too short for a request, given back unanswered.
    pub(super) malformed: Counter,
}

impl MetricsSource for LocalMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        [
            ("lock_waits", &self.waits),
            ("refused_lock_waits", &self.refused_waits),
            ("helper_threads", &self.helpers),
            ("malformed_chains", &self.malformed),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.get()))
        .collect()
    }
}
