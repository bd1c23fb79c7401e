//! What a process holds beside guest RAM (Linux `Documentation/filesystems/proc.rst`, smaps and status).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What a process holds while its guest is halted.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Private pages of everything but guest RAM, in KiB.
    pub private_kib: u64,
    /// Host page tables, in KiB.
    pub page_table_kib: u64,
}

/// Reads the footprint of the process whose folder below `/proc` is `process`.
///
/// # Errors
///
/// The process has ended.
pub fn read(process: &Path, memory_mib: u32) -> Result<Footprint> {
    let smaps = fs::read_to_string(process.join("smaps"))?;
    // Of a process that has ended but was not yet waited for, both files are there and say nothing.
    ensure!(!smaps.is_empty(), "the process has no memory any more");
    let status = fs::read_to_string(process.join("status"))?;
    let page_table_kib = status
        .lines()
        .find_map(|line| field(line, "VmPTE:"))
        .context("no VmPTE in status")?;
    Ok(Footprint {
        private_kib: private_kib(&smaps, memory_mib),
        page_table_kib,
    })
}

/// Private pages of every mapping that is not guest RAM: not named so, and, for VMMs that give no
/// name, smaller than half of it.
fn private_kib(smaps: &str, memory_mib: u32) -> u64 {
    let half_of_ram = u64::from(memory_mib) * 1024 / 2;
    let (mut sum, mut ram) = (0, false);
    for line in smaps.lines() {
        if let Some(size) = field(line, "Size:") {
            ram |= size >= half_of_ram;
        } else if let Some(kib) = field(line, "Private_Clean:").or_else(|| field(line, "Private_Dirty:")) {
            sum += if ram { 0 } else { kib };
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            ram = line.contains("guest-ram");
        }
    }
    sum
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out_by_name_and_by_size() {
        let smaps = "\
7f00-7f10 rw-p 0 00:00 0 [anon:guest-ram]\nSize: 64 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 32 kB\n\
7f20-7f30 rw-p 0 00:00 0\nSize: 524288 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 4096 kB\n\
7f40-7f50 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 20 kB\n";
        assert_eq!(private_kib(smaps, 512), 24);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(read(Path::new("/proc/0"), 512).is_err());
    }
}
