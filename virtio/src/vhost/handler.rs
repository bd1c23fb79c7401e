//! The running half of a device whose rings the kernel serves: hands them over, waits for what
//! should not happen, takes them back.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use husk_devices::error_chain;
use husk_devices::memory::GuestMemory;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::handles::VhostHandles;
use super::rings::{KernelRings, Vring};
use crate::call_event::{CallEvent, used_index};
use crate::device::{Handler, HandlerError, Hold, StartError, Watch};
use crate::ring::{Ring, RingParts, RingState};

/// [`Watch`] tokens: the queue that stays here. Rings have theirs by their number among all: for an
/// interrupt that is passed on, and for a fault, above those of all queues that a device can have.
const OWN: u32 = 0;
const CALLS: u32 = 1;
const FAULTS: u32 = 1 << 16;

/// A queue of the same device that the kernel does not have.
pub(crate) trait OwnQueue: Send {
    /// The driver's kick.
    fn kick(&self) -> RawFd;
    /// Serves what is there.
    fn serve(&mut self) -> Result<(), HandlerError>;
    /// Ends the queue.
    fn stop(self: Box<Self>) -> RingState;
}

/// What is to be done on the I/O thread before the kernel begins.
pub(crate) type BeforeStart = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// The rings of one handle, in its order. None if the driver left them disabled.
pub(crate) struct Group(Vec<KernelRing>);

impl Group {
    /// Takes the rings of a handle. Called on a vCPU thread: asks the kernel for nothing but eventfds.
    ///
    /// # Errors
    /// [`StartError::Host`] when there are none.
    pub fn new(rings: impl IntoIterator<Item = Ring>) -> Result<Self, StartError> {
        let lent = rings.into_iter().map(|ring| KernelRing::new(ring.into_parts()));
        lent.collect::<io::Result<_>>()
            .map(Self)
            .map_err(|source| StartError::Host {
                what: "make an eventfd",
                source,
            })
    }
}

/// A ring for the kernel.
struct KernelRing {
    ring: RingParts,
    call: CallEvent,
    fault: Arc<EventFd>,
}

impl KernelRing {
    fn new(ring: RingParts) -> io::Result<Self> {
        Ok(Self {
            call: CallEvent::new(&ring.notify)?,
            fault: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            ring,
        })
    }

    fn describe(&self) -> Vring<'_> {
        Vring {
            queue: &self.ring.state.queue,
            kick: &self.ring.kick,
            call: self.call.event(),
            fault: &self.fault,
        }
    }

    fn relay(&self) {
        self.call.relay(&self.ring.notify);
    }
}

/// Serves no ring but the device's own queue.
pub(crate) struct VhostHandler {
    handles: Arc<VhostHandles>,
    mem: GuestMemory,
    features: u64,
    groups: Vec<Group>,
    own: Option<Box<dyn OwnQueue>>,
    before_start: Option<BeforeStart>,
    /// The kernel may have the rings.
    lent: bool,
}

impl VhostHandler {
    /// Rings of a device on `handles`, a group for each handle, with `features` agreed on; and the queue that stays
    /// here, if there is one.
    /// `mem` is what the device reaches.
    pub fn new(
        handles: Arc<VhostHandles>,
        mem: GuestMemory,
        features: u64,
        groups: Vec<Group>,
        own: Option<Box<dyn OwnQueue>>,
    ) -> Self {
        Self {
            handles,
            mem,
            features,
            groups,
            own,
            before_start: None,
            lent: false,
        }
    }

    /// Has `beginning` done before the kernel begins. An error of it is the handler's.
    pub fn after(self, before_start: BeforeStart) -> Self {
        Self {
            before_start: Some(before_start),
            ..self
        }
    }

    /// The handles that have rings, by their numbers.
    fn in_use(&self) -> impl Iterator<Item = (usize, &dyn KernelRings, &[KernelRing])> {
        let pairs = self.handles.iter().enumerate().zip(&self.groups);
        let all = pairs.map(|((handle, rings), group)| (handle, rings, group.0.as_slice()));
        all.filter(|(.., rings)| !rings.is_empty())
    }

    /// All rings, in the order of their numbers.
    fn rings(&self) -> impl Iterator<Item = &KernelRing> {
        self.groups.iter().flat_map(|group| &group.0)
    }

    /// Hands everything over.
    fn begin(&mut self) -> Result<(), HandlerError> {
        for (_, handle, _) in self.in_use() {
            let features = self.features & handle.features();
            handle.set_features(features).map_err(failed("set the features"))?;
        }
        self.handles.tell_memory().map_err(failed("tell where memory is"))?;
        self.lend()?;
        self.handles.metrics().starts.inc();
        Ok(())
    }

    /// Hands the rings over where they stand.
    fn lend(&mut self) -> Result<(), HandlerError> {
        self.lent = true;
        for (index, handle, rings) in self.in_use() {
            for (number, lent) in rings.iter().enumerate() {
                let kept = self.handles.lend(index, &lent.ring.state.queue, &lent.fault);
                kept.map_err(failed("describe a ring"))?;
                let set = handle.set_ring(number, &lent.describe());
                set.map_err(failed("describe a ring"))?;
            }
            handle.run(true).map_err(failed("have the rings served"))?;
        }
        // What became available before came by a kick that nobody was there to hear.
        for lent in self.rings() {
            // Fails only when the counter is full, and it never is.
            let _ = lent.ring.kick.write(1);
        }
        Ok(())
    }

    /// Takes the rings back. The position of one that the kernel does not tell is a guess.
    fn take_back(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.lent) {
            return Ok(());
        }
        let mut first_failure = Ok(());
        for (index, (handle, group)) in self.handles.iter().zip(&mut self.groups).enumerate() {
            if group.0.is_empty() {
                continue;
            }
            let stopped = handle.run(false);
            if stopped.is_ok() {
                self.handles.take_back(index);
            }
            for (number, lent) in group.0.iter_mut().enumerate() {
                let queue = &mut lent.ring.state.queue;
                queue.next_used = used_index(&self.mem.memory(), queue.used_ring);
                let position = handle.position(number);
                queue.next_avail = *position.as_ref().unwrap_or(&queue.next_used);
                first_failure = first_failure.and(position.map(drop));
                lent.relay();
            }
            first_failure = first_failure.and(stopped);
        }
        first_failure
    }

    /// Whose ring a token stands for, counted from `first`.
    fn ring_of(&self, token: u32, first: u32) -> Option<&KernelRing> {
        let number = usize::try_from(token.checked_sub(first)?).ok()?;
        self.rings().nth(number)
    }
}

/// What the kernel's answer is to whoever asked for it.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> HandlerError {
    move |error| HandlerError::Host {
        what: "the kernel does not serve the device",
        source: io::Error::other(format!("cannot {what}: {error}")),
    }
}

impl Handler for VhostHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if let Some(before_start) = self.before_start.take() {
            before_start().map_err(failed("set the tap's queues and offloads"))?;
        }
        if let Some(own) = &self.own {
            watch.readable(own.kick(), OWN).map_err(HandlerError::watch)?;
        }
        for (number, lent) in (0u32..).zip(self.rings()) {
            let fault = lent.fault.as_raw_fd();
            let watched = watch.readable(fault, FAULTS.saturating_add(number));
            watched.map_err(HandlerError::watch)?;
            if let Some(event) = lent.call.watched() {
                let watched = watch.edges(event, CALLS.saturating_add(number));
                watched.map_err(HandlerError::watch)?;
            }
        }
        self.begin()
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if let Some(KernelRing { ring, .. }) = self.ring_of(token, FAULTS) {
            self.handles.metrics().ring_faults.inc();
            let queue = ring.state.index;
            let source = io::Error::other(format!(
                "queue {queue}: an address or a chain is not what the rules allow, or memory is gone"
            ));
            let what = "the kernel cannot go on with a ring";
            return Err(HandlerError::Host { what, source });
        }
        if let Some(lent) = self.ring_of(token, CALLS) {
            lent.relay();
            return Ok(());
        }
        self.own.as_mut().map_or(Ok(()), |own| own.serve())
    }

    /// The kernel ends at once what it has begun.
    fn hold(&mut self, _watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        self.take_back().map_err(failed("take the rings back"))?;
        Ok(Hold::Held)
    }

    fn release(&mut self, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.lend()
    }

    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        if let Err(error) = self.take_back() {
            log::debug!("vhost: not stopped in order: {}", error_chain(&error));
        }
        let rings = self.groups.into_iter().flat_map(|group| group.0);
        let states = rings.map(|lent| lent.ring.state);
        states.chain(self.own.map(|own| own.stop())).collect()
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
