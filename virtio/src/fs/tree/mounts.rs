//! The mounts on which nodes are kept by file handle alone.
//!
//! `open_by_handle_at(2)` wants a descriptor of something on the file system, which keeps the mount
//! from being unmounted. So there is one only while a node needs it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use husk_devices::lock;

use super::attributes::Kind;
use super::descriptors::{CountedFd, FdBudget, Use};
use super::host::FileHandle;
use super::proc::ProcFds;

/// A mount that handles are opened on.
pub(super) struct Mount(CountedFd);

impl Mount {
    /// Something on it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// By the number of the mount.
pub(super) struct Mounts {
    table: Mutex<HashMap<u32, Known>>,
    proc: ProcFds,
    budget: Arc<FdBudget>,
}

struct Known {
    /// `None`: its file system has no handles, or the process may not open them.
    mount: Option<Arc<Mount>>,
    /// Nodes that need it.
    nodes: usize,
}

/// Most mounts that are remembered for having no handles.
const MOST_WITHOUT: usize = 1024;

impl Mounts {
    /// None yet.
    pub fn new(proc: ProcFds, budget: Arc<FdBudget>) -> Self {
        let table = Mutex::default();
        Self { table, proc, budget }
    }

    /// The handle of the node that `fd` holds, if it can be opened again by it; counted until [`Mounts::release`].
    pub fn handle(&self, mount: u32, kind: Kind, fd: &CountedFd) -> Option<FileHandle> {
        let mut table = lock(&self.table);
        if !table.contains_key(&mount) {
            // A special file must not be opened: one of the others on the mount will do.
            if !kind.can_be_opened() {
                return None;
            }
            let opened = self.probe(fd);
            if opened.is_none() && table.len() >= MOST_WITHOUT {
                return None;
            }
            table.insert(
                mount,
                Known {
                    mount: opened,
                    nodes: 0,
                },
            );
        }
        let known = table.get_mut(&mount)?;
        known.mount.as_ref()?;
        let handle = FileHandle::of(fd).ok()?;
        known.nodes = known.nodes.saturating_add(1);
        Some(handle)
    }

    /// What handles of that mount are opened with.
    pub fn get(&self, mount: u32) -> Option<Arc<Mount>> {
        lock(&self.table).get(&mount)?.mount.clone()
    }

    /// How many descriptors there are.
    #[cfg(test)]
    pub fn open(&self) -> usize {
        lock(&self.table).values().filter(|known| known.mount.is_some()).count()
    }

    /// A node with a handle went.
    pub fn release(&self, mount: u32) {
        let mut table = lock(&self.table);
        if let Some(known) = table.get_mut(&mount) {
            known.nodes = known.nodes.saturating_sub(1);
            if known.nodes == 0 {
                table.remove(&mount);
            }
        }
    }

    /// Opens what `fd` holds for handles, and sees whether they work.
    fn probe(&self, fd: &CountedFd) -> Option<Arc<Mount>> {
        let handle = FileHandle::of(fd).ok()?;
        let open = || self.proc.reopen(fd, rustix::fs::OFlags::RDONLY);
        let mount = self.budget.take(Use::File, open).ok()?;
        let again: OwnedFd = handle.open(mount.as_fd(), libc::O_PATH | libc::O_NOFOLLOW).ok()?;
        let same = super::attributes::key_of(&again).ok()? == super::attributes::key_of(fd).ok()?;
        same.then(|| Arc::new(Mount(mount)))
    }
}
