//! Who waits for whose locks: whoever would close a circle is told, in place of waiting for ever
//! (`EDEADLK` of fcntl(2)).
//!
//! The host looks for circles among processes only, and the guest's owners are open file
//! descriptions to it. Here owners are what points at each other: a request that waits points at
//! those whose locks are in its way **now**, so that nothing has to be undone when they let go. It
//! is noted only between one try and the next: a try that succeeds leaves nothing behind, and one
//! that fails looks anew.
//!
//! As much is looked at as [`MOST_LOOKS`]; a circle that hides behind more is not told, and its
//! owners wait, as they would without this.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

use husk_devices::lock;
use rustix::io::Errno;

use super::spans::Span;
use crate::fs::filesystem::{Node, Waiter};

/// Most owners that are looked at for one request.
const MOST_LOOKS: usize = 512;

/// What somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct WantedLock {
    pub node: Node,
    pub span: Span,
}

/// Those who wait.
pub(super) struct WaitGraph {
    wanted_locks: Mutex<BTreeMap<Waiter, WantedLock>>,
    most: usize,
}

impl WaitGraph {
    /// Nobody yet, and at most `most`: of those beyond nobody is told.
    pub fn new(most: usize) -> Self {
        Self {
            wanted_locks: Mutex::default(),
            most,
        }
    }

    /// `waiter` waits no more.
    pub fn leave(&self, waiter: Waiter) {
        lock(&self.wanted_locks).remove(&waiter);
    }

    /// Nobody waits any more.
    pub fn clear(&self) {
        lock(&self.wanted_locks).clear();
    }

    /// `waiter` waits for `wish`. `in_the_way` adds to a list those who keep an owner from his wish
    /// at present, and says how many it looked at, of so many as it may.
    ///
    /// # Errors
    /// `EDEADLK` if one of those waits for `waiter`'s owner, or for one who does, and so on; then
    /// `waiter` does not wait.
    pub fn enter(
        &self,
        waiter: Waiter,
        wanted: WantedLock,
        in_the_way: impl Fn(u64, &WantedLock, usize, &mut Vec<u64>) -> usize,
    ) -> Result<(), Errno> {
        // Held throughout: of two who close a circle at once, the second is told.
        let mut wanted_locks = lock(&self.wanted_locks);
        let mut looks = MOST_LOOKS;
        let mut next = Vec::new();
        let mut seen = HashSet::new();
        looks = looks.saturating_sub(in_the_way(waiter.owner, &wanted, looks, &mut next));
        while let Some(owner) = next.pop() {
            if owner == waiter.owner {
                return Err(Errno::DEADLK);
            }
            if !seen.insert(owner) {
                continue;
            }
            for (_, wanted) in wanted_locks.range(Waiter::all_of(owner)) {
                looks = looks.saturating_sub(in_the_way(owner, wanted, looks, &mut next));
            }
        }
        if wanted_locks.len() < self.most {
            wanted_locks.insert(waiter, wanted);
        }
        Ok(())
    }

    /// How many wait.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.wanted_locks).len()
    }
}
