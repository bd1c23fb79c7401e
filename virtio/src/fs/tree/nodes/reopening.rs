//! Descriptors of nodes: given up when there are too many, and opened again when they are needed.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{Inode, Nodes};
use crate::fs::filesystem::Node;
use crate::fs::tree::attributes::{self, Kind};
use crate::fs::tree::descriptors::{CountedFd, ParkResult, Use};
use crate::fs::tree::names;
use crate::fs::tree::place::NodeIdentity;

/// Directories that are opened again one below the other to reach one node. There may be no end to
/// them: what a node was seen in is what it was, and directories move.
const MOST_LEVELS: usize = 4096;

impl Nodes {
    /// A descriptor of the node, opened again if it was closed.
    ///
    /// # Errors
    /// `ESTALE` if it is not there any more, `ENFILE` if there are too many descriptors.
    pub fn descriptor(&self, inode: &Arc<Inode>) -> Result<Arc<CountedFd>, Errno> {
        match self.at_hand(inode) {
            Some(fd) => Ok(fd),
            None => self.open_again(inode),
        }
    }

    /// The descriptor that the node has.
    pub(super) fn at_hand(&self, inode: &Inode) -> Option<Arc<CountedFd>> {
        let place = inode.place();
        let fd = place.fd.as_ref()?;
        if !inode.recent.load(Ordering::Relaxed) {
            inode.recent.store(true, Ordering::Relaxed);
        }
        Some(fd.clone())
    }

    /// Opens the node by the best way that there is.
    fn open_again(&self, inode: &Arc<Inode>) -> Result<Arc<CountedFd>, Errno> {
        // What a handle opens may be nowhere, for all the kernel knows, unless it is a directory.
        // Landlock would not let it be read.
        let name_first = inode.kind() != Kind::Directory && self.restricted.load(Ordering::Relaxed);
        if !name_first && let Some(fd) = self.open_by_handle(inode) {
            return self.keep(inode, fd?);
        }
        match self.open_from_above(inode) {
            Err(Errno::STALE) if name_first => match self.open_by_handle(inode) {
                Some(fd) => self.keep(inode, fd?),
                None => Err(Errno::STALE),
            },
            opened => opened,
        }
    }

    /// Whether a handle may have opened `fd` where Landlock holds the threads: it is no good for
    /// opening what it holds then. As long as the node had it a look-up of its name would bring no
    /// better one, so that it is taken from it.
    pub fn drop_handle_fd(&self, inode: &Inode, fd: &Arc<CountedFd>) -> bool {
        let mut place = inode.place();
        if !self.restricted.load(Ordering::Relaxed) || place.handle().is_none() {
            return false;
        }
        if place.fd.as_ref().is_some_and(|held| Arc::ptr_eq(held, fd)) {
            place.fd = None;
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// Opens the node by name, and the directories above it that it takes.
    fn open_from_above(&self, inode: &Arc<Inode>) -> Result<Arc<CountedFd>, Errno> {
        let mut closed = vec![inode.clone()];
        // Up, to the first that can be had without the one above it.
        let mut found = loop {
            let lowest = closed.last().ok_or(Errno::STALE)?;
            let above = lowest.place().parent().ok_or(Errno::BADF)?;
            let above = self.get(above).map_err(|_| Errno::STALE)?;
            if let Some(fd) = self.at_hand(&above) {
                break fd;
            }
            if let Some(fd) = self.open_by_handle(&above) {
                break self.keep(&above, fd?)?;
            }
            if closed.len() >= MOST_LEVELS {
                return Err(Errno::STALE);
            }
            closed.push(above);
        };
        // And down again.
        while let Some(inode) = closed.pop() {
            let fd = self.open_by_name(&inode, &found)?;
            found = self.keep(&inode, fd)?;
        }
        Ok(found)
    }

    /// Opens the node by its handle; `None` if that is no way to this one.
    fn open_by_handle(&self, inode: &Inode) -> Option<Result<CountedFd, Errno>> {
        let place = inode.place();
        let handle = place.handle()?;
        let open = |mount: BorrowedFd<'_>| handle.open(mount, libc::O_PATH | libc::O_NOFOLLOW);
        Some(match self.mounts.get(inode.key.mount) {
            Some(mount) => self.budget.take(Use::Node, || open(mount.fd())),
            None => Err(Errno::STALE),
        })
    }

    /// Opens the node by the name that it was last seen under in `dir`, if it is there still.
    fn open_by_name(&self, inode: &Inode, dir: &CountedFd) -> Result<CountedFd, Errno> {
        let name = inode.place().name().ok_or(Errno::BADF)?;
        let opened = self.budget.take(Use::Node, || names::open(dir, &name));
        let fd = opened.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Errno::STALE,
            error => error,
        })?;
        let place = inode.place();
        let same = place.mark.as_ref().is_some_and(|mark| mark.is_of(&fd));
        if same && attributes::key_of(&fd)? == inode.key {
            Ok(fd)
        } else {
            Err(Errno::STALE)
        }
    }

    /// `inode` has a descriptor again, if nobody else opened it meanwhile.
    pub(super) fn keep(&self, inode: &Arc<Inode>, fd: CountedFd) -> Result<Arc<CountedFd>, Errno> {
        let fd = {
            let mut place = inode.place();
            // Taken out of its table while the caller had it.
            place.mark.as_ref().ok_or(Errno::BADF)?;
            if let Some(fd) = &place.fd {
                return Ok(fd.clone());
            }
            place.fd.insert(Arc::new(fd)).clone()
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        self.reopened.fetch_add(1, Ordering::Relaxed);
        self.note_open(inode);
        Ok(fd)
    }

    /// `inode`, which the caller has opened by `fd`, is to be found without its name from now on:
    /// it has that descriptor, if it was parked before it counted as open and no handle leads to
    /// it.
    pub fn hold(&self, inode: &Arc<Inode>, fd: &Arc<CountedFd>) {
        {
            let place = inode.place();
            // One without a mark was taken out of its table.
            if place.fd.is_some() || place.mark.is_none() || place.handle().is_some() {
                return;
            }
        }
        self.give(inode, fd);
    }

    /// `inode` has the descriptor `fd`, if it was parked.
    pub fn give(&self, inode: &Arc<Inode>, fd: &Arc<CountedFd>) {
        {
            let mut place = inode.place();
            if place.fd.is_some() || place.mark.is_none() {
                return;
            }
            place.fd = Some(fd.clone());
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        self.note_open(inode);
    }

    /// Whether there is a node without a descriptor; which may be wrong a moment later.
    pub fn any_parked(&self) -> bool {
        self.open.load(Ordering::Relaxed) < self.count.load(Ordering::Relaxed)
    }

    /// `inode` got a descriptor: others may have to close theirs.
    pub(super) fn note_open(&self, inode: &Arc<Inode>) {
        self.oldest.add(inode.number, |number, last| {
            let Ok(oldest) = self.get(Node(number)) else {
                return ParkResult::Gone;
            };
            if oldest.recent.swap(false, Ordering::Relaxed) && !last {
                return ParkResult::Stays;
            }
            self.park(&oldest)
        });
    }

    /// Closes the descriptor of `inode`, if it can be opened again.
    fn park(&self, inode: &Inode) -> ParkResult {
        let mut place = inode.place();
        let Some(fd) = place.fd.clone() else {
            return ParkResult::Gone;
        };
        // Without a name it would be gone.
        if !attributes::has_name(&*fd) {
            return ParkResult::Gone;
        }
        if place.handle().is_none() {
            let mark = match self.mounts.handle(inode.key.mount, inode.kind(), &fd) {
                Some(handle) => Some(NodeIdentity::Handle(handle)),
                // A file that is open may lose its name, and is there all the same.
                None if inode.is_open() => return ParkResult::Stays,
                None if place.has_name() => NodeIdentity::of(&*fd),
                None => None,
            };
            if mark.is_none() {
                return ParkResult::Gone;
            }
            place.mark = mark;
        }
        place.fd = None;
        self.open.fetch_sub(1, Ordering::Relaxed);
        ParkResult::Gone
    }
}
