//! A bank of hot-plug slots: a guest that says anything in any order, a host that goes on adding and removing, and sometimes fails.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | offset, width | the guest reads the bank |
//! | 1 | offset, bytes | the guest writes to the bank |
//! | 2 | - | the guest takes the next event |
//! | 3 | slot, source, status | the guest evaluates `_OST` |
//! | 4 | slot | the guest evaluates `_EJ0` |
//! | 5-10 | slot | the host presents, adds, removes, reclaims, expires, or clears what was ejected |
//! | 11 | flags | creating or destroying fails from now on, or no longer |
//! | 12 | offset, width | the guest reads the event device |
//! | 13 | slot | the host makes a slot permanent |
//! | 14 | slot | the guest evaluates `_SUN` |
//!
//! The first byte chooses what sits in the slots.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::{BusDevice, Effect, Irq};
use husk_hotplug::bank::{Bank, Extent, Kind};
use husk_hotplug::ged::{Bell, Ged};
use husk_hotplug::slot::State;
use husk_hotplug::ticket::Ticket;
use husk_hotplug::{Hotplug, Plug, PlugError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Seeds;
use crate::script::{Recorder, Script};

const SLOTS: u8 = 6;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let kinds = [Kind::Pci, Kind::Cpu, Kind::Memory];
    let Some(kind) = script.u8().map(|byte| kinds[usize::from(byte) % kinds.len()]) else {
        return;
    };
    let mut machine = Machine::new(kind);
    while machine.step(&mut script).is_some() {
        machine.check();
    }
    let Machine {
        host, bank, tickets, ..
    } = machine;
    drop((host, bank));
    for ticket in tickets {
        ticket.wait(Instant::now());
        assert!(ticket.latency().is_some(), "a ticket that nobody can keep");
    }
}

/// Units that exist on paper.
#[derive(Default)]
struct Units {
    there: BTreeSet<u32>,
    cannot_create: bool,
    cannot_destroy: bool,
}

fn unless(broken: bool) -> Result<(), PlugError> {
    let error = || PlugError {
        what: "do it".into(),
        source: "the script says so".into(),
    };
    if broken { Err(error()) } else { Ok(()) }
}

impl Plug for Units {
    type Unit = ();

    fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
        unless(self.cannot_create)?;
        assert!(self.there.insert(slot), "slot {slot} is filled twice");
        Ok(())
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        unless(self.cannot_destroy)?;
        assert!(self.there.remove(&slot), "slot {slot} is emptied twice");
        Ok(())
    }

    fn extent(&self, slot: u32) -> Extent {
        assert!(self.there.contains(&slot));
        Extent {
            base: u64::from(slot) << 32,
            size_bytes: 1 << 27,
        }
    }
}

struct Machine {
    host: Hotplug<Units>,
    bank: Arc<Mutex<Bank>>,
    ged: Ged,
    tickets: Vec<Ticket>,
    pinned: BTreeSet<u32>,
}

impl Machine {
    fn new(kind: Kind) -> Self {
        let bell = Bell::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let bank = Bank::new(kind, SLOTS.into(), bell.clone(), || ()).unwrap();
        let bank = Arc::new(Mutex::new(bank));
        Self {
            host: Hotplug::new(Units::default(), bank.clone(), bell.clone()),
            bank,
            ged: Ged::new(bell),
            tickets: Vec::new(),
            pinned: BTreeSet::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let mut data = [0xee; 8];
        match script.u8()? % 15 {
            0 => {
                let (offset, width) = (script.u16()?, script.width()?);
                self.bank.lock().unwrap().read(offset.into(), &mut data[..width]);
            }
            1 => {
                let (offset, bytes) = (script.u16()?, script.bytes()?);
                let effect = self
                    .bank
                    .lock()
                    .unwrap()
                    .write(offset.into(), &bytes[..bytes.len().min(8)]);
                assert_eq!(effect, Effect::None);
            }
            2 => self.take(),
            3 => {
                let (slot, source, status) = (script.u8()?, script.u16()?, script.u8()?);
                let report = u64::from(slot % SLOTS) | u64::from(source) << 16 | u64::from(status) << 32;
                self.write(0x10, &report.to_le_bytes());
            }
            4 => self.name(0x04, script.u8()?),
            host @ 5..=10 => self.ask(host, u32::from(script.u8()? % (SLOTS + 1))),
            11 => {
                let flags = script.u8()?;
                self.host.plug_mut().cannot_create = flags & 1 != 0;
                self.host.plug_mut().cannot_destroy = flags & 2 != 0;
            }
            12 => {
                let (offset, width) = (script.u8()?, script.width()?);
                self.ged.read((offset & 7).into(), &mut data[..width]);
            }
            13 => {
                let slot = u32::from(script.u8()? % SLOTS);
                self.bank.lock().unwrap().pin(slot).unwrap();
                self.pinned.insert(slot);
            }
            _ => self.name(0x08, script.u8()?),
        }
        Some(())
    }

    fn ask(&mut self, what: u8, slot: u32) {
        let before = self.host.state(slot);
        let ticket = match what {
            5 => self.host.present(slot, ()).map(|()| None),
            6 => self.host.add(slot, ()).map(Some),
            7 => self.host.remove(slot).map(Some),
            8 => self.host.reclaim(slot, ()).map(Some),
            9 => self.host.expire(slot).map(|_| None),
            _ => self.host.reap().map(|_| None),
        };
        if let Ok(Some(ticket)) = ticket {
            let kept = self.pinned.contains(&slot) && !matches!(before, Some(State::Ejected { .. }));
            assert!(what != 7 || !kept, "a pinned slot was given up");
            self.tickets.push(ticket);
        }
        assert!(before.is_some() == (slot < SLOTS.into()));
    }

    /// The guest's scan: an event names a slot that there is, and a reason that its kind of slot has.
    fn take(&mut self) {
        let mut data = [0; 4];
        self.bank.lock().unwrap().read(0, &mut data);
        let event = u32::from_le_bytes(data);
        assert!(event & 0xffff < SLOTS.into());
        assert!(matches!(event >> 16, 0 | 1 | 3), "Notify value {:#x}", event >> 16);
    }

    /// Writes a slot's number to a register.
    fn name(&mut self, register: u64, slot: u8) {
        self.write(register, &u32::from(slot % SLOTS).to_le_bytes());
    }

    fn write(&mut self, register: u64, data: &[u8]) {
        let _ = self.bank.lock().unwrap().write(register, data);
    }

    /// A unit is there exactly as long as its slot is not empty, and the guest has no more than there is.
    fn check(&mut self) {
        let mut filled = BTreeSet::new();
        for slot in 0..u32::from(SLOTS) {
            if self.host.state(slot) != Some(State::Empty) {
                filled.insert(slot);
            }
        }
        assert_eq!(self.host.plug().there, filled);
        assert!(self.host.plugged() <= filled.len());
        if let Some(slot) = self.host.removable() {
            assert!(filled.contains(&slot) && !self.pinned.contains(&slot));
        }
    }
}

pub fn seeds() -> Seeds {
    // Added, taken, accepted; asked for, taken, let go; destroyed.
    let life = [0, 6, 1, 2, 3, 1, 1, 0, 0, 7, 1, 2, 4, 1, 10, 0];
    // Present, asked for, wanted back by the guest that refuses.
    let refused = [0, 5, 0, 7, 0, 2, 3, 0, 3, 0, 0x80, 13, 0, 7, 0];
    // Wanted again after the guest was asked; the host cannot.
    let wanted = [0, 5, 2, 7, 2, 2, 8, 2, 11, 3, 4, 2, 10, 0, 11, 0, 10, 0, 9, 2];
    // A processor that signs and one that does not; memory that is told again, and looked at.
    let signed = [
        1, 5, 0, 14, 0, 6, 1, 6, 2, 2, 2, 14, 1, 3, 1, 1, 0, 0, 3, 2, 1, 0, 0, 10, 0,
    ];
    let told_again = [2, 6, 1, 2, 0, 0x10, 4, 4, 3, 1, 1, 0, 0, 2, 3, 1, 1, 0, 0];
    let mut odd = Recorder::default();
    odd.u8(1);
    for offset in [0, 1, 4, 0x08, 0x0c, 0x10, 0x40, 0x50, 0x400, u16::MAX] {
        odd.u8(0).u16(offset).u8(2).u8(1).u16(offset).bytes(&[1, 0, 0, 0]);
    }
    odd.u8(12).u8(0).u8(2).u8(12).u8(1).u8(3);
    vec![
        ("life", life.to_vec()),
        ("refused", refused.to_vec()),
        ("wanted", wanted.to_vec()),
        ("signed", signed.to_vec()),
        ("told-again", told_again.to_vec()),
        ("odd", odd.take()),
    ]
}
