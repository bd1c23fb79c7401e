//! virtio block device (virtio 1.2 §5.2) over a raw file or block device of the host.
//!
//! The bytes of the image are the bytes of the disk: no format is ever detected, so nothing that a guest writes into
//! its disk can name another file of the host. One queue, one [`Handler`], one I/O thread: requests of different queues
//! never meet in a lock, and a slow request delays only its own queue.
//!
//! | part | what it holds |
//! |---|---|
//! | `image` | the open file: kind, size, lock, alignment |
//! | `config_space` | what the driver reads (and its cache switch) |
//! | `request` | a chain taken apart and checked |
//! | `job` | one request under way, as a sequence of host operations; knows no engine |
//! | `engine` | carries an operation out: `uring`, or `plain` system calls |
//! | `handler` | one queue: ring, jobs in flight, engine |
//!
//! | feature | offered |
//! |---|---|
//! | `VIRTIO_BLK_F_SEG_MAX`, `BLK_SIZE`, `TOPOLOGY`, `FLUSH`, `CONFIG_WCE` | always |
//! | `VIRTIO_BLK_F_MQ` | with more than one queue |
//! | `VIRTIO_BLK_F_RO` | read-only disk |
//! | `VIRTIO_BLK_F_WRITE_ZEROES` | writable disk |
//! | `VIRTIO_BLK_F_DISCARD` | writable disk with [`BlockConfig::discard`] |

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "a test that cuts its own numbers fails, as it should"
    )
)]

mod config_space;
mod engine;
mod handler;
mod image;
mod in_flight;
mod inline_write;
mod job;
mod limits;
mod lock;
mod metrics;
mod plain;
mod request;
mod scratch;
mod sync_order;
mod transfer;
mod uring;
mod zeroing;

#[cfg(test)]
mod testing;

pub use image::BlockError;
pub use limits::is_readonly;
pub use lock::{FileLock, is_locked_by_anyone};
pub use metrics::BlockMetrics;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::metrics::MetricsSource;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::device::{Activation, ConfigAccess, Handler, Profile, StartError, VirtioDevice};
use crate::rate_limit::{Limiter, LimiterConfig};
use crate::ring::Ring;
use crate::threads::ThreadClass;
use crate::transport::pci::QUEUES_MAX;
use config_space::{ConfigSpace, Writeback};
use handler::QueueHandler;
use image::Image;

/// PCI class: mass storage controller, SCSI, as other virtio block devices report themselves.
const PCI_CLASS: u32 = 0x01_00_00;
/// Most queues of one disk: those of any device.
const MAX_QUEUES: u16 = QUEUES_MAX;
/// Smallest queue: header, one data segment and status need three descriptors.
const MIN_QUEUE_SIZE: u16 = 4;
/// Largest queue (virtio 1.2 §2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// The most bytes of a disk's serial number (virtio 1.2 §5.2.6).
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Whether a guest can be told `text` as its disk's serial number: at most [`ID_BYTES`] printable ASCII characters.
pub fn is_serial(text: &str) -> bool {
    text.len() <= ID_BYTES && text.bytes().all(is_printable)
}

/// The serial number of a disk that is known by `name`: its beginning, with `_` for what is not printable ASCII.
pub fn serial_of_name(name: &str) -> String {
    let printable = |char: char| u8::try_from(char).is_ok_and(is_printable);
    let chars = name.chars().map(|char| if printable(char) { char } else { '_' });
    chars.take(ID_BYTES).collect()
}

fn is_printable(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// What a disk shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockConfig {
    /// The raw image: a regular file or a block device. Symbolic links are followed.
    pub path: PathBuf,
    /// Refuse writes. The file is then opened without write permission.
    pub readonly: bool,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Number of request queues, each with its own I/O thread once the driver enables it: 1 to 255.
    pub queues: u16,
    /// Entries of each queue: a power of two from 4 to 32768.
    pub queue_size: u16,
    /// Give ranges that the guest discards back to the host ("sparse").
    pub discard: bool,
    /// Use io_uring where the host has it. Otherwise, and where it refuses, plain system calls do the work.
    pub io_uring: bool,
    /// How fast the guest may use the disk, over all its queues: bytes read, written and zeroed, requests of any kind.
    pub limits: LimiterConfig,
    /// What the guest sees as the disk's serial number: at most 20 printable ASCII characters.
    pub serial: String,
}

impl BlockConfig {
    /// A writable disk with one queue of 128 entries, through the page cache, with discard and io_uring, without a
    /// serial number.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            direct: false,
            queues: 1,
            queue_size: 128,
            discard: true,
            io_uring: true,
            limits: LimiterConfig::default(),
            serial: String::new(),
        }
    }

    fn check(&self) -> Result<(), BlockError> {
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(BlockError::Queues(self.queues));
        }
        if !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(&self.queue_size) || !self.queue_size.is_power_of_two() {
            return Err(BlockError::QueueSize(self.queue_size));
        }
        if !is_serial(&self.serial) {
            return Err(BlockError::Serial(self.serial.clone()));
        }
        Ok(())
    }

    /// The serial number as `VIRTIO_BLK_T_GET_ID` answers it: padded with NUL (virtio 1.2 §5.2.6).
    fn id(&self) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        for (byte, char) in id.iter_mut().zip(self.serial.bytes()) {
            *byte = char;
        }
        id
    }
}

/// A virtio block device. Holds the image open and locked as long as it lives.
pub struct Block {
    config: BlockConfig,
    image: Arc<Image>,
    writeback: Writeback,
    space: Arc<Mutex<ConfigSpace>>,
    limiter: Option<Arc<Limiter>>,
    metrics: Arc<BlockMetrics>,
}

impl Block {
    /// Opens and locks the image: exclusively if writable, shared if read-only. Creates no thread and no io_uring.
    ///
    /// # Errors
    /// When the configuration is out of range, or the image cannot be opened, is neither a regular file nor a block
    /// device, is empty, is in use elsewhere, or cannot do direct I/O that was asked for.
    pub fn open(config: BlockConfig) -> Result<Self, BlockError> {
        config.check()?;
        let image = Arc::new(Image::open(&config)?);
        let writeback = Writeback::new(true);
        let space = ConfigSpace::new(&config, &image, writeback.clone());
        let limiter = Limiter::new(config.limits, Instant::now()).map(Arc::new);
        Ok(Self {
            config,
            image,
            writeback,
            space: Arc::new(Mutex::new(space)),
            limiter,
            metrics: Arc::default(),
        })
    }

    /// Size of the disk in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.image.sectors()
    }

    /// What the disk has done so far. Stays valid, and keeps counting, while the device runs.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        self.metrics.clone()
    }

    fn features(&self) -> u64 {
        let (readonly, discard) = (self.image.readonly(), self.image.discard());
        [
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_CONFIG_WCE, true),
            (VIRTIO_BLK_F_MQ, self.config.queues > 1),
            (VIRTIO_BLK_F_RO, readonly),
            (VIRTIO_BLK_F_WRITE_ZEROES, !readonly),
            (VIRTIO_BLK_F_DISCARD, discard),
        ]
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |features, (bit, _)| features | (1 << bit))
    }

    /// The cache mode that the negotiated features ask for (virtio 1.2 §5.2.5.2, §5.2.6.2). A driver that does not know
    /// of flushes must find every completed write on stable storage.
    fn agree_on_cache(&self, features: u64) -> Writeback {
        let has = |bit: u32| features & (1 << bit) != 0;
        match (has(VIRTIO_BLK_F_CONFIG_WCE), has(VIRTIO_BLK_F_FLUSH)) {
            (true, true) => self.writeback.clone(),
            (true, false) => {
                self.writeback.set(false);
                self.writeback.clone()
            }
            (false, flush) => Writeback::new(flush),
        }
    }

    /// What serves `ring`, in the cache mode `writeback`.
    fn queue_handler(&self, ring: Ring, writeback: &Writeback) -> QueueHandler {
        let disk = handler::Disk {
            image: self.image.clone(),
            id: self.config.id(),
            writeback: writeback.clone(),
            limiter: self.limiter.clone(),
            metrics: self.metrics.clone(),
        };
        QueueHandler::new(ring, disk, self.config.io_uring)
    }
}

impl VirtioDevice for Block {
    fn profile(&self) -> Profile {
        Profile {
            id: VIRTIO_ID_BLOCK,
            class: PCI_CLASS,
            features: self.features(),
            queue_sizes: vec![self.config.queue_size; usize::from(self.config.queues)],
        }
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Block
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.space.clone()
    }

    /// One handler for every queue that the driver enabled. A driver may use fewer queues than there are (virtio 1.2
    /// §5.2.5), but not none.
    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let writeback = self.agree_on_cache(activation.features);
        let rings = activation.rings.into_iter().flatten();
        let handlers: Vec<Box<dyn Handler>> = rings
            .map(|ring| Box::new(self.queue_handler(ring, &writeback)) as Box<dyn Handler>)
            .collect();
        if handlers.is_empty() {
            return Err(StartError::QueueMissing(0));
        }
        Ok(handlers)
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
