//! Counters that devices keep and the machine reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Any thread may add to it; readers see a recent value.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0; `const`, so that it may be a `static`.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`, wrapping around after 2^64-1.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds 1.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. Any thread may set it; readers see a recent value.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// From now on it is `value`.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that counts what it does. It is read without a lock that a vCPU may want: whoever
/// reads has its own reference to it.
pub trait MetricsSource: Send + Sync {
    /// Name and value of each counter. A name is `<what>_<unit>`, for example `tx_bytes`, and constant.
    fn metrics(&self) -> Vec<(&'static str, u64)>;
}

/// What counts nothing.
impl MetricsSource for () {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
