//! When a guest has come to rest: a kernel goes on for some hundred milliseconds after its init was
//! started, with tests of its own cryptography and with what it has put off, and whoever measures
//! meanwhile measures that.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// For how long the processors have to have had nothing to do.
const LOOK: Duration = Duration::from_millis(200);
/// How long to wait for that.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all processors have done since the boot, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    all: u64,
    idle: u64,
}

impl Spent {
    fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?)
    }

    /// From the first line of proc_stat(5): user, nice, system, idle, iowait and more.
    fn parse(text: &str) -> Result<Self> {
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
        let words = line.context("no line of all processors")?.split_whitespace();
        let ticks = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let idle = ticks.get(3..5).context("no time without work")?;
        Ok(Self {
            all: ticks.iter().take(8).sum(),
            idle: idle.iter().sum(),
        })
    }

    /// Whether there was next to nothing to do since `before`.
    fn has_rested_since(self, before: Self) -> bool {
        let all = self.all.saturating_sub(before.all);
        let worked = all.saturating_sub(self.idle.saturating_sub(before.idle));
        all > 0 && worked <= all / 20
    }
}

/// Returns when the processors have had nothing to do for a while.
///
/// # Errors
///
/// They always have.
pub fn wait() -> Result<()> {
    let start = Instant::now();
    loop {
        let before = Spent::now()?;
        thread::sleep(LOOK);
        if Spent::now()?.has_rested_since(before) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < PATIENCE,
            "the guest has not come to rest in {} s",
            PATIENCE.as_secs()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(all: u64, idle: u64) -> Spent {
        Spent { all, idle }
    }

    #[test]
    fn time_without_work_is_that_of_all_processors_and_guests_are_not_counted_twice() {
        let text = "cpu  10 1 20 300 5 2 3 4 7 8\ncpu0 10 1 20 300 5 2 3 4 7 8\n";
        assert_eq!(Spent::parse(text).unwrap(), spent(345, 305));
        assert!(Spent::parse("cpu  10 1 20\n").is_err());
        assert!(Spent::parse("intr 1\n").is_err());
    }

    #[test]
    fn a_guest_rests_when_it_did_next_to_nothing() {
        let before = spent(1000, 500);
        assert!(spent(1050, 550).has_rested_since(before));
        assert!(spent(1050, 548).has_rested_since(before));
        assert!(!spent(1050, 545).has_rested_since(before));
        assert!(!before.has_rested_since(before), "no time has passed");
    }
}
