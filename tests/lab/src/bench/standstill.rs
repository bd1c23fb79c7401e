//! Guests that the emulation has broken.
//!
//! QEMU 7.2 sometimes delivers an interrupt of a nested guest twice (`docs/adr/0015-one-thread-per-emulated-host.md`). A guest that
//! thereby waits for a lock that it holds itself spins, and each turn costs the emulation so much that counted time all but stands
//! still: no limit in that time is ever reached. The real-time clock of the emulated machine goes on, and tells.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::sys;

/// Guests given to one run, as long as the emulation breaks them.
const ATTEMPTS: u32 = 8;
/// How often to look, in counted time: seconds on any other clock, when that stands still.
const PACE: Duration = Duration::from_millis(50);
/// Seconds since 1970 by the machine's real-time clock.
const CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";
/// How long is looked at, on the real-time clock.
const SPAN_SECONDS: u64 = 20;
/// Counted time that passes in such a span at least: a guest that works comes to two seconds, one that spins to 300 ms.
const LEAST: Duration = Duration::from_millis(400);

/// Does `once`, and does it again when the emulation has broken the guest that it was done with.
///
/// # Errors
///
/// As `once`, or all guests were broken.
pub fn avoided<T>(name: &str, mut once: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let guard = Guard::start();
        let result = once();
        if !guard.has_struck() {
            return result;
        }
        println!("{name}: the emulation has broken its guest; once more");
    }
    bail!("the emulation has broken {ATTEMPTS} guests, one after the other")
}

/// Kills what this process has started when counted time stands still.
struct Guard {
    end: Sender<()>,
    thread: JoinHandle<bool>,
}

impl Guard {
    fn start() -> Self {
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            let Some(seconds) = seconds() else { return false };
            let mut span = Span::new(Instant::now(), seconds);
            while ended.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                let seconds = self::seconds();
                if seconds.is_some_and(|seconds| span.is_still(Instant::now(), seconds)) {
                    sys::kill_children();
                    return true;
                }
            }
            false
        });
        Self { end, thread }
    }

    fn has_struck(self) -> bool {
        drop(self.end);
        self.thread.join().unwrap_or(false)
    }
}

/// A stretch of time on two clocks.
struct Span {
    counted: Instant,
    seconds: u64,
}

impl Span {
    fn new(counted: Instant, seconds: u64) -> Self {
        Self { counted, seconds }
    }

    /// Whether counted time stood still in the span that is over; begins the next one.
    fn is_still(&mut self, counted: Instant, seconds: u64) -> bool {
        let spans = seconds.saturating_sub(self.seconds) / SPAN_SECONDS;
        if spans == 0 {
            return false;
        }
        let passed = counted.duration_since(self.counted);
        *self = Self::new(counted, seconds);
        passed < LEAST.saturating_mul(u32::try_from(spans).unwrap_or(u32::MAX))
    }
}

fn seconds() -> Option<u64> {
    fs::read_to_string(CLOCK).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_still(counted_ms: u64, seconds: u64) -> bool {
        let start = Instant::now();
        Span::new(start, 100).is_still(start + Duration::from_millis(counted_ms), 100 + seconds)
    }

    #[test]
    fn slow_is_not_still() {
        assert!(!is_still(0, 0));
        assert!(!is_still(100, SPAN_SECONDS - 1), "too early to say");
        assert!(!is_still(600, SPAN_SECONDS));
        assert!(!is_still(1100, 2 * SPAN_SECONDS));
    }

    #[test]
    fn still_is_found_in_each_span() {
        assert!(is_still(300, SPAN_SECONDS));
        assert!(is_still(600, 2 * SPAN_SECONDS));
        let start = Instant::now();
        let mut span = Span::new(start, 100);
        assert!(!span.is_still(start + Duration::from_secs(5), 120));
        assert!(span.is_still(start + Duration::from_millis(5100), 140));
    }

    #[test]
    fn what_works_is_done_once() {
        let mut times = 0;
        let done = avoided("it", || {
            times += 1;
            Ok(times)
        });
        assert_eq!(done.unwrap(), 1);
        let failed: Result<()> = avoided("it", || bail!("no"));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }
}
