//! How often one place in the source may speak: what it says beyond that is counted, and the count is told.
//!
//! A guest, or a client, that can cause a line can cause a million. Each place has
//! [`lines_per_window`] lines in [`WINDOW_MS`]; the last of them says that the rest is only
//! counted. The count follows before the next line of anybody once the time is over, or when husk
//! ends.
//!
//! Memory is fixed, and nothing here waits: a place is claimed and counted by single atomic
//! exchanges, so that no vCPU stands behind a thread that was interrupted in the middle.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{Level, Record};

/// The length of a window, in milliseconds.
pub const WINDOW_MS: u64 = 5_000;
/// Places that are told apart: more than husk and what it is made of have. Those beyond share the
/// last one that was looked at.
const SITES: usize = 256;
/// How many of them a place may find taken.
const PROBES: usize = 8;
/// Bits of [`SiteCounter::window`] that count; the others are the milliseconds at which it began.
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Lines of one place in a window. Who asks to see everything gets a thousand.
pub fn lines_per_window(level: Level) -> u64 {
    match level {
        Level::Error | Level::Warn | Level::Info => 20,
        Level::Debug | Level::Trace => 1_000,
    }
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The line is written.
    Admitted,
    /// The line is written, with a note that those that follow are not.
    Last,
    /// The line is not written: it is counted, and the count is told later.
    Suppressed,
}

/// A log statement: a place in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSite {
    /// Its module.
    pub module: &'static str,
    /// Its line there.
    pub line: u32,
    /// The level of what it says.
    pub level: Level,
}

impl CallSite {
    /// Where `record` comes from.
    pub fn of(record: &Record<'_>) -> Self {
        Self {
            module: record.module_path_static().unwrap_or("elsewhere"),
            line: record.line().unwrap_or(0),
            level: record.level(),
        }
    }

    /// Never 0 (FNV-1a).
    fn key(&self) -> u64 {
        let bytes = self.module.bytes().chain(self.line.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash | 1
    }
}

/// All places that have spoken.
#[derive(Debug)]
pub struct LogLimiter {
    sites: [SiteCounter; SITES],
    /// Lines that were counted and whose number was not told yet.
    untold: AtomicU64,
}

#[derive(Debug)]
struct SiteCounter {
    /// 0 until somebody has it.
    key: AtomicU64,
    /// Set once, by whoever has claimed the key: nobody else tries, so that nobody waits.
    site: OnceLock<CallSite>,
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimiter {
    /// Nobody has spoken yet.
    pub const fn new() -> Self {
        Self {
            sites: [const {
                SiteCounter {
                    key: AtomicU64::new(0),
                    site: OnceLock::new(),
                    window: AtomicU64::new(0),
                    suppressed: AtomicU64::new(0),
                }
            }; SITES],
            untold: AtomicU64::new(0),
        }
    }

    /// Whether `site` may speak at `now_ms`, by a clock that does not go back.
    pub fn admit(&self, site: &CallSite, now_ms: u64) -> Admission {
        let Some(counter) = self.counter(site) else {
            return Admission::Admitted;
        };
        match counter.count(now_ms) {
            count if count < lines_per_window(site.level) => Admission::Admitted,
            count if count == lines_per_window(site.level) => Admission::Last,
            _ => {
                counter.suppressed.fetch_add(1, Ordering::Relaxed);
                self.untold.fetch_add(1, Ordering::Relaxed);
                Admission::Suppressed
            }
        }
    }

    /// Tells how many lines were left out of places whose time is over at `now_ms`; of all places
    /// for `None`. Each count once.
    pub fn report(&self, now_ms: Option<u64>, mut report: impl FnMut(CallSite, u64)) {
        if self.untold.load(Ordering::Relaxed) == 0 {
            return;
        }
        for counter in &self.sites {
            let is_due = now_ms.is_none_or(|now| counter.is_over(now));
            if !is_due || counter.suppressed.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let count = counter.suppressed.swap(0, Ordering::Relaxed);
            if let (Some(site), 1..) = (counter.site.get(), count) {
                self.untold.fetch_sub(count, Ordering::Relaxed);
                report(*site, count);
            }
        }
    }

    fn counter(&self, site: &CallSite) -> Option<&SiteCounter> {
        let key = site.key();
        let first = usize::try_from(key % SITES as u64).unwrap_or(0);
        let mut last = None;
        for counter in self.sites.iter().cycle().skip(first).take(PROBES) {
            match counter
                .key
                .compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => {
                    // It was claimed this moment, by this thread alone.
                    let _ = counter.site.set(*site);
                    return Some(counter);
                }
                Err(found) if found == key => return Some(counter),
                Err(_) => last = Some(counter),
            }
        }
        last
    }
}

impl SiteCounter {
    /// The number that a line has in its window, from 1 on.
    fn count(&self, now_ms: u64) -> u64 {
        let step = |seen: u64| {
            let (begun, count) = (seen >> COUNT_BITS, seen & COUNT);
            let fresh = count == 0 || now_ms.saturating_sub(begun) >= WINDOW_MS;
            Some(if fresh {
                (now_ms << COUNT_BITS) | 1
            } else {
                (begun << COUNT_BITS) | count.saturating_add(1).min(COUNT)
            })
        };
        let seen = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
        let seen = seen.unwrap_or_else(|seen| seen);
        step(seen).unwrap_or_default() & COUNT
    }

    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.window.load(Ordering::Relaxed) >> COUNT_BITS) >= WINDOW_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(line: u32, level: Level) -> CallSite {
        CallSite {
            module: "husk::test",
            line,
            level,
        }
    }

    fn told(limiter: &LogLimiter, now_ms: Option<u64>) -> Vec<(u32, u64)> {
        let mut told = Vec::new();
        limiter.report(now_ms, |site, count| told.push((site.line, count)));
        told
    }

    #[test]
    fn a_place_says_so_much_and_the_rest_is_counted_until_its_time_is_over() {
        let limiter = LogLimiter::new();
        let loud = site(7, Level::Warn);
        let most = lines_per_window(Level::Warn);
        let admissions: Vec<Admission> = (0..most + 5).map(|at| limiter.admit(&loud, 1_000 + at)).collect();
        let count = |wanted| admissions.iter().filter(|found| **found == wanted).count() as u64;
        assert_eq!(
            (
                count(Admission::Admitted),
                count(Admission::Last),
                count(Admission::Suppressed)
            ),
            (most - 1, 1, 5)
        );
        assert_eq!(
            limiter.admit(&site(8, Level::Warn), 1_000),
            Admission::Admitted,
            "another place"
        );
        assert_eq!(told(&limiter, Some(1_000 + WINDOW_MS - 1)), [], "not yet");
        assert_eq!(told(&limiter, Some(1_000 + WINDOW_MS)), [(7, 5)]);
        assert_eq!(told(&limiter, None), [], "once");
        assert_eq!(
            limiter.admit(&loud, 1_000 + WINDOW_MS),
            Admission::Admitted,
            "a new window"
        );
    }

    #[test]
    fn what_is_left_is_told_in_the_end() {
        let limiter = LogLimiter::new();
        for _ in 0..lines_per_window(Level::Info) + 3 {
            limiter.admit(&site(1, Level::Info), 0);
        }
        assert_eq!(told(&limiter, None), [(1, 3)]);
    }

    #[test]
    fn whoever_debugs_sees_more() {
        let limiter = LogLimiter::new();
        let last = (0..lines_per_window(Level::Debug))
            .map(|_| limiter.admit(&site(1, Level::Debug), 0))
            .last();
        assert_eq!(last, Some(Admission::Last));
    }

    #[test]
    fn more_places_than_there_is_room_for_share_and_none_is_lost() {
        let limiter = LogLimiter::new();
        let lines = lines_per_window(Level::Error) + 1;
        let mut written = 0;
        for line in 0..1_000 {
            for _ in 0..lines {
                written += u64::from(limiter.admit(&site(line, Level::Error), 0) != Admission::Suppressed);
            }
        }
        let counted: u64 = told(&limiter, None).iter().map(|(_, count)| count).sum();
        assert_eq!(written + counted, 1_000 * lines);
        assert!(written <= SITES as u64 * lines_per_window(Level::Error), "{written}");
    }

    #[test]
    fn threads_that_speak_at_once_are_counted_exactly() {
        let limiter = LogLimiter::new();
        let each = 10_000;
        let written: u64 = std::thread::scope(|scope| {
            let speak = || {
                (0..each)
                    .filter(|_| limiter.admit(&site(1, Level::Warn), 9) != Admission::Suppressed)
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(speak)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap() as u64).sum()
        });
        assert_eq!(written, lines_per_window(Level::Warn));
        assert_eq!(told(&limiter, None), [(1, 4 * each - written)]);
    }
}
