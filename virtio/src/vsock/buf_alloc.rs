//! How much the guest may send without being told again, over all streams of a device: what this
//! process may have to keep of it.
//!
//! What was allowed once cannot be taken back: a driver computes what it may send from the two
//! counts that it was told last, and one that is told less than it has under way computes nonsense.
//! So each stream begins with little, is allowed more as it uses what it has, up to [`STREAM_MAX`],
//! and what it has sent and the host's program has taken is nobody's again. No stream is allowed
//! more than an eighth of what is left over, so something always is, also behind streams that were
//! busy once and are idle now; and [`STREAM_MIN`] is every stream's own, so that a stream whose
//! reader reads goes on, whatever the others do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What streams may have together beyond the least of each.
pub(super) const POOL_BYTES: u32 = 2 << 20;
/// Most of one stream.
pub(super) const STREAM_MAX: u32 = 256 << 10;
/// Of one stream that has not been used yet.
pub(super) const STREAM_INITIAL: u32 = 4 << 10;
/// Least of one stream.
pub(super) const STREAM_MIN: u32 = 512;

/// What is left over for the streams of one device.
#[derive(Clone, Debug)]
pub(super) struct BufAllocPool(Arc<AtomicU32>);

impl BufAllocPool {
    /// All of it.
    pub fn new() -> Self {
        Self(Arc::new(AtomicU32::new(POOL_BYTES)))
    }

    /// Bytes left over.
    pub fn left(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one stream is allowed: bytes that are under way from the guest, may come at any time, or are kept here.
#[derive(Debug)]
pub(super) struct BufAlloc {
    pool: BufAllocPool,
    bytes: u32,
    /// What it should have, if there is enough.
    wanted: u32,
}

impl BufAlloc {
    /// Nothing yet.
    pub fn new(pool: BufAllocPool) -> Self {
        Self {
            pool,
            bytes: 0,
            // The first time it is raised it has used all of nothing.
            wanted: STREAM_INITIAL >> 1,
        }
    }

    /// Bytes.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// What it would be if it were raised now.
    pub fn grown(&self) -> u32 {
        let fair = STREAM_MIN.saturating_add(self.pool.left() >> 3);
        self.bytes.max(self.wanted.min(fair))
    }

    /// Allows as much as is fair. Of a stream that has used half of what it was allowed, that is
    /// twice as much from now on.
    pub fn grow(&mut self) {
        if self.bytes <= self.wanted >> 1 {
            self.wanted = self.wanted.saturating_mul(2).min(STREAM_MAX);
        }
        self.set(self.grown());
    }

    /// So many bytes have come and are kept no more.
    pub fn shrink(&mut self, bytes: u32) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    fn set(&mut self, bytes: u32) {
        let shared = |bytes: u32| bytes.saturating_sub(STREAM_MIN);
        let (before, after) = (shared(self.bytes), shared(bytes));
        // One thread has all streams of a device; the sum never exceeds the pool, since nobody is
        // raised beyond what is left.
        let left = self.pool.left().saturating_add(before).saturating_sub(after);
        self.pool.0.store(left, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for BufAlloc {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_uses_what_it_has_is_allowed_more_and_more() {
        let mut stream = BufAlloc::new(BufAllocPool::new());
        let mut seen = Vec::new();
        for _ in 0..9 {
            stream.grow();
            seen.push(stream.bytes() >> 10);
            stream.shrink(stream.bytes() - 1);
        }
        assert_eq!(seen, [4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }

    #[test]
    fn streams_that_are_never_read_leave_something_for_the_next() {
        let pool = BufAllocPool::new();
        let mut streams = Vec::new();
        for n in 0..4096 {
            let mut stream = BufAlloc::new(pool.clone());
            // Nobody reads what it sends, as far as that goes.
            for _ in 0..8 {
                stream.grow();
                stream.wanted = STREAM_MAX;
            }
            assert!(stream.bytes() >= STREAM_MIN, "stream {n}");
            streams.push(stream);
        }
        let sum: u32 = streams.iter().map(BufAlloc::bytes).sum();
        assert!(sum <= POOL_BYTES + 4096 * STREAM_MIN, "{sum}");
        assert_eq!(POOL_BYTES - pool.left() + 4096 * STREAM_MIN, sum);
        drop(streams);
        assert_eq!(pool.left(), POOL_BYTES);
    }

    #[test]
    fn what_is_nobodys_again_is_the_others() {
        let pool = BufAllocPool::new();
        let mut hogs: Vec<_> = (0..40).map(|_| BufAlloc::new(pool.clone())).collect();
        for hog in &mut hogs {
            hog.wanted = STREAM_MAX;
            hog.grow();
        }
        let mut late = BufAlloc::new(pool);
        late.grow();
        assert!(late.bytes() < STREAM_INITIAL);
        hogs.clear();
        late.shrink(late.bytes());
        late.grow();
        assert!(late.bytes() >= STREAM_INITIAL);
    }
}
