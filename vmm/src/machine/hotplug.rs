//! What comes and goes while the guest runs: one notifier, one GED, and a bank of slots for each kind.
//!
//! A kind is a [`Plug`]: PCI functions are in `slots.rs`, vCPUs in `cpu_slots.rs`. This room puts
//! their banks on the bus and their AML into the DSDT.

use std::sync::{Arc, Mutex};
use std::task::Waker;

use acpi_tables::Aml;
use husk_devices::Irq;
use husk_firmware::layout;
use husk_hotplug::aml::BankAml;
use husk_hotplug::bank::{Bank, BankMetrics, SlotKind};
use husk_hotplug::ged::{Ged, GedAml, GedEvent, GedNotifier};
use husk_hotplug::{Hotplug, Plug};

use super::board::Board;
use super::build::BuildError;

/// How many slots a bank has, where, and which are there for good.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// What is in them.
    pub kind: SlotKind,
    /// Guest-physical address of the bank's registers.
    pub address: u64,
    /// How many there are.
    pub count: u32,
    /// How many, from 0 on, cannot be removed.
    pub pinned: u32,
}

/// What tells the guest of changes.
pub struct Hotplugs {
    notifier: GedNotifier,
    waker: Waker,
    banks: Vec<BankAml>,
    meters: Vec<Arc<BankMetrics>>,
}

impl Hotplugs {
    /// The GED on `board`, which interrupts by `irq`. `waker` is woken by everything that the guest answers.
    ///
    /// # Errors
    /// When its address is taken.
    pub fn new(board: &Board, irq: Irq, waker: Waker) -> Result<Self, BuildError> {
        let notifier = GedNotifier::new(irq);
        let ged = Arc::new(Mutex::new(Ged::new(notifier.clone())));
        let placed = board.mmio().insert(layout::GED, Ged::WINDOW_BYTES, ged);
        placed.map_err(|e| BuildError::device("GED", e))?;
        Ok(Self {
            notifier,
            waker,
            banks: Vec::new(),
            meters: Vec::new(),
        })
    }

    /// A bank of `slots` on `board`, filled and emptied by `plug`. Slots that are all there for
    /// good need none of it: the guest is shown nothing.
    ///
    /// # Errors
    /// Too many slots, or an address that is taken.
    pub fn bank<P: Plug>(&mut self, board: &Board, slots: Slots, plug: P) -> Result<Hotplug<P>, BuildError> {
        let name = name(slots.kind);
        let waker = self.waker.clone();
        let bank = Bank::new(slots.kind, slots.count, self.notifier.clone(), move || {
            waker.wake_by_ref()
        });
        let mut bank = bank.map_err(|e| BuildError::device(name, e))?;
        for slot in 0..slots.pinned {
            bank.pin(slot).map_err(|e| BuildError::device(name, e))?;
        }
        let (bytes, meter) = (bank.window_bytes(), bank.metrics());
        let bank = Arc::new(Mutex::new(bank));
        if slots.count > slots.pinned {
            let placed = board.mmio().insert(slots.address, bytes, bank.clone());
            placed.map_err(|e| BuildError::device(name, e))?;
            self.meters.push(meter);
            self.banks.push(BankAml {
                kind: slots.kind,
                address: slots.address,
                slots: slots.count,
                pinned: slots.pinned,
            });
        }
        let mut hotplug = Hotplug::new(plug, bank, self.notifier.clone());
        hotplug.set_waker(self.waker.clone());
        Ok(hotplug)
    }

    /// How many writes of the guest to the banks made no sense ([`Bank::ignored`]).
    pub fn ignored(&self) -> u64 {
        self.meters.iter().map(|meter| meter.ignored_writes.get()).sum()
    }

    /// Tells the guest again of what it has not asked about yet; whether there is such a thing.
    pub fn remind(&self) -> bool {
        self.notifier.retrigger()
    }

    /// Presses the guest's power button (ACPI 6.5 §4.8.2.2.1.2).
    pub fn press_power_button(&self) {
        self.notifier.notify(GedEvent::PowerButton);
    }

    /// The ACPI descriptions of the banks and of the GED, for `\_SB`, after that of the PCI root.
    pub fn aml(&self) -> Vec<Vec<u8>> {
        let ged = GedAml {
            address: layout::GED,
            gsi: layout::GED_GSI,
            scans: self.banks.iter().map(|bank| (bank.event(), bank.scan())).collect(),
        };
        let banks = self.banks.iter().map(|bank| bytes(bank));
        banks.chain([bytes(&ged)]).collect()
    }
}

/// What the slots of a kind are called when they cannot be had.
const fn name(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Cpu => "vCPU slots",
        SlotKind::Memory => "memory slots",
        SlotKind::Pci => "PCI slots",
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}
