//! What a device has of the kernel: its handles, and the memory that they are told of.

use std::io;
use std::ptr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::lock;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap, GuestRegionMmap};
use husk_devices::metrics::{Counter, MetricsSource};
use virtio_queue::QueueState;
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::rings::KernelRings;
use crate::device::MemoryListener;
use crate::ring::parts;

/// Counters of one device whose rings the kernel serves, since it was made. What goes by, the kernel alone knows.
#[derive(Debug, Default)]
pub struct VhostMetrics {
    /// Times that all rings were handed over, a pause not counted.
    pub starts: Counter,
    /// Times that the kernel could not go on with a ring: the guest broke the rules.
    pub ring_faults: Counter,
    /// Changes of guest RAM that the kernel was told.
    pub memory_updates: Counter,
}

impl MetricsSource for VhostMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("starts", self.starts.get()),
            ("ring_faults", self.ring_faults.get()),
            ("memory_updates", self.memory_updates.get()),
        ]
    }
}

/// The handles of one device. They stay open as long as it lives.
///
/// The kernel uses addresses of this process for as long as it has not been told otherwise,
/// whatever is behind them by then. So what it knows stays mapped: `known` goes after the handles.
pub(crate) struct VhostHandles {
    handles: Vec<Box<dyn KernelRings>>,
    /// What the kernel may reach: all of the reserve, more perhaps than the device does by then.
    memory: GuestMemory,
    metrics: Arc<VhostMetrics>,
    /// Locked while memory is told, so that the newest is told last.
    known: Mutex<Known>,
}

/// What the kernel knows of this process's addresses.
#[derive(Default)]
struct Known {
    /// The memory that each handle was told last.
    told: Vec<Option<Arc<GuestMemoryMmap>>>,
    /// Rings that the kernel has.
    lent: Vec<PinnedRing>,
}

/// A ring that the kernel has: it was told where its parts are, and looks into no table for them again.
struct PinnedRing {
    handle: usize,
    regions: Vec<Arc<GuestRegionMmap>>,
    fault: Arc<EventFd>,
}

impl PinnedRing {
    fn is_in(&self, memory: &GuestMemoryMmap) -> bool {
        let is_there = |region: &Arc<GuestRegionMmap>| {
            let found = memory.find_region(region.start_addr());
            found.is_some_and(|found| ptr::eq(found, &raw const **region))
        };
        self.regions.iter().all(is_there)
    }
}

/// The region of `memory` that all of `bytes` bytes at `gpa` are in.
fn region_of(memory: &GuestMemoryMmap, gpa: u64, bytes: u64) -> Option<Arc<GuestRegionMmap>> {
    let region = memory.find_region(GuestAddress(gpa))?;
    let offset = gpa.checked_sub(region.start_addr().raw_value())?;
    if offset.checked_add(bytes)? > region.len() {
        return None;
    }
    // The crate hands out a region with its owner in no other way. `memory` stays as it is.
    let removed = memory.remove_region(region.start_addr(), region.len());
    Some(removed.ok()?.1)
}

impl VhostHandles {
    /// Joins handles with the memory that their rings are in.
    pub fn new(handles: Vec<Box<dyn KernelRings>>, memory: GuestMemory) -> Arc<Self> {
        Arc::new(Self {
            handles,
            memory,
            metrics: Arc::default(),
            known: Mutex::default(),
        })
    }

    /// One handle for each group of rings.
    pub fn iter(&self) -> impl Iterator<Item = &dyn KernelRings> {
        self.handles.iter().map(Box::as_ref)
    }

    /// What all handles can do.
    pub fn features(&self) -> u64 {
        self.handles
            .iter()
            .fold(u64::MAX, |all, handle| all & handle.features())
    }

    /// What the device counts.
    pub fn metrics(&self) -> &Arc<VhostMetrics> {
        &self.metrics
    }

    /// Keeps mapped what `queue`, which handle number `handle` is about to have, is in; `fault` is
    /// signalled when that is taken from the guest, and the handle's rings are left alone from then
    /// on.
    ///
    /// # Errors
    /// When a part of the ring is not all in one region: the kernel is told nothing but where it begins.
    pub fn lend(&self, handle: usize, queue: &QueueState, fault: &Arc<EventFd>) -> io::Result<()> {
        let memory = self.memory.memory();
        let regions = parts(queue).into_iter().map(|(what, gpa, bytes)| {
            region_of(&memory, gpa, bytes).ok_or_else(|| {
                io::Error::other(format!("{what} at {gpa:#x}: it is not all in one region of guest RAM"))
            })
        });
        let lent = PinnedRing {
            handle,
            regions: regions.collect::<io::Result<_>>()?,
            fault: fault.clone(),
        };
        lock(&self.known).lent.push(lent);
        Ok(())
    }

    /// The kernel has no ring of handle number `handle` any more.
    pub fn take_back(&self, handle: usize) {
        lock(&self.known).lent.retain(|lent| lent.handle != handle);
    }

    /// Tells all handles where guest memory is now.
    ///
    /// # Errors
    /// The first refusal; all other handles know. One that does not keeps what it knew, mapped.
    pub fn tell_memory(&self) -> io::Result<()> {
        self.tell(&mut lock(&self.known)).1
    }

    fn tell(&self, known: &mut Known) -> (Arc<GuestMemoryMmap>, io::Result<()>) {
        let memory = self.memory.memory().into_inner();
        known.told.resize(self.handles.len(), None);
        let mut result = Ok(());
        for (handle, told) in self.handles.iter().zip(&mut known.told) {
            match handle.set_memory(&memory) {
                Ok(()) => *told = Some(memory.clone()),
                refused => result = result.and(refused),
            }
        }
        (memory, result)
    }

    fn update_memory(&self, gone: bool) -> io::Result<()> {
        let mut known = lock(&self.known);
        let (memory, told) = self.tell(&mut known);
        self.stop_lost(&known, &memory, gone);
        told.map_err(|error| io::Error::other(format!("vhost: the kernel does not take memory: {error}")))?;
        self.metrics.memory_updates.inc();
        Ok(())
    }

    /// Has the kernel leave rings alone that are not in `memory`, and if something of that is
    /// `gone`, those of a handle that does not know it: others may have it soon. Their device needs
    /// a reset.
    fn stop_lost(&self, known: &Known, memory: &Arc<GuestMemoryMmap>, gone: bool) {
        for (number, (handle, told)) in self.handles.iter().zip(&known.told).enumerate() {
            let knows = told.as_ref().is_some_and(|told| Arc::ptr_eq(told, memory));
            let lost = |lent: &&PinnedRing| lent.handle == number && (gone && !knows || !lent.is_in(memory));
            let Some(lent) = known.lent.iter().find(lost) else {
                continue;
            };
            if let Err(error) = handle.run(false) {
                log::debug!("vhost: rings whose memory is gone are not left alone: {error}");
            }
            // Fails only when the counter is full, and it never is.
            let _ = lent.fault.write(1);
        }
    }
}

impl MemoryListener for VhostHandles {
    /// The kernel answers at once, whatever the deadline.
    fn memory_added(&self, _memory: &GuestMemory, _deadline: Instant) -> io::Result<()> {
        self.update_memory(false)
    }

    fn memory_removed(&self, _memory: &GuestMemory) -> io::Result<()> {
        self.update_memory(true)
    }
}
