//! Many slots behind a few registers: what the guest's AML reads and writes.
//!
//! Register map, in a window of [`Bank::window_bytes`]. All registers are little-endian; slot *n* owns the record at
//! `0x20 * (n + 1)`. Nothing has to be selected first, so the AML needs no lock and the bank keeps no cursor.
//!
//! | offset | width | access | meaning |
//! |---|---|---|---|
//! | 0x00 | 4 | R | `TAKE`: takes the next waiting event: slot in bits 0-15, Notify value in bits 16-23; 0 = no event |
//! | 0x04 | 4 | R | `SLTS`: number of slots |
//! | record + 0x00 | 4 | R | `STAT`: the value of `_STA`, 0 or 0xf (ACPI 6.5 §6.3.7) |
//! | record + 0x04 | 4 | W | `EJCT`: 1 = `_EJ0`, the guest has let go (ACPI 6.5 §6.3.3) |
//! | record + 0x08 | 4 | W | `OSTE`: source event of `_OST` (ACPI 6.5 §6.3.5) |
//! | record + 0x0c | 4 | W | `OSTS`: status code of `_OST`; the write completes the report |
//! | record + 0x10 | 8 | R | `BASE`: guest-physical address of a memory slot |
//! | record + 0x18 | 8 | R | `SIZE`: its length in bytes |
//!
//! Taking and writing need aligned 4-byte accesses. Reads of any other width or offset are harmless: they see the registers
//! without taking anything (`TAKE` then reads as 0), and bytes that are not readable as ones. Other writes do nothing.

use husk_devices::{BusDevice, Effect};

use crate::slot::{Event, NotAllowed, State};
use crate::ticket::{Outcome, Promise};

/// Offset of the register that takes the next event.
pub(crate) const TAKE: u64 = 0x00;
const SLTS: u64 = 0x04;
/// Length of a slot's record; the header is as long.
pub(crate) const RECORD_BYTES: u64 = 0x20;
const STAT: u64 = 0x00;
const EJCT: u64 = 0x04;
const OSTE: u64 = 0x08;
const OSTS: u64 = 0x0c;
const BASE: u64 = 0x10;
const BASE_HIGH: u64 = 0x14;
const SIZE: u64 = 0x18;
const SIZE_HIGH: u64 = 0x1c;

/// Present, enabled, shown, functioning (ACPI 6.5 §6.3.7).
const STA_ENABLED: u32 = 0xf;

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
    entries: Vec<Entry>,
    on_let_go: Box<dyn Fn() + Send>,
    ignored: u64,
}

struct Entry {
    state: State,
    pinned: bool,
    extent: Extent,
    ost_source: u32,
    add: Option<Promise>,
    remove: Option<Promise>,
}

impl Bank {
    /// Slot numbers have three hexadecimal digits in AML names.
    pub const MAX_SLOTS: u32 = 0x1000;

    /// `slots` empty slots. `on_let_go` is called, on a vCPU thread and with the bank locked, each time the guest has let go of a
    /// slot: it should wake the control thread, which calls [`Hotplug::ejected`](crate::Hotplug::ejected), and do no more.
    ///
    /// # Errors
    /// More than [`Bank::MAX_SLOTS`].
    pub fn new(slots: u32, on_let_go: impl Fn() + Send + 'static) -> Result<Self, BankError> {
        if slots > Self::MAX_SLOTS {
            return Err(BankError::TooManySlots { found: slots });
        }
        Ok(Self {
            entries: (0..slots).map(|_| Entry::new()).collect(),
            on_let_go: Box::new(on_let_go),
            ignored: 0,
        })
    }

    /// Size of the register window.
    pub fn window_bytes(&self) -> u64 {
        window_bytes(self.slots())
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
        self.ignored
    }

    /// The state of every slot, in order.
    pub fn states(&self) -> impl Iterator<Item = (u32, State)> + '_ {
        (0..).zip(self.entries.iter().map(|entry| entry.state))
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

    /// Carries out an event of the host's; `promise`, if any, is for whoever asked for it.
    pub(crate) fn apply(&mut self, slot: u32, event: Event, promise: Option<Promise>) -> Result<State, BankError> {
        let entry = self.entry(slot)?;
        // What the guest has already let go of has nothing left to keep: there, asking means that nobody wants the slot again.
        if entry.pinned && event == Event::Ask && !matches!(entry.state, State::Ejected { .. }) {
            return Err(BankError::Pinned { slot });
        }
        entry
            .step(event, promise)
            .map_err(|source| BankError::NotAllowed { slot, source })
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
    fn take(&mut self) -> u32 {
        for (slot, entry) in (0..).zip(&mut self.entries) {
            if let Some(notify) = entry.state.notification()
                && entry.step(Event::Take, None).is_ok()
            {
                return slot | u32::from(notify) << 16;
            }
        }
        0
    }

    /// The readable register at `offset`, a multiple of 4.
    fn register(&self, offset: u64) -> Option<u32> {
        match (offset / RECORD_BYTES).checked_sub(1) {
            None if offset == TAKE => Some(0),
            None if offset == SLTS => Some(self.slots()),
            None => None,
            Some(slot) => self.find(u32::try_from(slot).ok()?)?.register(offset % RECORD_BYTES),
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        let register = self.register(offset & !3).unwrap_or(u32::MAX);
        (register >> ((offset & 3) << 3)).to_le_bytes()[0]
    }

    /// Carries out a write of the guest's, and says whether it meant anything.
    fn store(&mut self, offset: u64, value: u32) -> bool {
        let slot = (offset / RECORD_BYTES)
            .checked_sub(1)
            .and_then(|slot| usize::try_from(slot).ok());
        let Some(entry) = slot.and_then(|slot| self.entries.get_mut(slot)) else {
            return false;
        };
        let event = match offset % RECORD_BYTES {
            EJCT if value == 1 => Some(Event::Eject),
            OSTE => {
                entry.ost_source = value;
                return true;
            }
            OSTS => match Event::from_ost(entry.ost_source, value) {
                None => return true,
                event => event,
            },
            _ => None,
        };
        let done = event.is_some_and(|event| entry.step(event, None).is_ok());
        if done && matches!(entry.state, State::Ejected { .. }) {
            (self.on_let_go)();
        }
        done
    }
}

/// Size of the register window of a bank of `slots` slots.
pub(crate) fn window_bytes(slots: u32) -> u64 {
    RECORD_BYTES.saturating_mul(u64::from(slots).saturating_add(1))
}

impl Entry {
    fn new() -> Self {
        let state = State::Empty;
        Self {
            state,
            pinned: false,
            extent: Extent::default(),
            ost_source: 0,
            add: None,
            remove: None,
        }
    }

    fn step(&mut self, event: Event, promise: Option<Promise>) -> Result<State, NotAllowed> {
        let step = self.state.step(event)?;
        if let Some(promise) = promise {
            // The promise that was here before, if any, is dropped and thereby withdrawn: the last one who asks is answered.
            match event {
                Event::Ask => self.remove = Some(promise),
                _ => self.add = Some(promise),
            }
        }
        keep(&mut self.add, step.add);
        keep(&mut self.remove, step.remove);
        self.state = step.state;
        Ok(step.state)
    }

    fn register(&self, offset: u64) -> Option<u32> {
        let low = |value: u64| u32::try_from(value & u64::from(u32::MAX)).ok();
        match offset {
            STAT => Some(if self.state.enabled() { STA_ENABLED } else { 0 }),
            BASE => low(self.extent.base),
            BASE_HIGH => low(self.extent.base >> 32),
            SIZE => low(self.extent.size_bytes),
            SIZE_HIGH => low(self.extent.size_bytes >> 32),
            _ => None,
        }
    }
}

fn keep(promise: &mut Option<Promise>, outcome: Option<Outcome>) {
    if let Some(outcome) = outcome
        && let Some(promise) = promise.take()
    {
        promise.keep(outcome);
    }
}

impl BusDevice for Bank {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset == TAKE && data.len() == 4 {
            data.copy_from_slice(&self.take().to_le_bytes());
            return;
        }
        for (byte, distance) in data.iter_mut().zip(0..) {
            *byte = offset.checked_add(distance).map_or(u8::MAX, |offset| self.byte(offset));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let value = <[u8; 4]>::try_from(data)
            .ok()
            .filter(|_| offset.is_multiple_of(4))
            .map(u32::from_le_bytes);
        if !value.is_some_and(|value| self.store(offset, value)) {
            if self.ignored == 0 {
                log::warn!(
                    "hot-plug bank ignores a write of {} bytes to {offset:#x}; further ones are only counted",
                    data.len()
                );
            }
            self.ignored = self.ignored.saturating_add(1);
        }
        Effect::None
    }
}

#[cfg(test)]
#[path = "bank_test.rs"]
mod tests;
