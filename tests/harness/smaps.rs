//! What a process holds of the host's memory, mapping by mapping, from `/proc/<pid>/smaps`.

use std::fs;

use anyhow::{Context, Result, ensure};

/// KiB of the mappings that are called `name`, or have that in their file's name, that are in the
/// host's memory now. `guest-ram` is not `guest-ram-hotplug`.
///
/// # Errors
///
/// There is no such process or mapping.
pub fn resident_kib(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let (found, sum) = resident(&text, name);
    ensure!(found > 0, "no mapping of process {pid} is called {name}");
    Ok(sum)
}

/// How many mappings are called so, and what of them is resident.
fn resident(smaps: &str, name: &str) -> (usize, u64) {
    let (mut inside, mut found, mut sum) = (false, 0, 0);
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        if !key.ends_with(':') {
            inside = is_called(line, name);
            found += usize::from(inside);
        } else if key == "Rss:" && inside {
            sum += value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    (found, sum)
}

/// Whether the first line of a mapping has this name: `[anon:NAME]`, `[anon_shmem:NAME]` or `/memfd:NAME (deleted)`.
fn is_called(line: &str, name: &str) -> bool {
    let after = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'));
    after.is_some_and(|(_, rest)| rest.trim_end_matches([']', ' ']).trim_end_matches(" (deleted)") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart_by_their_whole_name() {
        let smaps = "7f00-7f10 rw-p 00000000 00:00 0          [anon:guest-ram]\nSize: 9 kB\nRss:   500 kB\n\
            7f10-7f20 rw-s 00000000 00:01 77   /memfd:guest-ram-hotplug (deleted)\nRss:  20 kB\nVmFlags: rd\n\
            7f20-7f30 rw-s 00100000 00:01 77   /memfd:guest-ram-hotplug (deleted)\nRss:  3 kB\n\
            7f40-7f50 rw-p 00000000 00:00 0   [heap]\nRss: 8 kB\n";
        assert_eq!(resident(smaps, "guest-ram"), (1, 500));
        assert_eq!(resident(smaps, "guest-ram-hotplug"), (2, 23));
        assert_eq!(resident(smaps, "guest"), (0, 0));
    }
}
