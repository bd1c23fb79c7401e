//! What a process has taken of processors (proc_pid_stat(5)).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What all threads of a process, and its guest, have taken of processors, in ticks, by its `stat`
/// (proc_pid_stat(5), fields 14 and 15).
///
/// # Errors
///
/// There is no such process, or that is no such file.
pub fn processor_ticks(stat: &Path) -> Result<u64> {
    let text = fs::read_to_string(stat)?;
    // The second field is a name in brackets that may contain anything.
    let (_, fields) = text.rsplit_once(')').context("no name in stat")?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut ticks = || fields.next().context("stat ends early");
    Ok(ticks()??.saturating_add(ticks()??))
}

/// The `stat` of process `pid`.
pub fn stat_of(pid: u32) -> PathBuf {
    format!("/proc/{pid}/stat").into()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::pod::PATIENCE;

    #[test]
    fn processor_time_is_that_of_the_process() {
        let (pid, start) = (std::process::id(), Instant::now());
        let before = processor_ticks(&stat_of(pid)).unwrap();
        while processor_ticks(&stat_of(pid)).unwrap() <= before {
            assert!(start.elapsed() < PATIENCE);
        }
        assert!(processor_ticks(&stat_of(u32::MAX)).is_err());
    }
}
