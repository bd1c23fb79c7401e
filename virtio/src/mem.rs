//! Memory device (virtio 1.2 §5.15): guest RAM that comes and goes in small blocks, each with the guest's word for it.
//!
//! | queue | carries                                                              |
//! |-------|----------------------------------------------------------------------|
//! | 0     | guest requests: 24 bytes readable, 10 bytes writable                 |
//!
//! | offset | width | R/W | configuration field (§5.15.4)                   |
//! |--------|-------|-----|-------------------------------------------------|
//! | 0x00   | 8     | R   | `block_size`                                    |
//! | 0x08   | 2     | R   | `node_id`: 0, `VIRTIO_MEM_F_ACPI_PXM` is not offered |
//! | 0x10   | 8     | R   | `addr`                                          |
//! | 0x18   | 8     | R   | `region_size`                                   |
//! | 0x20   | 8     | R   | `usable_region_size`: all of it                 |
//! | 0x28   | 8     | R   | `plugged_size`                                  |
//! | 0x30   | 8     | R   | `requested_size`                                |
//!
//! The host says how much the guest should have ([`MemHandle::request`]); the driver plugs and
//! unplugs blocks until that is so. An answer "yes" to a request is the proof that the guest has
//! the memory or let go of it. Linux has it for *use* a moment later: it plugs a block, then adds
//! it to its memory, and tells nobody. So the driver of a guest that has all it should have is told
//! once more. It reads the configuration anew only when it is done with what it was about
//! (`drivers/virtio/virtio_mem.c`, one work item at a time): that read is the sign
//! ([`MemSize::settled`]).
//!
//! What is not plugged is not there: `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE` is offered, and a driver
//! that does not take it is not served, since it would read such memory (§5.15.3). What makes
//! memory appear and disappear is the machine's affair ([`Backing`]).
//!
//! The answers are those that keep a driver alive. Linux takes `ERROR` for its own fault and gives
//! the device up for good, so that is for requests that make no sense. `NACK` says that there has
//! been a newer request of the host's; `BUSY` that the host cannot at present, which ends with the
//! next configuration interrupt ([`MemHandle::retry`]).

mod handler;
mod region;

pub use region::{MemConfig, MemConfigError};

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::metrics::{Counter, Gauge, MetricsSource};

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, Profile, StartError, VirtioDevice};
use crate::ring::Notify;
use crate::threads::ThreadClass;
use handler::MemHandler;
use region::{CONFIG_BYTES, PLUGGED_SIZE, REQUESTED_SIZE, Region};

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_MEM: u32 = 24;
/// "Other memory controller": base class 05h.
const PCI_CLASS: u32 = 0x05_80_00;
/// Linux has one request under way at a time.
const QUEUE_SIZE: u16 = 16;
/// What is not plugged must not be touched (virtio 1.2 §5.15.3).
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// What makes the memory of a device appear and disappear. Called on the device's thread.
pub trait Backing: Send {
    /// Makes `bytes` bytes at `offset` of the region the guest's, none of which are.
    ///
    /// # Errors
    /// The host cannot at present. Nothing has changed.
    fn plug(&mut self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Takes `bytes` bytes at `offset` of the region from the guest, all of which it has, and gives
    /// their pages back to the host.
    ///
    /// # Errors
    /// The host cannot at present. The guest has all of it as before, but part of it may be empty.
    fn unplug(&mut self, offset: u64, bytes: u64) -> io::Result<()>;
}

/// What a memory device has done since it was made.
#[derive(Debug, Default)]
pub struct MemMetrics {
    /// [`MemSize::plugged_bytes`].
    pub plugged_bytes: Gauge,
    /// [`MemSize::requested_bytes`].
    pub requested_bytes: Gauge,
    /// [`MemSize::usable_bytes`].
    pub usable_bytes: Gauge,
    /// Requests to plug or unplug that were carried out.
    pub requests: Counter,
    /// Requests turned down because there is a newer wish of the host's.
    pub nacks: Counter,
    /// Requests answered with `VIRTIO_MEM_RESP_BUSY` because the host could not carry them out at that moment.
    pub busy: Counter,
    /// Requests that make no sense, or without room for the answer.
    pub bad_requests: Counter,
}

impl MetricsSource for MemMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("plugged_bytes", self.plugged_bytes.get()),
            ("requested_bytes", self.requested_bytes.get()),
            ("usable_bytes", self.usable_bytes.get()),
            ("requests", self.requests.get()),
            ("nacks", self.nacks.get()),
            ("busy", self.busy.get()),
            ("bad_requests", self.bad_requests.get()),
        ]
    }
}

/// How large the device's memory is, should be and can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemSize {
    /// What the guest has, in bytes.
    pub plugged_bytes: u64,
    /// Bytes that the guest should have (`requested_size`), whole blocks.
    pub requested_bytes: u64,
    /// Bytes of the region that the guest may plug (`usable_region_size`): always the whole region.
    pub usable_bytes: u64,
    /// Bytes of a block: the three sizes above are multiples of it.
    pub block_bytes: u64,
    /// A driver has taken the device.
    pub driver: bool,
    /// The driver is done with what it has plugged: it has looked at its configuration since.
    pub settled: bool,
}

/// What is known on either side. Locked for one request or one register access.
struct Shared {
    region: Region,
    config: ConfigBytes,
    /// How the driver is told that it should look again; none while there is no driver.
    config_changed: Option<Notify>,
    /// The driver has looked since it plugged a block. It reads through a shared reference.
    settled: AtomicBool,
    on_change: Arc<dyn Fn() + Send + Sync>,
    metrics: Arc<MemMetrics>,
}

impl Shared {
    fn publish(&mut self) {
        let bytes = self.region.config_bytes();
        debug_assert_eq!(bytes.len(), CONFIG_BYTES);
        for field in [PLUGGED_SIZE, REQUESTED_SIZE] {
            if let Some(value) = bytes.get(field..).and_then(|rest| rest.get(..8)) {
                self.config.update(field, value);
            }
        }
        self.metrics.plugged_bytes.set(self.region.plugged_bytes());
        self.metrics.requested_bytes.set(self.region.requested_bytes());
    }
}

impl ConfigAccess for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
        // What it compares with what it has.
        if offset == REQUESTED_SIZE as u64 && !self.settled.swap(true, Ordering::Relaxed) {
            (self.on_change)();
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}

    fn generation(&self) -> u8 {
        self.config.generation()
    }
}

/// The host's end of a memory device: asks for more or less, and sees what came of it. From any
/// thread, never blocks for long.
#[derive(Clone)]
pub struct MemHandle(Arc<Mutex<Shared>>);

impl MemHandle {
    /// Says how much the guest should have, in bytes. It hears of it at once if it has a driver, else when it gets one.
    ///
    /// # Errors
    /// Not whole blocks, or more than the region has: nothing has changed.
    pub fn request(&self, bytes: u64) -> Result<(), MemRequestError> {
        let mut shared = lock(&self.0);
        let MemConfig {
            region_bytes,
            block_bytes,
            ..
        } = shared.region.config();
        if bytes > region_bytes || !bytes.is_multiple_of(block_bytes) {
            return Err(MemRequestError {
                bytes,
                region_bytes,
                block_bytes,
            });
        }
        shared.region.request(bytes);
        shared.publish();
        tell(&shared);
        Ok(())
    }

    /// Lets a driver that was told `BUSY`, or could not empty a block, try again now.
    pub fn retry(&self) {
        tell(&lock(&self.0));
    }

    /// How large the memory is now.
    pub fn size(&self) -> MemSize {
        let shared = lock(&self.0);
        let MemConfig {
            region_bytes,
            block_bytes,
            ..
        } = shared.region.config();
        MemSize {
            plugged_bytes: shared.region.plugged_bytes(),
            requested_bytes: shared.region.requested_bytes(),
            usable_bytes: region_bytes,
            block_bytes,
            driver: shared.config_changed.is_some(),
            settled: shared.settled.load(Ordering::Relaxed),
        }
    }
}

/// A size that the device cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are not whole blocks of {block_bytes} bytes, {region_bytes} bytes at most")]
pub struct MemRequestError {
    bytes: u64,
    region_bytes: u64,
    block_bytes: u64,
}

fn tell(shared: &Shared) {
    if let Some(notify) = &shared.config_changed {
        notify.signal();
    }
}

/// A virtio-mem device (virtio 1.2 §5.15): guest memory that comes and goes in blocks.
pub struct Mem {
    shared: Arc<Mutex<Shared>>,
    backing: Arc<Mutex<dyn Backing>>,
    on_change: Arc<dyn Fn() + Send + Sync>,
    metrics: Arc<MemMetrics>,
}

impl Mem {
    /// A device of nothing plugged and nothing requested. `on_change` is called on its thread when
    /// what is plugged has changed, and on that of the vCPU by which the driver looks again: it
    /// should wake who waits for that, and do no more.
    ///
    /// # Errors
    /// [`MemConfigError`].
    pub fn new(
        config: MemConfig,
        backing: impl Backing + 'static,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, MemConfigError> {
        let region = Region::new(config)?;
        let on_change: Arc<dyn Fn() + Send + Sync> = Arc::new(on_change);
        let metrics = Arc::<MemMetrics>::default();
        metrics.usable_bytes.set(config.region_bytes);
        let shared = Shared {
            config: ConfigBytes::new(region.config_bytes()),
            region,
            config_changed: None,
            settled: AtomicBool::new(true),
            on_change: on_change.clone(),
            metrics: metrics.clone(),
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(shared)),
            backing: Arc::new(Mutex::new(backing)),
            on_change,
            metrics,
        })
    }

    /// A handle for the control thread: sets the requested size and reads the present one.
    pub fn handle(&self) -> MemHandle {
        MemHandle(self.shared.clone())
    }

    /// The device's metrics.
    pub fn metrics(&self) -> Arc<MemMetrics> {
        self.metrics.clone()
    }
}

impl VirtioDevice for Mem {
    fn profile(&self) -> Profile {
        Profile {
            id: VIRTIO_ID_MEM,
            class: PCI_CLASS,
            features: VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Mem
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.shared.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        if activation.features & VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(StartError::Host {
                what: "serve a driver that reads memory which is not plugged",
                source: io::ErrorKind::Unsupported.into(),
            });
        }
        let ring = activation.take_ring(0)?;
        lock(&self.shared).config_changed = Some(activation.config_changed);
        (self.on_change)();
        Ok(vec![Box::new(MemHandler {
            ring,
            shared: self.shared.clone(),
            backing: self.backing.clone(),
            on_change: self.on_change.clone(),
            metrics: self.metrics.clone(),
            change: None,
        })])
    }
}

#[cfg(test)]
#[path = "mem_test.rs"]
mod tests;
