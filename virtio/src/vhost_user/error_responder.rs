//! A device whose back-end is gone: answers every request with an error, until the driver resets it.

use std::os::fd::AsRawFd;

use husk_devices::memory::GuestMemory;

use super::doorbell::Doorbell;
use super::link::VhostUserMetrics;
use crate::device::{HandlerError, Watch};
use crate::ring::{Protocol, Ring, RingError, RingParts, RingState, Step};

/// Serves rings in the place of a back-end.
pub(super) struct ErrorResponder {
    protocol: &'static dyn Protocol,
    rings: Vec<(TakenRing, Doorbell)>,
}

/// A ring that came back.
enum TakenRing {
    Served(Box<Ring>),
    /// What is in it makes no sense.
    Broken(RingState),
}

impl ErrorResponder {
    /// With no rings yet.
    pub fn new(protocol: &'static dyn Protocol) -> Self {
        Self {
            protocol,
            rings: Vec::new(),
        }
    }

    /// Takes a ring; `owed` says that somebody else served it until now. It is kicked at once: there may be requests.
    pub fn take(
        &mut self,
        parts: RingParts,
        doorbell: Doorbell,
        mem: GuestMemory,
        owed: bool,
        metrics: &VhostUserMetrics,
    ) {
        let state = parts.state;
        let taken = match self.recover(parts, mem, owed, metrics) {
            Ok(ring) => TakenRing::Served(Box::new(ring)),
            Err(error) => {
                log::debug!("a ring that nobody can serve: {error}");
                TakenRing::Broken(state)
            }
        };
        self.rings.push((taken, doorbell));
    }

    fn recover(
        &self,
        parts: RingParts,
        mem: GuestMemory,
        owed: bool,
        metrics: &VhostUserMetrics,
    ) -> Result<Ring, RingError> {
        let RingParts { state, kick, notify } = parts;
        let mut ring = Ring::new(state, kick, notify, mem)?;
        if owed {
            let recovered = ring.recover(self.protocol)?;
            metrics.refused_requests.add(recovered.refused.into());
            metrics.lost_requests.add(recovered.lost.into());
        }
        // Fails only when the counter is full, and then it rings anyway.
        let _ = ring.kick().write(1);
        Ok(ring)
    }

    /// Watches all kicks, with tokens from `first` on: those that the kernel catches, and those
    /// that it does not. The former's eventfd is in the hands of the old back-end as well, and so
    /// is not read.
    pub fn watch(&self, watch: &mut dyn Watch, first: u32) -> Result<(), HandlerError> {
        for (token, (ring, doorbell)) in (first..).zip(&self.rings) {
            if let TakenRing::Served(ring) = ring {
                let kick = watch.readable(ring.kick().as_raw_fd(), token);
                kick.and_then(|()| watch.edges(doorbell.as_raw_fd(), token))
                    .map_err(HandlerError::watch)?;
            }
        }
        Ok(())
    }

    /// Refuses whatever waits in a ring, by its number.
    pub fn wake(&mut self, number: usize, metrics: &VhostUserMetrics) -> Result<(), HandlerError> {
        let Some((TakenRing::Served(ring), _)) = self.rings.get_mut(number) else {
            return Ok(());
        };
        let protocol = self.protocol;
        ring.drain(|request, reply| {
            let len = protocol.refuse(request, reply);
            if len > 0 {
                metrics.refused_requests.inc();
            }
            Ok(Step::Used(len))
        })
    }

    /// Where the rings stand.
    pub fn into_states(self) -> Vec<RingState> {
        let state = |(taken, _)| match taken {
            TakenRing::Served(ring) => ring.into_state(),
            TakenRing::Broken(state) => state,
        };
        self.rings.into_iter().map(state).collect()
    }
}
