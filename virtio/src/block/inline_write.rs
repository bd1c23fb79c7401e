//! Writes that the I/O thread makes itself because nothing else is under way, and when it leaves
//! them to io_uring again.

use std::time::Duration;

/// Most bytes of such a write while others wait to be begun: what the page cache takes in some ten microseconds.
const MAX_BYTES: usize = 64 << 10;
/// A write that took as long has waited for something: room in a journal, or pages that are being
/// written back. The longest copy takes a fraction of it.
const SLOW_WRITE: Duration = Duration::from_millis(4);
/// How many writes io_uring gets after one that has waited.
const BACKOFF_WRITES: u32 = 1024;

/// Whether the next lone write is made by the I/O thread.
#[derive(Debug, Default)]
pub(super) struct InlineWrites {
    /// Writes that io_uring gets before the thread tries one itself.
    backoff: u32,
}

impl InlineWrites {
    /// Whether the thread should make a write of so many bytes itself, when nothing is under way
    /// and `others` says whether something is to be begun. Each question is one write.
    pub fn allows(&mut self, bytes: usize, others: bool) -> bool {
        if others && bytes > MAX_BYTES {
            return false;
        }
        let left = self.backoff;
        self.backoff = left.saturating_sub(1);
        left == 0
    }

    /// The thread has made one, in this time.
    pub fn took(&mut self, time: Duration) {
        if time >= SLOW_WRITE {
            self.backoff = BACKOFF_WRITES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(20);

    #[test]
    fn small_writes_are_made_at_once_and_long_ones_where_nobody_waits() {
        let mut inline_writes = InlineWrites::default();
        for (bytes, others) in [(512, true), (MAX_BYTES, true), (MAX_BYTES + 1, false), (2 << 20, false)] {
            assert!(inline_writes.allows(bytes, others), "{bytes}, others: {others}");
            inline_writes.took(QUICK);
        }
        assert!(!inline_writes.allows(MAX_BYTES + 1, true));
        assert!(inline_writes.allows(512, true), "a long one changes nothing");
    }

    #[test]
    fn one_that_has_waited_sends_the_next_to_the_ring() {
        let mut inline_writes = InlineWrites::default();
        assert!(inline_writes.allows(512, false));
        inline_writes.took(SLOW_WRITE);
        for n in 0..BACKOFF_WRITES {
            assert!(!inline_writes.allows(512, n % 2 == 0), "{n}");
        }
        assert!(inline_writes.allows(512, false), "and then it is tried again");
        inline_writes.took(QUICK);
        assert!(inline_writes.allows(512, true));
    }
}
