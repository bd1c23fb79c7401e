//! Entropy device (virtio 1.2 §5.4): fills the driver's buffers with random bytes from a host file.
//!
//! | queue | carries                                  |
//! |-------|------------------------------------------|
//! | 0     | device-writable buffers to be filled     |
//!
//! There is no configuration and there are no feature bits. A request may be answered short
//! (§5.4.6.1), so one request gets at most [`REQUEST_BYTES_MAX`], whatever its buffers hold: a
//! guest cannot make the host read gigabytes in one go. When the source gives nothing the request
//! stays in the ring and is tried again a second later.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use husk_devices::PathHandle;
use husk_devices::metrics::{Counter, MetricsSource};

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice, Watch};
use crate::ring::{Ring, RingState, Step};
use crate::timer::Timer;

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_RNG: u32 = 4;
/// "Other encryption controller": base class 10h.
const PCI_CLASS: u32 = 0x10_80_00;
/// Linux asks for one buffer of 64 bytes at a time.
const QUEUE_SIZE: u16 = 16;
/// Most bytes that one request is given.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// How long to wait before asking a source again that gave nothing.
const RETRY: Duration = Duration::from_secs(1);

const KICK: u32 = 0;
const TIMER: u32 = 1;

/// What an entropy device has done since it was made.
#[derive(Debug, Default)]
pub struct RngMetrics {
    /// Requests answered, those without room for a byte included; one that the source could not serve is not counted
    /// until it is.
    pub requests: Counter,
    /// Random bytes written to guest memory.
    pub bytes: Counter,
    /// Times that the source failed or was at its end.
    pub source_errors: Counter,
}

impl MetricsSource for RngMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("requests", self.requests.get()),
            ("bytes", self.bytes.get()),
            ("source_errors", self.source_errors.get()),
        ]
    }
}

/// An entropy device.
pub struct Rng {
    source: Arc<File>,
    config: Arc<Mutex<ConfigBytes>>,
    metrics: Arc<RngMetrics>,
}

impl Rng {
    /// A device that reads from the file at `path`, such as `/dev/urandom`. It may be a FIFO that nobody writes to yet.
    ///
    /// # Errors
    /// When there is nothing to be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let refused = |found| Err(io::Error::other(format!("it is a {found}, nothing can be read of it")));
        let handle = PathHandle::at(path)?;
        match handle.metadata().file_type() {
            kind if kind.is_dir() => return refused("directory"),
            kind if kind.is_socket() => return refused("socket"),
            _ => {}
        }
        // Non-blocking, so that a source which runs dry (a FIFO, a hardware generator) does not hold up a reset.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        Ok(Self {
            source: Arc::new(handle.open(&options)?),
            config: Arc::default(),
            metrics: Arc::default(),
        })
    }

    /// The device's metrics.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        self.metrics.clone()
    }
}

impl VirtioDevice for Rng {
    fn profile(&self) -> Profile {
        Profile {
            id: VIRTIO_ID_RNG,
            class: PCI_CLASS,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let ring = activation.take_ring(0)?;
        Ok(vec![Box::new(RngHandler {
            ring,
            source: self.source.clone(),
            timer: None,
            metrics: self.metrics.clone(),
        })])
    }
}

struct RngHandler {
    ring: Ring,
    source: Arc<File>,
    /// Made when the source first gives nothing.
    timer: Option<Timer>,
    metrics: Arc<RngMetrics>,
}

impl RngHandler {
    /// Answers what is waiting. `false` if the source gave nothing and requests were left.
    fn serve(&mut self) -> Result<bool, HandlerError> {
        let Self {
            ring, source, metrics, ..
        } = self;
        let mut dry = false;
        ring.drain(|_, writer| {
            let wanted = writer.available_bytes().min(REQUEST_BYTES_MAX);
            let given = match writer.write_from(&mut source.as_ref(), wanted) {
                Ok(given) if given > 0 || wanted == 0 => given,
                _ => {
                    metrics.source_errors.inc();
                    dry = true;
                    return Ok(Step::Later);
                }
            };
            metrics.requests.inc();
            metrics.bytes.add(given as u64);
            Ok(Step::Used(u32::try_from(given).expect("bounded by REQUEST_BYTES_MAX")))
        })?;
        Ok(!dry)
    }

    fn retry_later(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            slot => {
                let timer = Timer::new()?;
                watch.readable(timer.as_raw_fd(), TIMER)?;
                slot.insert(timer)
            }
        };
        timer.set(RETRY)
    }
}

impl Handler for RngHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.ring.kick().as_raw_fd(), KICK)
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == TIMER
            && let Some(timer) = &self.timer
        {
            // A kick before it may have set it anew: a try too early does no harm.
            timer.take_expiration();
        }
        if self.serve()? {
            return Ok(());
        }
        self.retry_later(watch).map_err(|source| HandlerError::Host {
            what: "cannot set the retry timer",
            source,
        })
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        vec![self.ring.into_state()]
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
