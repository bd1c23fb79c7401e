//! Which syncs of a queue have to be heard of before the success of another one is believed.
//!
//! Linux tells of a write-back that failed once for each open file
//! ([`durability`](crate::durability)): of several syncs through one file that run side by side,
//! the first that looks has the error, and the others succeed. io_uring may tell of one of those
//! first. So a success counts when every sync that had begun by then has been heard of as well.
//! Queues have nothing to do with each other here: each of them syncs through an open file of its
//! own ([`Image::sync_file`](super::image::Image::sync_file)).

use std::collections::BTreeMap;

/// The syncs of one queue, by the slots of their jobs.
#[derive(Debug, Default)]
pub(super) struct SyncOrder {
    /// Syncs that have begun, ever.
    begun: u64,
    /// Those that have not ended: how many had begun before each.
    running: BTreeMap<usize, u64>,
    /// Those that have ended, of jobs that are still there: how many had begun by then.
    ended: BTreeMap<usize, u64>,
}

impl SyncOrder {
    /// The host has begun a sync for the job in `slot`.
    pub fn begin(&mut self, slot: usize) {
        self.running.insert(slot, self.begun);
        self.begun = self.begun.saturating_add(1);
    }

    /// The host has ended the operation of the job in `slot`, whatever it was.
    pub fn end(&mut self, slot: usize) {
        if self.running.remove(&slot).is_some() {
            self.ended.insert(slot, self.begun);
        }
    }

    /// Whether nothing is owed any more of the syncs that ran beside that of the job in `slot`, if it had one.
    pub fn is_settled(&self, slot: usize) -> bool {
        let begun = self.ended.get(&slot);
        begun.is_none_or(|begun| self.running.values().all(|before| before >= begun))
    }

    /// The job in `slot` goes on, or is gone.
    pub fn forget(&mut self, slot: usize) {
        self.ended.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_settled_when_those_that_ran_beside_it_have_ended() {
        let mut order = SyncOrder::default();
        assert!(order.is_settled(3), "it has none");
        order.begin(3);
        order.begin(1);
        order.end(1);
        assert!(!order.is_settled(1));
        // What begins later cannot have been told what the other was not.
        order.begin(2);
        order.end(3);
        assert!(order.is_settled(1));
        assert!(!order.is_settled(3), "the other one ran when it ended");
        order.end(2);
        assert!(order.is_settled(3) && order.is_settled(2));
    }

    #[test]
    fn a_slot_that_has_another_job_begins_anew() {
        let mut order = SyncOrder::default();
        order.begin(0);
        order.begin(1);
        order.end(0);
        order.forget(0);
        assert!(order.is_settled(0));
        // A read, say.
        order.end(0);
        assert!(order.is_settled(0));
    }
}
