//! A bank of hot-plug slots: a guest that says anything in any order, a host that goes on adding
//! and removing, and sometimes fails.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | offset, width | the guest reads the bank |
//! | 1 | offset, bytes | the guest writes to the bank |
//! | 2 | - | the guest takes the next event |
//! | 3 | slot, source, status | the guest evaluates `_OST` |
//! | 4 | slot | the guest evaluates `_EJ0` |
//! | 5-10 | slot | the host presents, adds, removes, reclaims, expires, or clears what was ejected |
//! | 11 | flags | creating, destroying or stopping fails from now on, or no longer |
//! | 12 | offset, width | the guest reads the event device |
//! | 13 | slot | the host makes a slot permanent |
//! | 14 | slot | the guest evaluates `_SUN` |
//!
//! The first byte chooses what sits in the slots: PCI functions, processors, or memory. After each step:
//!
//! - a unit exists exactly as long as its slot is filled, and the guest reads its range, or none;
//! - what `_STA` has shown the guest is its own until it writes that it has let go, or never had
//!   it: nothing that the host does takes it, and no write of the guest's changes another slot than
//!   the one that it names;
//! - what it has let go of is not told of anew before the guest has seen that it has gone;
//! - a receiver waits as long as its slot may still answer it, and then gets one outcome, which the slot bears out.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::{BusDevice, Effect, Irq};
use husk_hotplug::bank::{Bank, Extent, SlotKind};
use husk_hotplug::ged::{Ged, GedNotifier};
use husk_hotplug::outcome::{Outcome, OutcomeReceiver};
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, Plug, PlugError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Seeds;
use crate::script::{Recorder, Script};

const SLOTS: u8 = 6;

/// Registers of a bank, and the records of memory slots.
const EJCT: u64 = 0x04;
const SIGN: u64 = 0x08;
const OSTR: u64 = 0x10;
const STATUS: u64 = 0x40;
const RECORDS: u64 = 0x840;
const RECORD_BYTES: u64 = 0x10;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let kinds = [SlotKind::Pci, SlotKind::Cpu, SlotKind::Memory];
    let Some(kind) = script.u8().map(|byte| kinds[usize::from(byte) % kinds.len()]) else {
        return;
    };
    let mut machine = Machine::new(kind);
    while machine.step(&mut script).is_some() {
        machine.check();
    }
    let Machine {
        host, bank, receivers, ..
    } = machine;
    drop((host, bank));
    for Asked { receiver, .. } in receivers {
        receiver.wait(Instant::now());
        assert!(receiver.latency().is_some(), "a receiver that nobody can answer");
    }
}

/// Units that exist on paper.
#[derive(Default)]
struct Units {
    there: BTreeSet<u32>,
    stopped: BTreeSet<u32>,
    /// What the guest may use.
    shown: BTreeSet<u32>,
    cannot_create: bool,
    cannot_destroy: bool,
    cannot_stop: bool,
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

    fn retire(&mut self, slot: u32) -> bool {
        assert!(!self.shown.contains(&slot), "the guest has what is in slot {slot}");
        if !self.cannot_stop {
            self.stopped.insert(slot);
        }
        self.stopped.contains(&slot)
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        assert!(!self.shown.contains(&slot), "the guest has what is in slot {slot}");
        assert!(self.stopped.contains(&slot), "what is in slot {slot} runs");
        unless(self.cannot_destroy)?;
        assert!(self.there.remove(&slot), "slot {slot} is emptied twice");
        self.stopped.remove(&slot);
        Ok(())
    }

    fn extent(&self, slot: u32) -> Extent {
        assert!(self.there.contains(&slot));
        extent(slot)
    }
}

fn extent(slot: u32) -> Extent {
    Extent {
        base: u64::from(slot + 1) << 32,
        size_bytes: 1 << 27,
    }
}

/// Whoever waits for the guest's answer.
struct Asked {
    slot: u32,
    comes: bool,
    receiver: OutcomeReceiver,
}

/// Who has just done something.
enum Actor {
    /// The host, or the guest without a write to the bank.
    Anyone,
    /// The guest has written to the bank, and has named this slot if it has named any.
    Writer(Option<u32>),
}

struct Machine {
    kind: SlotKind,
    host: Hotplug<Units>,
    bank: Arc<Mutex<Bank>>,
    ged: Ged,
    receivers: Vec<Asked>,
    pinned: BTreeSet<u32>,
    actor: Actor,
    /// What the guest has just evaluated `_EJ0` of.
    ejects: Option<u32>,
    /// What it has let go of, and not looked at since.
    unverified: BTreeSet<u32>,
    /// Before the last step.
    before: Vec<State>,
}

impl Machine {
    fn new(kind: SlotKind) -> Self {
        let notifier = GedNotifier::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let bank = Bank::new(kind, SLOTS.into(), notifier.clone(), || ()).unwrap();
        let bank = Arc::new(Mutex::new(bank));
        Self {
            kind,
            host: Hotplug::new(Units::default(), bank.clone(), notifier.clone()),
            bank,
            ged: Ged::new(notifier),
            receivers: Vec::new(),
            pinned: BTreeSet::new(),
            actor: Actor::Anyone,
            ejects: None,
            unverified: BTreeSet::new(),
            before: vec![State::Empty; SLOTS.into()],
        }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let mut data = [0xee; 8];
        (self.actor, self.ejects) = (Actor::Anyone, None);
        match script.u8()? % 15 {
            0 => {
                let (offset, width) = (script.u16()?, script.width()?);
                self.bank.lock().unwrap().read(offset.into(), &mut data[..width]);
                if width == data.len() {
                    self.check_range(offset.into(), u64::from_le_bytes(data));
                }
                self.look(offset.into(), width, data);
            }
            1 => {
                let (offset, bytes) = (script.u16()?, script.bytes()?);
                self.write(offset.into(), &bytes[..bytes.len().min(8)]);
            }
            2 => self.take(),
            3 => {
                let (slot, source, status) = (script.u8()?, script.u16()?, script.u8()?);
                let report = u64::from(slot % SLOTS) | u64::from(source) << 16 | u64::from(status) << 32;
                self.write(OSTR, &report.to_le_bytes());
            }
            4 => self.name(EJCT, script.u8()?),
            host @ 5..=10 => self.ask(host, u32::from(script.u8()? % (SLOTS + 1))),
            11 => {
                let flags = script.u8()?;
                let units = self.host.plug_mut();
                units.cannot_create = flags & 1 != 0;
                units.cannot_destroy = flags & 2 != 0;
                units.cannot_stop = flags & 4 != 0;
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
            _ => self.name(SIGN, script.u8()?),
        }
        Some(())
    }

    fn ask(&mut self, what: u8, slot: u32) {
        let before = self.host.state(slot);
        let receiver = match what {
            5 => self.host.present(slot, ()).map(|()| None),
            6 => self.host.add(slot, ()).map(Some),
            7 => self.host.remove(slot).map(Some),
            8 => self.host.reclaim(slot, ()).map(Some),
            9 => self.host.expire(slot).map(|_| None),
            _ => self.host.reap().map(|_| None),
        };
        if let Ok(Some(receiver)) = receiver {
            let kept = self.pinned.contains(&slot) && !matches!(before, Some(State::Ejected { .. }));
            assert!(what != 7 || !kept, "a pinned slot was given up");
            let comes = what != 7;
            self.receivers.push(Asked { slot, comes, receiver });
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
        let told_early = event != 0 && self.unverified.contains(&(event & 0xffff));
        assert!(!told_early, "the guest has not seen what has gone: {event:#x}");
    }

    /// Writes a slot's number to a register.
    fn name(&mut self, register: u64, slot: u8) {
        self.write(register, &u32::from(slot % SLOTS).to_le_bytes());
    }

    fn write(&mut self, register: u64, data: &[u8]) {
        let named = data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let named = named.map(|word| if register == OSTR { word & 0xffff } else { word });
        self.actor = Actor::Writer(named);
        self.ejects = named.filter(|_| register == EJCT);
        if register == OSTR {
            self.unverified.retain(|slot| Some(*slot) != named);
        }
        let effect = self.bank.lock().unwrap().write(register, data);
        assert_eq!(effect, Effect::None);
    }

    /// The guest may have looked at `_STA`, and learned what has gone.
    fn look(&mut self, offset: u64, width: usize, data: [u8; 8]) {
        if offset == STATUS && width >= 4 {
            let shown = u32::from_le_bytes(*data.first_chunk().unwrap());
            for (slot, state) in self.host.states() {
                assert_eq!(
                    shown >> (4 * slot) & 0xf,
                    if state.enabled() { 0xf } else { 0 },
                    "_STA of slot {slot}, which is {state:?}"
                );
            }
        }
        let first = STATUS.max(offset);
        let end = RECORDS.min(offset + u64::try_from(width).unwrap());
        let seen = first.saturating_sub(STATUS) * 2..end.saturating_sub(STATUS) * 2;
        self.unverified.retain(|slot| !seen.contains(&u64::from(*slot)));
    }

    /// A memory slot tells the range of what is in it.
    fn check_range(&self, offset: u64, found: u64) {
        let Some(at) = offset.checked_sub(RECORDS).filter(|at| at.is_multiple_of(8)) else {
            return;
        };
        let slot = u32::try_from(at / RECORD_BYTES).unwrap();
        if self.kind != SlotKind::Memory || slot >= SLOTS.into() {
            assert_eq!(found, u64::MAX, "nothing is at {offset:#x}");
            return;
        }
        let there = self.host.plug().there.contains(&slot);
        let Extent { base, size_bytes } = if there { extent(slot) } else { Extent::default() };
        let is_base = at.is_multiple_of(RECORD_BYTES);
        assert_eq!(found, if is_base { base } else { size_bytes });
    }

    fn check(&mut self) {
        let states: Vec<State> = self.host.states().into_iter().map(|(_, state)| state).collect();
        let filled = states.iter().zip(0..).filter(|(state, _)| **state != State::Empty);
        let filled: BTreeSet<u32> = filled.map(|(_, slot)| slot).collect();
        assert_eq!(self.host.plug().there, filled);
        assert!(self.host.plugged() <= filled.len());
        if let Some(slot) = self.host.removable() {
            assert!(filled.contains(&slot) && !self.pinned.contains(&slot));
        }
        for (state, slot) in states.iter().zip(0..) {
            self.check_slot(slot, *state);
        }
        self.receivers.retain(|asked| check_receiver(asked, &states));
        for (number, Asked { slot, comes, .. }) in self.receivers.iter().enumerate() {
            let mut others = self.receivers.iter().skip(number + 1);
            let again = others.any(|other| (other.slot, other.comes) == (*slot, *comes));
            assert!(!again, "two wait for the same answer of slot {slot}");
        }
        self.before = states;
    }

    /// What the guest sees of a slot, and who has changed that.
    fn check_slot(&mut self, slot: u32, state: State) {
        let before = self.before[usize::try_from(slot).unwrap()];
        let changed = before != state;
        let named = match self.actor {
            Actor::Anyone => true,
            Actor::Writer(named) => named == Some(slot),
        };
        assert!(!changed || named, "slot {slot} changed from {before:?} to {state:?}");
        if let State::Asked { wanted: true, seen, .. } = state {
            assert!(seen, "what the guest has not heard of is taken back");
        }
        if self.kind != SlotKind::Pci && changed && self.ejects == Some(slot) {
            self.unverified.insert(slot);
        }
        let units = self.host.plug_mut();
        if state.enabled() {
            assert!(units.there.contains(&slot), "nothing is in slot {slot}");
            units.shown.insert(slot);
        } else if units.shown.remove(&slot) {
            assert!(
                matches!(self.actor, Actor::Writer(_)),
                "slot {slot} was taken from the guest: {before:?} to {state:?}"
            );
            let asked = matches!(before, State::Asked { .. });
            let answered = matches!(before, State::Offered { seen: true } | State::Reported { seen: true });
            assert!(asked || answered, "slot {slot} was let go of unasked: {before:?}");
        }
    }
}

/// Whether a receiver still waits. One that does not has the outcome that its slot is in now.
fn check_receiver(Asked { slot, comes, receiver }: &Asked, states: &[State]) -> bool {
    let state = states[usize::try_from(*slot).unwrap()];
    let outcome = receiver.wait(Instant::now());
    let waits = match state {
        State::Offered { .. } | State::Reported { .. } => *comes,
        State::Asked { wanted, .. } => *comes == wanted,
        State::Ejected { wanted } => *comes && wanted,
        State::Empty | State::Present => false,
    };
    if receiver.latency().is_none() {
        assert!(waits, "a receiver of slot {slot}, which is {state:?}, was forgotten");
        return true;
    }
    let is_gone = matches!(state, State::Empty | State::Ejected { wanted: false });
    let borne_out = match outcome {
        Outcome::Accepted if *comes => state.plugged(),
        Outcome::Accepted => is_gone,
        Outcome::Refused { .. } if *comes => is_gone,
        Outcome::Refused { .. } => state.enabled() && !matches!(state, State::Asked { .. }),
        Outcome::Unproven => *comes && is_gone,
        Outcome::TimedOut | Outcome::Withdrawn => true,
    };
    assert!(
        borne_out,
        "a receiver of slot {slot}, which is {state:?}, says {outcome:?}"
    );
    false
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
    // Memory that comes and goes: looked at, proven, asked for while its insertion is open, and let
    // go of while it cannot stop.
    let dimm = [
        2, 6, 0, 6, 1, 2, 2, 0, 0, 4, 3, 0, 8, 4, 3, 3, 0, 1, 0, 0, 2, 3, 0, 1, 0, 0, 7, 1, 2, 4, 1, 11, 4, 7, 0, 2, 4,
        0, 10, 0, 11, 0, 10, 0, 0, 0, 4, 3,
    ];
    // A processor that is asked for while it comes, wanted again, refused, and let go of by a guest
    // that names others as well.
    let processor = [
        1, 5, 0, 13, 0, 14, 0, 6, 1, 6, 2, 2, 14, 1, 7, 1, 2, 8, 1, 4, 0, 4, 2, 3, 1, 1, 0, 0, 3, 1, 3, 0, 0x82, 7, 1,
        2, 4, 1, 10, 1, 3, 2, 1, 0, 0x81, 9, 2,
    ];
    // Wanted again, and let go of: told anew when `_STA` was evaluated, or the end reported.
    let told_early = [
        1, 5, 1, 7, 1, 2, 8, 1, 4, 1, 10, 0, 2, 0, 0x40, 0, 2, 2, 3, 1, 1, 0, 0, 7, 1, 2, 8, 1, 4, 1, 10, 0, 2, 3, 1,
        3, 0, 0, 2,
    ];
    let mut odd = Recorder::default();
    odd.u8(1);
    for offset in [0, 1, 4, 0x08, 0x0c, 0x10, 0x40, 0x50, 0x840, u16::MAX] {
        odd.u8(0).u16(offset).u8(2).u8(1).u16(offset).bytes(&[1, 0, 0, 0]);
    }
    odd.u8(12).u8(0).u8(2).u8(12).u8(1).u8(3);
    vec![
        ("life", life.to_vec()),
        ("refused", refused.to_vec()),
        ("wanted", wanted.to_vec()),
        ("signed", signed.to_vec()),
        ("told-again", told_again.to_vec()),
        ("dimm", dimm.to_vec()),
        ("processor", processor.to_vec()),
        ("told-early", told_early.to_vec()),
        ("odd", odd.take()),
    ]
}
