//! Many slots behind a few registers: what the guest's AML reads and writes.
//!
//! Register map, in a window of [`Bank::window_bytes`]. All registers are little-endian. Whoever
//! writes names the slot in the value, and one write is one report: nothing has to be selected
//! first, so the AML needs no lock and the bank keeps no cursor.
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
//! Taking and writing need aligned accesses of the full width. Reads of any other width or offset
//! are harmless: they see the registers without taking anything (`TAKE` then reads as 0), and bytes
//! that are not readable as ones. Other writes do nothing.
//!
//! # Between two lives of a slot
//!
//! Once `_EJ0` has returned, Linux evaluates `_STA` to see whether the unit has gone, and 6.12
//! forgets it only then; until it has reported the end, the next `TAKE` may run on another
//! processor. Were the slot shown anew in between, the guest would take the ejection for failed,
//! keep what it had, and refuse the slot for good. So a slot that the guest has let go of waits
//! with its next event until the guest has read its `_STA`, or reported that the ejection is over.
//! One read shows eight slots, and counts for each of them (ADR 18).
//!
//! # Proofs
//!
//! That a guest evaluates `_OST` with "success" does not prove that it has the unit: Linux 6.1 and
//! 6.12 say so, too, when a processor could not be mapped or memory could not be added. So there is
//! a second sign for each kind ([`SlotKind`]), and without it an insertion ends
//! [`Outcome::Unproven`](crate::outcome::Outcome::Unproven) and the slot is withdrawn.

mod entry;
mod kind;

use std::sync::Arc;

use husk_devices::{BusDevice, Counter, Effect, MetricsSource};

use crate::ged::GedNotifier;
use crate::outcome::OutcomeSender;
use crate::slot::{Event, NotAllowed, State};
use entry::{Entry, is_heard};

pub use kind::SlotKind;

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

/// The slots of one kind. On the bus it serves vCPU threads; [`Hotplug`](crate::Hotplug) works on
/// it from the control thread.
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

    /// How many writes of the guest made no sense: `_EJ0` of what it was not asked for, reports
    /// about nothing, odd accesses.
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
        // What the guest has already let go of has nothing left to keep: there, asking means that
        // nobody wants the slot again.
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

    /// The next waiting event as `TAKE` shows it. The event is gone, and the slot seen, in one
    /// step: the host either withdraws an event before or knows that the guest has it.
    ///
    /// What comes is told in ascending order and before what goes, which is told in descending
    /// order: Linux 6.1 numbers processors in the order of their coming.
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
