//! One MSI-X vector as a device holds it: raise it from any thread, without a lock.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::host::Irq;

/// The vector may not send.
const MASKED: u8 = 1;
/// A signal waits for the vector to be unmasked.
const PENDING: u8 = 2;

/// Raises one MSI-X vector. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Vector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// [`MASKED`] and [`PENDING`] in one atomic, so that a signal that meets an unmask is sent by exactly one of the two.
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

    /// Whether a signal waits.
    pub fn is_pending(&self) -> bool {
        self.0.state.load(Ordering::Acquire) & PENDING != 0
    }

    /// Holds signals back from now on.
    pub(super) fn mask(&self) {
        self.0.state.fetch_or(MASKED, Ordering::AcqRel);
    }

    /// Lets signals through to `irq`, the one that waits first.
    pub(super) fn unmask(&self, irq: &Irq) {
        self.0.irq.get_or_init(|| irq.clone());
        if self.0.state.swap(0, Ordering::AcqRel) & PENDING != 0 {
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
