//! What a process has for itself alone (proc_pid_smaps(5), proc_pid_status(5)).

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use crate::fleet::look_at_all;
use crate::procfs;
use crate::procfs::meminfo_bytes;

/// Lines of a mapping that are its own: pages that no other process maps, and those that were swapped out.
const PRIVATE: [&str; 3] = ["Private_Clean:", "Private_Dirty:", "SwapPss:"];

/// What a process has for itself alone, guest RAM left out; in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Private pages.
    pub private_bytes: u64,
    /// Page tables.
    pub tables_bytes: u64,
}

/// What process `pid` has.
///
/// # Errors
///
/// It has ended, or may not be looked into.
pub(super) fn share(pid: u32) -> io::Result<Share> {
    let smaps = File::open(format!("/proc/{pid}/smaps"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Share {
        private_bytes: private(BufReader::new(smaps))?,
        tables_bytes: meminfo_bytes(&status, "VmPTE:").unwrap_or(0),
    })
}

/// The program of both of Kata's shims.
const SHIM: &str = "containerd-shim-kata-v2";

/// How long the kernel has to walk the mappings of others' processes.
const LIMIT: Duration = Duration::from_secs(10);

/// What each of Kata's shims that run here has, as far as they may be looked into, and the kernel
/// does not make whoever looks wait.
pub(super) fn shims() -> Vec<Share> {
    let shims = running(Path::new("/proc"), SHIM);
    let shims = shims.into_iter().map(|pid| (pid, pid)).collect();
    let shares = look_at_all("shim", shims, LIMIT, |pid| share(pid).ok());
    shares.into_iter().flatten().flatten().collect()
}

/// The processes in the folder `proc` whose program is called `name`, one that has been replaced
/// since included (proc_pid_exe(5)).
fn running(proc: &Path, name: &str) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_it = |pid: &u32| {
        let program = fs::read_link(proc.join(pid.to_string()).join("exe")).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        program.strip_suffix(" (deleted)").unwrap_or(&program) == name
    };
    pids.filter(is_it).collect()
}

/// Page tables that KVM has for all guests; `None` if the kernel does not tell (before Linux 6.0).
pub(super) fn kvm_tables() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "SecPageTables:")
}

/// Private bytes of every mapping that is not guest RAM.
fn private(smaps: impl BufRead) -> io::Result<u64> {
    procfs::beside_guest(smaps, &PRIVATE).map(|found| found.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_not_the_processs_own() {
        let smaps = "\
7f0000000000-7f0020000000 rw-s 00000000 00:01 9                          /memfd:guest-ram (deleted)
Private_Dirty:    400000 kB
7f1000000000-7f1020000000 rw-p 00000000 00:00 0                          [anon:guest-ram-unplugged]
Private_Dirty:    300000 kB
SwapPss:              9 kB
7f2000000000-7f2000100000 rw-p 00000000 00:00 0
Size:              1024 kB
Private_Clean:        4 kB
Private_Dirty:      100 kB
SwapPss:              8 kB
7f3000000000-7f3000100000 r-xp 00000000 08:01 77                         /opt/husk/bin/husk
Shared_Clean:      2000 kB
Private_Clean:        0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Private_Dirty:       16 kB
";
        assert_eq!(private(smaps.as_bytes()).unwrap(), 128 << 10);
        assert_eq!(private(&b""[..]).unwrap(), 0);
    }

    #[test]
    fn shims_are_found_by_their_program() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, program) in [
            ("1", "/sbin/init"),
            ("7", "/opt/kata/bin/containerd-shim-kata-v2"),
            ("8", "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2 (deleted)"),
            ("9", "/usr/bin/containerd-shim-runc-v2"),
            ("self", "/opt/kata/bin/containerd-shim-kata-v2"),
        ] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            std::os::unix::fs::symlink(program, proc.path().join(pid).join("exe")).unwrap();
        }
        fs::create_dir(proc.path().join("10")).unwrap();
        let mut found = running(proc.path(), SHIM);
        found.sort_unstable();
        assert_eq!(found, [7, 8]);
    }

    #[test]
    fn this_process_has_memory_and_page_tables() {
        let own = share(std::process::id()).unwrap();
        assert!(own.private_bytes > 64 << 10 && own.tables_bytes > 0, "{own:?}");
        assert!(share(u32::MAX).is_err());
    }
}
