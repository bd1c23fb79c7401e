//! Limits that the host puts on this process, and so on a VM started from it.

use std::path::Path;

use super::facts::read;
use crate::procfs;

/// The tightest limits that apply; `None` means unlimited, or unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of locked memory (`RLIMIT_MEMLOCK`, soft).
    pub memlock_bytes: Option<u64>,
    /// Bytes of memory of the cgroup.
    pub memory_bytes: Option<u64>,
    /// Processes and threads of the cgroup.
    pub pids: Option<u64>,
}

impl Limits {
    /// Reads them from the files under `root`.
    pub(super) fn gather(root: &Path) -> Self {
        let cgroups = read(root, "proc/self/cgroup");
        Self {
            memlock_bytes: procfs::soft_limit(&read(root, "proc/self/limits"), "Max locked memory"),
            memory_bytes: tightest(root, &cgroups, "memory", &["memory.max", "memory.limit_in_bytes"]),
            pids: tightest(root, &cgroups, "pids", &["pids.max"]),
        }
    }
}

/// The least of the limits in `files`, over this process's cgroup of `controller` and all above it (cgroups(7)).
fn tightest(root: &Path, cgroups: &str, controller: &str, files: &[&str]) -> Option<u64> {
    let mut least = None;
    for (mount, path) in cgroups.lines().filter_map(|line| locate(line, controller)) {
        for directory in Path::new(path.trim_start_matches('/')).ancestors() {
            let directory = Path::new(&mount).join(directory);
            let values = files
                .iter()
                .filter_map(|file| bounded(&read(root, directory.join(file).to_str()?)));
            least = least.into_iter().chain(values).min();
        }
    }
    least
}

/// Where the hierarchy of a line of `/proc/self/cgroup` is mounted, if it is about `controller`,
/// and the group's path in it.
fn locate<'a>(line: &'a str, controller: &str) -> Option<(String, &'a str)> {
    let (controllers, path) = procfs::control_group(line)?;
    match controllers {
        "" => Some(("sys/fs/cgroup".into(), path)),
        _ => controllers
            .split(',')
            .any(|found| found == controller)
            .then(|| (format!("sys/fs/cgroup/{controller}"), path)),
    }
}

/// A limit, unless it is "max", or version 1's way of saying that: `LONG_MAX` rounded down to a page.
fn bounded(text: &str) -> Option<u64> {
    text.trim()
        .parse()
        .ok()
        .filter(|limit| *limit < i64::MAX.unsigned_abs() & !0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::host;

    fn gather(files: &[(&str, &str)]) -> Limits {
        Limits::gather(host(files).path())
    }

    #[test]
    fn the_tightest_limit_above_this_cgroup_counts() {
        let limits = gather(&[
            ("proc/self/cgroup", "0::/pods/one\n"),
            ("sys/fs/cgroup/pods/memory.max", "1000\n"),
            ("sys/fs/cgroup/pods/one/memory.max", "max\n"),
            ("sys/fs/cgroup/pods/one/pids.max", "64\n"),
            ("sys/fs/cgroup/pods/two/memory.max", "1\n"),
        ]);
        assert_eq!(
            limits,
            Limits {
                memlock_bytes: None,
                memory_bytes: Some(1000),
                pids: Some(64)
            }
        );
    }

    #[test]
    fn version_1_hierarchies_are_found_by_their_controller() {
        let limits = gather(&[
            (
                "proc/self/cgroup",
                "9:name=systemd:/\n8:pids:/\n5:cpu,memory:/a\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/pids/pids.max", "max\n"),
        ]);
        assert_eq!((limits.memory_bytes, limits.pids), (Some(4096), None));
        let unlimited = gather(&[
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(unlimited.memory_bytes, None);
    }

    #[test]
    fn locked_memory_is_the_soft_limit() {
        let limit = |soft: &str| {
            let limits = format!("Limit  Soft Limit  Hard Limit  Units\nMax locked memory  {soft}  9999  bytes\n");
            gather(&[("proc/self/limits", &limits)]).memlock_bytes
        };
        assert_eq!(limit("8388608"), Some(8_388_608));
        assert_eq!(limit("unlimited"), None);
    }

    #[test]
    fn a_host_without_cgroups_has_no_limits() {
        assert_eq!(gather(&[]), Limits::default());
    }
}
