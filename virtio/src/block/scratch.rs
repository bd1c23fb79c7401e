//! Memory of the device's own that stands in for guest memory: bounce buffers for direct I/O, and zeros.

use std::io;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::metrics::BlockMetrics;

/// Bytes of one bounce buffer. More data takes several rounds.
pub(super) const BOUNCE_BYTES: usize = 128 << 10;
/// Bounce buffers of one queue: what a driver with odd buffers can make the host spend is 2 MiB.
const MAX_BOUNCES: usize = 16;
/// Bytes of the region of zeros. Never written, so never resident beyond the kernel's page of zeros.
const ZERO_BYTES: usize = 128 << 10;

/// A page-aligned buffer.
pub(super) struct Bounce(MmapRegion<()>);

impl Bounce {
    fn new(bytes: usize) -> io::Result<Self> {
        MmapRegion::new(bytes).map(Self).map_err(|error| match error {
            MmapRegionError::Mmap(source) => source,
            other => io::Error::other(other),
        })
    }

    /// All of it.
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

/// The own memory of one queue, allocated on first need and reused until the queue stops.
pub(super) struct Scratch {
    metrics: Arc<BlockMetrics>,
    free: Vec<Bounce>,
    lent: usize,
    zeros: Option<Bounce>,
}

impl Scratch {
    /// Nothing allocated yet. What is lent is counted in `metrics`.
    pub fn new(metrics: Arc<BlockMetrics>) -> Self {
        Self {
            metrics,
            free: Vec::new(),
            lent: 0,
            zeros: None,
        }
    }

    /// Lends a bounce buffer; `None` when all are lent.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn lend(&mut self) -> io::Result<Option<Bounce>> {
        if self.lent >= MAX_BOUNCES {
            return Ok(None);
        }
        let bounce = match self.free.pop() {
            Some(bounce) => bounce,
            None => Bounce::new(BOUNCE_BYTES)?,
        };
        self.lent = self.lent.saturating_add(1);
        self.metrics.bounces.inc();
        Ok(Some(bounce))
    }

    /// Takes a bounce buffer back.
    pub fn take_back(&mut self, bounce: Bounce) {
        self.lent = self.lent.saturating_sub(1);
        self.free.push(bounce);
    }

    /// Page-aligned zeros.
    ///
    /// # Errors
    /// When the host has no memory.
    pub fn zeros(&mut self) -> io::Result<VolatileSlice<'_>> {
        if self.zeros.is_none() {
            self.zeros = Some(Bounce::new(ZERO_BYTES)?);
        }
        self.zeros
            .as_ref()
            .map(Bounce::slice)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
    }
}
