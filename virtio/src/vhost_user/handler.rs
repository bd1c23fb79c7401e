//! The running half of a vhost-user device: hands its rings over, waits for the end, takes them back.

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
use crate::device::{Activation, Handler, HandlerError, StartError, Watch};
use crate::ring::{RingParts, RingState};

/// Token of the connection. A ring whose interrupts are passed on has its index, plus 1.
const CONNECTION: u32 = 0;

/// Serves no request itself.
pub struct VhostUserHandler {
    link: Arc<Link>,
    mem: GuestMemory,
    features: u64,
    rings: Vec<Lent>,
    /// Rings at the beginning of `rings` that the back-end has.
    lent: usize,
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
    /// Takes the rings of `activation`, of which `needed` have to be there. Called on a vCPU thread: speaks to nobody.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(link: Arc<Link>, mut activation: Activation, needed: &[u16]) -> Result<Self, StartError> {
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
            lent: 0,
        })
    }

    /// Hands everything over. Returns what ends with the connection.
    fn lend(&mut self) -> Result<RawFd, BackendError> {
        let mut connection = self.link.lock();
        let frontend = connection.ready()?;
        frontend.set_features(self.features)?;
        frontend.set_memory(&self.mem.memory())?;
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

impl Handler for VhostUserHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let connection = self.lend().map_err(|error| self.failed(error))?;
        watch.readable(connection, CONNECTION).map_err(HandlerError::watch)?;
        for (token, lent) in (CONNECTION..).skip(1).zip(&self.rings) {
            if let Call::PassedOn(event) = &lent.call {
                watch.readable(event.as_raw_fd(), token).map_err(HandlerError::watch)?;
            }
        }
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let ring = token.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        if let Some(lent) = ring.and_then(|index| self.rings.get(index)) {
            lent.pass_on();
            return Ok(());
        }
        // Another thread may be in the middle of an exchange: then this one waits, and finds nothing.
        let checked = self.link.lock().present().and_then(|frontend| frontend.check());
        checked.map_err(|error| self.failed(error))
    }

    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        let mut connection = self.link.lock();
        let mut stopped: Result<(), BackendError> = Ok(());
        let lent = self.lent;
        for (number, Lent { ring, .. }) in self.rings.iter_mut().enumerate() {
            let queue = &mut ring.state.queue;
            let used = used_index(&self.mem.memory(), queue.used_ring);
            let position = match (&stopped, number < lent) {
                (_, false) => Ok(queue.next_avail),
                (Err(_), true) => Ok(used),
                (Ok(()), true) => connection
                    .present()
                    .and_then(|frontend| frontend.stop_ring(ring.state.index)),
            };
            (queue.next_avail, queue.next_used) = match position {
                Ok(position) => (position, used),
                Err(error) => {
                    stopped = Err(error);
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
