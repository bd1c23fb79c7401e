//! What a disk counts.

use husk_devices::metrics::{Counter, MetricsSource};

/// Counters of one disk, over all its queues, since it was opened.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    /// Reads completed.
    pub(super) reads: Counter,
    /// Bytes that they gave the guest.
    pub(super) read_bytes: Counter,
    /// Writes completed.
    pub(super) writes: Counter,
    /// Bytes that the guest gave.
    pub(super) written_bytes: Counter,
    /// Flushes completed.
    pub(super) flushes: Counter,
    /// Times that the host could not bring writes to its storage. No flush succeeds after the first.
    pub(super) flush_errors: Counter,
    /// Discards completed.
    pub(super) discards: Counter,
    /// Write-zeroes requests completed.
    pub(super) zeroes: Counter,
    /// Requests whose data took a detour because direct I/O could not use the guest's buffers.
    pub(super) bounces: Counter,
    /// Times that requests waited for the rate limiter.
    pub(super) throttled: Counter,
    /// Requests answered with `VIRTIO_BLK_S_IOERR`.
    pub(super) errors: Counter,
    /// Requests answered with `VIRTIO_BLK_S_UNSUPP`.
    pub(super) unsupported: Counter,
    /// Chains without room for a status, given back unanswered.
    pub(super) malformed: Counter,
}

impl MetricsSource for BlockMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        [
            ("read_requests", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("write_requests", &self.writes),
            ("write_bytes", &self.written_bytes),
            ("flush_requests", &self.flushes),
            ("flush_errors", &self.flush_errors),
            ("discard_requests", &self.discards),
            ("write_zeroes_requests", &self.zeroes),
            ("bounced_requests", &self.bounces),
            ("throttled_waits", &self.throttled),
            ("failed_requests", &self.errors),
            ("unsupported_requests", &self.unsupported),
            ("malformed_chains", &self.malformed),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.get()))
        .collect()
    }
}
