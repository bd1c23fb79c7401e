//! A machine that comes to rest, or to its end: vCPUs first, then devices. Everybody is asked, watched and collected.
//!
//! All of them together have one deadline. A device whose threads do not come in time is left
//! behind together with the machine it belongs to: threads, handlers, descriptors, and the guest
//! memory that they may still write. Nothing of that is unmapped or closed while they live. Devices
//! that have stopped are not kept, and vCPUs that do not come keep no device from being stopped.
//! Whatever is closed is closed by a thread beside, and has come when that is done: the last close
//! of a file may wait for its file system as long as that likes.

use std::time::{Duration, Instant};

use super::Machine;
use crate::background::BackgroundTask;
use crate::wakeup::Wakeup;

/// How long everything together may take to stop, and a single device to be taken apart. Kata's Go
/// shim kills a process that is there 3 seconds after `vmm.shutdown`: the rest of them is for the
/// answer and for what the end of a process takes. A request that is not done by then was not
/// acknowledged.
pub const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What vCPUs that have not come are called, among devices.
const VCPUS: &str = "__vcpus";

/// What the devices of a machine have been asked for, whose vCPUs have left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldState {
    Nothing,
    Hold,
    Stop,
}

impl Machine {
    /// Asks everything to come to rest, and returns at once: see [`Machine::unheld`].
    pub fn pause(&mut self) {
        self.cpus.plug_mut().cpus.pause();
        self.hold_resize(true);
    }

    /// Holds the devices as they are once no vCPU runs, and says who has still to come after [`Machine::pause`].
    pub fn unheld(&mut self) -> Vec<String> {
        if !self.cpus.plug().cpus.is_paused() {
            return vec![VCPUS.into()];
        }
        if self.hold_state == HoldState::Nothing {
            self.hold_state = HoldState::Hold;
            self.devices.hold();
        }
        owned(self.devices.unheld())
    }

    /// Lets devices and guest go on after [`Machine::pause`], however far that has come.
    pub fn resume(&mut self) {
        if self.hold_state == HoldState::Hold {
            self.hold_state = HoldState::Nothing;
            self.devices.release();
        }
        self.cpus.plug_mut().cpus.resume();
        self.hold_resize(false);
    }

    /// Asks everything to stop, for good, and returns at once: see [`Machine::unstopped`].
    pub fn stop(&mut self) {
        // Their sockets are free for the next machine, whatever of this one is left behind. Who has connected reads on.
        for chardev in self.chardevs.drain(..) {
            let name = format!("__{}", chardev.name());
            let closing = BackgroundTask::queue(self.devices.threads().waker(), move || drop(chardev));
            self.closing.push((name, closing));
        }
        self.cpus.plug_mut().cpus.stop();
    }

    /// Stops the devices once no vCPU runs, has what has stopped taken apart, and says who has
    /// still to come after [`Machine::stop`]. Once that is nobody, what the devices have
    /// acknowledged is in their files, and these are closed: the next machine may want the same
    /// images and sockets. Nothing is flushed: what the guest has not had flushed is in the host's
    /// page cache, which outlives the process. Never waits.
    pub fn unstopped(&mut self) -> Vec<String> {
        let in_guest = !self.has_left_guest();
        if self.hold_state != HoldState::Stop {
            if in_guest {
                return vec![VCPUS.into()];
            }
            self.hold_state = HoldState::Stop;
            self.devices.stop();
        }
        self.closing.retain(|(_, closing)| closing.take_result().is_none());
        let mut names: Vec<String> = in_guest.then(|| VCPUS.into()).into_iter().collect();
        names.extend(owned(self.devices.unstopped()));
        names.extend(self.closing.iter().map(|(name, _)| name.clone()));
        names
    }

    /// Has a thread drop the machine, of which nothing is at work any more, or which never ran: to unmap gigabytes
    /// takes a while.
    pub fn take_apart(self) -> BackgroundTask<()> {
        BackgroundTask::queue(self.waker(), move || drop(self))
    }

    /// Takes the devices of a machine that is left behind out of its guest's reach, and asks them
    /// to stop, where a vCPU has not come: nothing is served on for a guest that has been told to
    /// end. [`Machine::unstopped`] says when they have.
    pub fn withdraw_devices(&mut self) {
        if self.hold_state != HoldState::Stop {
            self.hold_state = HoldState::Stop;
            self.devices.withdraw();
        }
    }

    /// Whether no vCPU is in the guest any more, for good, after [`Machine::stop`].
    pub fn has_left_guest(&self) -> bool {
        self.cpus.plug().cpus.is_stopped()
    }

    /// Stops the machine and takes it apart, or leaves it behind at `deadline`: then the names of those that did not
    /// stop. `wakeup` is what the machine was built to wake.
    pub fn stop_by(mut self, wakeup: &Wakeup, deadline: Instant) -> Vec<String> {
        self.stop();
        wakeup.wait_until(deadline, || self.unstopped().is_empty());
        let unstopped = self.unstopped();
        match unstopped.is_empty() {
            true => {
                let ending = self.take_apart();
                wakeup.wait_until(deadline, || ending.take_result().is_some());
            }
            false => self.abandon(),
        }
        unstopped
    }

    /// Leaves the machine behind, with everything that its threads may still use.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

fn owned(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(Into::into).collect()
}

/// A machine that never ran, or that has stopped. Of any other, each thread is waited for.
impl Drop for Machine {
    fn drop(&mut self) {
        self.cpus.plug_mut().cpus.join();
        self.devices.stop();
        // The next machine may want the same files, which are locked until then.
        if let Some(looking) = self.looking.take() {
            looking.wait();
        }
    }
}

#[cfg(test)]
#[path = "stop_test.rs"]
mod tests;
