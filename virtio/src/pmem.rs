//! Persistent memory device (virtio 1.2 §5.19): a file of the host that the guest reads and writes as memory.
//!
//! | queue | carries                                                                   |
//! |-------|---------------------------------------------------------------------------|
//! | 0     | requests: `le32 type` readable, `le32 ret` writable                       |
//!
//! | configuration | field       | meaning                                               |
//! |---------------|-------------|-------------------------------------------------------|
//! | 0x00          | `le64 start`| guest-physical address of the range                   |
//! | 0x08          | `le64 size` | its length in bytes                                   |
//!
//! The memory itself is the machine's affair: it maps the file into the guest and hands the device
//! what keeps it there. The one request, a flush, is answered when the host has written the file to
//! its storage: once for all that wait, since it begins after the last of them was made. Once that
//! has failed, no flush succeeds any more.

use std::any::Any;
use std::cell::LazyCell;
use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use husk_devices::metrics::{Counter, MetricsSource};

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice, Watch};
use crate::durability::Durability;
use crate::ring::{Reader, Ring, RingState, Step, Writer};
use crate::threads::ThreadClass;

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_PMEM: u32 = 27;
/// "Other memory controller": base class 05h.
const PCI_CLASS: u32 = 0x05_80_00;
/// Linux has one flush under way at a time, and others that wait for the next.
const QUEUE_SIZE: u16 = 64;

/// `VIRTIO_PMEM_REQ_TYPE_FLUSH` (virtio 1.2 §5.19.6).
const REQUEST_FLUSH: u32 = 0;
/// `VIRTIO_PMEM_RESP_TYPE_OK` (virtio 1.2 §5.19.7).
const RESPONSE_OK: u32 = 0;
/// `VIRTIO_PMEM_RESP_TYPE_EIO` (virtio 1.2 §5.19.7).
const RESPONSE_EIO: u32 = 1;
const RESPONSE_BYTES: u32 = 4;

const KICK: u32 = 0;

/// What a persistent memory device has done since it was made.
#[derive(Debug, Default)]
pub struct PmemMetrics {
    /// Flushes answered with success.
    pub flushes: Counter,
    /// Flushes that the host's storage refused.
    pub flush_errors: Counter,
    /// Requests that are none: of an unknown type, or without room for the answer.
    pub bad_requests: Counter,
}

impl MetricsSource for PmemMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("flushes", self.flushes.get()),
            ("flush_errors", self.flush_errors.get()),
            ("bad_requests", self.bad_requests.get()),
        ]
    }
}

/// A file that keeps what the guest writes.
struct BackingFile {
    file: File,
    durability: Durability,
}

impl BackingFile {
    /// Writes it to its storage; whether all that the guest wrote is there.
    fn flush(&self) -> bool {
        if self.durability.is_lost() {
            return false;
        }
        let synced = self.file.sync_data().inspect_err(|error| self.durability.lose(error));
        synced.is_ok()
    }
}

/// A persistent memory device.
pub struct Pmem {
    config: Arc<Mutex<ConfigBytes>>,
    file: Option<Arc<BackingFile>>,
    metrics: Arc<PmemMetrics>,
    _mapping: Box<dyn Any + Send>,
}

impl Pmem {
    /// A device of `bytes` bytes at guest-physical `start`. A flush writes `file` to its storage,
    /// which the log calls `name`; without one, because the guest's writes are not to be kept, it
    /// does nothing. `mapping` is what keeps the range in the guest: it goes with the device.
    pub fn new(start: u64, bytes: u64, file: Option<File>, name: impl Display, mapping: Box<dyn Any + Send>) -> Self {
        let fields = [start.to_le_bytes(), bytes.to_le_bytes()].concat();
        Self {
            config: Arc::new(Mutex::new(ConfigBytes::new(fields))),
            file: file.map(|file| {
                let durability = Durability::new(name);
                Arc::new(BackingFile { file, durability })
            }),
            metrics: Arc::default(),
            _mapping: mapping,
        }
    }

    /// The device's metrics.
    pub fn metrics(&self) -> Arc<PmemMetrics> {
        self.metrics.clone()
    }
}

impl VirtioDevice for Pmem {
    fn profile(&self) -> Profile {
        Profile {
            id: VIRTIO_ID_PMEM,
            class: PCI_CLASS,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Pmem
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        Ok(vec![Box::new(PmemHandler {
            ring: activation.take_ring(0)?,
            file: self.file.clone(),
            metrics: self.metrics.clone(),
        })])
    }
}

struct PmemHandler {
    ring: Ring,
    file: Option<Arc<BackingFile>>,
    metrics: Arc<PmemMetrics>,
}

/// Answers one request; returns how many bytes of answer there are. `flush` writes the file to its
/// storage, or has done so.
fn answer(
    flush: impl FnOnce() -> bool,
    metrics: &PmemMetrics,
    reader: &mut Reader<'_>,
    writer: &mut Writer<'_>,
) -> u32 {
    let asked = reader.read_obj::<u32>().map(u32::from_le);
    if !matches!(asked, Ok(REQUEST_FLUSH)) || writer.available_bytes() < RESPONSE_BYTES as usize {
        metrics.bad_requests.inc();
        return respond(writer, RESPONSE_EIO);
    }
    let (counter, response) = match flush() {
        true => (&metrics.flushes, RESPONSE_OK),
        false => (&metrics.flush_errors, RESPONSE_EIO),
    };
    counter.inc();
    respond(writer, response)
}

/// Writes the answer where there is room for it; returns its length.
fn respond(writer: &mut Writer<'_>, code: u32) -> u32 {
    if writer.available_bytes() < RESPONSE_BYTES as usize {
        return 0;
    }
    writer.write_obj(code.to_le()).map_or(0, |()| RESPONSE_BYTES)
}

impl Handler for PmemHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.ring.kick().as_raw_fd(), KICK)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, _token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let Self { ring, file, metrics } = self;
        // Those that come later have to wait for another flush, and other work comes before that.
        let mut left = ring.backlog()?;
        let flushed = LazyCell::new(|| file.as_deref().is_none_or(BackingFile::flush));
        let mut unfinished = false;
        ring.drain(|reader, writer| {
            let Some(fewer) = left.checked_sub(1) else {
                unfinished = true;
                return Ok(Step::Later);
            };
            left = fewer;
            Ok(Step::Used(answer(|| *flushed, metrics, reader, writer)))
        })?;
        if unfinished {
            ring.kick_self();
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        vec![self.ring.into_state()]
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
