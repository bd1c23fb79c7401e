//! How a device becomes part of a machine: one function for a device on I/O ports, one for a virtio
//! device of any kind, and the same for one that comes while the guest runs.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use husk_devices::ioapic::{self, Ioapic};
use husk_devices::memory::GuestMemory;
use husk_devices::pci::{BarAllocator, Bdf, Ecam, PciRoot, Window};
use husk_devices::{BusDevice, Host, Irq, MetricsSource, lock};
use husk_firmware::layout;
use husk_hotplug::bank::SlotKind;
use husk_hotplug::outcome::OutcomeReceiver;
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, HotplugError};
use husk_virtio::device::VirtioDevice;
use husk_virtio::ring::QueueStats;
use husk_virtio::threads::Threads;
use husk_virtio::transport::Workers;

use super::board::Board;
use super::build::BuildError;
use super::hotplug::{Hotplugs, Slots};
use super::queues::Queues;
use super::slots::{NewFunction, PciPlug, SLOTS, bdf};

/// What the registers of hot-plug and the I/O APIC are called among the counters.
const HOTPLUG: &str = "__hotplug";
const IOAPIC: &str = "__ioapic";

/// The slots of bus 0. The first has the host bridge.
const PCI_SLOTS: Slots = Slots {
    kind: SlotKind::Pci,
    address: layout::PCI_BANK,
    count: SLOTS,
    pinned: 1,
};

/// The devices of one VM.
pub struct Devices {
    board: Arc<Board>,
    ioapic: Arc<Mutex<Ioapic>>,
    threads: Arc<dyn Threads>,
    hotplug: Hotplugs,
    slots: Hotplug<PciPlug>,
    /// Where each virtio device is, by its name.
    places: BTreeMap<String, Bdf>,
    /// What counts and is no virtio device, by its name among the counters.
    metered: Vec<(&'static str, Arc<dyn MetricsSource>)>,
    aml: Vec<Vec<u8>>,
}

/// What one device has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The name that the configuration gives it, or one that no such device can be given: `__ioapic`.
    pub name: String,
    /// What kind of device it is: `block`, `net`, `ioapic` and so on.
    pub kind: &'static str,
    /// Name and value of each counter.
    pub counters: Vec<(&'static str, u64)>,
    /// What each virtqueue has counted that husk serves, by its number.
    pub queues: Vec<(u16, QueueStats)>,
}

impl Counted {
    /// The value of the counter called `name`.
    pub fn get(&self, name: &str) -> Option<u64> {
        let found = self.counters.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }
}

/// What became of the functions that the guest has let go of.
#[derive(Debug)]
pub struct Collected {
    /// Those that are gone, by name, and where they were.
    pub gone: Vec<(String, Bdf)>,
    /// Why another one is not, first of all: it will be tried again.
    pub failure: Option<HotplugError>,
}

/// Why a slot cannot be had, or given back.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is no device of this name.
    #[error("there is no device '{0}'")]
    Unknown(String),
    /// Its name is another's.
    #[error("there is a device of this name already")]
    Named,
    /// All are taken, or about to be.
    #[error("all PCI slots from 1 to 31 are taken")]
    Full,
    /// The slot cannot do what is asked of it.
    #[error(transparent)]
    Hotplug(#[from] HotplugError),
}

impl Devices {
    /// A machine with nothing but a PCI root, an I/O APIC and what tells the guest of changes.
    /// Devices get their threads from `threads`.
    ///
    /// # Errors
    /// [`BuildError::Device`].
    pub fn new(
        board: Arc<Board>,
        machine: Arc<dyn Host>,
        memory: GuestMemory,
        threads: Arc<dyn Threads>,
    ) -> Result<Self, BuildError> {
        let ecam = Window {
            base: layout::ECAM,
            size: layout::ECAM_LEN,
        };
        let root = Arc::new(Mutex::new(Ecam::new(board.pci().clone())));
        let mmio = Window {
            base: layout::PCI32,
            size: layout::PCI32_LEN,
        };
        let bars = BarAllocator::new(mmio).map_err(|e| BuildError::device("PCI root", e))?;
        let placed = board.mmio().insert(ecam.base, ecam.size, root);
        placed.map_err(|e| BuildError::device("PCI root", e))?;
        let ioapic = Ioapic::new(machine.clone());
        let metered: Vec<(&'static str, Arc<dyn MetricsSource>)> = vec![(IOAPIC, ioapic.metrics())];
        let ioapic = Arc::new(Mutex::new(ioapic));
        let placed = board
            .mmio()
            .insert(u64::from(layout::IOAPIC), ioapic::SIZE, ioapic.clone());
        placed.map_err(|e| BuildError::device("I/O APIC", e))?;
        let irq = line(&ioapic, layout::GED_GSI).map_err(|e| BuildError::device("GED", e))?;
        let mut hotplug = Hotplugs::new(&board, irq, threads.waker())?;
        let plug = PciPlug::new(board.clone(), machine, memory, threads.clone(), bars);
        let slots = hotplug.bank(&board, PCI_SLOTS, plug)?;
        Ok(Self {
            board,
            metered,
            ioapic,
            threads,
            hotplug,
            slots,
            places: BTreeMap::new(),
            aml: vec![PciRoot::aml(ecam, mmio, Window { base: 0, size: 0 })],
        })
    }

    /// The interrupt of I/O APIC pin `gsi`, raised by an edge.
    ///
    /// # Errors
    /// No such pin, or no GSI left.
    pub fn line(&self, gsi: u32) -> io::Result<Irq> {
        line(&self.ioapic, gsi)
    }

    /// Puts a device on `len` I/O ports from `base`, and its ACPI description, if it has one, into the DSDT.
    ///
    /// # Errors
    /// When the ports are taken.
    pub fn add_ports(
        &mut self,
        name: &str,
        base: u16,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
        aml: Option<Vec<u8>>,
    ) -> Result<(), BuildError> {
        self.board
            .ports()
            .insert(u64::from(base), len, device)
            .map_err(|e| BuildError::device(name, e))?;
        self.aml.extend(aml);
        Ok(())
    }

    /// Shows what `meter` counts, under a name that begins with `__`: no device can be given such a name.
    pub fn show_counters(&mut self, name: &'static str, meter: Arc<dyn MetricsSource>) {
        self.metered.push((name, meter));
    }

    /// Puts a virtio device of any kind into the first free PCI slot, before the guest starts.
    /// `name` is what its threads are called, after `io-`.
    ///
    /// # Errors
    /// When another device has the name, and when slots, addresses or interrupts have run out.
    pub fn add_virtio(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<Bdf, BuildError> {
        let unit = NewFunction::new(name, device);
        let (slot, at) = self.vacant(name)?;
        self.slots
            .present(slot, unit)
            .map_err(|e| BuildError::device(name, e))?;
        self.places.insert(name.into(), at);
        Ok(at)
    }

    /// As [`Devices::add_virtio`], while the guest runs: it is told, and the outcome comes with its answer. Never
    /// waits.
    ///
    /// # Errors
    /// As [`Devices::add_virtio`]; the guest has heard nothing. The device is taken apart by a thread.
    pub fn offer_virtio(
        &mut self,
        name: &str,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(Bdf, OutcomeReceiver), BuildError> {
        let unit = NewFunction::new(name, device);
        let (slot, at) = self.vacant(name)?;
        let receiver = self.slots.add(slot, unit);
        let receiver = receiver.map_err(|e| BuildError::device(name, e))?;
        self.places.insert(name.into(), at);
        Ok((at, receiver))
    }

    /// Asks the guest to let go of the device called `name`. The outcome comes when it has, or has refused.
    ///
    /// # Errors
    /// There is no such device.
    pub fn ask_back(&mut self, name: &str) -> Result<OutcomeReceiver, SlotError> {
        let at = self.places.get(name).ok_or_else(|| SlotError::Unknown(name.into()))?;
        Ok(self.slots.remove(u32::from(at.device))?)
    }

    /// Has a thread take apart what the guest has let go of, as far as it has stopped, and says
    /// what is gone. Never waits: to be called again when a thread has ended, and after a failure.
    pub fn collect(&mut self) -> Collected {
        let failure = self.slots.reap().err();
        // Not by what was ejected just now: what the guest had never heard of went when it was asked back.
        let plug = self.slots.plug();
        let gone = self.places.extract_if(.., |_, at| !plug.has(u32::from(at.device)));
        Collected {
            gone: gone.collect(),
            failure,
        }
    }

    /// Devices that the guest has let go of, whose threads have yet to stop or that are being taken apart.
    pub fn stopping(&self) -> Vec<&str> {
        let plug = self.slots.plug();
        let stopping = self
            .places
            .iter()
            .filter(|(_, at)| plug.is_stopping(u32::from(at.device)));
        stopping.map(|(name, _)| name.as_str()).collect()
    }

    /// The devices that fit `wanted`, and where they are, or that the guest has let go of and that are there still.
    pub fn leaving(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Bdf)> {
        let plug = self.slots.plug();
        let leaves = |name: &str, at: &Bdf| wanted(name) || plug.is_retired(u32::from(at.device));
        let leaving = self.places.iter().filter(|(name, at)| leaves(name, at));
        leaving.map(|(name, at)| (name.clone(), *at)).collect()
    }

    /// What tells the guest of changes.
    pub fn hotplug(&self) -> &Hotplugs {
        &self.hotplug
    }

    /// The same, for banks of other kinds.
    pub fn hotplug_mut(&mut self) -> &mut Hotplugs {
        &mut self.hotplug
    }

    /// What the devices have counted, by name. What is no virtio device has a name that no such
    /// device can be given. Takes no lock that a vCPU may want.
    pub fn counters(&self) -> Vec<Counted> {
        let plug = self.slots.plug();
        let virtio = self.places.iter().filter_map(|(name, at)| {
            let counters = plug.counters(u32::from(at.device))?;
            Some(Counted {
                name: name.clone(),
                kind: counters.kind(),
                counters: counters.counters(),
                queues: counters.queues(),
            })
        });
        let others = self.metered.iter().map(|(name, meter)| (*name, meter.metrics()));
        let hotplug = (HOTPLUG, vec![("ignored_writes", self.hotplug.ignored())]);
        let others = others.chain([hotplug]).map(|(name, counters)| Counted {
            name: name.into(),
            kind: name.trim_start_matches('_'),
            counters,
            queues: Vec::new(),
        });
        virtio.chain(others).collect()
    }

    /// The virtqueues of all virtio devices, to be looked at. Takes no lock that a vCPU may want, and reads no guest
    /// memory.
    pub fn queues(&self) -> Queues {
        let plug = self.slots.plug();
        let devices = self.places.iter().filter_map(|(name, at)| {
            let counters = plug.counters(u32::from(at.device))?;
            Some((name.clone(), counters.probes().to_vec()))
        });
        Queues::new(plug.memory().clone(), devices.collect())
    }

    /// A slot for a device called `name`, which no other may be: whoever waits for a device to rest
    /// knows it by its name alone.
    fn vacant(&self, name: &str) -> Result<(u32, Bdf), BuildError> {
        if self.places.contains_key(name) {
            return Err(BuildError::device(name, SlotError::Named));
        }
        self.first_vacant().map_err(|source| BuildError::Full {
            device: name.into(),
            source,
        })
    }

    fn first_vacant(&self) -> Result<(u32, Bdf), SlotError> {
        // One that the guest has just let go of waits for `collect`, which knows whose name goes with it.
        let vacant = |slot: &u32| self.slots.state(*slot) == Some(State::Empty);
        let slot = (1..SLOTS).find(vacant).ok_or(SlotError::Full)?;
        let device = u8::try_from(slot).map_err(|_| SlotError::Full)?;
        Ok((slot, bdf(device)))
    }

    /// Where the threads of devices come from.
    pub fn threads(&self) -> &Arc<dyn Threads> {
        &self.threads
    }

    /// The ACPI descriptions of all devices, for `\_SB`.
    pub fn aml(&self) -> Vec<Vec<u8>> {
        [self.aml.clone(), self.hotplug.aml()].concat()
    }

    /// Keeps every device from doing anything until [`Devices::release`]. Only when no vCPU runs. Does not wait: see
    /// [`Devices::unheld`].
    pub fn hold(&self) {
        self.slots.plug().workers().for_each(Workers::hold);
    }

    /// The devices that still do something after [`Devices::hold`].
    pub fn unheld(&self) -> Vec<&str> {
        let plug = self.slots.plug();
        let is_held = |at: &Bdf| plug.workers_of(u32::from(at.device)).is_none_or(Workers::is_held);
        let unheld = self.places.iter().filter(|(_, at)| !is_held(at));
        unheld.map(|(name, _)| name.as_str()).collect()
    }

    /// Lets the devices go on.
    pub fn release(&self) {
        self.slots.plug().workers().for_each(Workers::release);
    }

    /// Asks every device to stop, for good: requests in flight are completed, then guest memory is
    /// left alone. Only when no vCPU runs. Does not wait: see [`Devices::unstopped`].
    pub fn stop(&self) {
        self.slots.plug().workers().for_each(Workers::retire);
    }

    /// Has threads take apart what has stopped after [`Devices::stop`], with its sockets, files and
    /// descriptors, and says what is left: the devices whose threads may still touch guest memory,
    /// and those that are being taken apart. Never waits: to be called again when a thread has
    /// ended. Names and slots stay taken.
    pub fn unstopped(&mut self) -> Vec<&str> {
        let plug = self.slots.plug_mut();
        let left = self.places.iter().filter(|(_, at)| !plug.close(u32::from(at.device)));
        left.map(|(name, _)| name.as_str()).collect()
    }

    /// Takes every device out of the guest's reach and asks it to stop, also while a vCPU runs.
    /// Does not wait: see [`Devices::unstopped`].
    pub fn withdraw(&mut self) {
        let plug = self.slots.plug_mut();
        for at in self.places.values() {
            plug.withdraw(u32::from(at.device));
        }
    }
}

fn line(ioapic: &Mutex<Ioapic>, gsi: u32) -> io::Result<Irq> {
    lock(ioapic).line(u8::try_from(gsi).unwrap_or(u8::MAX))
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
