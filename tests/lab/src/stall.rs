//! Whether an emulated host gets on, seen from outside: the time that it counts and the lines that
//! it writes, against the processor time that it takes.
//!
//! A guest that the emulation has broken (`docs/adr/0015-one-thread-per-emulated-host.md`) spins
//! for a lock that it holds itself, and each turn costs the emulation so much that counted time all
//! but stands still: no limit in that time is ever reached. And a host that does not get on at all
//! cannot notice anything. How long either takes depends on what else this machine does, so what is
//! measured is the processor time of QEMU: a host that waits for a busy processor is slow and not
//! at a standstill.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use husk_tests::processor_time::processor_ticks;

/// Counted time that has to pass within the patience. A guest that works comes to a tenth of its
/// processor time, one that spins to a seventieth.
const LEAST: Duration = Duration::from_secs(1);

/// How many times the patience a host may take to start.
const START: u32 = 4;

/// The part of the patience that a host must take in processor time, lest it is asleep for good.
const AWAKE_PART: u32 = 100;

/// Clock ticks a second in `/proc/PID/stat` (`USER_HZ` on x86).
const TICKS_A_SECOND: u32 = 100;

/// What a host has shown of itself: written by who reads its terminal, read by who watches it.
#[derive(Debug)]
pub struct HostProgress {
    patience: Duration,
    counted_ms: AtomicU64,
    lines: AtomicU64,
}

impl HostProgress {
    /// Of a host that has shown nothing yet, and may take `patience` of processor time to get on.
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            counted_ms: AtomicU64::new(0),
            lines: AtomicU64::new(0),
        }
    }

    /// The host's clock is at `ms`.
    pub fn counted(&self, ms: u64) {
        self.counted_ms.store(ms, Ordering::Relaxed);
    }

    /// The host has said something.
    pub fn line(&self) {
        self.lines.fetch_add(1, Ordering::Relaxed);
    }

    /// What is known now of the host that is process `pid`.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn look(&self, pid: u32) -> Result<Look> {
        Ok(Look {
            at: Instant::now(),
            processor: processor_time(Path::new(&format!("/proc/{pid}/stat")))?,
            counted: Duration::from_millis(self.counted_ms.load(Ordering::Relaxed)),
            lines: self.lines.load(Ordering::Relaxed),
        })
    }
}

/// A host at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    at: Instant,
    processor: Duration,
    counted: Duration,
    lines: u64,
}

/// How a host stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standstill {
    /// It takes processor time and comes to nothing.
    Spins,
    /// It takes no processor time.
    Sleeps,
}

/// Looks at one host again and again.
#[derive(Debug)]
pub struct StallDetector {
    patience: Duration,
    /// When it got on last.
    since: Look,
    /// Whether it has ever.
    started: bool,
    /// When it was awake last.
    awake: Look,
}

impl StallDetector {
    /// Begins with a first look at the host of `progress`. What that has shown by then is news.
    pub fn new(progress: &HostProgress, first: Look) -> Self {
        let since = Look {
            counted: Duration::ZERO,
            lines: 0,
            ..first
        };
        Self {
            patience: progress.patience,
            since,
            started: false,
            awake: since,
        }
    }

    /// How the host stands still, if it does.
    pub fn standstill(&mut self, now: Look) -> Option<Standstill> {
        let counted = now.counted.saturating_sub(self.since.counted);
        if now.lines != self.since.lines || counted >= LEAST {
            (self.since, self.awake, self.started) = (now, now, true);
            return None;
        }
        if now.processor.saturating_sub(self.awake.processor) >= self.patience / AWAKE_PART {
            self.awake = now;
        }
        let patience = self.patience();
        if now.processor.saturating_sub(self.since.processor) >= patience {
            Some(Standstill::Spins)
        } else if now.at.duration_since(self.awake.at) >= patience {
            Some(Standstill::Sleeps)
        } else {
            None
        }
    }

    fn patience(&self) -> Duration {
        if self.started {
            self.patience
        } else {
            self.patience * START
        }
    }

    /// `standstill` in words.
    pub fn told(&self, standstill: Standstill) -> String {
        let seconds = self.patience().as_secs_f64();
        let since = match self.since.counted {
            Duration::ZERO => String::new(),
            counted => format!(", since {:.1} s of its own clock", counted.as_secs_f64()),
        };
        match standstill {
            Standstill::Spins => {
                format!("stands still: it has come to nothing in {seconds} s of processor time{since}")
            }
            Standstill::Sleeps => format!("stands still: it has slept for {seconds} s{since}"),
        }
    }
}

/// Processor time of all threads of a process, by its `stat`.
fn processor_time(stat: &Path) -> Result<Duration> {
    Ok(Duration::from_secs(processor_ticks(stat)?) / TICKS_A_SECOND)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(100);

    /// What is seen after so many seconds of each kind, and so many lines.
    fn after(start: Look, wall: u64, processor: u64, counted_ms: u64, lines: u64) -> Look {
        Look {
            at: start.at + Duration::from_secs(wall),
            processor: Duration::from_secs(processor),
            counted: Duration::from_millis(counted_ms),
            lines,
        }
    }

    /// A host that has not shown anything yet.
    fn unstarted() -> (StallDetector, Look) {
        let start = Look {
            at: Instant::now(),
            processor: Duration::ZERO,
            counted: Duration::ZERO,
            lines: 0,
        };
        (StallDetector::new(&HostProgress::new(PATIENCE), start), start)
    }

    /// A host that has just written its first line.
    fn watched() -> (StallDetector, Look) {
        let (mut watch, start) = unstarted();
        assert_eq!(watch.standstill(Look { lines: 1, ..start }), None);
        (watch, start)
    }

    #[test]
    fn where_a_host_stands_still_is_told_by_its_own_clock() {
        let (mut watch, start) = watched();
        assert_eq!(watch.standstill(after(start, 9, 9, 7654, 1)), None);
        let standstill = watch.standstill(after(start, 200, 200, 8000, 1)).unwrap();
        let told = "stands still: it has come to nothing in 100 s of processor time, since 7.7 s of its own clock";
        assert_eq!(watch.told(standstill), told);
    }

    #[test]
    fn a_host_that_spins_is_told_by_its_processor_time() {
        let (mut watch, start) = watched();
        assert_eq!(watch.standstill(after(start, 99, 99, 0, 1)), None);
        assert_eq!(
            watch.standstill(after(start, 100, 100, 900, 1)),
            Some(Standstill::Spins)
        );
    }

    #[test]
    fn a_host_that_sleeps_is_told_by_its_lack_of_processor_time() {
        let (mut watch, start) = watched();
        assert_eq!(watch.standstill(after(start, 50, 20, 0, 1)), None);
        assert_eq!(watch.standstill(after(start, 149, 20, 0, 1)), None);
        assert_eq!(watch.standstill(after(start, 150, 20, 0, 1)), Some(Standstill::Sleeps));
    }

    #[test]
    fn a_host_that_waits_for_a_busy_processor_is_not_at_a_standstill() {
        let (mut watch, start) = watched();
        for step in 1..50 {
            assert_eq!(watch.standstill(after(start, 50 * step, 2 * step, 0, 1)), None);
        }
    }

    #[test]
    fn lines_and_counted_time_are_progress() {
        let (mut watch, start) = watched();
        assert_eq!(watch.standstill(after(start, 90, 90, 1000, 1)), None);
        assert_eq!(watch.standstill(after(start, 180, 180, 1000, 2)), None);
        assert_eq!(watch.standstill(after(start, 270, 270, 1500, 2)), None);
        assert_eq!(
            watch.standstill(after(start, 280, 280, 1999, 2)),
            Some(Standstill::Spins)
        );
    }

    #[test]
    fn a_host_may_take_longer_to_start() {
        let (mut watch, start) = unstarted();
        assert_eq!(watch.standstill(after(start, 399, 399, 999, 0)), None);
        assert_eq!(
            watch.standstill(after(start, 400, 400, 999, 0)),
            Some(Standstill::Spins)
        );
    }

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let stat = folder.path().join("stat");
        fs::write(&stat, "7 (a) b) 9) S 1 7 7 0 -1 0 1 2 3 4 150 50 8 9 20 0\n").unwrap();
        assert_eq!(processor_time(&stat).unwrap(), Duration::from_secs(2));
        assert!(processor_time(Path::new("/proc/0/stat")).is_err());
        let of_this = HostProgress::new(PATIENCE).look(std::process::id()).unwrap();
        assert_eq!(of_this.lines, 0);
    }
}
