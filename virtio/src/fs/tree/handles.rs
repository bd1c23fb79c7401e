//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use husk_devices::{read, write};
use rustix::io::Errno;

use super::descriptors::CountedFd;
use super::directories::Position;
use super::nodes::Inode;
use crate::fs::filesystem::{Handle, Node};

/// Tables that handles are spread over, so that threads seldom meet.
const SHARDS: u64 = 16;

/// An open file or directory.
pub(super) struct OpenFile {
    pub inode: Arc<Inode>,
    pub file: CountedFd,
    /// The same once more, past the host's cache, if it was opened with `O_DIRECT`. What is not asked for so takes
    /// `file`: places and buffers need not be aligned then (open(2)).
    pub direct: Option<CountedFd>,
    /// It was opened for writing.
    pub writes: bool,
    /// Of a directory.
    pub position: Option<Position>,
}

type Shard = RwLock<HashMap<u64, Arc<OpenFile>>>;

impl OpenFile {
    /// What is read from and written to, `direct` or not.
    pub fn way(&self, direct: bool) -> &CountedFd {
        self.direct.as_ref().filter(|_| direct).unwrap_or(&self.file)
    }
}

/// All of them.
pub(super) struct Handles {
    shards: Box<[Shard]>,
    next: AtomicU64,
    count: AtomicUsize,
    most: usize,
}

impl Handles {
    /// None yet, and at most `most`.
    pub fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            next: AtomicU64::new(1),
            count: AtomicUsize::new(0),
            most,
        }
    }

    /// One more, which `open` opens.
    ///
    /// # Errors
    /// `ENFILE` when there are too many; what `open` says.
    pub fn add<T>(&self, open: impl FnOnce() -> Result<(OpenFile, T), Errno>) -> Result<(Handle, T), Errno> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::NFILE);
        }
        let (file, more) = open().inspect_err(|_| {
            self.count.fetch_sub(1, Ordering::Relaxed);
        })?;
        file.inode.opened();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut shard = write(self.shard(number));
        shard.insert(number, Arc::new(file));
        Ok((Handle(number), more))
    }

    /// That of `node`.
    ///
    /// # Errors
    /// `EBADF` if it is not.
    pub fn get(&self, node: Node, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        let shard = read(self.shard(handle.0));
        let open = shard.get(&handle.0).filter(|open| open.inode.node() == node);
        open.cloned().ok_or(Errno::BADF)
    }

    /// Takes it out; it is closed with the last use of the result.
    ///
    /// # Errors
    /// As for [`Handles::get`].
    pub fn remove(&self, node: Node, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        let mut shard = write(self.shard(handle.0));
        if shard.get(&handle.0).is_none_or(|open| open.inode.node() != node) {
            return Err(Errno::BADF);
        }
        let open = shard.remove(&handle.0).ok_or(Errno::BADF)?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        open.inode.closed();
        Ok(open)
    }

    /// None any more.
    pub fn reset(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *write(shard));
            self.count.fetch_sub(old.len(), Ordering::Relaxed);
            old.values().for_each(|open| open.inode.closed());
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        u64::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    fn shard(&self, number: u64) -> &Shard {
        let index = usize::try_from(number % SHARDS).ok();
        let shard = index.and_then(|index| self.shards.get(index));
        shard.expect("an index below their number")
    }
}
