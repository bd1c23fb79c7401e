//! What the host can give: huge pages, its promise of memory, the limit of the control group, in
//! words a user can act on.
//!
//! The kernel decides; this is asked beforehand only where it would say yes and then break its
//! word, or say no when the guest has been told already.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::backing::{Backing, Pages, Source};
use crate::config::Size;
use crate::procfs::{self, meminfo_bytes};

/// Why the host does not give memory.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Too few huge pages.
    #[error("huge pages of {}: {needed} needed, {free} of {total} free (see {pool}/nr_hugepages)", Size(*page))]
    HugePages {
        /// How many.
        needed: u64,
        /// Bytes of one.
        page: u64,
        /// How many nobody has, nor was promised.
        free: u64,
        /// How many there are.
        total: u64,
        /// The folder that describes them.
        pool: String,
    },
    /// A size of page that this host does not have.
    #[error("this host has no huge pages of {} (no {pool})", Size(*page))]
    NoSuchPage {
        /// Bytes of one.
        page: u64,
        /// The folder that would describe them.
        pool: String,
    },
    /// The host promises no more than it has, and has promised the rest to others.
    #[error(
        "{} needed, the host may promise {} more (vm.overcommit_memory is 2, see CommitLimit in /proc/meminfo)",
        Size(*needed),
        Size(*left)
    )]
    Commit {
        /// Bytes.
        needed: u64,
        /// Bytes.
        left: u64,
    },
    /// A control group does not let this process have it.
    #[error("{} beside what the VM started with, {limit}", Size(*needed))]
    Group {
        /// Bytes of all that was added and is to be added.
        needed: u64,
        /// What is allowed.
        limit: GroupLimit,
    },
    /// A limit of this process (setrlimit(2)).
    #[error("{} needed{used}, {limit} allows {}", Size(*needed), Size(*most))]
    Limit {
        /// Bytes.
        needed: u64,
        /// What counts beside that.
        used: Used,
        /// How the limit is called, and how a shell calls it.
        limit: &'static str,
        /// Bytes that it allows.
        most: u64,
    },
    /// It ran out while pages were touched.
    #[error("out of memory: {} needed, {} available on the host", Size(*needed), Size(*available))]
    OutOfMemory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
        /// The host's answer.
        source: io::Error,
    },
    /// The host refused for a reason that no limit known here explains.
    #[error(transparent)]
    Other(#[from] io::Error),
}

/// What was asked of the host when it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailedRequest {
    /// To map: addresses, a file, huge pages set aside.
    Mapping,
    /// To find every page now, not at the first access (`memory.prefault`).
    Prefault,
}

/// Bytes that count towards a limit already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used(u64);

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            used => write!(f, " beside {} in use", Size(used)),
        }
    }
}

/// Limits that mapping memory may run into: an error, the limit's line in proc_pid_limits(5), what counts towards it in
/// proc_pid_status(5), and its name. A memfd counts as a file.
const LIMITS: [(libc::c_int, &str, Option<&str>, &str); 3] = [
    (libc::EFBIG, "Max file size", None, "RLIMIT_FSIZE (ulimit -f)"),
    (
        libc::ENOMEM,
        "Max address space",
        Some("VmSize:"),
        "RLIMIT_AS (ulimit -v)",
    ),
    (
        libc::ENOMEM,
        "Max data size",
        Some("VmData:"),
        "RLIMIT_DATA (ulimit -d)",
    ),
];

/// What the host promises, and whether it promises more than it has.
const OVERCOMMIT: &str = "/proc/sys/vm/overcommit_memory";
const MEMINFO: &str = "/proc/meminfo";
const OWN_LIMITS: &str = "/proc/self/limits";
const OWN_STATUS: &str = "/proc/self/status";

/// The counters of a pool of huge pages, in its folder.
const POOL_COUNTERS: [&str; 3] = ["nr_hugepages", "free_hugepages", "resv_hugepages"];

/// How many pages the kernel may add to such a pool, and how many of those there are.
const POOL_SURPLUS: [&str; 2] = ["nr_overcommit_hugepages", "surplus_hugepages"];

/// The host as its files under `root` describe it: `/`, or a folder of a test.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
    /// Files that are read again while the VM runs, by threads that may open none; also those that are not there.
    open: BTreeMap<String, Option<File>>,
}

impl Default for Host {
    fn default() -> Self {
        Self::at("/")
    }
}

impl Host {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            open: BTreeMap::new(),
        }
    }

    /// Keeps open what [`Host::check`] and [`Host::explain`] read for RAM of such pages: where
    /// virtio-mem plugs blocks, seccomp lets no file be opened.
    pub fn keep_open(mut self, pages: Pages) -> Self {
        let mut paths = [OVERCOMMIT, MEMINFO, OWN_LIMITS, OWN_STATUS]
            .map(str::to_owned)
            .to_vec();
        if let Pages::Huge { bytes } = pages {
            paths.extend(POOL_COUNTERS.map(|name| format!("{}/{name}", pool(bytes))));
        }
        let files = paths.into_iter().map(|path| (self.open(&path), path));
        self.open = files.map(|(file, path)| (path, file)).collect();
        self
    }

    /// Refuses what the kernel would let pass now and fail on later: a memfd is promised page by page.
    pub fn check(&self, backing: &Backing, bytes: u64) -> Result<(), HostError> {
        let by_page = matches!((&backing.source, backing.pages), (Source::Shared(_), Pages::Usual));
        match self.commit_left().filter(|left| by_page && bytes > *left) {
            Some(left) => Err(HostError::Commit { needed: bytes, left }),
            None => Ok(()),
        }
    }

    /// Whether `bytes` bytes more of such pages can be had now: nothing is set aside. What this
    /// host does not tell of is left to the kernel.
    pub fn afford(&self, pages: Pages, bytes: u64) -> Result<(), HostError> {
        let Pages::Huge { bytes: page } = pages else {
            return match self.commit_left().filter(|left| bytes > *left) {
                Some(left) => Err(HostError::Commit { needed: bytes, left }),
                None => Ok(()),
            };
        };
        let pool = pool(page);
        let [total, free, promised] = POOL_COUNTERS.map(|name| self.number(&format!("{pool}/{name}")));
        let (Some(total), Some(free)) = (total, free) else {
            return Ok(());
        };
        let free = free.saturating_sub(promised.unwrap_or_default());
        // The kernel adds so many to the pool when they are needed.
        let [most, added] = POOL_SURPLUS.map(|name| self.number(&format!("{pool}/{name}")).unwrap_or_default());
        let needed = bytes.div_ceil(page.max(1));
        if needed <= free.saturating_add(most.saturating_sub(added)) {
            return Ok(());
        }
        Err(HostError::HugePages {
            needed,
            page,
            free,
            total,
            pool,
        })
    }

    /// Whether this process's control groups let a VM have `bytes` bytes in all beside what it
    /// started with. What it started with is not counted: a pod's limit is what its containers may
    /// have, and most guests have more RAM than that and use less.
    pub fn allows(&self, bytes: u64) -> Result<(), HostError> {
        match self.group_limit_below(bytes) {
            Some(limit) => Err(HostError::Group { needed: bytes, limit }),
            None => Ok(()),
        }
    }

    /// Says why the host refused `bytes` bytes with `error`.
    pub fn explain(&self, pages: Pages, bytes: u64, request: FailedRequest, error: io::Error) -> HostError {
        if let Some(limit) = self
            .limit_below(bytes, &error)
            .filter(|_| request == FailedRequest::Mapping)
        {
            return limit;
        }
        if let Pages::Huge { bytes: page } = pages {
            return self.explain_huge(bytes.div_ceil(page), page, error);
        }
        let left = self.commit_left();
        match error.raw_os_error() {
            Some(libc::ENOMEM) if left.is_some() => HostError::Commit {
                needed: bytes,
                left: left.unwrap_or_default(),
            },
            // What populating a mapping says when no page is left (madvise(2)).
            Some(libc::ENOMEM | libc::EFAULT) if request == FailedRequest::Prefault => HostError::OutOfMemory {
                needed: bytes,
                available: self.meminfo("MemAvailable:").unwrap_or_default(),
                source: error,
            },
            _ => error.into(),
        }
    }

    /// The same of what is neither RAM nor promised: a file, or its mapping.
    pub fn explain_file(&self, bytes: u64, error: io::Error) -> HostError {
        self.limit_below(bytes, &error).unwrap_or(HostError::Other(error))
    }

    /// The limit of this process that `bytes` bytes exceed, if `error` may come of it. Its soft limit is what counts.
    fn limit_below(&self, bytes: u64, error: &io::Error) -> Option<HostError> {
        let number = error.raw_os_error()?;
        let mut fitting = LIMITS.into_iter().filter(|(of, ..)| *of == number).peekable();
        fitting.peek()?;
        let limits = self.read(OWN_LIMITS)?;
        let status = self.read(OWN_STATUS).unwrap_or_default();
        fitting.find_map(|(_, line, counts, limit)| {
            let most = procfs::soft_limit(&limits, line)?;
            let used = counts.and_then(|name| meminfo_bytes(&status, name)).unwrap_or_default();
            (used.saturating_add(bytes) > most).then_some(HostError::Limit {
                needed: bytes,
                used: Used(used),
                limit,
                most,
            })
        })
    }

    fn explain_huge(&self, needed: u64, page: u64, error: io::Error) -> HostError {
        let pool = pool(page);
        let [total, free, promised] = POOL_COUNTERS.map(|name| self.number(&format!("{pool}/{name}")));
        let Some(total) = total else {
            return HostError::NoSuchPage { page, pool };
        };
        // What is free may be spoken for.
        let free = free.unwrap_or_default().saturating_sub(promised.unwrap_or_default());
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::EFAULT) => HostError::HugePages {
                needed,
                page,
                free,
                total,
                pool,
            },
            _ => error.into(),
        }
    }

    /// What may still be promised, where the host promises no more than it has (`vm.overcommit_memory=2`).
    fn commit_left(&self) -> Option<u64> {
        if self.number(OVERCOMMIT)? != 2 {
            return None;
        }
        let (limit, promised) = (self.meminfo("CommitLimit:")?, self.meminfo("Committed_AS:")?);
        Some(limit.saturating_sub(promised))
    }

    /// The least of the limits that the control groups of this process set, if it is below `bytes`.
    pub fn group_limit_below(&self, bytes: u64) -> Option<GroupLimit> {
        let groups = self.read("/proc/self/cgroup")?;
        let folders = groups.lines().filter_map(group_folder);
        let limits = folders.flat_map(|(root, group, file)| {
            let up = Path::new(group).ancestors().map(Path::to_owned).collect::<Vec<_>>();
            up.into_iter().filter_map(move |group| {
                let group = group.strip_prefix("/").ok()?.to_owned();
                let path = Path::new(root).join(group).join(file);
                Some(GroupLimit {
                    bytes: self.number(path.to_str()?)?,
                    file: path.to_str()?.into(),
                })
            })
        });
        limits
            .filter(|limit| limit.bytes < bytes)
            .min_by_key(|limit| limit.bytes)
    }

    fn meminfo(&self, name: &str) -> Option<u64> {
        meminfo_bytes(&self.read(MEMINFO)?, name)
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    fn read(&self, path: &str) -> Option<String> {
        match self.open.get(path) {
            Some(file) => read_from_start(file.as_ref()?).ok(),
            None => io::read_to_string(self.open(path)?).ok(),
        }
    }

    fn open(&self, path: &str) -> Option<File> {
        File::open(self.root.join(path.strip_prefix('/')?)).ok()
    }
}

/// The whole of a file of the kernel as it is now: what such a file says is made when its start is read.
pub(crate) fn read_from_start(file: &File) -> io::Result<String> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match file.read_at(&mut chunk, text.len() as u64)? {
            0 => break,
            got => text.extend(chunk.iter().take(got)),
        }
    }
    String::from_utf8(text).map_err(io::Error::other)
}

/// The folder that describes huge pages of `bytes` bytes.
fn pool(bytes: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", bytes >> 10)
}

/// Root, group and the limit's file of a line of `/proc/self/cgroup` (cgroups(7)), if it limits memory.
fn group_folder(line: &str) -> Option<(&'static str, &str, &'static str)> {
    let (controllers, group) = procfs::control_group(line)?;
    match controllers {
        "" => Some(("/sys/fs/cgroup", group, "memory.max")),
        _ if controllers.split(',').any(|name| name == "memory") => {
            Some(("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"))
        }
        _ => None,
    }
}

/// A limit of a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    bytes: u64,
    file: String,
}

impl fmt::Display for GroupLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the control group allows {} bytes ({})", self.bytes, self.file)
    }
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
