//! One MSI-X vector as a device holds it: raise it from any thread, without a lock.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use super::readable::is_readable;
use crate::host::{Host, Irq, MsiMessage, MsiVector};
use crate::lock;

/// The vector may not send.
const MASKED: u8 = 1;
/// A signal waits for the vector to be unmasked.
const PENDING: u8 = 2;
/// Another process signals the vector, too, by an eventfd of its own: only the kernel can hold those signals back.
const SHARED: u8 = 4;

/// Whether a vector may send, and has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskState {
    /// The driver has masked it.
    pub masked: bool,
    /// A signal of this process waits for the mask to go.
    pub pending: bool,
}

/// Raises one MSI-X vector. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Vector(Arc<Shared>);

struct Shared {
    /// [`MASKED`], [`PENDING`] and [`SHARED`] in one atomic, so that a signal that meets an unmask
    /// is sent by exactly one of the two.
    state: AtomicU8,
    /// Set before the vector is unmasked for the first time, and never changed.
    irq: OnceLock<Irq>,
    /// Only used under the lock of the vector's function.
    route: Mutex<Route>,
}

/// Where the vector's messages go, and what else sends them.
#[derive(Default)]
struct Route {
    host: Option<Arc<dyn Host>>,
    /// The message, while the vector may send.
    message: Option<MsiMessage>,
    /// The other process's eventfd.
    lent: Option<SharedEventfd>,
}

/// An eventfd that another process has as well: it can fill and empty the counter, and make the
/// next read or write of it wait. So nobody here reads or writes it: KVM takes what is written, and
/// keeps it from a vector that is disconnected.
struct SharedEventfd {
    source: MsiVector,
    routed: Option<MsiMessage>,
}

impl Vector {
    /// Sends the message, or, while the vector is masked, leaves it pending. Never blocks and takes no lock.
    ///
    /// A signal that meets a mask may still be sent, like a message that was on its way when the mask was written.
    pub fn signal(&self) {
        if self.0.state.load(Ordering::Acquire) & MASKED == 0 {
            return self.send();
        }
        self.leave_pending();
    }

    /// An eventfd for another process, which sends the message whenever anybody writes to it:
    /// always the same one. `None` while the vector is masked or was never routed, or where the
    /// host has no GSI left. To be called under the lock of the vector's function. From then on a
    /// mask disconnects the eventfd: what is written to it meanwhile waits in it.
    pub fn share(&self) -> Option<Irq> {
        let mut route = self.route();
        let message = route.message?;
        match route.lend(message) {
            Ok(irq) => {
                self.0.state.fetch_or(SHARED, Ordering::AcqRel);
                Some(irq)
            }
            Err(error) => {
                log::debug!("an MSI-X vector cannot be shared: {error}");
                None
            }
        }
    }

    /// Whether a signal waits: also one of another process, in its eventfd, which nobody reads
    /// while the vector is masked.
    pub fn is_pending(&self) -> bool {
        let state = self.0.state.load(Ordering::Acquire);
        let lent = || {
            let route = self.route();
            route
                .lent
                .as_ref()
                .is_some_and(|lent| is_readable(lent.source.irq.event()))
        };
        state & PENDING != 0 || state & (MASKED | SHARED) == MASKED | SHARED && lent()
    }

    /// What the driver's mask does at this moment to signals of this process. Takes no lock.
    pub fn mask_state(&self) -> MaskState {
        let state = self.0.state.load(Ordering::Acquire);
        MaskState {
            masked: state & MASKED != 0,
            pending: state & PENDING != 0,
        }
    }

    /// Keeps another process's signals from being sent, and the vector from being shared.
    pub(super) fn disconnect(&self, host: &dyn Host) -> io::Result<()> {
        let mut route = self.route();
        route.message = None;
        route.lent.as_mut().map_or(Ok(()), |lent| lent.route(host, None))
    }

    /// Has another process's signals sent as `message`, if there is one.
    pub(super) fn connect(&self, host: &Arc<dyn Host>, message: MsiMessage) -> io::Result<()> {
        let mut route = self.route();
        route.host.get_or_insert_with(|| host.clone());
        if let Some(lent) = &mut route.lent {
            lent.route(host.as_ref(), Some(message))?;
        }
        route.message = Some(message);
        Ok(())
    }

    /// Gives the GSI of another process's signals back.
    pub(super) fn release(&self, host: &dyn Host) {
        if let Some(lent) = std::mem::take(&mut *self.route()).lent {
            host.release(&lent.source);
        }
    }

    /// Holds signals back from now on.
    pub(super) fn mask(&self) {
        self.0.state.fetch_or(MASKED, Ordering::AcqRel);
    }

    /// Lets signals through to `irq`, the one that waits first.
    pub(super) fn unmask(&self, irq: &Irq) {
        self.0.irq.get_or_init(|| irq.clone());
        if self.0.state.fetch_and(SHARED, Ordering::AcqRel) & PENDING != 0 {
            self.send();
        }
    }

    /// Leaves a signal for whoever unmasks the vector, which was masked a moment ago.
    fn leave_pending(&self) {
        let before = self.0.state.fetch_or(PENDING, Ordering::AcqRel);
        // Unmasked in that moment: the unmask saw nothing pending, so nobody else would send it.
        if before & MASKED == 0 && self.0.state.fetch_and(!PENDING, Ordering::AcqRel) & PENDING != 0 {
            self.send();
        }
    }

    fn send(&self) {
        if let Some(irq) = self.0.irq.get() {
            irq.raise();
        }
    }

    fn route(&self) -> MutexGuard<'_, Route> {
        lock(&self.0.route)
    }
}

impl Route {
    /// The eventfd for another process, connected to `message`.
    fn lend(&mut self, message: MsiMessage) -> io::Result<Irq> {
        let host = self.host.clone().ok_or(io::ErrorKind::NotConnected)?;
        let mut lent = match self.lent.take() {
            Some(lent) => lent,
            None => SharedEventfd {
                source: host.msi()?,
                routed: None,
            },
        };
        let routed = lent.route(host.as_ref(), Some(message));
        let irq = lent.source.irq.clone();
        self.lent = Some(lent);
        routed.map(|()| irq)
    }
}

impl SharedEventfd {
    fn route(&mut self, host: &dyn Host, message: Option<MsiMessage>) -> io::Result<()> {
        if self.routed == message {
            return Ok(());
        }
        if message.is_some() {
            // After a failure it is unknown which message the route holds.
            self.routed = None;
        }
        host.route(&self.source, message)?;
        self.routed = message;
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("state", &self.state)
            .field("irq", &self.irq)
            .finish_non_exhaustive()
    }
}

impl Default for Vector {
    /// Masked, nothing pending, connected to nothing.
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: AtomicU8::new(MASKED),
            irq: OnceLock::new(),
            route: Mutex::default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    #[test]
    fn a_signal_that_meets_an_unmask_is_sent_once() {
        let (vector, irq) = (Vector::default(), Irq::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()));
        vector.unmask(&irq);
        vector.leave_pending();
        assert_eq!((irq.event().read().unwrap(), vector.is_pending()), (1, false));
        vector.mask();
        vector.leave_pending();
        assert!(irq.event().read().is_err() && vector.is_pending());
        let told = vector.mask_state();
        assert!(told.masked && told.pending);
        vector.unmask(&irq);
        let told = vector.mask_state();
        assert!(!told.masked && !told.pending);
        assert_eq!((irq.event().read().unwrap(), vector.is_pending()), (1, false));
    }
}
