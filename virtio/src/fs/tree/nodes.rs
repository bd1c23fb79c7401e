//! The nodes that the guest knows.
//!
//! | a node has | then |
//! |---|---|
//! | a descriptor (`O_PATH`) | its device and inode number are its own: the host cannot give them to another |
//! | none | it is opened again when needed, by file handle or by name, and is `ESTALE` if it is not there any more |
//!
//! A number is never given twice, so that two nodes of one inode number are two to the guest as well.

mod inode;
mod reopening;

pub(super) use inode::Inode;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use husk_devices::{read, write};
use rustix::io::Errno;

use super::attributes::Kind;
use super::descriptors::{self, CountedFd, FdBudget, FdLru, Use};
use super::mounts::Mounts;
use super::place::NameInDir;
use crate::fs::filesystem::Node;

/// Tables that nodes are spread over, so that threads seldom meet.
const SHARDS: u64 = 16;
/// Bits of a node's number that say which of them it is in.
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
/// Bits of a node's number that say where in it. Above them is a count, which begins with 1.
const SLOT_BITS: u32 = 28;

/// A table of fewer nodes does not shrink.
const MANY: usize = 1024;

/// What tells nodes of the host apart, as long as they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The device, as the kernel has it: 12 bits of major, 20 of minor number.
    pub dev: u32,
    /// Of the mount that it was reached through.
    pub mount: u32,
    pub ino: u64,
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

    /// The node with `key` under its name of now, with a descriptor, if the guest knows it; which
    /// may be wrong a moment later.
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

    /// Whether what has `key` is on another device than the directory that it was seen in. A
    /// directory is in no other of those that it might be moved to.
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
