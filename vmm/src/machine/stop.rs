//! The end of a machine: everybody is asked to stop, watched, and collected, with one deadline for the whole.
//!
//! A device whose threads do not come in time is left behind together with the machine it belongs to: threads, handlers, descriptors,
//! and the guest memory that they may still write. Nothing of that is unmapped or closed while they live.

use std::time::{Duration, Instant};

use super::Machine;
use crate::news::News;

/// How long all devices together may take to stop, and a single one to be taken apart. Kata's Go shim kills a process that is there 3
/// seconds after `vmm.shutdown`: the rest of them is for the answer and for what the end of a process takes. A request that is not
/// done by then was not acknowledged.
pub const STOP_DEADLINE: Duration = Duration::from_secs(2);

impl Machine {
    /// Takes the vCPUs out of the guest, then asks the devices to stop: what they have acknowledged is on its disk once
    /// [`Machine::unstopped`] has nothing to say. Does not wait for them. A second call does nothing.
    pub fn stop(&mut self) {
        if self.cpus.take().is_some() {
            self.devices.stop();
        }
    }

    /// The devices whose threads may still touch guest memory after [`Machine::stop`].
    pub fn unstopped(&self) -> Vec<&str> {
        self.devices.unstopped()
    }

    /// Stops the machine and takes it apart, or leaves it behind at `deadline`: then the names of those that did not stop. `news` is
    /// what the machine was built to wake.
    pub fn stop_by(mut self, news: &News, deadline: Instant) -> Vec<String> {
        self.stop();
        news.wait_until(deadline, || self.unstopped().is_empty());
        let unstopped: Vec<String> = self.unstopped().into_iter().map(Into::into).collect();
        if !unstopped.is_empty() {
            self.abandon();
        }
        unstopped
    }

    /// Leaves the machine behind, with everything that its threads may still use.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

/// A machine that never ran, or that has stopped. Of any other, each thread is waited for.
impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
#[path = "stop_test.rs"]
mod tests;
