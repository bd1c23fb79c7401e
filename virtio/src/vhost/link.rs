//! What a device has of the kernel: its handles, and the memory that they are told of.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::lock;
use husk_devices::memory::GuestMemory;
use husk_devices::metrics::{Counter, Metered};
use vm_memory::GuestAddressSpace;

use super::rings::KernelRings;
use crate::device::MemoryListener;

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

impl Metered for VhostMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("starts", self.starts.get()),
            ("ring_faults", self.ring_faults.get()),
            ("memory_updates", self.memory_updates.get()),
        ]
    }
}

/// The handles of one device. They stay open as long as it lives.
pub(crate) struct Link {
    handles: Vec<Box<dyn KernelRings>>,
    /// What the kernel may reach: all of the reserve, more perhaps than the device does by then.
    memory: GuestMemory,
    metrics: Arc<VhostMetrics>,
    /// Held while memory is told, so that the newest is told last.
    telling: Mutex<()>,
}

impl Link {
    /// Joins handles with the memory that their rings are in.
    pub fn new(handles: Vec<Box<dyn KernelRings>>, memory: GuestMemory) -> Arc<Self> {
        Arc::new(Self {
            handles,
            memory,
            metrics: Arc::default(),
            telling: Mutex::default(),
        })
    }

    /// One handle for each group of rings.
    pub fn handles(&self) -> &[Box<dyn KernelRings>] {
        &self.handles
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

    fn update_memory(&self) -> io::Result<()> {
        self.tell_memory()
            .map_err(|error| io::Error::other(format!("vhost: the kernel does not take memory: {error}")))?;
        self.metrics.memory_updates.inc();
        Ok(())
    }

    /// Tells all handles where guest memory is now.
    pub fn tell_memory(&self) -> io::Result<()> {
        let _in_turn = lock(&self.telling);
        let memory = self.memory.memory();
        self.handles.iter().try_for_each(|handle| handle.set_memory(&memory))
    }
}

impl MemoryListener for Link {
    /// The kernel answers at once, whatever the deadline.
    fn memory_added(&self, _memory: &GuestMemory, _deadline: Instant) -> io::Result<()> {
        self.update_memory()
    }

    fn memory_removed(&self, _memory: &GuestMemory) -> io::Result<()> {
        self.update_memory()
    }
}
