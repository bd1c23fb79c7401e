//! What texts of `/proc` say (proc(5)), for everybody who reads them.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, linkat};

/// How names of mappings of guest memory begin in `smaps`: a memfd's, or that of anonymous memory.
/// What follows tells them apart ([`RAM_NAME`](crate::memory::RAM_NAME) and others).
const GUEST_MEMORY: [&str; 2] = ["/memfd:guest-", "[anon:guest-"];

/// The fields of `/proc/PID/stat` from the third on, the state: what follows the program's name,
/// which may have spaces and brackets in it. None if there is no name.
pub(crate) fn stat_fields(stat: &str) -> Vec<&str> {
    let rest = stat.rsplit_once(')').map(|(_, rest)| rest);
    rest.unwrap_or_default().split_whitespace().collect()
}

/// The numbers among the names in `folder`, in ascending order: processes, threads, or descriptors.
///
/// # Errors
/// It cannot be read.
pub(crate) fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    let names = fs::read_dir(folder)?.flatten();
    let mut numbers: Vec<u32> = names
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The first `limit` bytes of `path`, and whether there are more: what a process shows of itself in
/// `/proc` is as long as it likes.
///
/// # Errors
/// It cannot be read.
pub(crate) fn beginning(path: &Path, limit: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut bytes = Vec::new();
    let more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(more).read_to_end(&mut bytes)?;
    let is_cut = bytes.len() > limit;
    bytes.truncate(limit);
    Ok((bytes, is_cut))
}

/// Makes `path` the name of `file`, which has none yet (`O_TMPFILE`).
///
/// # Errors
/// There is something of this name, or what else the host says.
pub(crate) fn give_name(file: &File, path: &Path) -> io::Result<()> {
    // open(2): how a file gets one without the capability CAP_DAC_READ_SEARCH.
    let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, nameless, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// The soft limit that a text like `/proc/PID/limits` has in the line that begins with `name`; `None` if it is
/// unlimited.
pub(crate) fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The bytes that a text like `/proc/meminfo` (proc_meminfo(5)) or `/proc/PID/status` gives in kB
/// for `name`, such as `MemTotal:`. None when it has no such line, or more than 64 bits hold.
pub(crate) fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Controllers and path of a line of `/proc/PID/cgroup`, `id:controllers:path` (cgroups(7)). The
/// unified hierarchy of version 2 has no controllers in its line.
pub(crate) fn control_group(line: &str) -> Option<(&str, &str)> {
    line.split_once(':')?.1.split_once(':')
}

/// What a process has beside guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BesideGuest {
    /// The sum that was asked for.
    pub bytes: u64,
    /// Whether any mapping is called as guest memory is: a kernel without names for anonymous memory tells of none.
    pub has_guest: bool,
}

/// The sum of `items`, such as `Private_Dirty:`, of all mappings in a text like `/proc/PID/smaps`
/// that are no guest memory.
///
/// # Errors
/// It cannot be read to its end.
pub(crate) fn beside_guest(mut smaps: impl BufRead, items: &[&str]) -> io::Result<BesideGuest> {
    let (mut found, mut is_guests) = (BesideGuest::default(), false);
    // One line at a time: there may be as many mappings as `vm.max_map_count` says, and a name may be no UTF-8.
    let mut bytes = Vec::new();
    while smaps.read_until(b'\n', &mut bytes)? > 0 {
        let line = String::from_utf8_lossy(&bytes);
        let mut words = line.split_ascii_whitespace();
        if !words.next().unwrap_or_default().ends_with(':') {
            // A mapping's first line: addresses, permissions, offset, device, inode, name.
            let name = words.nth(4).unwrap_or_default();
            is_guests = GUEST_MEMORY.iter().any(|guest| name.starts_with(guest));
            found.has_guest |= is_guests;
        } else if !is_guests && let Some(bytes) = items.iter().find_map(|item| meminfo_bytes(&line, item)) {
            found.bytes = found.bytes.saturating_add(bytes);
        }
        drop(line);
        bytes.clear();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        assert_eq!(stat_fields("7 (a) b) S 1 2"), ["S", "1", "2"]);
        assert_eq!(stat_fields("7 8"), [""; 0]);
    }

    #[test]
    fn only_numbers_are_taken_and_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10", "9", "self", "-1", "4x"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(numbers(folder.path()).unwrap(), [9, 10]);
        assert!(numbers(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn kilobytes_of_a_name_are_bytes() {
        let text = "MemTotal:       16303256 kB\nMemFree: x kB\nHuge: 18446744073709551615 kB\nEmpty:\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), Some(16_303_256 << 10));
        for name in ["MemFree:", "Huge:", "Empty:", "None:"] {
            assert_eq!(meminfo_bytes(text, name), None, "{name}");
        }
    }

    #[test]
    fn a_group_is_told_with_who_controls_it() {
        assert_eq!(control_group("0::/pods/a:b"), Some(("", "/pods/a:b")));
        assert_eq!(control_group("4:memory,hugetlb:/y"), Some(("memory,hugetlb", "/y")));
        assert_eq!(control_group("4:memory"), None);
    }
}
