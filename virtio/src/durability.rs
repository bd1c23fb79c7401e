//! Whether what a guest wrote to a file can still be promised to be on the host's storage.
//!
//! Linux tells of a write-back that failed once for each open file (`errseq_t`,
//! Documentation/core-api/errseq.rst): the fdatasync(2) that comes first has the error, every later
//! one succeeds although the data is gone, for the pages count as clean. So the first error stands
//! for as long as the file is open: nothing that was written through it is called stable any more
//! (virtio 1.2 §5.2.6.2, §5.19.6). That is for later ones. Of two that run side by side through one
//! open file, one may succeed before the other has told of the error: who has several at a time
//! waits for those (`block/sync_order.rs`), or has an open file for each.

use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// What has become of the writes to one open file. Shared by all queues of its device.
#[derive(Debug)]
pub(crate) struct Durability {
    /// The file, as the log names it.
    what: String,
    lost: AtomicBool,
}

impl Durability {
    /// Of a file that was opened just now; `what` it is, for the log.
    pub fn new(what: impl Display) -> Self {
        Self {
            what: what.to_string(),
            lost: AtomicBool::new(false),
        }
    }

    /// Whether the host has failed once to bring writes to its storage.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Takes note that fdatasync(2) failed with `error`. The log is told the first time.
    pub fn lose(&self, error: &io::Error) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            let what = &self.what;
            log::warn!("{what}: the host could not bring it to its storage, flushes fail from now on: {error}");
        }
    }
}

#[cfg(test)]
#[path = "durability_test.rs"]
mod tests;
