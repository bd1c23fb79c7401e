//! The running half of a vhost-user device: hands its rings over, waits for the end, takes them back; and where the end
//! comes from the back-end, says no in its place.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use husk_devices::error_chain;
use husk_devices::memory::GuestMemory;
use vm_memory::GuestAddressSpace;

use super::deadline::Deadline;
use super::doorbell::Doorbell;
use super::error::BackendError;
use super::error_responder::ErrorResponder;
use super::frontend::{Frontend, Vring};
use super::late_requests::{self, LateRequestWait, late_requests};
use super::link::{Link, LinkGuard};
use crate::call_event::{CallEvent, used_index};
use crate::device::{Activation, Handler, HandlerError, Hold, StartError, Watch};
use crate::ring::{Protocol, RingParts, RingState};

/// Token of the connection. A ring whose interrupts are passed on has its number, plus 1.
const CONNECTION: u32 = 0;
/// Tokens of kicks that the kernel did not catch, and of all kicks once they are this process's to
/// answer: above those of all queues that a device can have.
const KICKS: u32 = 1 << 16;
/// Token of the timer for late requests: above those of all kicks.
const LATE_REQUESTS: u32 = 1 << 17;

/// Serves no request itself as long as somebody else does.
pub struct VhostUserHandler {
    link: Arc<Link>,
    mem: GuestMemory,
    features: u64,
    protocol: &'static dyn Protocol,
    rings: Vec<BackendRing>,
    /// Rings at the beginning of `rings` that the back-end has.
    lent: usize,
    /// Those that it may ever have had since the device started: requests in them may be answered, or owed.
    served: usize,
    /// The last ring that the back-end has was asked for, over this connection, and has not been given back yet.
    asked: Option<LinkGuard<Arc<Link>>>,
    /// Rings that are given back stay here.
    held: bool,
    /// They are here, and requests from them may not have ended.
    late_request_wait: LateRequestWait,
    /// What is watched of the connection.
    connection: Option<RawFd>,
    /// Has the rings once the back-end is gone.
    error_responder: Option<ErrorResponder>,
}

/// What becomes of a question that the back-end does not answer at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It is waited for, as long as an occasion has.
    Waits,
    /// The answer is for later.
    Returns,
}

/// A ring for the back-end.
struct BackendRing {
    ring: RingParts,
    doorbell: Doorbell,
    call: CallEvent,
}

impl VhostUserHandler {
    /// Takes the rings of `activation`, of which `needed` have to be there. By `protocol` their
    /// requests are answered when the back-end is gone. Called on a vCPU thread: speaks to nobody.
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
            .map(|ring| BackendRing::new(&link, ring.into_parts()));
        Ok(Self {
            rings: rings.collect::<Result<_, _>>()?,
            link,
            mem: activation.mem,
            features: activation.features,
            protocol,
            lent: 0,
            served: 0,
            asked: None,
            held: false,
            late_request_wait: LateRequestWait::default(),
            connection: None,
            error_responder: None,
        })
    }

    /// Hands everything over, to the back-end that is there when the device starts. Returns what
    /// ends with the connection.
    fn lend(&mut self) -> Result<RawFd, BackendError> {
        let link = self.link.clone();
        let mut connection = link.acquire()?;
        let frontend = connection.ready()?;
        frontend.set_features(self.features)?;
        frontend.set_memory(&link.shared().unwrap_or(&self.mem).memory())?;
        self.start_rings(frontend)?;
        link.metrics().starts.inc();
        Ok(frontend.as_raw_fd())
    }

    /// Hands the rings over that are here, where they stand, to the back-end that had them before: another one would
    /// not know the driver's session. One that was asked for comes back first: that the back-end cannot be told to go
    /// on meanwhile is the protocol's.
    fn lend_again(&mut self) -> Result<(), BackendError> {
        let mut connection = match self.asked.take() {
            Some(connection) if !connection.has_answered() => {
                self.asked = Some(connection);
                return Ok(());
            }
            Some(mut connection) => {
                connection.renew();
                self.note_stopped(connection.present()?)?;
                connection
            }
            None => self.link.acquire_owned()?,
        };
        let frontend = connection.present()?;
        frontend.check()?;
        self.start_rings(frontend)?;
        // What became available meanwhile came without a kick that anybody heard. And a request that ended after its
        // ring had been given back came without an interrupt: the back-end had nothing left to tell the driver by.
        for BackendRing { ring, doorbell, .. } in &self.rings {
            doorbell.ring();
            ring.notify.signal();
        }
        Ok(())
    }

    /// Hands over the rings that the back-end does not have.
    fn start_rings(&mut self, frontend: &mut Frontend) -> Result<(), BackendError> {
        for lent in self.rings.iter().skip(self.lent) {
            // One that does not say that it has the ring, or not in time, may have answered requests in it already.
            self.served = self.served.max(self.lent.saturating_add(1));
            frontend.start_ring(&Vring {
                index: lent.ring.state.index,
                state: &lent.ring.state.queue,
                kick: lent.doorbell.as_raw_fd(),
                call: lent.call.event().as_raw_fd(),
            })?;
            self.lent = self.lent.saturating_add(1);
        }
        Ok(())
    }

    /// Counts a failure of the back-end, and says whose it is. One that was half-way through
    /// something is left. It is none of the back-end's when the connection was ended here: then the
    /// request to stop is on its way.
    fn failed(&mut self, error: &BackendError, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        // Before the descriptor is closed, and its number somebody else's.
        self.forget(watch);
        if self.link.is_retired() {
            return Ok(());
        }
        if !error.is_local() {
            self.link.close();
        }
        self.link.metrics().backend_failures.inc();
        let socket = self.link.socket().display();
        Err(HandlerError::Host {
            what: "the vhost-user back-end failed",
            source: io::Error::other(format!("{socket}: {}", error_chain(error))),
        })
    }
}

impl VhostUserHandler {
    /// Has all rings back, or has asked for the next one. By the protocol a back-end that gives one back is done with
    /// it, and with guest memory on its account; one with a pool of threads may still end requests in it
    /// ([`late_requests()`]). The position of one that is not given back is a guess.
    ///
    /// # Errors
    /// Not all are given back, or not in time. The back-end has been hung up on: one that lost its front-end lets go of
    /// guest memory, and there is no other way to make it.
    fn take_back(&mut self, patience: Patience) -> Result<Hold, BackendError> {
        let taken = self.stop_rings(patience);
        if let Ok(Hold::Pending) = taken {
            return taken;
        }
        if let Err(error) = &taken {
            let socket = self.link.socket().display();
            log::debug!("{socket}: not stopped in order: {}", error_chain(error));
            self.link.hang_up();
        }
        let lent = std::mem::take(&mut self.lent);
        for BackendRing { ring, .. } in self.rings.iter_mut().take(lent) {
            let queue = &mut ring.state.queue;
            queue.next_used = used_index(&self.mem.memory(), queue.used_ring);
            queue.next_avail = queue.next_used;
        }
        self.rings.iter().for_each(BackendRing::relay);
        taken
    }

    /// Has all rings back for good, and waits for what was begun in them. Else the connection has been closed.
    fn take_back_for_good(&mut self) {
        let taken = self.take_back(Patience::Waits);
        if taken.is_err() || self.wait_for_late_requests().is_err() {
            self.link.close();
        }
        self.late_request_wait.end();
    }

    /// Waits for requests in rings that have come back.
    ///
    /// # Errors
    /// They have not all ended, and the back-end has been hung up on: the driver will have other uses for the memory.
    fn wait_for_late_requests(&mut self) -> Result<(), BackendError> {
        let deadline = Deadline::after(self.link.late_limit());
        while self.late_requests() > 0 {
            if self.link.is_retired() {
                return Err(BackendError::Gone(None));
            }
            self.link.acquire()?.present()?.check()?;
            if !late_requests::sleep(deadline) {
                self.give_late_requests_up("is left: its device stops");
                self.link.hang_up();
                return Err(BackendError::Gone(None));
            }
        }
        self.note_used();
        Ok(())
    }

    /// As [`VhostUserHandler::wait_for_late_requests`], in the handler's own time.
    fn hold_for_late_requests(&mut self, watch: &mut dyn Watch) -> Hold {
        if self.late_requests() > 0 {
            let limit = self.link.late_limit();
            // Without a timer there is nobody to look again.
            let paused = self.late_request_wait.pause(limit, LATE_REQUESTS, watch);
            if paused.unwrap_or(false) {
                return Hold::Pending;
            }
            self.give_late_requests_up("may still write guest memory while the device is held");
        }
        self.late_request_wait.end();
        self.note_used();
        Hold::Held
    }

    /// Requests that the back-end has taken and not ended, in rings that have come back.
    fn late_requests(&self) -> u32 {
        let mem = self.mem.memory();
        let served = self.rings.iter().take(self.served);
        served
            .map(|BackendRing { ring, .. }| u32::from(late_requests(&ring.state.queue, &mem)))
            .sum()
    }

    /// Counts and tells that requests are waited for no longer. `consequence`: what that means for the back-end.
    fn give_late_requests_up(&self, consequence: &str) {
        let requests = self.late_requests();
        self.link.metrics().late_requests.add(requests.into());
        log::warn!(
            "{}: the back-end gave its queues back and has not ended requests in them ({requests}) within {} ms; it \
             {consequence}",
            self.link.socket().display(),
            self.link.late_limit().as_millis(),
        );
    }

    /// Takes the positions of the used rings that have come back.
    fn note_used(&mut self) {
        let mem = self.mem.memory();
        for BackendRing { ring, .. } in self.rings.iter_mut().take(self.served) {
            let queue = &mut ring.state.queue;
            queue.next_used = used_index(&mem, queue.used_ring);
        }
    }

    /// Asks for the rings that the back-end has, from the last one on.
    fn stop_rings(&mut self, patience: Patience) -> Result<Hold, BackendError> {
        let (mut connection, mut is_asked) = match self.asked.take() {
            _ if self.lent == 0 => return Ok(Hold::Held),
            Some(mut connection) => {
                connection.renew();
                (connection, true)
            }
            None => (self.link.acquire_owned()?, false),
        };
        while let Some(last) = self.lent.checked_sub(1).and_then(|last| self.rings.get(last)) {
            let frontend = connection.present()?;
            if !is_asked {
                frontend.stop_ring(last.ring.state.index)?;
            }
            if patience == Patience::Returns && !frontend.has_answered() {
                self.asked = Some(connection);
                return Ok(Hold::Pending);
            }
            self.note_stopped(frontend)?;
            is_asked = false;
        }
        Ok(Hold::Held)
    }

    /// Takes the ring that was asked for.
    fn note_stopped(&mut self, frontend: &mut Frontend) -> Result<(), BackendError> {
        let last = self.lent.saturating_sub(1);
        let Some(BackendRing { ring, .. }) = self.rings.get_mut(last) else {
            return Ok(());
        };
        let queue = &mut ring.state.queue;
        queue.next_avail = frontend.stopped_ring(ring.state.index)?;
        // Not before: by the protocol the back-end ends what it has begun before it answers.
        queue.next_used = used_index(&self.mem.memory(), queue.used_ring);
        self.lent = last;
        Ok(())
    }

    /// Stops watching what the back-end had its part in.
    fn forget(&mut self, watch: &mut dyn Watch) {
        // Fails for what was not watched yet.
        if let Some(connection) = self.connection.take() {
            let _ = watch.forget(connection);
        }
        for BackendRing { ring, call, .. } in &self.rings {
            let _ = watch.forget(ring.kick.as_raw_fd());
            if let Some(event) = call.watched() {
                let _ = watch.forget(event);
            }
        }
    }

    /// Whose ring a token stands for, counted from `first`.
    fn number(token: u32, first: u32) -> Option<usize> {
        token.checked_sub(first).and_then(|number| usize::try_from(number).ok())
    }
}

impl Handler for VhostUserHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let connection = match self.lend() {
            Ok(connection) => connection,
            Err(error) => return self.failed(&error, watch),
        };
        watch.readable(connection, CONNECTION).map_err(HandlerError::watch)?;
        self.connection = Some(connection);
        for (number, BackendRing { ring, call, .. }) in (0..).zip(&self.rings) {
            let kick = ring.kick.as_raw_fd();
            watch
                .readable(kick, KICKS.saturating_add(number))
                .map_err(HandlerError::watch)?;
            if let Some(event) = call.watched() {
                let token = CONNECTION.saturating_add(1).saturating_add(number);
                watch.edges(event, token).map_err(HandlerError::watch)?;
            }
        }
        Ok(())
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == LATE_REQUESTS {
            // Whoever waits looks after this.
            self.late_request_wait.on_timer();
            return Ok(());
        }
        if let Some(number) = Self::number(token, KICKS) {
            if let Some(error_responder) = &mut self.error_responder {
                return error_responder.wake(number, self.link.metrics());
            }
            self.rings.get(number).into_iter().for_each(BackendRing::relay_kick);
            return Ok(());
        }
        if let Some(number) = Self::number(token, 1) {
            self.rings.get(number).into_iter().for_each(BackendRing::relay);
            return Ok(());
        }
        if self.link.is_retired() {
            // It was hung up on, and the request to stop is on its way.
            self.forget(watch);
            return Ok(());
        }
        if self.asked.is_some() {
            // The answer is for `hold`, which is asked again, or was called off.
            let lent = if self.held { Ok(()) } else { self.lend_again() };
            return lent.or_else(|error| self.failed(&error, watch));
        }
        // Another thread may be in the middle of an exchange: then this one waits, and finds nothing.
        let checked = match self.link.acquire() {
            Ok(mut connection) => connection.present().and_then(Frontend::check),
            Err(_) => return Ok(()),
        };
        checked.or_else(|error| self.failed(&error, watch))
    }

    /// What the back-end holds it gives back, as for a reset, in its own time; and ends what it has
    /// begun, within a limit.
    fn hold(&mut self, watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        if self.error_responder.is_some() {
            return Ok(Hold::Held);
        }
        self.held = true;
        if !self.late_request_wait.is_begun() {
            match self.take_back(Patience::Returns) {
                Ok(Hold::Held) => {}
                Ok(Hold::Pending) => return Ok(Hold::Pending),
                Err(error) => return self.failed(&error, watch).map(|()| Hold::Held),
            }
        }
        Ok(self.hold_for_late_requests(watch))
    }

    fn release(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if self.error_responder.is_some() {
            return Ok(());
        }
        self.held = false;
        self.late_request_wait.end();
        self.lend_again().or_else(|error| self.failed(&error, watch))
    }

    fn survive(&mut self, watch: &mut dyn Watch) -> bool {
        if self.error_responder.is_some() {
            return false;
        }
        self.forget(watch);
        self.take_back_for_good();
        let mut error_responder = ErrorResponder::new(self.protocol);
        for (number, BackendRing { ring, doorbell, .. }) in self.rings.drain(..).enumerate() {
            let owed = number < self.served;
            error_responder.take(ring, doorbell, self.mem.clone(), owed, self.link.metrics());
        }
        let watched = error_responder.watch(watch, KICKS);
        self.error_responder = Some(error_responder);
        watched.is_ok()
    }

    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        if let Some(error_responder) = self.error_responder {
            return error_responder.into_states();
        }
        self.take_back_for_good();
        self.rings.into_iter().map(|lent| lent.ring.state).collect()
    }
}

impl BackendRing {
    fn new(link: &Link, ring: RingParts) -> Result<Self, StartError> {
        let event = |source| StartError::Host {
            what: "make an eventfd",
            source,
        };
        let call = CallEvent::new(&ring.notify).map_err(event)?;
        let doorbell = link.doorbell(ring.state.index).map_err(event)?;
        Ok(Self { ring, doorbell, call })
    }

    /// Passes a kick on that the kernel did not catch.
    fn relay_kick(&self) {
        if self.ring.kick.read().is_ok() {
            self.doorbell.ring();
        }
    }

    /// Passes an interrupt of the back-end on, if there was one.
    fn relay(&self) {
        self.call.relay(&self.ring.notify);
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
