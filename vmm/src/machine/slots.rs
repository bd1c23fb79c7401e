//! The PCI slots: virtio functions that are there at boot, that come while the guest runs, and that
//! go when it lets go of them.
//!
//! Slot numbers are PCI device numbers on bus 0. A function is real before the guest is told of it,
//! and its BARs are placed, so that the guest finds it as firmware would have left it. It is
//! stopped when the guest has ejected it, and then taken apart by a thread that nobody waits for:
//! closing a file may take as long as its file system likes. Slot, name and addresses are taken
//! until that is done.
//!
//! The control thread locks no function that the guest knows, nor [`Board::remap`]'s windows. A vCPU has those locks
//! across `KVM_IOEVENTFD`, which waits for every vCPU that is in a page fault, so for whatever file system is behind
//! the page: whoever waited for a vCPU here could neither be asked nor told to end. Devices are held and stopped by
//! their [`Workers`], and the rest is the threads' (ADR 36).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use husk_devices::memory::GuestMemory;
use husk_devices::pci::{BarAllocator, Bdf, PciFunction, Removable};
use husk_devices::{Counter, Host, MetricsSource, lock};
use husk_hotplug::{Plug, PlugError};
use husk_virtio::device::VirtioDevice;
use husk_virtio::ring::{QueueProbe, QueueStats};
use husk_virtio::threads::Threads;
use husk_virtio::transport::pci::VirtioPci;
use husk_virtio::transport::{RefusedDevice, Workers};
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
    queues: Vec<Arc<QueueProbe>>,
}

impl DeviceCounters {
    fn of(function: &VirtioPci) -> Self {
        Self {
            id: function.device().profile().id,
            device: function.device().metrics_source(),
            failures: function.failures().clone(),
            queues: function.queue_probes(),
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
            .filter_map(|(number, probe)| Some((number, probe.counters().snapshot()?)))
            .collect()
    }

    /// What looks at each queue, in the order of the queues.
    pub fn probes(&self) -> &[Arc<QueueProbe>] {
        &self.queues
    }
}

/// A device in its slot.
struct Plugged {
    /// Buses and vCPUs refer to this as well, but the function is taken out of it here alone. Never locked by the
    /// control thread.
    place: Place,
    /// What holds and stops the function without that.
    workers: Arc<Workers>,
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
    /// A background thread closes it: doorbells, files, sockets, eventfds.
    Closing(BackgroundTask<Result<(), PlugError>>),
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

type Place = Arc<Mutex<Removable<VirtioPci>>>;
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

    /// The I/O threads of every function, in the order of the slots.
    pub fn workers(&self) -> impl Iterator<Item = &Workers> {
        self.plugged.values().map(|plugged| plugged.workers.as_ref())
    }

    /// The I/O threads of the function in `slot`; `None` if there is none.
    pub fn workers_of(&self, slot: u32) -> Option<&Workers> {
        Some(&self.plugged.get(&slot)?.workers)
    }

    /// What counts for the function in `slot`.
    pub fn counters(&self, slot: u32) -> Option<&DeviceCounters> {
        Some(&self.plugged.get(&slot)?.counters)
    }

    /// The guest's memory, in which the functions are.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
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

    /// Takes the function in `slot` out of the guest's reach, and asks it to stop. Never waits: a vCPU that is in the
    /// middle of an access may still be there, and windows go by a thread.
    pub fn withdraw(&mut self, slot: u32) {
        if self.unplug(slot) {
            self.take_windows(slot);
        }
    }

    /// Takes the function out of its slot, and asks it to stop. Whether that was not done before.
    fn unplug(&mut self, slot: u32) -> bool {
        let (Some(plugged), Ok(device)) = (self.plugged.get_mut(&slot), u8::try_from(slot)) else {
            return false;
        };
        if !plugged.retired {
            lock(self.board.pci()).remove(bdf(device));
            plugged.workers.retire();
        }
        !std::mem::replace(&mut plugged.retired, true)
    }

    /// Has a thread take the windows of a function that is out of its slot from the bus.
    fn take_windows(&self, slot: u32) {
        if let Ok(device) = u8::try_from(slot) {
            let board = self.board.clone();
            background::run_in_background(move || board.remap(bdf(device)));
        }
    }

    /// Has a thread take the function in `slot` apart, once its own threads have stopped: with its
    /// files, sockets and descriptors. Whether nothing is left of it; to be called again until
    /// then. Never waits. Doorbells stay as they are.
    pub fn close(&mut self, slot: u32) -> bool {
        let waker = self.threads.waker();
        let Some(plugged) = self.plugged.get_mut(&slot) else {
            return true;
        };
        plugged.collect();
        plugged.close(waker, take_apart);
        plugged.is_gone()
    }

    fn make(&mut self, slot: u32, unit: NewFunction) -> Result<(), Fault> {
        let device = unit.device.into_inner();
        let function = VirtioPci::new(device, unit.name, self.host.clone(), self.memory.clone());
        let mut function = function.map_err(|RefusedDevice { device, source }| {
            background::drop_in_background(device);
            source
        })?;
        function.set_threads(self.threads.clone());
        let mut bars = Vec::new();
        let placed = self.place(&mut function, &mut bars);
        let (counters, workers) = (DeviceCounters::of(&function), function.workers().clone());
        let place = Arc::new(Mutex::new(Removable::new(function)));
        let inserted = placed.and_then(|()| {
            let device = u8::try_from(slot)?;
            Ok(lock(self.board.pci()).insert(Some(device), place.clone())?)
        });
        match inserted {
            // There is no window to be placed: it decodes nothing until the guest says so (PCIe 5.0 §7.5.1.1.3).
            Ok(_) => {
                let plugged = Plugged {
                    place,
                    workers,
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
                background::drop_in_background(place);
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

    /// First out of the guest's reach, then asked to stop, then taken apart. What the device has
    /// acknowledged is done by then. Addresses are free again once no doorbell answers there.
    fn retire(&mut self, slot: u32) -> bool {
        let is_new = self.unplug(slot);
        let (Some(plugged), Ok(device)) = (self.plugged.get_mut(&slot), u8::try_from(slot)) else {
            return true;
        };
        plugged.collect();
        // What failed is for `destroy` to tell.
        if plugged.fault.is_none() {
            let board = self.board.clone();
            plugged.close(self.threads.waker(), move |place| {
                board.remap(bdf(device));
                take_doorbells(place)?;
                take_apart(place)
            });
        }
        let is_over = plugged.fault.is_some() || plugged.is_gone();
        if is_new && matches!(plugged.teardown, TeardownState::Intact) {
            // Its threads have yet to stop. It does not answer the guest as long as that takes.
            self.take_windows(slot);
        }
        is_over
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
    /// Whether its threads have yet to stop, or it is being taken apart.
    fn is_busy(&self) -> bool {
        match self.teardown {
            TeardownState::Intact => !self.workers.is_stopped(),
            TeardownState::Closing(_) => true,
            TeardownState::Closed => false,
        }
    }

    /// Whether nothing is left of its function.
    fn is_gone(&self) -> bool {
        matches!(self.teardown, TeardownState::Closed)
    }

    /// Has a thread take its function apart by `close`, if it is whole and its threads have stopped.
    fn close(&mut self, waker: Waker, close: impl FnOnce(&Place) -> Result<(), PlugError> + Send + 'static) {
        if matches!(self.teardown, TeardownState::Intact) && self.workers.is_stopped() {
            let place = self.place.clone();
            self.teardown = TeardownState::Closing(BackgroundTask::queue(waker, move || close(&place)));
        }
    }

    /// Looks what has come of that.
    fn collect(&mut self) {
        if let TeardownState::Closing(closing) = &self.teardown
            && let Some(closed) = closing.take_result()
        {
            self.teardown = match closed {
                Ok(()) => TeardownState::Closed,
                Err(fault) => {
                    self.fault = Some(fault);
                    TeardownState::Intact
                }
            };
        }
    }
}

/// Waits for whoever uses the function, and ends it.
fn take_apart(place: &Place) -> Result<(), PlugError> {
    let function = lock(place).take();
    if let Some(mut function) = function {
        function.shutdown();
    }
    Ok(())
}

/// Takes a function's doorbells back. As long as the host keeps one, writes to its address reach nobody else.
fn take_doorbells(place: &Place) -> Result<(), PlugError> {
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
