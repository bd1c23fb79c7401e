//! Token buckets: how fast a device may be used, in bytes and in operations.
//!
//! A bucket of `size` tokens fills in `refill`. Whoever finds tokens in both buckets may go on,
//! whatever the request then costs: a request larger than the bucket puts it into debt, and the
//! next one waits until that is paid. So every request passes sooner or later, and over time the
//! rate is exact. What is in the bucket of the one-time burst is spent first and never comes back.
//!
//! A limiter belongs to a device and is shared by its queues. It is looked at on I/O threads only,
//! and only where one is configured.

mod deadline_timer;
mod queue_limiter;

pub(crate) use deadline_timer::DeadlineTimer;
pub(crate) use queue_limiter::QueueLimiter;

use std::sync::{Mutex, MutexGuard};

use husk_devices::lock;
use std::time::{Duration, Instant};

/// One token bucket as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    /// Tokens that a full bucket holds. 0: the bucket limits nothing.
    pub size: u64,
    /// Tokens that are spent before those of the bucket, once: they are never refilled.
    pub one_time_burst: u64,
    /// Time in which an empty bucket becomes full, at a constant rate. Zero: the bucket limits nothing.
    pub refill: Duration,
}

/// How fast a device may be used. A bucket without a size or a time limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimiterConfig {
    /// Limit on bytes moved: one token is one byte. `None` for no limit.
    pub bandwidth: Option<BucketConfig>,
    /// Limit on operations: one token is one disk request or one network frame. `None` for no limit.
    pub ops: Option<BucketConfig>,
}

/// Limits the use of one device, or of one direction of it.
#[derive(Debug)]
pub struct Limiter(Mutex<Buckets>);

#[derive(Debug)]
struct Buckets {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Limiter {
    /// Full buckets, or nothing if `config` limits nothing.
    pub fn new(config: LimiterConfig, now: Instant) -> Option<Self> {
        let bucket = |config: Option<BucketConfig>| config.and_then(|config| Bucket::new(config, now));
        let (bandwidth, ops) = (bucket(config.bandwidth), bucket(config.ops));
        (bandwidth.is_some() || ops.is_some()).then(|| Self(Mutex::new(Buckets { bandwidth, ops })))
    }

    /// How long to wait before the next request; `None`: it may go on.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let mut buckets = self.lock();
        let Buckets { bandwidth, ops } = &mut *buckets;
        let wait = |bucket: &mut Option<Bucket>| bucket.as_mut().and_then(|bucket| bucket.wait(now));
        wait(bandwidth).max(wait(ops))
    }

    /// Pays for one request of so many bytes.
    pub fn spend(&self, bytes: u64) {
        let mut buckets = self.lock();
        if let Some(bucket) = &mut buckets.bandwidth {
            bucket.spend(bytes);
        }
        if let Some(bucket) = &mut buckets.ops {
            bucket.spend(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        lock(&self.0)
    }
}

/// One bucket. Counts in units of `1 / refill_ns` tokens, so that a nanosecond brings exactly
/// `size` of them: nothing is ever rounded.
#[derive(Debug)]
struct Bucket {
    size: i128,
    refill_ns: i128,
    /// Units in the bucket; below zero while there is a debt.
    level: i128,
    /// Units of the one-time burst that are left.
    burst: i128,
    filled: Instant,
}

impl Bucket {
    fn new(config: BucketConfig, now: Instant) -> Option<Self> {
        let refill_ns = i128::try_from(config.refill.as_nanos()).ok()?;
        if config.size == 0 || refill_ns == 0 {
            return None;
        }
        let size = i128::from(config.size);
        Some(Self {
            size,
            refill_ns,
            level: size.saturating_mul(refill_ns),
            burst: i128::from(config.one_time_burst).saturating_mul(refill_ns),
            filled: now,
        })
    }

    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        let passed_ns = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let full = self.size.saturating_mul(self.refill_ns);
        self.level = self.level.saturating_add(passed_ns.saturating_mul(self.size)).min(full);
        // One token, which is `refill_ns` units.
        let missing = self.refill_ns.saturating_sub(self.level);
        if self.burst > 0 || missing <= 0 {
            return None;
        }
        let missing_ns = missing.unsigned_abs().div_ceil(self.size.unsigned_abs());
        Some(Duration::from_nanos(u64::try_from(missing_ns).unwrap_or(u64::MAX)))
    }

    fn spend(&mut self, tokens: u64) {
        let cost = i128::from(tokens).saturating_mul(self.refill_ns);
        let from_burst = self.burst.min(cost);
        self.burst = self.burst.saturating_sub(from_burst);
        self.level = self.level.saturating_sub(cost.saturating_sub(from_burst));
    }
}

#[cfg(test)]
#[path = "rate_limit_test.rs"]
mod tests;
