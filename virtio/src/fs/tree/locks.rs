//! Locks of the guest as locks of the host, so that both see each other's.
//!
//! Each owner has an open file description of his own for each file that he locks
//! (fcntl_locking(2), flock(2)): the host tells two guests' owners apart as it does two processes.
//! What an owner holds is noted here as well: for its number, which the host does not bound, and
//! for who is in the way of whom, which the host knows only as "the server".

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::Tree;
use super::descriptors::{CountedFd, Use};
use super::handles::OpenFile;
use super::host::{Range, find_lock, set_lock};
use super::spans::{Span, checked, with};
use super::wait_graph::WantedLock;
use crate::fs::filesystem::{Handle, Lock, LockKind, Locked, Node, Waiter};

/// Whose locks, of which file, of which kind. Ordered so that those of a file are side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    node: Node,
    whole_file: bool,
    owner: u64,
}

impl Holder {
    /// Everybody who may have locks of ranges of a file.
    fn of_ranges(node: Node) -> std::ops::RangeInclusive<Self> {
        let of = |owner| Self {
            node,
            whole_file: false,
            owner,
        };
        of(0)..=of(u64::MAX)
    }

    /// Everybody who may have locks of a file.
    fn of_node(node: Node) -> std::ops::RangeInclusive<Self> {
        let last = Self {
            node,
            whole_file: true,
            owner: u64::MAX,
        };
        *Self::of_ranges(node).start()..=last
    }
}

/// An owner's locks of one file.
struct Owned {
    file: CountedFd,
    /// It is open for writing, which locks of ranges take that exclude others.
    writes: bool,
    /// By which the last of them was taken. An owner who is an open file of the guest
    /// (`F_OFD_SETLK` of fcntl(2)) goes with it.
    handle: Handle,
    pid: u32,
    spans: Vec<Span>,
    /// Taken out of the table: who still has it must look there again.
    gone: bool,
}

/// All of them.
pub(super) struct Locks {
    table: Mutex<BTreeMap<Holder, Arc<Mutex<Owned>>>>,
    generation: AtomicU64,
    /// Of all owners.
    count: AtomicUsize,
    most: usize,
}

impl Locks {
    /// None yet, and at most `most`.
    pub fn new(most: usize) -> Self {
        Self {
            table: Mutex::default(),
            generation: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            most,
        }
    }

    /// Changes whenever a lock goes.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        u64::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// The owner's locks of `node` go: all of one kind.
    pub fn drop_owner(&self, node: Node, owner: u64, whole_file: bool) {
        let holder = Holder {
            node,
            owner,
            whole_file,
        };
        let Some(owned) = lock(&self.table).remove(&holder) else {
            return;
        };
        self.let_go(&holder, &mut lock(&owned));
    }

    /// The locks of ranges go whose owners took the last one by `handle`, which is closed.
    ///
    /// The guest's kernel says when a process lets go of its locks ([`Locks::drop_owner`]), and
    /// does so before it says that the file is closed. Of open files as owners it says nothing
    /// else: they have one handle.
    pub fn drop_handle(&self, node: Node, handle: Handle) {
        self.drop_all(Holder::of_ranges(node), |owned| lock(owned).handle == handle);
    }

    /// All locks of `node` go.
    pub fn drop_node(&self, node: Node) {
        self.drop_all(Holder::of_node(node), |_| true);
    }

    fn drop_all(&self, of: std::ops::RangeInclusive<Holder>, goes: impl Fn(&Mutex<Owned>) -> bool) {
        let gone: Vec<_> = lock(&self.table).extract_if(of, |_, owned| goes(owned)).collect();
        for (holder, owned) in &gone {
            self.let_go(holder, &mut lock(owned));
        }
    }

    /// All of them go.
    pub fn reset(&self) {
        let table = std::mem::take(&mut *lock(&self.table));
        for (holder, owned) in &table {
            self.let_go(holder, &mut lock(owned));
        }
    }

    /// An owner who holds nothing needs no description.
    fn tidy(&self, holder: &Holder) {
        let mut table = lock(&self.table);
        let Some(owned) = table.get(holder).cloned() else {
            return;
        };
        let mut owned = lock(&owned);
        if owned.spans.is_empty() {
            owned.gone = true;
            table.remove(holder);
        }
    }

    /// Whoever waits may look again.
    fn let_go(&self, holder: &Holder, owned: &mut Owned) {
        owned.gone = true;
        unlock(&owned.file, holder.whole_file);
        self.count.fetch_sub(owned.spans.len(), Ordering::Relaxed);
        owned.spans.clear();
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Adds those who keep `owner` from `wish` to `found`, of the first `most` who have locks
    /// there; how many it looked at. Who is just changing his locks is left out: whoever waits for
    /// him looks again soon.
    fn in_the_way(&self, owner: u64, wanted: &WantedLock, most: usize, found: &mut Vec<u64>) -> usize {
        let table = lock(&self.table);
        let mut looks: usize = 0;
        for (holder, owned) in table.range(Holder::of_ranges(wanted.node)).take(most) {
            looks = looks.saturating_add(1);
            if holder.owner == owner {
                continue;
            }
            let Ok(owned) = owned.try_lock() else { continue };
            if owned.spans.iter().any(|span| span.excludes(&wanted.span)) {
                found.push(holder.owner);
            }
        }
        looks
    }

    /// Counts the difference, if there may be so many.
    fn recount(&self, before: usize, after: usize) -> Result<(), Errno> {
        let change = |count: usize| {
            let count = count.saturating_sub(before).saturating_add(after);
            (after <= before || count <= self.most).then_some(count)
        };
        self.count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
            .map(|_| ())
            .map_err(|_| Errno::NOLCK)
    }
}

impl Tree {
    pub(super) fn getlk(&self, node: Node, handle: Handle, lock: &Lock) -> Result<Option<Lock>, Errno> {
        let open = self.handles.get(node, handle)?;
        let (range, span) = checked(lock)?;
        if lock.kind == LockKind::Unlock || lock.whole_file {
            return Err(Errno::INVAL);
        }
        let others: Vec<_> = {
            let table = self::lock(&self.locks.table);
            let of_node = table.range(Holder::of_ranges(node));
            of_node.map(|(holder, owned)| (holder.owner, owned.clone())).collect()
        };
        for (owner, owned) in others.iter().filter(|(owner, _)| *owner != lock.owner) {
            let owned = self::lock(owned);
            if let Some(found) = owned.spans.iter().find(|found| found.excludes(&span)) {
                return Ok(Some(found.as_lock(*owner, owned.pid)));
            }
        }
        // Then it is somebody of the host, whom the guest cannot name.
        let found = match others.iter().find(|(owner, _)| *owner == lock.owner) {
            Some((_, own)) => find_lock(self::lock(own).file.as_fd(), range)?,
            None => find_lock(open.file.as_fd(), range)?,
        };
        Ok(found.map(|found| Span::of_host(found).as_lock(0, 0)))
    }

    pub(super) fn setlk(
        &self,
        node: Node,
        handle: Handle,
        lock: &Lock,
        waiter: Option<Waiter>,
    ) -> Result<Locked, Errno> {
        // While it tries, it does not wait.
        waiter.into_iter().for_each(|waiter| self.waits.leave(waiter));
        let open = self.handles.get(node, handle)?;
        let (range, span) = checked(lock)?;
        let holder = Holder {
            node,
            owner: lock.owner,
            whole_file: lock.whole_file,
        };
        let answer = loop {
            let known = self::lock(&self.locks.table).get(&holder).cloned();
            let owned = match known {
                Some(owned) => owned,
                None if lock.kind == LockKind::Unlock => return Ok(Locked::Yes),
                None => self.new_owner(&open, holder, handle, lock.pid)?,
            };
            let mut held = self::lock(&owned);
            if !held.gone {
                let answer = self.change(&mut held, &open, lock, range, span);
                if answer.is_ok() && lock.kind != LockKind::Unlock {
                    held.handle = handle;
                }
                drop(held);
                self.locks.tidy(&holder);
                break answer;
            }
        };
        // Closed meanwhile, perhaps: either that sees the lock, or this sees that.
        open.inode.note_lock();
        if self.handles.get(node, handle).is_err() {
            self.drop_locks_of(&open, handle);
        }
        match answer {
            Ok(()) => Ok(Locked::Yes),
            // `EACCES` is what some file systems say.
            Err(Errno::AGAIN | Errno::ACCESS) => match waiter {
                Some(waiter) => self.wait(waiter, lock, WantedLock { node, span }),
                None => Err(Errno::AGAIN),
            },
            Err(error) => Err(error),
        }
    }

    /// What was locked by a handle that is closed goes; all that is left, if it was the last one of its node.
    pub(super) fn drop_locks_of(&self, open: &OpenFile, handle: Handle) {
        let node = open.inode.node();
        // Linux flushes before; whoever does not, leaves nothing locked either.
        if open.inode.leaves_locks() {
            self.locks.drop_node(node);
        } else if open.inode.has_locks() {
            self.locks.drop_handle(node, handle);
        }
    }

    /// Notes that `waiter` waits, if that can come to an end. flock(2) has no word of circles.
    fn wait(&self, waiter: Waiter, lock: &Lock, wanted: WantedLock) -> Result<Locked, Errno> {
        if !lock.whole_file {
            let locks = &self.locks;
            let in_the_way =
                |owner, wanted: &WantedLock, most, found: &mut _| locks.in_the_way(owner, wanted, most, found);
            self.waits.enter(waiter, wanted, in_the_way)?;
        }
        Ok(Locked::Later)
    }

    /// An owner who holds nothing yet, or who has come to be there meanwhile.
    fn new_owner(&self, open: &OpenFile, holder: Holder, handle: Handle, pid: u32) -> Result<Arc<Mutex<Owned>>, Errno> {
        let (file, writes) = self.description(open, open.writes)?;
        let owned = Owned {
            file,
            writes,
            handle,
            pid,
            spans: Vec::new(),
            gone: false,
        };
        let mut table = lock(&self.locks.table);
        Ok(table
            .entry(holder)
            .or_insert_with(|| Arc::new(Mutex::new(owned)))
            .clone())
    }

    /// Carries a change of an owner's locks out.
    fn change(&self, owned: &mut Owned, open: &OpenFile, lock: &Lock, range: Range, span: Span) -> Result<(), Errno> {
        let keeps = lock.kind != LockKind::Unlock;
        let spans = with(&owned.spans, span, keeps);
        let (before, after) = (owned.spans.len(), spans.len());
        self.locks.recount(before, after)?;
        let done = self.ask_host(owned, open, lock, range);
        if let Err(error) = done {
            // As it was: the locks that there are may be too many.
            self.locks.count.fetch_add(before, Ordering::Relaxed);
            self.locks.count.fetch_sub(after, Ordering::Relaxed);
            return Err(error);
        }
        owned.spans = spans;
        owned.pid = lock.pid;
        // A write lock that became a read lock lets others in as well.
        if lock.kind != LockKind::Write {
            self.locks.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn ask_host(&self, owned: &mut Owned, open: &OpenFile, lock: &Lock, range: Range) -> Result<(), Errno> {
        let wants_more = lock.kind == LockKind::Write && !owned.writes;
        if !lock.whole_file {
            if wants_more && open.writes {
                self.widen(owned, open, false)?;
            }
            return set_lock(owned.file.as_fd(), range);
        }
        let how = match lock.kind {
            LockKind::Read => FlockOperation::NonBlockingLockShared,
            LockKind::Write => FlockOperation::NonBlockingLockExclusive,
            LockKind::Unlock => FlockOperation::NonBlockingUnlock,
        };
        match flock(&owned.file, how) {
            // NFS makes it a lock of all bytes (flock(2)).
            Err(Errno::BADF) if wants_more => {
                self.widen(owned, open, true)?;
                flock(&owned.file, how)
            }
            done => done,
        }
    }

    /// Opens a file once more, for one owner's locks; for writing if it is to be, and may be. Whether it is.
    ///
    /// Not for writing where reading will do: that alone has an overlay of the host copy the file
    /// (overlayfs.rst, "Non-directories"), and nobody can run it meanwhile.
    fn description(&self, open: &OpenFile, writes: bool) -> Result<(CountedFd, bool), Errno> {
        let reopened = |flags| self.budget.take(Use::File, || self.proc.reopen(&open.file, flags));
        if writes && open.position.is_none() && !self.policy.readonly {
            match reopened(OFlags::RDWR) {
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => {}
                opened => return Ok((opened?, true)),
            }
        }
        Ok((reopened(OFlags::RDONLY)?, false))
    }

    /// Has an owner's locks on a description that is open for writing. On the one that he had they
    /// exclude no reader, and so may be on both for a moment.
    fn widen(&self, owned: &mut Owned, open: &OpenFile, whole_file: bool) -> Result<(), Errno> {
        let (file, writes) = self.description(open, true)?;
        if !writes {
            return Err(Errno::BADF);
        }
        for span in &owned.spans {
            match whole_file {
                true => flock(&file, FlockOperation::NonBlockingLockShared)?,
                false => set_lock(file.as_fd(), checked(&span.as_lock(0, 0))?.0)?,
            }
        }
        let old = std::mem::replace(&mut owned.file, file);
        owned.writes = true;
        unlock(&old, whole_file);
        Ok(())
    }
}

/// Takes all locks off a description that is closed next. Not by closing alone: a process that is
/// being started has a copy of it for a moment.
fn unlock(file: &CountedFd, whole_file: bool) {
    let all = Range {
        kind: libc::F_UNLCK,
        start: 0,
        len: 0,
    };
    let _ = match whole_file {
        true => flock(file, FlockOperation::NonBlockingUnlock),
        false => set_lock(file.as_fd(), all),
    };
}
