//! Many slots behind a few registers: what the guest's AML reads and writes.
//!
//! Register map, in a window of [`Bank::window_bytes`]. All registers are little-endian. Whoever writes names the slot in the value,
//! and one write is one report: nothing has to be selected first, so the AML needs no lock and the bank keeps no cursor.
//!
//! | offset | width | access | meaning |
//! |---|---|---|---|
//! | 0x00 | 4 | R | `TAKE`: takes the next waiting event: slot in bits 0-15, Notify value in bits 16-23; 0 = no event |
//! | 0x04 | 4 | W | `EJCT`: `_EJ0` of this slot: the guest has let go (ACPI 6.5 §6.3.3) |
//! | 0x08 | 4 | W | `SIGN`: `_SUN` of this slot was evaluated (ACPI 6.5 §6.1.11) |
//! | 0x0c | 4 | R | `SLTS`: number of slots |
//! | 0x10 | 8 | W | `OSTR`: `_OST` of a slot: slot in bits 0-15, source event in bits 16-31, status in bits 32-63 (ACPI 6.5 §6.3.5) |
//! | 0x40 | 4 each | R | `_STA` of eight slots, four bits each: 0xf or 0 (ACPI 6.5 §6.3.7) |
//! | 0x840 + 0x10 * slot | 8 | R | `BASE`: guest-physical address of a memory slot |
//! | 0x848 + 0x10 * slot | 8 | R | `SIZE`: its length in bytes |
//!
//! Taking and writing need aligned accesses of the full width. Reads of any other width or offset are harmless: they see the
//! registers without taking anything (`TAKE` then reads as 0), and bytes that are not readable as ones. Other writes do nothing.
//!
//! # Between two lives of a slot
//!
//! Once `_EJ0` has returned, Linux evaluates `_STA` to see whether the unit has gone, and 6.12 forgets it only then; until it has reported
//! the end, the next `TAKE` may run on another processor. Were the slot shown anew in between, the guest would take the ejection for
//! failed, keep what it had, and refuse the slot for good. So a slot that the guest has let go of waits with its next event until the
//! guest has read its `_STA`, or reported that the ejection is over.
//!
//! # Proofs
//!
//! That a guest evaluates `_OST` with "success" does not prove that it has the unit: Linux 6.1 and 6.12 say so, too, when a
//! processor could not be mapped or memory could not be added. So there is a second sign for each kind ([`SlotKind`]), and without it an
//! insertion ends [`Outcome::Unproven`] and the slot is withdrawn.

use std::sync::Arc;

use husk_devices::{BusDevice, Counter, Effect, MetricsSource};

use crate::ged::{GedEvent, GedNotifier};
use crate::outcome::{Outcome, OutcomeSender};
use crate::slot::{Event, NotAllowed, State};

/// Offset of the register that takes the next event.
pub(crate) const TAKE: u64 = 0x00;
/// Offset of the register that takes `_EJ0`.
pub(crate) const EJCT: u64 = 0x04;
/// Offset of the register that takes the second sign of a processor.
pub(crate) const SIGN: u64 = 0x08;
const SLTS: u64 = 0x0c;
/// Offset of the register that takes an `_OST` report.
pub(crate) const OSTR: u64 = 0x10;
/// Offset of the first word of `_STA`s.
pub(crate) const STATUS: u64 = 0x40;
/// Bits that a slot has there.
pub(crate) const STATUS_BITS: u32 = 4;
/// Slots in one word of them.
pub(crate) const STATUS_SLOTS: u32 = 32 / STATUS_BITS;
/// Present, enabled, shown, functioning (ACPI 6.5 §6.3.7).
const THERE: u32 = 0xf;
/// Offset of the first memory slot's record: the `_STA`s of [`Bank::MAX_SLOTS`] are before it.
pub(crate) const RECORDS: u64 = 0x840;
/// Length of a memory slot's record.
pub(crate) const RECORD_BYTES: u64 = 0x10;

/// What a slot's device is notified of to have the guest let go (ACPI 6.5 §5.6.6).
const EJECT_REQUEST: u8 = 3;

/// How often a guest is told again of memory that it says it has, before it is not believed. Each time it tries to add what is missing,
/// so the second attempt may succeed and the third event then prove it.
const CHECKS: u8 = 3;

/// What sits in the slots of a bank, and with it how the guest's word is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// Processors. The second sign is `_SUN`, which Linux evaluates once a processor's local APIC has been given a logical
    /// number, and before `_OST`. A guest that did not evaluate it for a processor that was there at its start is one that never does,
    /// and is believed without.
    Cpu,
    /// Memory. The guest is told of the slot a second time: one that has the memory answers without looking at `_CRS` again, one
    /// that has not starts anew and reads it.
    Memory,
    /// PCI functions, which show themselves in configuration space: `_OST` is enough.
    Pci,
}

impl SlotKind {
    /// The GED event that announces a change.
    pub const fn event(self) -> GedEvent {
        match self {
            Self::Cpu => GedEvent::Cpu,
            Self::Memory => GedEvent::Memory,
            Self::Pci => GedEvent::Pci,
        }
    }

    /// Whether a guest that has taken the request to let go is told of it once more when the host asks once more: somebody who asks for a
    /// device does so by hand, and the driver may have lost the first request, or its kernel been replaced (kexec). Processors and memory are
    /// asked for by resizes, which a guest has begun to carry out.
    const fn repeats_requests(self) -> bool {
        matches!(self, Self::Pci)
    }

    /// Whether guests look at `_STA` once `_EJ0` has returned, and rely on what it says.
    const fn verifies_ejections(self) -> bool {
        match self {
            Self::Cpu | Self::Memory => true,
            // Linux's acpiphp believes `_EJ0`.
            Self::Pci => false,
        }
    }
}

/// The guest-physical range behind a memory slot. Other kinds of slots have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// The host asked for what a slot cannot do. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BankError {
    /// More slots than the registers and the AML names can tell apart.
    #[error("{found} slots in a bank, at most {} allowed", Bank::MAX_SLOTS)]
    TooManySlots {
        /// How many were asked for.
        found: u32,
    },
    /// There is no such slot.
    #[error("slot {slot} does not exist, the bank has {slots}")]
    NoSuchSlot {
        /// Which was asked for.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// The slot is there for good.
    #[error("slot {slot} cannot be removed")]
    Pinned {
        /// Which.
        slot: u32,
    },
    /// The slot is not where the operation starts from.
    #[error("slot {slot} is not ready for this")]
    NotAllowed {
        /// Which.
        slot: u32,
        /// Why.
        source: NotAllowed,
    },
}

/// The slots of one kind. On the bus it serves vCPU threads; [`Hotplug`](crate::Hotplug) works on it from the control thread.
pub struct Bank {
    kind: SlotKind,
    entries: Vec<Entry>,
    notifier: GedNotifier,
    on_eject: Box<dyn Fn() + Send>,
    /// The guest has evaluated `_SUN` of a processor that it started with.
    signs: bool,
    metrics: Arc<BankMetrics>,
}

/// What a bank has seen since it was made.
#[derive(Debug, Default)]
pub struct BankMetrics {
    /// Writes of the guest that made no sense.
    pub ignored_writes: Counter,
}

impl MetricsSource for BankMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![("ignored_writes", self.ignored_writes.get())]
    }
}

struct Entry {
    state: State,
    pinned: bool,
    extent: Extent,
    /// `_SUN` has been evaluated since the slot was offered.
    signed: bool,
    /// `_CRS` has been evaluated since the guest was last told of the slot.
    looked_at: bool,
    /// How often the guest has been told again.
    checks: u8,
    /// The guest has let go and not yet seen that the unit has gone.
    unverified: bool,
    /// The guest has taken the request to let go, and is to be told of it once more.
    again: bool,
    add: Option<OutcomeSender>,
    remove: Option<OutcomeSender>,
}

impl Bank {
    /// Slot numbers have three hexadecimal digits in AML names.
    pub const MAX_SLOTS: u32 = 0x1000;

    /// `slots` empty slots for `kind`. The guest is told again by `notifier` of what has to be checked. `on_eject` is
    /// called, on a vCPU thread and with the bank locked, each time the guest has let go of a slot: it should wake the
    /// control thread, which calls [`Hotplug::reap`](crate::Hotplug::reap), and do no more.
    ///
    /// # Errors
    /// More than [`Bank::MAX_SLOTS`].
    pub fn new(
        kind: SlotKind,
        slots: u32,
        notifier: GedNotifier,
        on_eject: impl Fn() + Send + 'static,
    ) -> Result<Self, BankError> {
        if slots > Self::MAX_SLOTS {
            return Err(BankError::TooManySlots { found: slots });
        }
        Ok(Self {
            kind,
            entries: (0..slots).map(|_| Entry::new()).collect(),
            notifier,
            on_eject: Box::new(on_eject),
            signs: false,
            metrics: Arc::default(),
        })
    }

    /// What sits in the slots.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// Size of the register window.
    pub fn window_bytes(&self) -> u64 {
        window_bytes(self.kind, self.slots())
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("new() allows at most MAX_SLOTS")
    }

    /// Makes it impossible to remove a slot, as is right for the boot CPU and the host bridge.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn pin(&mut self, slot: u32) -> Result<(), BankError> {
        self.entry(slot)?.pinned = true;
        Ok(())
    }

    /// How many writes of the guest made no sense: `_EJ0` of what it was not asked for, reports about nothing, odd accesses.
    pub fn ignored(&self) -> u64 {
        self.metrics.ignored_writes.get()
    }

    /// The bank's metrics.
    pub fn metrics(&self) -> Arc<BankMetrics> {
        self.metrics.clone()
    }

    /// The state of every slot, in order.
    pub fn states(&self) -> impl Iterator<Item = (u32, State)> + '_ {
        (0..).zip(self.entries.iter().map(|entry| entry.state))
    }

    /// The state of `slot`, if there is one.
    pub(crate) fn state(&self, slot: u32) -> Option<State> {
        Some(self.find(slot)?.state)
    }

    pub(crate) fn pinned(&self, slot: u32) -> bool {
        self.find(slot).is_some_and(|entry| entry.pinned)
    }

    pub(crate) fn describe(&mut self, slot: u32, extent: Extent) -> Result<(), BankError> {
        self.entry(slot)?.extent = extent;
        Ok(())
    }

    /// Whether `event` would be allowed now.
    pub(crate) fn check(&mut self, slot: u32, event: Event) -> Result<(), BankError> {
        let entry = self.entry(slot)?;
        entry
            .state
            .step(event)
            .map(drop)
            .map_err(|source| BankError::NotAllowed { slot, source })
    }

    /// Carries out an event of the host's; `sender`, if any, is of whoever asked for it.
    pub(crate) fn apply(&mut self, slot: u32, event: Event, sender: Option<OutcomeSender>) -> Result<State, BankError> {
        let repeats = self.kind.repeats_requests();
        let entry = self.entry(slot)?;
        // What the guest has already let go of has nothing left to keep: there, asking means that nobody wants the slot again.
        if entry.pinned && event == Event::Ask && !matches!(entry.state, State::Ejected { .. }) {
            return Err(BankError::Pinned { slot });
        }
        let before = entry.state;
        let state = entry
            .step(event, sender)
            .map_err(|source| BankError::NotAllowed { slot, source })?;
        // Asked before, heard, and asked again.
        entry.again |= repeats && event == Event::Ask && is_heard(before) && is_heard(state);
        Ok(state)
    }

    /// Whether the guest is to be told something of `slot`, now or once it has seen an ejection.
    pub(crate) fn waits(&self, slot: u32) -> bool {
        self.find(slot).is_some_and(|entry| entry.news().is_some())
    }

    fn entry(&mut self, slot: u32) -> Result<&mut Entry, BankError> {
        let slots = self.slots();
        usize::try_from(slot)
            .ok()
            .and_then(|index| self.entries.get_mut(index))
            .ok_or(BankError::NoSuchSlot { slot, slots })
    }

    fn find(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(usize::try_from(slot).ok()?)
    }

    /// The next waiting event as `TAKE` shows it. The event is gone, and the slot seen, in one step: the host either withdraws
    /// an event before or knows that the guest has it.
    ///
    /// What comes is told in ascending order and before what goes, which is told in descending order: Linux 6.1 numbers processors in
    /// the order of their coming.
    fn take(&mut self) -> u32 {
        let waits = |notify| move |entry: &Entry| entry.notification() == Some(notify);
        let comes = self.entries.iter().position(waits(1));
        let next = comes.or_else(|| self.entries.iter().rposition(waits(3)));
        let Some((index, entry)) = next.and_then(|index| Some((index, self.entries.get_mut(index)?))) else {
            return 0;
        };
        let (Ok(slot), Some(notify)) = (u32::try_from(index), entry.notification()) else {
            return 0;
        };
        // What waits can be taken. Of what is said once more the guest has taken the first time already.
        if !std::mem::take(&mut entry.again) && entry.step(Event::Take, None).is_err() {
            return 0;
        }
        entry.looked_at = false;
        slot | u32::from(notify) << 16
    }

    /// The readable register at `offset`, a multiple of 4.
    fn register(&self, offset: u64) -> Option<u32> {
        match offset {
            TAKE => Some(0),
            SLTS => Some(self.slots()),
            STATUS..RECORDS => self.status_word(offset.checked_sub(STATUS)? / 4),
            RECORDS.. => {
                let (entry, offset) = self.record(offset)?;
                entry.extent.register(offset)
            }
            _ => None,
        }
    }

    /// `_STA` of slots 8 * `word` and up, if there are any.
    fn status_word(&self, word: u64) -> Option<u32> {
        let slots = usize::try_from(STATUS_SLOTS).ok()?;
        let first = usize::try_from(word).ok()?.checked_mul(slots)?;
        let shown = self.entries.get(first..)?.iter().take(slots);
        let bits = (0..32).step_by(usize::try_from(STATUS_BITS).ok()?);
        let there = bits.zip(shown).filter(|(_, entry)| entry.state.enabled());
        Some(there.fold(0, |word, (bit, _)| word | THERE.checked_shl(bit).unwrap_or(0)))
    }

    /// The memory slot whose record has the byte at `offset`, and where in it that is.
    fn record(&self, offset: u64) -> Option<(&Entry, u64)> {
        let slot = self.slot_of(offset)?;
        Some((self.entries.get(slot)?, offset % RECORD_BYTES))
    }

    fn slot_of(&self, offset: u64) -> Option<usize> {
        let offset = offset.checked_sub(RECORDS).filter(|_| self.kind == SlotKind::Memory)?;
        usize::try_from(offset / RECORD_BYTES).ok()
    }

    fn byte(&self, offset: u64) -> u8 {
        let register = self.register(offset & !3).unwrap_or(u32::MAX);
        (register >> ((offset & 3) << 3)).to_le_bytes()[0]
    }

    /// Carries out a write of the guest's, and says whether it meant anything.
    fn store(&mut self, offset: u64, data: &[u8]) -> bool {
        match (offset, data.len()) {
            (EJCT, 4) => self.answer(word(data, 0), Event::Eject),
            (SIGN, 4) => self.sign(word(data, 0)),
            (OSTR, 8) => {
                let (slot, source, status) = (word(data, 0) & 0xffff, word(data, 0) >> 16, word(data, 4));
                match Event::from_ost(source, status) {
                    Some(event) => self.answer(slot, event),
                    None => self.verify(slot).is_ok(),
                }
            }
            _ => false,
        }
    }

    /// Takes what the guest says of `slot` for what it is worth.
    fn answer(&mut self, slot: u32, event: Event) -> bool {
        let (kind, signs) = (self.kind, self.signs);
        let Ok(entry) = self.entry(slot) else { return false };
        let event = entry.judge(kind, signs, event);
        let Ok(state) = entry.step(event, None) else {
            return false;
        };
        if event == Event::Eject {
            entry.unverified = kind.verifies_ejections();
        }
        if matches!(state, State::Ejected { .. }) {
            (self.on_eject)();
        }
        if state.notification().is_some() {
            self.notifier.notify(kind.event());
        }
        true
    }

    /// The guest has seen what became of an ejection from `slot`.
    fn verify(&mut self, slot: u32) -> Result<(), BankError> {
        let event = self.kind.event();
        let entry = self.entry(slot)?;
        if std::mem::take(&mut entry.unverified) && entry.notification().is_some() {
            self.notifier.notify(event);
        }
        Ok(())
    }

    /// The guest has read `count` bytes from `offset` on, and with them what `_STA` says of some slots.
    fn note_read(&mut self, offset: u64, count: usize) {
        let end = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        let (first, end) = (offset.max(STATUS), end.min(RECORDS));
        let slot_at = |offset: u64| offset.saturating_sub(STATUS).saturating_mul(u64::from(8 / STATUS_BITS));
        for slot in slot_at(first)..slot_at(end) {
            // The status of no slot is always 0.
            if u32::try_from(slot).is_ok_and(|slot| self.verify(slot).is_err()) {
                return;
            }
        }
    }

    /// The guest has evaluated `_SUN` of `slot`.
    fn sign(&mut self, slot: u32) -> bool {
        let Ok(entry) = self.entry(slot) else { return false };
        let (shown, from_the_start) = (entry.state.enabled(), entry.state == State::Present);
        entry.signed |= shown;
        self.signs |= from_the_start;
        shown
    }
}

/// The number of the four bytes from `at` on.
fn word(data: &[u8], at: usize) -> u32 {
    let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Size of the register window of a bank of `slots` slots for `kind`.
pub(crate) fn window_bytes(kind: SlotKind, slots: u32) -> u64 {
    let records = if kind == SlotKind::Memory { u64::from(slots) } else { 0 };
    RECORDS.saturating_add(RECORD_BYTES.saturating_mul(records))
}

impl Extent {
    /// The register at `offset` of a memory slot's record.
    fn register(&self, offset: u64) -> Option<u32> {
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).ok();
        match offset {
            0x0 => low(self.base),
            0x4 => low(self.base >> 32),
            0x8 => low(self.size_bytes),
            0xc => low(self.size_bytes >> 32),
            _ => None,
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            state: State::Empty,
            pinned: false,
            extent: Extent::default(),
            signed: false,
            looked_at: false,
            checks: 0,
            unverified: false,
            again: false,
            add: None,
            remove: None,
        }
    }

    /// What the guest is to be told of.
    fn news(&self) -> Option<u8> {
        let again = self.again.then_some(EJECT_REQUEST);
        self.state.notification().or(again)
    }

    /// What it is to be told of now.
    fn notification(&self) -> Option<u8> {
        self.news().filter(|_| !self.unverified)
    }

    /// What an answer of the guest's is worth: see [`SlotKind`]. `signs` tells whether it is one that evaluates `_SUN`.
    fn judge(&mut self, kind: SlotKind, signs: bool, event: Event) -> Event {
        match (kind, self.state, event) {
            (SlotKind::Cpu, _, Event::Inserted) if signs && !self.signed => Event::InsertUnproven,
            (SlotKind::Memory, State::Offered { seen: true }, Event::Inserted) => Event::Reported,
            (SlotKind::Memory, State::Reported { seen: true }, Event::Inserted | Event::InsertRefused { .. }) => {
                // Linux 6.1 refuses what it has already, 6.12 takes it for done.
                if !self.looked_at {
                    Event::Inserted
                } else if self.checks < CHECKS {
                    Event::Reported
                } else {
                    Event::InsertUnproven
                }
            }
            (_, _, event) => event,
        }
    }

    fn step(&mut self, event: Event, sender: Option<OutcomeSender>) -> Result<State, NotAllowed> {
        let step = self.state.step(event)?;
        if let Some(sender) = sender {
            // The sender that was here before, if any, is dropped, and its request thereby withdrawn: the last one who
            // asks is answered.
            match event {
                Event::Ask => self.remove = Some(sender),
                _ => self.add = Some(sender),
            }
        }
        match (self.state, step.state) {
            (State::Offered { .. }, State::Reported { .. }) => self.checks = 1,
            (State::Reported { seen: true }, State::Reported { seen: false }) => {
                self.checks = self.checks.saturating_add(1);
            }
            (_, State::Offered { seen: false }) => self.signed = false,
            _ => {}
        }
        send_outcome(&mut self.add, step.add);
        send_outcome(&mut self.remove, step.remove);
        self.state = step.state;
        self.again &= is_heard(step.state);
        Ok(step.state)
    }
}

/// Whether the guest has taken the request to let go, and nobody wants the slot again.
fn is_heard(state: State) -> bool {
    matches!(
        state,
        State::Asked {
            seen: true,
            wanted: false,
            ..
        }
    )
}

fn send_outcome(sender: &mut Option<OutcomeSender>, outcome: Option<Outcome>) {
    if let Some(outcome) = outcome
        && let Some(sender) = sender.take()
    {
        sender.send(outcome);
    }
}

impl BusDevice for Bank {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == TAKE && data.len() == 4 {
            data.copy_from_slice(&self.take().to_le_bytes());
            return;
        }
        if let Some(entry) = self.slot_of(offset).and_then(|slot| self.entries.get_mut(slot)) {
            entry.looked_at = true;
        }
        for (byte, distance) in data.iter_mut().zip(0..) {
            *byte = offset.checked_add(distance).map_or(u8::MAX, |offset| self.byte(offset));
        }
        self.note_read(offset, data.len());
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if !self.store(offset, data) {
            if self.ignored() == 0 {
                log::warn!(
                    "hot-plug bank ignores a write of {} bytes to {offset:#x}; further ones are only counted",
                    data.len()
                );
            }
            self.metrics.ignored_writes.inc();
        }
        Effect::None
    }
}

#[cfg(test)]
#[path = "bank_test.rs"]
mod tests;
