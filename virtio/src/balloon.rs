//! Memory balloon (virtio 1.2 §5.5): memory that the guest gives back, when asked and of its own accord.
//!
//! | queue | carries                                                                          |
//! |-------|----------------------------------------------------------------------------------|
//! | 0     | inflateq: numbers of pages that the guest does not use any more                  |
//! | 1     | deflateq: numbers of pages that it uses again                                    |
//! | next  | statsq, with `VIRTIO_BALLOON_F_STATS_VQ`: a buffer with statistics               |
//! | next  | reporting_vq, with `VIRTIO_BALLOON_F_PAGE_REPORTING`: free pages, as buffers     |
//!
//! | offset | width | R/W | configuration field (§5.5.4)                              |
//! |--------|-------|-----|-----------------------------------------------------------|
//! | 0x00   | 4     | R   | `num_pages`: how large the balloon should be, in 4 KiB    |
//! | 0x04   | 4     | RW  | `actual`: how large it is, by the driver's word           |
//! | 0x08   | 4     | R   | `free_page_hint_cmd_id`: 0, its feature is not offered    |
//! | 0x0c   | 4     | RW  | `poison_val`: what the driver fills free pages with       |
//!
//! Queues of features that were not negotiated are left out, and those behind them move up, as Linux and QEMU have it.
//!
//! Pages in the balloon, and pages that are reported free, are given back to the host at once
//! ([`Discard`]). The guest gets a page again by touching it: the host then has to find one. What
//! it reports free has to be so when it says it: the driver keeps such pages aside until their
//! request is answered. A guest that fills free pages with something else than zeroes finds it
//! there again (§5.5.6.4.2): its reports are answered, and its pages stay. Without
//! `VIRTIO_BALLOON_F_PAGE_POISON` a Linux that fills them at all would not report them.

mod handler;
mod pages;
mod stats;

pub use stats::BalloonStats;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::metrics::{Counter, Gauge, MetricsSource};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, Profile, StartError, VirtioDevice};
use crate::ring::{Notify, Ring};
use crate::threads::ThreadClass;
use handler::BalloonHandler;
use pages::PAGE_BYTES;

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_BALLOON: u32 = 5;
/// "Other memory controller": base class 05h.
const PCI_CLASS: u32 = 0x05_80_00;
/// Linux has one request under way in each queue, of one buffer; a report of free pages has 32.
const QUEUE_SIZES: [u16; 4] = [64, 64, 16, 64];

/// Feature bits (virtio 1.2 §5.5.3).
const VIRTIO_BALLOON_F_STATS_VQ: u64 = 1 << 1;
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 1 << 2;
const VIRTIO_BALLOON_F_PAGE_POISON: u64 = 1 << 4;
const VIRTIO_BALLOON_F_PAGE_REPORTING: u64 = 1 << 5;

const ACTUAL: usize = 4;
const POISON: usize = 12;
const CONFIG_BYTES: usize = 16;

/// What gives pages of guest RAM back to the host.
pub trait Discard: Send + Sync {
    /// Gives `bytes` bytes of RAM from guest-physical `gpa` on back, whole pages of 4 KiB. What the
    /// guest reads there next is zero.
    ///
    /// # Errors
    /// Not whole pages, or not all of it RAM of such pages: nothing has changed. The host refuses:
    /// part of it may be given back.
    fn discard(&self, gpa: u64, bytes: u64) -> io::Result<()>;
}

/// What a balloon has done since it was made.
#[derive(Debug, Default)]
pub struct BalloonMetrics {
    /// [`BalloonSize::actual_bytes`].
    pub actual_bytes: Gauge,
    /// [`BalloonSize::target_bytes`].
    pub target_bytes: Gauge,
    /// Pages of 4 KiB that went into the balloon.
    pub inflated_pages: Counter,
    /// Pages of 4 KiB that came out again.
    pub deflated_pages: Counter,
    /// Bytes that the guest reported free, and that the host has again.
    pub reported_bytes: Counter,
    /// Ranges that the host would not take back.
    pub discard_failures: Counter,
    /// Requests that make no sense.
    pub bad_requests: Counter,
}

impl MetricsSource for BalloonMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("actual_bytes", self.actual_bytes.get()),
            ("target_bytes", self.target_bytes.get()),
            ("inflated_pages", self.inflated_pages.get()),
            ("deflated_pages", self.deflated_pages.get()),
            ("reported_bytes", self.reported_bytes.get()),
            ("discard_failures", self.discard_failures.get()),
            ("bad_requests", self.bad_requests.get()),
        ]
    }
}

/// What a balloon should do beside inflating and deflating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonConfig {
    /// The guest may take pages out by itself before it kills a process for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports pages that are free.
    pub free_page_reporting: bool,
}

/// How large a balloon is and should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonSize {
    /// By the driver's word, in bytes; nothing without one.
    pub actual_bytes: u64,
    /// What was asked for, in bytes.
    pub target_bytes: u64,
    /// A driver has taken the device.
    pub driver: bool,
}

struct Shared {
    target_pages: u32,
    config: ConfigBytes,
    actual: [u8; 4],
    /// Shared with the handler, which is at work without the lock.
    poison: Arc<AtomicU32>,
    stats: BalloonStats,
    config_changed: Option<Notify>,
    on_change: Arc<dyn Fn() + Send + Sync>,
    metrics: Arc<BalloonMetrics>,
}

impl Shared {
    fn set_actual(&mut self, actual: [u8; 4]) {
        self.actual = actual;
        self.config.update(ACTUAL, &actual);
        self.show_size();
        (self.on_change)();
    }

    fn set_poison(&mut self, poison: [u8; 4]) {
        self.poison.store(u32::from_le_bytes(poison), Ordering::Release);
        self.config.update(POISON, &poison);
    }

    /// What an earlier driver has said is true of its own time alone: the next one may say nothing of the kind.
    fn set_driver(&mut self, config_changed: Option<Notify>) {
        self.config_changed = config_changed;
        self.stats = BalloonStats::default();
        self.show_size();
    }

    fn size(&self) -> BalloonSize {
        let bytes = |pages: u32| u64::from(pages).saturating_mul(PAGE_BYTES);
        let driver = self.config_changed.is_some();
        // Anybody in the guest can write to the field.
        let actual = if driver { u32::from_le_bytes(self.actual) } else { 0 };
        BalloonSize {
            actual_bytes: bytes(actual),
            target_bytes: bytes(self.target_pages),
            driver,
        }
    }

    /// Has the metrics say what [`Shared::size`] does.
    fn show_size(&self) {
        let size = self.size();
        self.metrics.actual_bytes.set(size.actual_bytes);
        self.metrics.target_bytes.set(size.target_bytes);
    }
}

impl ConfigAccess for Shared {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    /// The driver may write `actual` and `poison_val`, and nothing else (virtio 1.2 §5.5.6).
    fn write(&mut self, offset: u64, data: &[u8]) {
        let (was, actual) = (self.actual, written(self.actual, ACTUAL, offset, data));
        if actual != was {
            self.set_actual(actual);
        }
        let poison = self.poison.load(Ordering::Acquire).to_le_bytes();
        self.set_poison(written(poison, POISON, offset, data));
    }

    fn generation(&self) -> u8 {
        self.config.generation()
    }
}

/// The field at `at`, of the bytes `field`, once `data` has been written to `offset`.
fn written(mut field: [u8; 4], at: usize, offset: u64, data: &[u8]) -> [u8; 4] {
    for (distance, byte) in (0..).zip(data) {
        let place = offset
            .checked_add(distance)
            .and_then(|place| place.checked_sub(at as u64));
        let place = place.and_then(|place| usize::try_from(place).ok());
        if let Some(place) = place.and_then(|place| field.get_mut(place)) {
            *place = *byte;
        }
    }
    field
}

/// The host's end of a balloon. From any thread, never blocks for long.
#[derive(Clone)]
pub struct BalloonHandle {
    shared: Arc<Mutex<Shared>>,
    refresh: Arc<EventFd>,
}

impl BalloonHandle {
    /// Says how large the balloon should be. The guest hears of it at once if it has a driver, else when it gets one.
    pub fn set_target(&self, BalloonTarget(pages): BalloonTarget) {
        let mut shared = lock(&self.shared);
        shared.target_pages = pages;
        shared.config.update(0, &pages.to_le_bytes());
        shared.show_size();
        if let Some(notify) = &shared.config_changed {
            notify.signal();
        }
    }

    /// The balloon's target and actual size at this moment, in bytes.
    pub fn size(&self) -> BalloonSize {
        lock(&self.shared).size()
    }

    /// Asks the guest for new statistics. They come later, if at all.
    pub fn refresh(&self) {
        // Fails only when the counter is full, and then it is readable all the same.
        let _ = self.refresh.write(1);
    }

    /// What the guest has said last.
    pub fn stats(&self) -> BalloonStats {
        lock(&self.shared).stats
    }
}

/// A size that a balloon can have, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonTarget(u32);

impl BalloonTarget {
    /// `bytes` bytes.
    ///
    /// # Errors
    /// Not whole pages of 4 KiB, or 16 TiB or more.
    pub fn new(bytes: u64) -> Result<Self, BalloonSizeError> {
        let whole = Some(bytes).filter(|bytes| bytes.is_multiple_of(PAGE_BYTES));
        let pages = whole.and_then(|bytes| u32::try_from(bytes / PAGE_BYTES).ok());
        pages.map(Self).ok_or(BalloonSizeError(bytes))
    }
}

/// A size that no balloon can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a balloon of {0} bytes: whole pages of 4096 bytes, less than 16 TiB")]
pub struct BalloonSizeError(u64);

/// A virtio memory balloon (virtio 1.2 §5.5), with statistics and, if configured, free page reporting.
pub struct Balloon {
    config: BalloonConfig,
    handle: BalloonHandle,
    memory: Arc<dyn Discard>,
    metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// An empty balloon, whose pages go back to the host through `memory`. `on_change` is called
    /// when its size or its driver has changed, on any thread: it should wake who waits for that,
    /// and do no more.
    ///
    /// # Errors
    /// When the host refuses an eventfd.
    pub fn new(
        config: BalloonConfig,
        memory: Arc<dyn Discard>,
        on_change: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let metrics = Arc::<BalloonMetrics>::default();
        let shared = Shared {
            target_pages: 0,
            config: ConfigBytes::new([0; CONFIG_BYTES]),
            actual: [0; 4],
            poison: Arc::default(),
            stats: BalloonStats::default(),
            config_changed: None,
            on_change: Arc::new(on_change),
            metrics: metrics.clone(),
        };
        Ok(Self {
            config,
            handle: BalloonHandle {
                shared: Arc::new(Mutex::new(shared)),
                refresh: Arc::new(EventFd::new(EFD_NONBLOCK)?),
            },
            memory,
            metrics,
        })
    }

    /// A handle for the control thread: sets the target, asks for statistics. Cheap to clone.
    pub fn handle(&self) -> BalloonHandle {
        self.handle.clone()
    }

    /// The device's metrics.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        self.metrics.clone()
    }
}

impl VirtioDevice for Balloon {
    fn profile(&self) -> Profile {
        let when = |on, feature| if on { feature } else { 0 };
        let reporting = VIRTIO_BALLOON_F_PAGE_REPORTING | VIRTIO_BALLOON_F_PAGE_POISON;
        let features = VIRTIO_BALLOON_F_STATS_VQ
            | when(self.config.deflate_on_oom, VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
            | when(self.config.free_page_reporting, reporting);
        let queues = if self.config.free_page_reporting { 4 } else { 3 };
        Profile {
            id: VIRTIO_ID_BALLOON,
            class: PCI_CLASS,
            features,
            queue_sizes: QUEUE_SIZES.into_iter().take(queues).collect(),
        }
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Balloon
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.handle.shared.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let features = activation.features;
        let (inflate, deflate) = (activation.take_ring(0)?, activation.take_ring(1)?);
        let mut next = 2;
        let mut optional = |feature| -> Result<Option<Ring>, StartError> {
            if features & feature == 0 {
                return Ok(None);
            }
            let ring = activation.take_ring(next)?;
            next = next.saturating_add(1);
            Ok(Some(ring))
        };
        let stats = optional(VIRTIO_BALLOON_F_STATS_VQ)?;
        let reporting = optional(VIRTIO_BALLOON_F_PAGE_REPORTING)?;
        let (on_change, poison) = {
            let mut shared = lock(&self.handle.shared);
            shared.set_driver(Some(activation.config_changed));
            let poison = (features & VIRTIO_BALLOON_F_PAGE_POISON != 0).then(|| shared.poison.clone());
            (shared.on_change.clone(), poison)
        };
        on_change();
        Ok(vec![Box::new(BalloonHandler {
            inflate,
            deflate,
            stats,
            reporting,
            held: None,
            poison,
            bus_master: Arc::new(AtomicBool::new(true)),
            handle: self.handle.clone(),
            memory: self.memory.clone(),
            metrics: self.metrics.clone(),
        })])
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod tests;
