//! One MSI-X vector as a device holds it: raise it from any thread, without a lock.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::host::Irq;

/// The vector may not send.
const MASKED: u8 = 1;
/// A signal waits for the vector to be unmasked.
const PENDING: u8 = 2;
/// Somebody else writes to the eventfd: only the kernel can hold signals back.
const SHARED: u8 = 4;

/// Raises one MSI-X vector. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Vector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// [`MASKED`], [`PENDING`] and [`SHARED`] in one atomic, so that a signal that meets an unmask is sent by exactly one of the two.
    state: AtomicU8,
    /// Set before the vector is unmasked for the first time, and never changed.
    irq: OnceLock<Irq>,
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

    /// The eventfd that sends the message whenever anybody writes to it; `None` while the vector is masked or was never routed.
    /// To be called under the lock of the vector's function. From then on a mask disconnects the eventfd: what is written to it
    /// meanwhile waits in it.
    pub fn share(&self) -> Option<Irq> {
        if self.0.state.load(Ordering::Acquire) & MASKED != 0 {
            return None;
        }
        let irq = self.0.irq.get()?;
        self.0.state.fetch_or(SHARED, Ordering::AcqRel);
        Some(irq.clone())
    }

    /// Whether others write to the eventfd.
    pub(super) fn is_shared(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & SHARED != 0
    }

    /// Whether a signal waits, of one that is masked also in its eventfd, which nobody else reads then.
    pub fn is_pending(&self) -> bool {
        let state = self.0.state.load(Ordering::Acquire);
        if state & (MASKED | SHARED) == MASKED | SHARED
            && self.0.irq.get().is_some_and(|irq| irq.event().read().is_ok())
        {
            self.leave_pending();
            return true;
        }
        state & PENDING != 0
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
}

impl Default for Vector {
    /// Masked, nothing pending, connected to nothing.
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: AtomicU8::new(MASKED),
            irq: OnceLock::new(),
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
        vector.unmask(&irq);
        assert_eq!((irq.event().read().unwrap(), vector.is_pending()), (1, false));
    }
}
