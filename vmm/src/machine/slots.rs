//! The PCI slots: virtio functions that are there at boot, that come while the guest runs, and that go when it lets go of them.
//!
//! Slot numbers are PCI device numbers on bus 0. A function is real before the guest is told of it, and its BARs are placed, so that
//! the guest finds it as firmware would have left it. It is stopped and taken apart when the guest has ejected it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use husk_devices::Host;
use husk_devices::memory::GuestMemory;
use husk_devices::pci::{BarAllocator, Bdf, PciFunction};
use husk_hotplug::{Plug, PlugError};
use husk_virtio::device::VirtioDevice;
use husk_virtio::threads::Threads;
use husk_virtio::transport::pci::VirtioPci;

use super::board::{Board, lock};

/// Slots of bus 0, the host bridge's included.
pub const SLOTS: u32 = 32;

/// A device on its way into a slot.
pub struct NewFunction {
    /// What its threads are called, after `io-`.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
}

impl NewFunction {
    /// A device of a name: the underscores of a generated one are left out of its threads'.
    pub fn new(name: &str, device: Box<dyn VirtioDevice>) -> Self {
        Self {
            name: name.trim_start_matches('_').into(),
            device,
        }
    }
}

/// A device in its slot.
struct Plugged {
    function: Arc<Mutex<VirtioPci>>,
    /// Where its BARs were placed (base, bytes).
    bars: Vec<(u64, u64)>,
    /// Out of the guest's reach, and asked to stop.
    retired: bool,
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

    /// All functions, in the order of their slots.
    pub fn functions(&self) -> impl Iterator<Item = &Arc<Mutex<VirtioPci>>> {
        self.plugged.values().map(|plugged| &plugged.function)
    }

    /// The function in `slot`.
    pub fn function(&self, slot: u32) -> Option<&Arc<Mutex<VirtioPci>>> {
        self.plugged.get(&slot).map(|plugged| &plugged.function)
    }

    /// Whether the function in `slot` is on its way out, and its threads have yet to stop.
    pub fn is_stopping(&self, slot: u32) -> bool {
        let plugged = self.plugged.get(&slot);
        plugged.is_some_and(|plugged| plugged.retired && !lock(&plugged.function).is_stopped())
    }

    fn make(&mut self, slot: u32, unit: NewFunction) -> Result<(), Fault> {
        let mut function = VirtioPci::new(unit.device, unit.name, self.host.clone(), self.memory.clone())?;
        function.set_threads(self.threads.clone());
        let mut bars = Vec::new();
        let placed = self.place(&mut function, &mut bars);
        let function = Arc::new(Mutex::new(function));
        let inserted = placed.and_then(|()| {
            let device = u8::try_from(slot)?;
            Ok(lock(self.board.pci()).insert(Some(device), function.clone())?)
        });
        match inserted {
            Ok(bdf) => {
                self.board.remap(bdf);
                let plugged = Plugged {
                    function,
                    bars,
                    retired: false,
                };
                self.plugged.insert(slot, plugged);
                Ok(())
            }
            Err(fault) => {
                self.free(&bars);
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

    /// First out of the guest's reach, then asked to stop.
    fn retire(&mut self, slot: u32) -> bool {
        let (Some(plugged), Ok(device)) = (self.plugged.get_mut(&slot), u8::try_from(slot)) else {
            return true;
        };
        if !plugged.retired {
            plugged.retired = true;
            lock(self.board.pci()).remove(bdf(device));
            self.board.remap(bdf(device));
            lock(&plugged.function).retire();
        }
        lock(&plugged.function).is_stopped()
    }

    /// What the device has acknowledged is done by the end of this. Addresses are free again once no doorbell answers there.
    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        self.retire(slot);
        let Some(plugged) = self.plugged.get(&slot) else {
            return Ok(());
        };
        let mut function = lock(&plugged.function);
        let bars: Vec<u8> = function.config().bars().map(|(index, _)| index).collect();
        for index in bars {
            function.bar_moved(index, None).map_err(|source| PlugError {
                what: format!("take back the doorbells of {}", function.name()),
                source: source.into(),
            })?;
        }
        function.shutdown();
        drop(function);
        if let Some(plugged) = self.plugged.remove(&slot) {
            self.free(&plugged.bars);
        }
        Ok(())
    }
}

/// The address of function 0 in slot `device` of bus 0.
pub const fn bdf(device: u8) -> Bdf {
    Bdf {
        bus: 0,
        device,
        function: 0,
    }
}
