//! Processors and memory that come while the guest runs: brought online as Kata's agent does it, and told.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use husk_guest::resources::{Resources, count};

use crate::facts::{self, read};
use crate::sys;

/// Where the kernel has both.
const SYSTEM: &str = "/sys/devices/system";

/// How often Kata's agent looks for processors that are to come, and how long it waits between.
const ROUNDS: u32 = 100;
const PACE: Duration = Duration::from_millis(50);

/// Brings processors online until `cpus` are, waiting for those that are yet to come, and then the
/// memory that is there. With 0 processors none is waited for.
///
/// # Errors
///
/// They do not come, or the kernel refuses memory.
pub fn bring_online(cpus: usize) -> Result<Resources> {
    processors(&Path::new(SYSTEM).join("cpu"), cpus, PACE)?;
    let refused = switch_on(&Path::new(SYSTEM).join("memory"), "memory", usize::MAX)?;
    if let Some((path, refusal)) = refused.into_iter().next() {
        return Err(refusal).with_context(|| format!("cannot bring {} online", path.display()));
    }
    resources()
}

/// What there is now.
///
/// # Errors
///
/// The kernel does not say.
pub fn resources() -> Result<Resources> {
    let (cpu, memory) = (Path::new(SYSTEM).join("cpu"), Path::new(SYSTEM).join("memory"));
    let meminfo = read("/proc/meminfo")?;
    Ok(Resources {
        nanoseconds: sys::monotonic_ns()?,
        possible: read(cpu.join("possible"))?,
        present: read(cpu.join("present"))?,
        online: read(cpu.join("online"))?,
        memory_kib: facts::meminfo(&meminfo, "MemTotal")?,
        available_kib: facts::meminfo(&meminfo, "MemAvailable")?,
        block_bytes: u64::from_str_radix(&read(memory.join("block_size_bytes"))?, 16).context("strange block size")?,
        blocks: block_states(&memory)?,
        auto_online: read(memory.join("auto_online_blocks"))?,
    })
}

fn processors(folder: &Path, wanted: usize, pace: Duration) -> Result<()> {
    let mut refused = Vec::new();
    for _ in 0..ROUNDS {
        let online = count(&read(folder.join("online"))?);
        if online >= wanted {
            return Ok(());
        }
        refused = switch_on(folder, "cpu", wanted - online)?;
        if count(&read(folder.join("online"))?) >= wanted {
            return Ok(());
        }
        thread::sleep(pace);
    }
    let (present, online) = (read(folder.join("present"))?, read(folder.join("online"))?);
    bail!("{wanted} processors do not come: present {present}, online {online}, refused: {refused:?}")
}

/// Writes 1 to the `online` of at most `most` units in `folder` that are not, in their order; which of them refused.
fn switch_on(folder: &Path, kind: &str, most: usize) -> Result<Vec<(PathBuf, std::io::Error)>> {
    let mut refused = Vec::new();
    for unit in units(folder, kind)?.into_iter().filter(|unit| is_off(unit)).take(most) {
        match fs::write(unit.join("online"), "1") {
            // It has gone meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => refused.push((unit, error)),
            Ok(()) => {}
        }
    }
    Ok(refused)
}

/// The first processor and units that have gone meanwhile have no such file.
fn is_off(unit: &Path) -> bool {
    fs::read_to_string(unit.join("online")).is_ok_and(|state| state.trim() == "0")
}

/// `cpu0`, `cpu1` and so on in `folder`, by number. A kernel without hot-plug of memory has no such folder.
fn units(folder: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let numbered = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let number: u64 = name.strip_prefix(kind)?.parse().ok()?;
        Some((number, path))
    };
    let mut units: Vec<_> = entries.flatten().filter_map(|entry| numbered(entry.path())).collect();
    units.sort();
    Ok(units.into_iter().map(|(_, path)| path).collect())
}

fn block_states(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let mut states = BTreeMap::new();
    for block in units(folder, "memory")? {
        // A block may go while it is looked at.
        if let Ok(state) = fs::read_to_string(block.join("state")) {
            *states.entry(state.trim().to_string()).or_default() += 1;
        }
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of processors: what the file `online` of each holds.
    fn folder(online: &str, cpus: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cpu0")).unwrap();
        fs::create_dir(folder.path().join("cpuidle")).unwrap();
        for (name, state) in cpus {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("online"), state).unwrap();
        }
        for (name, list) in [("online", online), ("present", "0-10")] {
            fs::write(folder.path().join(name), list).unwrap();
        }
        folder
    }

    fn state(folder: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(folder.path().join(name).join("online")).unwrap()
    }

    #[test]
    fn only_as_many_as_are_wanted_come_online_and_the_lowest_first() {
        let folder = folder(
            "0",
            &[("cpu10", "0\n"), ("cpu1", "1\n"), ("cpu2", "0\n"), ("cpu9", "0\n")],
        );
        assert!(switch_on(folder.path(), "cpu", 2).unwrap().is_empty());
        let states = ["cpu1", "cpu2", "cpu9", "cpu10"].map(|name| state(&folder, name));
        assert_eq!(states, ["1\n", "1", "1", "0\n"]);
    }

    #[test]
    fn nothing_is_touched_where_enough_run_and_what_never_comes_is_told() {
        let folder = folder("0-1\n", &[("cpu1", "1\n"), ("cpu2", "0\n")]);
        processors(folder.path(), 2, Duration::ZERO).unwrap();
        assert_eq!(state(&folder, "cpu2"), "0\n");
        let error = processors(folder.path(), 3, Duration::ZERO).unwrap_err().to_string();
        assert!(
            error.starts_with("3 processors do not come: present 0-10, online 0-1"),
            "{error}"
        );
        assert_eq!(state(&folder, "cpu2"), "1");
    }

    #[test]
    fn blocks_are_counted_by_their_state() {
        let folder = tempfile::tempdir().unwrap();
        for (number, state) in ["online\n", "online\n", "offline\n"].iter().enumerate() {
            let block = folder.path().join(format!("memory{number}"));
            fs::create_dir(&block).unwrap();
            fs::write(block.join("state"), state).unwrap();
        }
        let states = block_states(folder.path()).unwrap();
        assert_eq!(states, BTreeMap::from([("online".into(), 2), ("offline".into(), 1)]));
        assert!(block_states(&folder.path().join("none")).unwrap().is_empty());
    }
}
