//! How a device tells its driver: one interrupt source, whatever carries it (virtio 1.2 §2.3).

use std::fmt;
use std::sync::Arc;

use husk_devices::Irq;
use husk_devices::pci::{MaskState, Vector};

/// What carries an interrupt.
pub trait Signal: Send + Sync {
    /// Raises the interrupt. Never blocks.
    fn signal(&self);

    /// See [`Notify::share`].
    fn share(&self) -> Option<Irq> {
        None
    }

    /// See [`Notify::mask_state`].
    fn mask_state(&self) -> Option<MaskState> {
        None
    }
}

impl<F: Fn() + Send + Sync> Signal for F {
    fn signal(&self) {
        self();
    }
}

impl Signal for Vector {
    fn signal(&self) {
        Self::signal(self);
    }

    fn share(&self) -> Option<Irq> {
        Self::share(self)
    }

    fn mask_state(&self) -> Option<MaskState> {
        Some(Self::mask_state(self))
    }
}

/// An interrupt that a device raises for one queue or for its configuration. Cheap to clone, usable from any thread.
///
/// Where the driver asked for no interrupt (`VIRTIO_MSI_NO_VECTOR`, virtio 1.2 §4.1.5.1.2) signalling does nothing.
#[derive(Clone)]
pub struct Notify(Option<Arc<dyn Signal>>);

impl Notify {
    /// An interrupt that is raised by calling `signal`, which must not block: a closure, or a [`Vector`].
    pub fn new(signal: impl Signal + 'static) -> Self {
        Self(Some(Arc::new(signal)))
    }

    /// An interrupt that nobody asked for.
    pub fn none() -> Self {
        Self(None)
    }

    /// Raises the interrupt. Never blocks.
    pub fn signal(&self) {
        if let Some(signal) = &self.0 {
            signal.signal();
        }
    }

    /// The eventfd that raises this interrupt when anybody writes to it, for another process to do
    /// so without this one; `None` when there is no such eventfd, or not yet. To be asked in
    /// [`VirtioDevice::start`](crate::device::VirtioDevice::start), while nothing can change the
    /// interrupt.
    pub fn share(&self) -> Option<Irq> {
        self.0.as_ref()?.share()
    }

    /// What keeps the interrupt from being sent at this moment; `None` where nothing ever does. Takes no lock.
    pub fn mask_state(&self) -> Option<MaskState> {
        self.0.as_ref()?.mask_state()
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Notify" } else { "Notify(none)" })
    }
}
