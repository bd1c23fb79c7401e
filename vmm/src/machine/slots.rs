//! The PCI slots: virtio functions that are there at boot, that come while the guest runs, and that go when it lets go of them.
//!
//! Slot numbers are PCI device numbers on bus 0. A function is real before the guest is told of it, and its BARs are placed, so that
//! the guest finds it as firmware would have left it. It is stopped when the guest has ejected it, and then taken apart by a thread that nobody
//! waits for: closing a file may take as long as its file system likes. Slot, name and addresses are taken until that is done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use husk_devices::memory::GuestMemory;
use husk_devices::pci::{BarAllocator, Bdf, PciFunction, Removable};
use husk_devices::{Counter, Host, MetricsSource, lock};
use husk_hotplug::{Plug, PlugError};
use husk_virtio::device::VirtioDevice;
use husk_virtio::ring::{QueueCounters, QueueStats};
use husk_virtio::threads::Threads;
use husk_virtio::transport::pci::VirtioPci;
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_MEM, VIRTIO_ID_NET, VIRTIO_ID_PMEM,
    VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use super::board::Board;
use crate::background::{self, BackgroundTask, DropInBackground};

/// Slots of bus 0, the host bridge's included.
pub const SLOTS: u32 = 32;

/// A device on its way into a slot.
pub struct NewFunction {
    /// What its threads are called, after `io-`.
    pub name: String,
    /// The device.
    pub device: DropInBackground<Box<dyn VirtioDevice>>,
}

impl NewFunction {
    /// A device of a name: the underscores of a generated one are left out of its threads'.
    pub fn new(name: &str, device: Box<dyn VirtioDevice>) -> Self {
        Self {
            name: name.trim_start_matches('_').into(),
            device: DropInBackground::new(device),
        }
    }
}

/// What counts for a device in its slot, beside the function: nobody who reads has to lock that.
pub struct DeviceCounters {
    id: u32,
    device: Arc<dyn MetricsSource>,
    failures: Arc<Counter>,
    queues: Vec<Arc<QueueCounters>>,
}

impl DeviceCounters {
    fn of(function: &VirtioPci) -> Self {
        Self {
            id: function.device().profile().id,
            device: function.device().metrics_source(),
            failures: function.failures().clone(),
            queues: function.queue_counters(),
        }
    }

    /// What kind of device it is.
    pub fn kind(&self) -> &'static str {
        match self.id {
            VIRTIO_ID_NET => "net",
            VIRTIO_ID_BLOCK => "block",
            VIRTIO_ID_CONSOLE => "console",
            VIRTIO_ID_RNG => "rng",
            VIRTIO_ID_BALLOON => "balloon",
            VIRTIO_ID_VSOCK => "vsock",
            VIRTIO_ID_MEM => "mem",
            VIRTIO_ID_FS => "fs",
            VIRTIO_ID_PMEM => "pmem",
            _ => "virtio",
        }
    }

    /// What the device has counted, and how often it came to need a reset.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.device.metrics();
        counters.push(("failures", self.failures.get()));
        counters
    }

    /// What each queue has counted that husk serves, by its number.
    pub fn queues(&self) -> Vec<(u16, QueueStats)> {
        let queues = (0..).zip(&self.queues);
        queues
            .filter_map(|(number, meter)| Some((number, meter.snapshot()?)))
            .collect()
    }
}

/// A device in its slot.
struct Plugged {
    /// Buses and vCPUs refer to this as well, but the function is taken out of it here alone.
    place: Arc<Mutex<Removable<VirtioPci>>>,
    /// Where its BARs were placed (base, bytes).
    bars: Vec<(u64, u64)>,
    counters: DeviceCounters,
    /// Out of the guest's reach, and asked to stop.
    retired: bool,
    /// How far the function is from its end.
    teardown: TeardownState,
    /// Why the function cannot be taken apart.
    fault: Option<PlugError>,
}

/// How far a function is from its end.
enum TeardownState {
    /// The function is complete, and may serve the guest.
    Intact,
    /// A background thread closes it: files, sockets, eventfds.
    Closing(BackgroundTask<()>),
    /// It is closed; only slot, name and addresses are still to be freed.
    Closed,
}

/// What makes virtio functions real.
pub struct PciPlug {
    board: Arc<Board>,
    host: Arc<dyn Host>,
    memory: GuestMemory,
    threads: Arc<dyn Threads>,
    bars: BarAllocator,
    plugged: BTreeMap<u32, Plugged>,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

impl PciPlug {
    /// No function yet.
    pub fn new(
        board: Arc<Board>,
        host: Arc<dyn Host>,
        memory: GuestMemory,
        threads: Arc<dyn Threads>,
        bars: BarAllocator,
    ) -> Self {
        Self {
            board,
            host,
            memory,
            threads,
            bars,
            plugged: BTreeMap::new(),
        }
    }

    /// Calls `act` on every function, in the order of their slots.
    pub fn each(&self, mut act: impl FnMut(&mut VirtioPci)) {
        for plugged in self.plugged.values() {
            lock(&plugged.place).get().map(&mut act);
        }
    }

    /// What `act` says of the function in `slot`; `None` if there is none.
    pub fn with<R>(&self, slot: u32, act: impl FnOnce(&mut VirtioPci) -> R) -> Option<R> {
        lock(&self.plugged.get(&slot)?.place).get().map(act)
    }

    /// What counts for the function in `slot`.
    pub fn counters(&self, slot: u32) -> Option<&DeviceCounters> {
        Some(&self.plugged.get(&slot)?.counters)
    }

    /// Whether there is a function in `slot`.
    pub fn has(&self, slot: u32) -> bool {
        self.plugged.contains_key(&slot)
    }

    /// Whether the guest has let go of the function in `slot`, which is on its way out.
    pub fn is_retired(&self, slot: u32) -> bool {
        self.plugged.get(&slot).is_some_and(|plugged| plugged.retired)
    }

    /// Whether the function in `slot` is on its way out: its threads have yet to stop, or it is being taken apart.
    pub fn is_stopping(&self, slot: u32) -> bool {
        let plugged = self.plugged.get(&slot).filter(|plugged| plugged.retired);
        plugged.is_some_and(|plugged| plugged.is_busy())
    }

    /// Has a thread take the function in `slot` apart, once its own threads have stopped: with its files, sockets and descriptors. Whether nothing
    /// is left of it; to be called again until then. Never waits. Doorbells stay as they are.
    pub fn close(&mut self, slot: u32) -> bool {
        let waker = self.threads.waker();
        self.plugged.get_mut(&slot).is_none_or(|plugged| plugged.close(waker))
    }

    fn make(&mut self, slot: u32, unit: NewFunction) -> Result<(), Fault> {
        let device = unit.device.into_inner();
        let mut function = VirtioPci::new(device, unit.name, self.host.clone(), self.memory.clone())?;
        function.set_threads(self.threads.clone());
        let mut bars = Vec::new();
        let placed = self.place(&mut function, &mut bars);
        let counters = DeviceCounters::of(&function);
        let place = Arc::new(Mutex::new(Removable::new(function)));
        let inserted = placed.and_then(|()| {
            let device = u8::try_from(slot)?;
            Ok(lock(self.board.pci()).insert(Some(device), place.clone())?)
        });
        match inserted {
            Ok(bdf) => {
                self.board.remap(bdf);
                let plugged = Plugged {
                    place,
                    bars,
                    counters,
                    retired: false,
                    teardown: TeardownState::Intact,
                    fault: None,
                };
                self.plugged.insert(slot, plugged);
                Ok(())
            }
            Err(fault) => {
                self.free(&bars);
                let function = lock(&place).take();
                background::drop_in_background(function);
                Err(fault)
            }
        }
    }

    fn place(&mut self, function: &mut VirtioPci, bars: &mut Vec<(u64, u64)>) -> Result<(), Fault> {
        for (index, bar) in function.config().bars() {
            let base = self.bars.allocate(bar.size())?;
            bars.push((base, bar.size()));
            function.config_mut().place_bar(index, base)?;
        }
        Ok(())
    }

    fn free(&mut self, bars: &[(u64, u64)]) {
        for (base, bytes) in bars {
            if let Err(error) = self.bars.free(*base, *bytes) {
                log::warn!("cannot free a BAR at {base:#x}: {error}");
            }
        }
    }
}

impl Plug for PciPlug {
    type Unit = NewFunction;

    fn create(&mut self, slot: u32, unit: NewFunction) -> Result<(), PlugError> {
        let what = format!("add {} to PCI slot {slot}", unit.name);
        self.make(slot, unit).map_err(|source| PlugError { what, source })
    }

    /// First out of the guest's reach, then asked to stop, then taken apart. What the device has acknowledged is done by then. Addresses are
    /// free again once no doorbell answers there.
    fn retire(&mut self, slot: u32) -> bool {
        let (Some(plugged), Ok(device)) = (self.plugged.get_mut(&slot), u8::try_from(slot)) else {
            return true;
        };
        if !plugged.retired {
            plugged.retired = true;
            lock(self.board.pci()).remove(bdf(device));
            self.board.remap(bdf(device));
            lock(&plugged.place).get().map(VirtioPci::retire);
        }
        if plugged.has_stopped() {
            plugged.fault = take_doorbells(&plugged.place).err();
        }
        // What failed is for `destroy` to tell.
        plugged.fault.is_some() || self.close(slot)
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        let fault = self.plugged.get_mut(&slot).and_then(|plugged| plugged.fault.take());
        fault.map_or(Ok(()), Err)?;
        if let Some(Plugged { bars, .. }) = self.plugged.remove(&slot) {
            self.free(&bars);
        }
        Ok(())
    }
}

impl Plugged {
    /// Whether its function is whole, and its threads have stopped.
    fn has_stopped(&self) -> bool {
        let mut place = lock(&self.place);
        place.get().is_some_and(|function| function.is_stopped())
    }

    /// Whether its threads have yet to stop, or it is being taken apart.
    fn is_busy(&self) -> bool {
        match self.teardown {
            TeardownState::Intact => !self.has_stopped(),
            TeardownState::Closing(_) => true,
            TeardownState::Closed => false,
        }
    }

    /// See [`PciPlug::close`].
    fn close(&mut self, waker: Waker) -> bool {
        if matches!(self.teardown, TeardownState::Intact) && self.has_stopped() {
            let function = lock(&self.place).take();
            let close = move || {
                if let Some(mut function) = function {
                    function.shutdown();
                }
            };
            self.teardown = TeardownState::Closing(BackgroundTask::queue(waker, close));
        }
        if let TeardownState::Closing(closing) = &self.teardown
            && closing.take_result().is_some()
        {
            self.teardown = TeardownState::Closed;
        }
        matches!(self.teardown, TeardownState::Closed)
    }
}

/// Takes a function's doorbells back. As long as the host keeps one, writes to its address reach nobody else.
fn take_doorbells(place: &Mutex<Removable<VirtioPci>>) -> Result<(), PlugError> {
    let mut place = lock(place);
    let Some(function) = place.get() else { return Ok(()) };
    let bars: Vec<u8> = function.config().bars().map(|(index, _)| index).collect();
    for index in bars {
        function.bar_moved(index, None).map_err(|source| PlugError {
            what: format!("take back the doorbells of {}", function.name()),
            source: source.into(),
        })?;
    }
    Ok(())
}

/// The address of function 0 in slot `device` of bus 0.
pub const fn bdf(device: u8) -> Bdf {
    Bdf {
        bus: 0,
        device,
        function: 0,
    }
}
