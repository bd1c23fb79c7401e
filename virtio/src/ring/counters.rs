//! What a queue counts while husk serves it: read by others at any time, without a lock and without
//! a locked instruction on either side.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

/// The counters of one queue, over all the rings that it becomes.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// A ring counts here. Not so before the first start, nor where the kernel or another process serves the queue.
    counts: AtomicBool,
    chains: AtomicU64,
    wakeups: AtomicU64,
    interrupts: AtomicU64,
    next_avail: AtomicU16,
    /// Kicks are heard of without being taken from the doorbell.
    by_edges: AtomicBool,
}

/// What one queue has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Chains given back to the driver.
    pub chains: u64,
    /// Times that the doorbell called the queue's thread, by the driver or for the rest of what it had offered.
    pub wakeups: u64,
    /// Interrupts raised for the queue; those that the driver suppressed are not counted.
    pub interrupts: u64,
}

impl QueueCounters {
    /// What was counted so far; `None` if husk has not served the queue, or no longer does.
    pub fn snapshot(&self) -> Option<QueueStats> {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.counts.load(Ordering::Relaxed).then(|| QueueStats {
            chains: get(&self.chains),
            wakeups: get(&self.wakeups),
            interrupts: get(&self.interrupts),
        })
    }

    /// The entry of the available ring that the ring takes next, as long as it counts here.
    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail.load(Ordering::Relaxed)
    }

    pub(super) fn set_next_avail(&self, next: u16) {
        self.next_avail.store(next, Ordering::Relaxed);
    }

    /// Whether a kick leaves the doorbell readable for good.
    pub(super) fn is_by_edges(&self) -> bool {
        self.by_edges.load(Ordering::Relaxed)
    }

    pub(super) fn set_by_edges(&self, by_edges: bool) {
        self.by_edges.store(by_edges, Ordering::Relaxed);
    }

    /// Whether a ring counts here from now on.
    pub(super) fn set_counts(&self, counts: bool) {
        self.counts.store(counts, Ordering::Relaxed);
    }

    pub(super) fn add_chains(&self, count: u16) {
        add(&self.chains, u64::from(count));
    }

    pub(super) fn add_wakeup(&self) {
        add(&self.wakeups, 1);
    }

    pub(super) fn add_interrupt(&self) {
        add(&self.interrupts, 1);
    }
}

/// One thread at a time has the ring, and nobody else adds.
fn add(number: &AtomicU64, count: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}
