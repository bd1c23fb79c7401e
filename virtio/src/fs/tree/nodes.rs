//! The nodes that the guest knows.
//!
//! | a node has | then |
//! |---|---|
//! | a descriptor (`O_PATH`) | its device and inode number are its own: the host cannot give them to another |
//! | none | it is opened again when it is needed, by file handle or by name, and is `ESTALE` if it is not there any more |
//!
//! A number is never given twice, so that two nodes of one inode number are two to the guest as well.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use husk_devices::{lock, read, write};
use rustix::io::Errno;

use super::attributes::{self, Kind};
use super::descriptors::{self, CountedFd, FdBudget, FdLru, ParkResult, Use};
use super::mounts::Mounts;
use super::names;
use super::place::{NameInDir, NodeIdentity, Place};
use crate::fs::filesystem::Node;

/// Tables that nodes are spread over, so that threads seldom meet.
const SHARDS: u64 = 16;
/// Bits of a node's number that say which of them it is in.
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
/// Bits of a node's number that say where in it. Above them is a count, which begins with 1.
const SLOT_BITS: u32 = 28;

/// A table of fewer nodes does not shrink.
const MANY: usize = 1024;
/// Directories that are opened again one below the other to reach one node. There may be no end to them: what a node was seen in is what it
/// was, and directories move.
const MOST_LEVELS: usize = 4096;

/// What tells nodes of the host apart, as long as they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The device, as the kernel has it: 12 bits of major, 20 of minor number.
    pub dev: u32,
    /// Of the mount that it was reached through.
    pub mount: u32,
    pub ino: u64,
}

/// A node.
pub(super) struct Inode {
    number: u64,
    key: Key,
    /// Entries that were given away and not taken back.
    lookups: AtomicU64,
    place: Mutex<Place>,
    /// Open files and directories of it.
    opens: AtomicU32,
    /// Somebody has locked it since it was last open.
    locked: AtomicBool,
    /// Its descriptor was used since somebody looked.
    recent: AtomicBool,
    /// Of a directory: the name that was looked up last was that of a new node.
    new_last: AtomicBool,
    /// What it is; none for a directory that is on another device than the one that it is in.
    kind: Option<Kind>,
}

impl Inode {
    /// What `fd` holds, given once.
    fn new(number: u64, key: Key, kind: Kind, crosses: bool, fd: CountedFd, seen: Option<NameInDir<'_>>) -> Self {
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

    /// Whether a file system begins with it that has inode numbers of its own, which need be no mount: a subvolume of btrfs.
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

    fn place(&self) -> MutexGuard<'_, Place> {
        lock(&self.place)
    }

    fn is_open(&self) -> bool {
        self.opens.load(Ordering::SeqCst) > 0
    }

    fn count(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }
}

/// All of them.
pub(super) struct Nodes {
    root: Arc<Inode>,
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
    count: AtomicUsize,
    most: usize,
    budget: Arc<FdBudget>,
    oldest: FdLru,
    mounts: Mounts,
    reopened: AtomicU64,
    /// Descriptors of nodes.
    open: AtomicUsize,
    /// Landlock holds the threads that serve.
    restricted: AtomicBool,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Option<Arc<Inode>>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// How many there have been.
    given: u32,
}

impl Shard {
    fn at(&self, slot: u32) -> Option<&Arc<Inode>> {
        self.slots.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    fn by_key(&self, key: &Key) -> Option<&Arc<Inode>> {
        self.at(*self.by_key.get(key)?)
    }

    /// Gives memory back when most of what there was is forgotten.
    fn give_back(&mut self) {
        if self.free.len() == self.slots.len() {
            let given = self.given;
            *self = Self {
                given,
                ..Self::default()
            };
        } else if self.by_key.capacity() > MANY && self.by_key.len() < self.by_key.capacity() / 8 {
            self.by_key.shrink_to(self.by_key.len().saturating_mul(2));
        }
    }
}

impl Nodes {
    /// The root alone.
    pub fn new(
        root: CountedFd,
        key: Key,
        mounts: Mounts,
        budget: Arc<FdBudget>,
        most: usize,
        most_open: usize,
    ) -> Self {
        let most_open = most_open.min(budget.limit() / 2).max(1);
        Self {
            root: Arc::new(Inode::new(Node::ROOT.0, key, Kind::Directory, false, root, None)),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(1),
            most,
            budget,
            oldest: FdLru::new(most_open),
            mounts,
            reopened: AtomicU64::new(0),
            open: AtomicUsize::new(1),
            restricted: AtomicBool::new(false),
        }
    }

    /// Has the process's table of descriptors hold those of all nodes that may have one.
    pub fn reserve_fds(&self) {
        if let Some(fd) = self.at_hand(&self.root) {
            descriptors::reserve_fds(&*fd, self.oldest.most());
        }
    }

    /// From now on Landlock holds the threads that serve.
    pub fn note_restricted(&self) {
        self.restricted.store(true, Ordering::Relaxed);
    }

    /// The node of that number.
    ///
    /// # Errors
    /// `EBADF` if it was never given, or was taken back.
    pub fn get(&self, node: Node) -> Result<Arc<Inode>, Errno> {
        if node == Node::ROOT {
            return Ok(self.root.clone());
        }
        let (shard, slot) = self.find(node.0).ok_or(Errno::BADF)?;
        let shard = read(shard);
        let found = shard.at(slot).filter(|inode| inode.number == node.0);
        found.cloned().ok_or(Errno::BADF)
    }

    /// The share itself.
    pub fn root(&self) -> Arc<Inode> {
        self.root.clone()
    }

    /// The node with `key`, if it is known beyond doubt, counted as given once more.
    pub fn known(&self, key: &Key, seen: NameInDir<'_>) -> Option<Arc<Inode>> {
        let (_, shard) = self.shard_of(key);
        let shard = read(shard);
        let inode = shard.by_key(key)?;
        let mut place = inode.place();
        // One without a descriptor may be gone, and its number another's.
        place.fd.as_ref()?;
        place.see(seen);
        drop(place);
        inode.count();
        Some(inode.clone())
    }

    /// Whether there is a node with `key` that has a descriptor; which may be wrong a moment later.
    pub fn seems_known(&self, key: &Key) -> bool {
        let (_, shard) = self.shard_of(key);
        let shard = read(shard);
        shard.by_key(key).is_some_and(|inode| inode.place().fd.is_some())
    }

    /// The node with `key` under its name of now, with a descriptor, if the guest knows it; which may be wrong a moment later.
    pub fn on_the_move(&self, key: &Key) -> Option<(Arc<Inode>, Arc<CountedFd>)> {
        let (_, shard) = self.shard_of(key);
        let inode = read(shard).by_key(key)?.clone();
        let fd = self.descriptor(&inode).ok()?;
        Some((inode, fd))
    }

    /// `inode` has this name now.
    pub fn moved(&self, inode: &Inode, seen: NameInDir<'_>) {
        inode.place().see(seen);
    }

    /// Opens a node for [`Nodes::add`].
    pub fn open(&self, open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<CountedFd, Errno> {
        self.budget.take(Use::Node, open)
    }

    /// The node that `fd` holds, new or known, counted as given once more.
    ///
    /// # Errors
    /// `ENFILE` when there are too many.
    pub fn add(&self, key: Key, kind: Kind, fd: CountedFd, seen: Option<NameInDir<'_>>) -> Result<Arc<Inode>, Errno> {
        let crosses = kind == Kind::Directory && self.crosses(&key, seen);
        let (index, shard) = self.shard_of(&key);
        let mut shard = write(shard);
        if let Some(inode) = shard.by_key(&key) {
            let mut place = inode.place();
            let was_open = place.fd.is_some();
            if was_open || place.mark.as_ref().is_some_and(|mark| mark.is_of(&fd)) {
                seen.into_iter().for_each(|seen| place.see(seen));
                inode.count();
                if was_open {
                    return Ok(inode.clone());
                }
                place.fd = Some(Arc::new(fd));
                self.open.fetch_add(1, Ordering::Relaxed);
                drop(place);
                let inode = inode.clone();
                drop(shard);
                self.note_open(&inode);
                return Ok(inode);
            }
            // Removed on the host, and its number given to this one. It stays as what it was, until it is forgotten.
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::NFILE);
        }
        let new = |number| Inode::new(number, key, kind, crosses, fd, seen);
        let inode = self.insert(&mut shard, index, key, new).inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::Relaxed);
        })?;
        drop(shard);
        self.note_open(&inode);
        Ok(inode)
    }

    /// Whether what has `key` is on another device than the directory that it was seen in. A directory is in no other of those that it might
    /// be moved to.
    fn crosses(&self, key: &Key, seen: Option<NameInDir<'_>>) -> bool {
        let above = seen.and_then(|seen| self.get(seen.parent).ok());
        above.is_some_and(|above| above.key.dev != key.dev)
    }

    fn insert(
        &self,
        shard: &mut Shard,
        index: u64,
        key: Key,
        new: impl FnOnce(u64) -> Inode,
    ) -> Result<Arc<Inode>, Errno> {
        let slot = match shard.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(shard.slots.len()).map_err(|_| Errno::NFILE)?;
                if slot >> SLOT_BITS != 0 {
                    return Err(Errno::NFILE);
                }
                shard.slots.push(None);
                slot
            }
        };
        shard.given = shard.given.checked_add(1).unwrap_or(1);
        let number = u64::from(shard.given) << (SHARD_BITS + SLOT_BITS) | u64::from(slot) << SHARD_BITS | index;
        let inode = Arc::new(new(number));
        if let Some(free) = usize::try_from(slot).ok().and_then(|slot| shard.slots.get_mut(slot)) {
            *free = Some(inode.clone());
        }
        shard.by_key.insert(key, slot);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(inode)
    }

    /// Takes `count` look-ups back; with the last one the node goes.
    pub fn forget(&self, node: Node, count: u64) {
        let Some((shard, slot)) = self.find(node.0) else { return };
        let left = {
            let shard = read(shard);
            let Some(inode) = shard.at(slot).filter(|inode| inode.number == node.0) else {
                return;
            };
            let fewer = |lookups: u64| Some(lookups.saturating_sub(count));
            let before = inode.lookups.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
            before.unwrap_or(0).saturating_sub(count)
        };
        if left > 0 {
            return;
        }
        let mut shard = write(shard);
        // Somebody may have been given it meanwhile, or have taken it out.
        let gone = |inode: &&Arc<Inode>| inode.number == node.0 && inode.lookups.load(Ordering::Relaxed) == 0;
        let Some(inode) = shard.at(slot).filter(gone).cloned() else {
            return;
        };
        if let Some(entry) = usize::try_from(slot).ok().and_then(|slot| shard.slots.get_mut(slot)) {
            *entry = None;
        }
        shard.free.push(slot);
        if shard.by_key.get(&inode.key) == Some(&slot) {
            shard.by_key.remove(&inode.key);
        }
        shard.give_back();
        drop(shard);
        self.retire(&inode);
    }

    /// All but the root.
    pub fn reset(&self) {
        for shard in &self.shards {
            let shard = {
                let mut shard = write(shard);
                let given = shard.given;
                std::mem::replace(
                    &mut *shard,
                    Shard {
                        given,
                        ..Shard::default()
                    },
                )
            };
            for inode in shard.slots.iter().flatten() {
                self.retire(inode);
            }
        }
        self.oldest.clear();
    }

    /// A node was taken out of its table.
    fn retire(&self, inode: &Inode) {
        let mut place = inode.place();
        if place.fd.take().is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        if place.leave() {
            self.mounts.release(inode.key.mount);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

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
    fn at_hand(&self, inode: &Inode) -> Option<Arc<CountedFd>> {
        let place = inode.place();
        let fd = place.fd.as_ref()?;
        if !inode.recent.load(Ordering::Relaxed) {
            inode.recent.store(true, Ordering::Relaxed);
        }
        Some(fd.clone())
    }

    /// Opens the node by the best way that there is.
    fn open_again(&self, inode: &Arc<Inode>) -> Result<Arc<CountedFd>, Errno> {
        // What a handle opens may be nowhere, for all the kernel knows, unless it is a directory. Landlock would not let it be read.
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

    /// Whether a handle may have opened `fd` where Landlock holds the threads: it is no good for opening what it holds then. As long as the node
    /// had it a look-up of its name would bring no better one, so that it is taken from it.
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
    fn keep(&self, inode: &Arc<Inode>, fd: CountedFd) -> Result<Arc<CountedFd>, Errno> {
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

    /// `inode`, which the caller has opened by `fd`, is to be found without its name from now on: it has that descriptor, if it was parked
    /// before it counted as open and no handle leads to it.
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
    fn note_open(&self, inode: &Arc<Inode>) {
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

    /// What `vm.counters` shows.
    pub fn counters(&self) -> [(&'static str, u64); 3] {
        let number = |count: &AtomicUsize| u64::try_from(count.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
        [
            ("nodes", number(&self.count)),
            ("node_descriptors", number(&self.open)),
            ("nodes_reopened", self.reopened.load(Ordering::Relaxed)),
        ]
    }

    /// Descriptors of mounts.
    #[cfg(test)]
    pub fn mounts_open(&self) -> usize {
        self.mounts.open()
    }

    fn shard_of(&self, key: &Key) -> (u64, &RwLock<Shard>) {
        let index = self.hasher.hash_one(key) % SHARDS;
        let shard = usize::try_from(index).ok().and_then(|index| self.shards.get(index));
        (index, shard.expect("an index below their number"))
    }

    /// The table that a number is in, and where.
    fn find(&self, number: u64) -> Option<(&RwLock<Shard>, u32)> {
        if number >> (SHARD_BITS + SLOT_BITS) == 0 {
            return None;
        }
        let shard = usize::try_from(number % SHARDS).ok()?;
        let slot = u32::try_from(number >> SHARD_BITS & ((1 << SLOT_BITS) - 1)).ok()?;
        Some((self.shards.get(shard)?, slot))
    }
}
