//! How a device tells its driver: one interrupt source, whatever carries it (virtio 1.2 §2.3).

use std::fmt;
use std::sync::Arc;

/// An interrupt that a device raises for one queue or for its configuration. Cheap to clone, usable from any thread.
///
/// Where the driver asked for no interrupt (`VIRTIO_MSI_NO_VECTOR`, virtio 1.2 §4.1.5.1.2) signalling does nothing.
#[derive(Clone)]
pub struct Notify(Option<Arc<dyn Fn() + Send + Sync>>);

impl Notify {
    /// An interrupt that is raised by calling `signal`, which must not block.
    pub fn new(signal: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(signal)))
    }

    /// An interrupt that nobody asked for.
    pub fn none() -> Self {
        Self(None)
    }

    /// Raises the interrupt. Never blocks.
    pub fn signal(&self) {
        if let Some(signal) = &self.0 {
            signal();
        }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Notify" } else { "Notify(none)" })
    }
}
