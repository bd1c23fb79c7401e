//! A look whether the files that are a guest's memory were shortened, by a thread that nobody waits for.
//!
//! What a vCPU cannot find is said by KVM as a rule, and where it is not (`kvm/stuck.rs`), the files' lengths say it. A
//! file system may take as long as it likes to tell them.

use std::io;
use std::sync::mpsc::{Receiver, channel};
use std::task::Waker;

use crate::background::BackgroundTask;
use crate::memory::Files;

/// A look under way.
pub(super) struct Look {
    shortened: BackgroundTask<Option<u64>>,
    /// Hung up on once the files are not in use by this any more.
    over: Receiver<()>,
}

impl Look {
    /// Begins to look at `files`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(super) fn begin(waker: Waker, files: Files) -> io::Result<Self> {
        let (looks, over) = channel::<()>();
        let look = move || {
            let shortened = files.shortened();
            drop(files);
            drop(looks);
            shortened
        };
        let shortened = BackgroundTask::spawn(waker, look)?;
        Ok(Self { shortened, over })
    }

    /// What has come of it, once: where a file that was shortened ends, as a guest-physical address, if one was. Never
    /// waits.
    pub(super) fn take(&self) -> Option<Option<u64>> {
        self.shortened.take_result()
    }

    /// Waits until the files are not in use by this any more, as long as their file systems like.
    pub(super) fn wait(self) {
        // Nothing is ever sent.
        let _ = self.over.recv();
    }
}
