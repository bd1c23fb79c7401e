//! The running half of a vhost-user device: hands its rings over, waits for the end, takes them back; and where the end comes from
//! the back-end, says no in its place.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use husk_devices::Irq;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::BackendError;
use super::frontend::Vring;
use super::link::Link;
use super::refuser::Refuser;
use crate::device::{Activation, Handler, HandlerError, StartError, Watch};
use crate::ring::{Protocol, RingParts, RingState};

/// Token of the connection. A ring whose interrupts are passed on has its number, plus 1.
const CONNECTION: u32 = 0;
/// Tokens of the doorbells, once they are this process's to answer: above those of all queues that a device can have.
const DOORBELLS: u32 = 1 << 16;

/// Serves no request itself as long as somebody else does.
pub struct VhostUserHandler {
    link: Arc<Link>,
    mem: GuestMemory,
    features: u64,
    protocol: &'static dyn Protocol,
    rings: Vec<Lent>,
    /// Rings at the beginning of `rings` that the back-end has.
    lent: usize,
    /// What is watched of the connection.
    connection: Option<RawFd>,
    /// Has the rings once the back-end is gone.
    refuser: Option<Refuser>,
}

/// A ring for the back-end.
struct Lent {
    ring: RingParts,
    call: Call,
}

/// How the back-end interrupts.
enum Call {
    /// By the eventfd of the MSI-X vector itself.
    Direct(Irq),
    /// By an eventfd that this process reads: there is no message, or not yet.
    PassedOn(EventFd),
}

impl VhostUserHandler {
    /// Takes the rings of `activation`, of which `needed` have to be there. By `protocol` their requests are answered when the
    /// back-end is gone. Called on a vCPU thread: speaks to nobody.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        link: Arc<Link>,
        mut activation: Activation,
        needed: &[u16],
        protocol: &'static dyn Protocol,
    ) -> Result<Self, StartError> {
        if let Some(missing) = needed.iter().find(|queue| {
            let ring = activation.rings.get(usize::from(**queue));
            !ring.is_some_and(Option::is_some)
        }) {
            return Err(StartError::QueueMissing(*missing));
        }
        let rings = activation
            .rings
            .drain(..)
            .flatten()
            .map(|ring| Lent::new(ring.into_parts()));
        Ok(Self {
            rings: rings.collect::<Result<_, _>>()?,
            link,
            mem: activation.mem,
            features: activation.features,
            protocol,
            lent: 0,
            connection: None,
            refuser: None,
        })
    }

    /// Hands everything over. Returns what ends with the connection.
    fn lend(&mut self) -> Result<RawFd, BackendError> {
        let mut connection = self.link.lock();
        let frontend = connection.ready()?;
        frontend.set_features(self.features)?;
        frontend.set_memory(&self.link.shared().unwrap_or(&self.mem).memory())?;
        for lent in &self.rings {
            frontend.start_ring(&Vring {
                index: lent.ring.state.index,
                state: &lent.ring.state.queue,
                kick: lent.ring.kick.as_raw_fd(),
                call: lent.call.fd(),
            })?;
            self.lent = self.lent.saturating_add(1);
        }
        self.link.metrics().starts.inc();
        Ok(frontend.as_raw_fd())
    }

    /// Counts a failure of the back-end, and says whose it is. One that was half-way through something is left.
    fn failed(&self, error: BackendError) -> HandlerError {
        if !error.is_local() {
            self.link.lock().close();
        }
        self.link.metrics().backend_failures.inc();
        let socket = self.link.socket().display();
        HandlerError::Host {
            what: "the vhost-user back-end failed",
            source: io::Error::other(format!("{socket}: {}", chain(&error))),
        }
    }
}

impl VhostUserHandler {
    /// Asks for all rings back. The position of one that is not given is a guess.
    fn take_back(&mut self) {
        let mut connection = self.link.lock();
        let mut stopped: Result<(), BackendError> = Ok(());
        let lent = std::mem::take(&mut self.lent);
        for Lent { ring, .. } in self.rings.iter_mut().take(lent) {
            let queue = &mut ring.state.queue;
            let used = used_index(&self.mem.memory(), queue.used_ring);
            let position = match &stopped {
                Err(_) => Err(BackendError::Gone(None)),
                Ok(()) => connection
                    .present()
                    .and_then(|frontend| frontend.stop_ring(ring.state.index)),
            };
            (queue.next_avail, queue.next_used) = match position {
                Ok(position) => (position, used),
                Err(error) => {
                    stopped = stopped.and(Err(error));
                    (used, used)
                }
            };
        }
        if let Err(error) = stopped {
            log::debug!(
                "{}: not stopped in order: {}",
                self.link.socket().display(),
                chain(&error)
            );
            // A back-end that lost its front-end lets go of guest memory. There is no other way to make it.
            connection.close();
        }
        drop(connection);
        self.rings.iter().for_each(Lent::pass_on);
    }

    /// Whose ring a token stands for, counted from `first`.
    fn number(token: u32, first: u32) -> Option<usize> {
        token.checked_sub(first).and_then(|number| usize::try_from(number).ok())
    }
}

impl Handler for VhostUserHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let connection = self.lend().map_err(|error| self.failed(error))?;
        watch.readable(connection, CONNECTION).map_err(HandlerError::watch)?;
        self.connection = Some(connection);
        for (token, lent) in (CONNECTION..).skip(1).zip(&self.rings) {
            if let Call::PassedOn(event) = &lent.call {
                watch.readable(event.as_raw_fd(), token).map_err(HandlerError::watch)?;
            }
        }
        Ok(())
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if let (Some(number), Some(refuser)) = (Self::number(token, DOORBELLS), &mut self.refuser) {
            return refuser.wake(number, self.link.metrics());
        }
        if let Some(number) = Self::number(token, 1) {
            self.rings.get(number).into_iter().for_each(Lent::pass_on);
            return Ok(());
        }
        // Another thread may be in the middle of an exchange: then this one waits, and finds nothing.
        let checked = self.link.lock().present().and_then(|frontend| frontend.check());
        checked.map_err(|error| {
            // Before the descriptor is closed, and its number somebody else's.
            if let Some(connection) = self.connection.take() {
                let _ = watch.forget(connection);
            }
            self.failed(error)
        })
    }

    fn survive(&mut self, watch: &mut dyn Watch) -> bool {
        if self.refuser.is_some() {
            return false;
        }
        if let Some(connection) = self.connection.take() {
            let _ = watch.forget(connection);
        }
        let lent = self.lent;
        self.take_back();
        let mut refuser = Refuser::new(self.protocol);
        for (number, Lent { ring, call }) in self.rings.drain(..).enumerate() {
            if let Call::PassedOn(event) = call {
                // Fails when it was not watched yet.
                let _ = watch.forget(event.as_raw_fd());
            }
            refuser.take(ring, self.mem.clone(), number < lent, self.link.metrics());
        }
        let watched = refuser.watch(watch, DOORBELLS);
        self.refuser = Some(refuser);
        watched.is_ok()
    }

    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        if let Some(refuser) = self.refuser {
            return refuser.into_states();
        }
        self.take_back();
        self.rings.into_iter().map(|lent| lent.ring.state).collect()
    }
}

impl Lent {
    fn new(ring: RingParts) -> Result<Self, StartError> {
        let call = match ring.notify.share() {
            Some(irq) => Call::Direct(irq),
            None => Call::PassedOn(EventFd::new(EFD_NONBLOCK).map_err(|source| StartError::Host {
                what: "make an eventfd",
                source,
            })?),
        };
        Ok(Self { ring, call })
    }

    /// Passes an interrupt of the back-end on, if there is one.
    fn pass_on(&self) {
        if let Call::PassedOn(event) = &self.call
            && event.read().is_ok()
        {
            self.ring.notify.signal();
        }
    }
}

impl Call {
    fn fd(&self) -> RawFd {
        match self {
            Self::Direct(irq) => irq.event().as_raw_fd(),
            Self::PassedOn(event) => event.as_raw_fd(),
        }
    }
}

/// `idx` of a used ring (virtio 1.2 §2.7.8); 0 where there is no such ring.
fn used_index(mem: &GuestMemoryMmap, used_ring: u64) -> u16 {
    let at = used_ring.checked_add(2).map(GuestAddress);
    let index = at.and_then(|at| mem.load::<u16>(at, Ordering::Acquire).ok());
    u16::from_le(index.unwrap_or_default())
}

/// An error with its causes, on one line.
fn chain(error: &BackendError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
