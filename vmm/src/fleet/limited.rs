//! Looks into processes that may take any time, each on a thread that nobody waits for beyond a limit.
//!
//! The kernel reads what a process was started with, and its mappings, with the lock of that
//! process's memory (`mmap_lock`): where that is held, as by a thread that waits for a file system
//! which does not answer, so does whoever looks. Such a thread ends when the kernel lets it go on,
//! or with this process. Until then the same is not looked at again: of each look there is one
//! thread at most for each process.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What is looked at, and of which process.
type Look = (&'static str, u32);

/// Looks that have begun and not ended.
static AT_WORK: Mutex<BTreeSet<Look>> = Mutex::new(BTreeSet::new());

/// A look that has begun; ended when this is dropped.
struct Turn(Look);

impl Turn {
    /// `None` while an earlier look at the same has not ended.
    fn take(look: Look) -> Option<Self> {
        let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.insert(look).then(|| Self(look))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Has `work` look at each of `items`, all at once, and returns in their order what it has found,
/// `None` of those that `limit` was too short for. `what` is the kind of look, and the number of an
/// item its process. Where the host has no thread left, this one looks, for as long as it takes.
pub(crate) fn look_at_all<T, R, W>(what: &'static str, items: Vec<(u32, T)>, limit: Duration, work: W) -> Vec<Option<R>>
where
    T: Clone + Send + 'static,
    R: Send + 'static,
    W: Fn(T) -> R + Clone + Send + 'static,
{
    let deadline = Instant::now().checked_add(limit);
    let (sender, receiver) = mpsc::channel();
    let mut found: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for (number, ((pid, item), place)) in items.into_iter().zip(&mut found).enumerate() {
        let Some(turn) = Turn::take((what, pid)) else { continue };
        let begun = thread::Builder::new().spawn({
            let (sender, work, item) = (sender.clone(), work.clone(), item.clone());
            move || {
                let _turn = turn;
                // Nobody waits for it any more.
                let _ = sender.send((number, work(item)));
            }
        });
        if begun.is_err() {
            *place = Some(work(item));
        }
    }
    drop(sender);
    loop {
        let left = deadline.map_or(limit, |deadline| deadline.saturating_duration_since(Instant::now()));
        let Ok((number, one)) = receiver.recv_timeout(left) else {
            return found;
        };
        if let Some(place) = found.get_mut(number) {
            *place = Some(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn one_that_hangs_keeps_no_other_waiting_and_is_not_looked_at_twice() {
        let (go_on, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let look = |limit| {
            let gate = gate.clone();
            look_at_all("test", vec![(1, true), (2, false)], limit, move |hangs| {
                if hangs {
                    let _ = gate.lock().unwrap().recv();
                }
            })
        };
        // As soon as the host gives the second its turn; the first ends never.
        while look(Duration::from_millis(20)) != [None, Some(())] {}
        // A second one would be waited for.
        assert_eq!(look(Duration::from_secs(3600)).first(), Some(&None));
        drop(go_on);
        while AT_WORK.lock().unwrap().contains(&("test", 1)) {
            thread::yield_now();
        }
        assert_eq!(look(Duration::from_secs(3600)), [Some(()), Some(())]);
    }

    #[test]
    fn what_is_done_is_not_waited_for() {
        let found = look_at_all("numbers", vec![(1, 5), (2, 6)], Duration::from_secs(3600), |number| {
            number + 1
        });
        assert_eq!(found, [Some(6), Some(7)]);
    }
}
