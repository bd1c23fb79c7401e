//! A device that never moves: it takes its rings, and has no handler that would need a thread.

use husk_devices::MetricsSource;
use std::sync::{Arc, Mutex};

use husk_virtio::config::ConfigBytes;
use husk_virtio::device::{Activation, ConfigAccess, Handler, Profile, StartError, VirtioDevice};

/// Largest sizes of its queues.
pub const QUEUE_SIZES: [u16; 3] = [16, 64, 2];
/// Features that it offers.
pub const FEATURES: u64 = 0b1011;

/// See the module.
pub struct InertDevice {
    config: Arc<Mutex<ConfigBytes>>,
}

impl InertDevice {
    /// A device with eight bytes of configuration.
    pub fn new() -> Self {
        Self {
            config: Arc::new(Mutex::new(ConfigBytes::new([1, 2, 3, 4, 5, 6, 7, 8]))),
        }
    }
}

impl VirtioDevice for InertDevice {
    fn profile(&self) -> Profile {
        Profile {
            id: 42,
            class: 0xff_00_00,
            features: FEATURES,
            queue_sizes: QUEUE_SIZES.to_vec(),
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(())
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        // The transport adds features of its own above bit 23 (virtio 1.2 §6).
        let foreign = activation.features & !FEATURES & 0x00ff_ffff;
        assert_eq!(foreign, 0, "features that were never offered");
        assert_eq!(activation.rings.len(), QUEUE_SIZES.len());
        for (number, ring) in activation.rings.into_iter().enumerate() {
            let Some(mut ring) = ring else { continue };
            assert_eq!(usize::from(ring.index()), number);
            assert!(ring.size() <= QUEUE_SIZES[number] && ring.size().is_power_of_two());
            let _ = ring.drain(|_, _| Ok(husk_virtio::ring::Step::Used(0)));
        }
        Ok(Vec::new())
    }
}
