//! One node that the guest knows.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use husk_devices::lock;

use super::Key;
use crate::fs::filesystem::Node;
use crate::fs::tree::attributes::Kind;
use crate::fs::tree::descriptors::CountedFd;
use crate::fs::tree::place::{NameInDir, Place};

/// A node.
pub(in crate::fs::tree) struct Inode {
    pub(super) number: u64,
    pub(super) key: Key,
    /// Entries that were given away and not taken back.
    pub(super) lookups: AtomicU64,
    place: Mutex<Place>,
    /// Open files and directories of it.
    opens: AtomicU32,
    /// Somebody has locked it since it was last open.
    locked: AtomicBool,
    /// Its descriptor was used since somebody looked.
    pub(super) recent: AtomicBool,
    /// Of a directory: the name that was looked up last was that of a new node.
    new_last: AtomicBool,
    /// What it is; none for a directory that is on another device than the one that it is in.
    kind: Option<Kind>,
}

impl Inode {
    /// What `fd` holds, given once.
    pub(super) fn new(
        number: u64,
        key: Key,
        kind: Kind,
        crosses: bool,
        fd: CountedFd,
        seen: Option<NameInDir<'_>>,
    ) -> Self {
        Self {
            number,
            key,
            lookups: AtomicU64::new(1),
            place: Mutex::new(Place::of(fd, seen)),
            opens: AtomicU32::new(0),
            locked: AtomicBool::new(false),
            recent: AtomicBool::new(false),
            new_last: AtomicBool::new(false),
            kind: (!crosses).then_some(kind),
        }
    }

    /// As the guest knows it.
    pub fn node(&self) -> Node {
        Node(self.number)
    }

    /// What it is on the host.
    pub fn key(&self) -> Key {
        self.key
    }

    /// What it is. That never changes.
    pub fn kind(&self) -> Kind {
        self.kind.unwrap_or(Kind::Directory)
    }

    /// Whether a file system begins with it that has inode numbers of its own, which need be no
    /// mount: a subvolume of btrfs.
    pub fn crosses(&self) -> bool {
        self.kind.is_none()
    }

    /// It was opened.
    pub fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// It was closed.
    pub fn closed(&self) {
        self.opens.fetch_sub(1, Ordering::SeqCst);
    }

    /// It may be locked now.
    pub fn note_lock(&self) {
        self.locked.store(true, Ordering::SeqCst);
    }

    /// Whether it may be locked.
    pub fn has_locks(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    /// Whether nobody has it open any more, but there may be locks: said once.
    pub fn leaves_locks(&self) -> bool {
        self.opens.load(Ordering::SeqCst) == 0 && self.locked.swap(false, Ordering::SeqCst)
    }

    /// Whether it was given away once only. That may be wrong a moment later.
    pub fn is_new(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) == 1
    }

    /// A name in this directory was looked up and led to a `new` node, or to one that the guest knew.
    pub fn note_new(&self, new: bool) {
        if self.gave_new() != new {
            self.new_last.store(new, Ordering::Relaxed);
        }
    }

    /// What was noted last.
    pub fn gave_new(&self) -> bool {
        self.new_last.load(Ordering::Relaxed)
    }

    pub(super) fn place(&self) -> MutexGuard<'_, Place> {
        lock(&self.place)
    }

    pub(super) fn is_open(&self) -> bool {
        self.opens.load(Ordering::SeqCst) > 0
    }

    pub(super) fn count(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }
}
