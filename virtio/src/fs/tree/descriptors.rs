//! How many descriptors there may be: of the process, so that it never runs out, and of nodes, so
//! that the oldest are closed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use husk_devices::lock;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

/// What shares may have open at a time, together. The rest is left to the process.
#[derive(Debug)]
pub(super) struct FdBudget {
    open: AtomicUsize,
    limit: usize,
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A node: may take three quarters of all, so that files can still be opened.
    Node,
    /// An open file, a lock or a moment's work.
    File,
}

impl FdBudget {
    /// That of this process.
    pub fn of_process() -> Arc<Self> {
        static OF_PROCESS: OnceLock<Arc<FdBudget>> = OnceLock::new();
        let budget = OF_PROCESS.get_or_init(|| {
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            Self::new(part_of(limit))
        });
        budget.clone()
    }

    /// At most `limit` descriptors.
    pub fn new(limit: usize) -> Arc<Self> {
        let open = AtomicUsize::new(0);
        Arc::new(Self { open, limit })
    }

    /// How many there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many there are.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Has `open` open one, if there may be one more.
    ///
    /// # Errors
    /// `ENFILE` if not; what `open` says.
    pub fn take(
        self: &Arc<Self>,
        purpose: Use,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<CountedFd, Errno> {
        let most = match purpose {
            Use::Node => self.limit.saturating_sub(self.limit / 4),
            Use::File => self.limit,
        };
        // Counted before it is there: dropped with `held` if it never will be.
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let mut held = CountedFd {
            fd: None,
            budget: self.clone(),
        };
        if before >= most {
            return Err(Errno::NFILE);
        }
        held.fd = Some(open()?);
        Ok(held)
    }
}

/// What of the process's `limit` shares may have: all but a quarter or 1024, and so much less, down
/// to a half, that 256 are left for the rest. A server with all its queues in use takes 150, of
/// which the front-end sends some anew with each reset.
fn part_of(limit: usize) -> usize {
    let rest = (limit / 4).min(1024).max((limit / 2).min(256));
    limit.saturating_sub(rest)
}

/// A descriptor that counts.
#[derive(Debug)]
pub(super) struct CountedFd {
    /// `None` only while it is being opened.
    fd: Option<OwnedFd>,
    budget: Arc<FdBudget>,
}

impl AsFd for CountedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is there once it was opened").as_fd()
    }
}

impl Drop for CountedFd {
    fn drop(&mut self) {
        self.budget.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Has the process's table hold `count` descriptors, with the help of any that is open. The kernel
/// doubles it when it is full, and with several threads waits each time until no processor looks at
/// the old one. Where the host refuses, it does so again.
pub(super) fn reserve_fds(any: impl AsFd, count: usize) {
    if let Some(last) = count.checked_sub(1).and_then(|last| i32::try_from(last).ok()) {
        drop(fcntl_dupfd_cloexec(any, last));
    }
}

/// The nodes whose descriptors may be closed, oldest first. A node that was used since it came to
/// the front goes to the end instead.
pub(super) struct FdLru {
    nodes: Mutex<VecDeque<u64>>,
    most: usize,
}

/// What [`FdLru::add`] is told of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParkResult {
    /// Its descriptor was closed, cannot be, or is not there.
    Gone,
    /// It was used lately, or is in use.
    Stays,
}

/// How many nodes are looked at to close one.
const LOOKS: usize = 32;

impl FdLru {
    /// At most `most` nodes with descriptors that can be closed.
    pub fn new(most: usize) -> Self {
        let nodes = Mutex::default();
        Self { nodes, most }
    }

    /// How many may have one.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Notes that `node` got a descriptor, and has `close` decide about the oldest of those that
    /// are too many. No lock is held then.
    pub fn add(&self, node: u64, mut close: impl FnMut(u64, bool) -> ParkResult) {
        lock(&self.nodes).push_back(node);
        for look in 0..LOOKS {
            let oldest = {
                let mut nodes = lock(&self.nodes);
                if nodes.len() <= self.most {
                    return;
                }
                nodes.pop_front()
            };
            let Some(oldest) = oldest else { return };
            let last = look.saturating_add(1) == LOOKS;
            if close(oldest, last) == ParkResult::Stays {
                lock(&self.nodes).push_back(oldest);
            }
        }
    }

    /// None any more.
    pub fn clear(&self) {
        lock(&self.nodes).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_leave_the_process_what_it_needs_itself() {
        for (limit, part) in [
            (0, 0),
            (64, 32),
            (256, 128),
            (512, 256),
            (1024, 768),
            (4096, 3072),
            (8192, 7168),
            (1 << 20, (1 << 20) - 1024),
        ] {
            assert_eq!(part_of(limit), part, "{limit}");
        }
    }
}
