//! When a driver of virtio-mem that has stopped half-way is told to try again.
//!
//! Linux stops where it cannot empty a block, or was told `BUSY`, and tries again by itself after
//! 50 seconds at the earliest (`drivers/virtio/virtio_mem.c`, `VIRTIO_MEM_RETRY_TIMER_MIN_MS`); a
//! change of its configuration makes it try at once. What the guest was using a moment ago it may
//! be able to let go now, so it is told, more and more seldom, and in the end left to its own
//! timer: each try costs it a look at all its memory.

use std::time::{Duration, Instant};

/// After so long without progress it is told for the first time.
const FIRST: Duration = Duration::from_secs(1);
/// No pause is longer; after one of this length the driver is on its own.
const LAST: Duration = Duration::from_secs(16);

/// What is known of a driver that is at work.
#[derive(Debug, Default)]
pub struct Retry(Option<Stall>);

#[derive(Debug)]
struct Stall {
    plugged_bytes: u64,
    pause: Duration,
    /// When to tell it; `None` when it has been told often enough.
    at: Option<Instant>,
}

impl Retry {
    /// A new size is asked for: patience begins anew.
    pub fn begin(&mut self) {
        self.0 = None;
    }

    /// Looks at what the driver has come to: `open` is what it has plugged, in bytes, or `None` if
    /// that is what it was asked for. Whether it is to be told now.
    pub fn is_due(&mut self, open: Option<u64>, now: Instant) -> bool {
        let Some(plugged_bytes) = open else {
            self.0 = None;
            return false;
        };
        let Some(stall) = self.0.as_mut().filter(|stall| stall.plugged_bytes == plugged_bytes) else {
            self.0 = Some(Stall {
                plugged_bytes,
                pause: FIRST,
                at: Some(now + FIRST),
            });
            return false;
        };
        if stall.at.is_none_or(|at| now < at) {
            return false;
        }
        stall.pause = stall.pause.saturating_mul(2);
        stall.at = (stall.pause <= LAST).then_some(now + stall.pause);
        true
    }

    /// When to look again without having been woken.
    pub fn due(&self) -> Option<Instant> {
        self.0.as_ref()?.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 2 << 20;

    /// Seconds from the start at which a driver is told that has plugged this much at each second.
    fn told(plugged: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
        let (mut retry, start) = (Retry::default(), Instant::now());
        let second = |second| start + Duration::from_secs(second);
        (0..200).filter(|at| retry.is_due(plugged(*at), second(*at))).collect()
    }

    #[test]
    fn a_driver_that_stands_still_is_told_more_and_more_seldom_and_then_no_more() {
        assert_eq!(told(|_| Some(BLOCK)), [1, 3, 7, 15, 31]);
    }

    #[test]
    fn a_driver_that_goes_on_or_is_done_is_left_alone() {
        assert!(told(|at| Some(at * BLOCK)).is_empty());
        assert!(told(|_| None).is_empty());
        assert_eq!(told(|at| (at < 4).then_some(BLOCK)), [1, 3]);
    }

    #[test]
    fn progress_and_another_size_begin_anew() {
        let moved = |at: u64| Some(if at < 10 { BLOCK } else { 2 * BLOCK });
        assert_eq!(told(moved), [1, 3, 7, 11, 13, 17, 25, 41]);
        let (mut retry, now) = (Retry::default(), Instant::now());
        assert!(!retry.is_due(Some(BLOCK), now) && retry.is_due(Some(BLOCK), now + FIRST));
        assert_eq!(retry.due(), Some(now + FIRST + 2 * FIRST));
        retry.begin();
        assert_eq!(retry.due(), None);
        assert!(!retry.is_due(Some(BLOCK), now + FIRST));
        assert_eq!(retry.due(), Some(now + 2 * FIRST));
    }
}
