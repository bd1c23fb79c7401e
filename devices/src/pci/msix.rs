//! MSI-X: capability, table and pending bit array of one function (PCIe 5.0 §7.7.2, §6.1.4).
//!
//! Message control, 16 bits at offset 2 of the capability:
//!
//! | bits | guest may write | meaning |
//! |---|---|---|
//! | 10:0 | - | number of vectors, less 1 |
//! | 14 | yes | function mask |
//! | 15 | yes | MSI-X enable |
//!
//! Table, 16 bytes for each vector:
//!
//! | offset | bytes | guest may write | meaning |
//! |---|---|---|---|
//! | 0 | 8 | bits 63:2 | message address |
//! | 8 | 4 | all | message data |
//! | 12 | 4 | bit 0 | vector control: mask, 1 after reset |
//!
//! Pending bit array: bit `n` of the array, read-only, belongs to vector `n`. It is padded to 8 bytes.
//!
//! A vector that may not send (masked, function masked, MSI-X off, bus mastering off, no message
//! yet, or refused by the host) remembers one signal as its pending bit and sends it once it may.
//! The host is asked for a GSI and a route only when a vector may send for the first time, or with
//! another message than before: a guest that masks and unmasks to move an interrupt costs one
//! change of route, and one that leaves vectors unused costs none. A vector that another process
//! signals as well ([`Vector::share`]) has an eventfd and a GSI for it, and is disconnected from
//! them while it may not send.

use std::sync::Arc;

use super::registers::Registers;
use super::{ConfigError, ConfigSpace};
use crate::host::{Host, MsiMessage, MsiVector};
use crate::metrics::Counter;

mod readable;
mod vector;

pub use vector::{MaskState, Vector};

/// Capability ID (PCI Code and ID Assignment 1.11 §2).
const CAP_MSIX: u8 = 0x11;
/// Offset of message control in the capability.
const CONTROL: u16 = 2;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
/// The bits that the guest may change, of message control and the two dwords after it.
const CONTROL_WRITABLE: [u8; 2] = (CONTROL_FUNCTION_MASK | CONTROL_ENABLE).to_le_bytes();
const MAX_VECTORS: u16 = 2048;
const ENTRY_SIZE: usize = 16;
const ENTRY_DATA: usize = 8;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u32 = 1;
const ENTRY_WRITABLE: [u8; 13] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
];

/// Where the table or the pending bit array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlace {
    /// BAR number.
    pub bar: u8,
    /// Offset into the BAR, a multiple of 8.
    pub offset: u32,
}

/// MSI-X of one function. Lives behind the function's lock; only [`Vector`]s leave it.
pub struct Msix {
    host: Arc<dyn Host>,
    capability: u16,
    control: u16,
    /// The function may write to memory, which is what a message does.
    master: bool,
    table: Registers,
    entries: Vec<Entry>,
    refused: Counter,
}

#[derive(Debug, Default)]
struct Entry {
    vector: Vector,
    source: Option<MsiVector>,
    routed: Option<MsiMessage>,
}

impl Msix {
    /// MSI-X with `vectors` vectors, 1 to 2048 (a number outside is brought to the nearest of these), all masked.
    pub fn new(host: Arc<dyn Host>, vectors: u16) -> Self {
        let count = usize::from(vectors.clamp(1, MAX_VECTORS));
        let mut table = Registers::new(count.saturating_mul(ENTRY_SIZE));
        for index in 0..count {
            table.allow(entry_at(index), &ENTRY_WRITABLE);
            table.set(
                entry_at(index).saturating_add(ENTRY_CONTROL),
                &ENTRY_MASKED.to_le_bytes(),
            );
        }
        let entries = std::iter::repeat_with(Entry::default).take(count).collect();
        Self {
            host,
            capability: 0,
            control: 0,
            master: false,
            table,
            entries,
            refused: Counter::new(),
        }
    }

    /// Appends the capability to `config`. From then on [`Msix::config_written`] is due after every write to `config`.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn add_capability(
        &mut self,
        config: &mut ConfigSpace,
        table: BarPlace,
        pba: BarPlace,
    ) -> Result<(), ConfigError> {
        let last = u16::try_from(self.entries.len().saturating_sub(1)).expect("at most 2048 vectors");
        let place = |at: BarPlace| (at.offset & !7) | u32::from(at.bar & 7);
        let body = [
            &last.to_le_bytes()[..],
            &place(table).to_le_bytes(),
            &place(pba).to_le_bytes(),
        ]
        .concat();
        self.capability = config.add_capability(CAP_MSIX, &body, &CONTROL_WRITABLE)?;
        Ok(())
    }

    /// Follows message control and the right to be bus master after the guest wrote to `config`.
    pub fn config_written(&mut self, config: &ConfigSpace) {
        let control = config.u16_at(self.capability.saturating_add(CONTROL));
        let now = (control, config.is_bus_master());
        if self.capability != 0 && now != (self.control, self.master) {
            (self.control, self.master) = now;
            (0..self.entries.len()).for_each(|index| self.refresh(index));
        }
    }

    /// The handle that raises vector `index`; `None` if there is no such vector.
    pub fn vector(&self, index: u16) -> Option<Vector> {
        self.entries.get(usize::from(index)).map(|entry| entry.vector.clone())
    }

    /// Length of the table in bytes.
    pub fn table_len(&self) -> u64 {
        self.entries.len().saturating_mul(ENTRY_SIZE) as u64
    }

    /// Length of the pending bit array in bytes: 8 for each 64 vectors begun.
    pub fn pba_len(&self) -> u64 {
        self.entries.len().div_ceil(64).saturating_mul(8) as u64
    }

    /// Fills `data` from the table; all ones past its end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Ok(offset) = usize::try_from(offset) {
            self.table.read(offset, data);
        }
    }

    /// Takes a guest's write to the table.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let Ok(first) = usize::try_from(offset) else { return };
        let Some(last) = data.len().checked_sub(1).and_then(|len| first.checked_add(len)) else {
            return;
        };
        self.table.write(first, data);
        let touched = first.div_euclid(ENTRY_SIZE)..=last.div_euclid(ENTRY_SIZE).min(self.entries.len());
        touched.for_each(|index| self.refresh(index));
    }

    /// Fills `data` from the pending bit array; all ones past its end.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..self.pba_len()).zip(data.iter_mut()) {
            *byte = self.pending_byte(at);
        }
        let inside = usize::try_from(self.pba_len().saturating_sub(offset)).unwrap_or(usize::MAX);
        data.iter_mut().skip(inside).for_each(|byte| *byte = 0xff);
    }

    /// How often the host refused a vector its GSI or its route. Such a vector stays as if masked
    /// and is tried again whenever the guest writes to its entry or to message control.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
        let bits = self.entries.iter().skip(first).zip(0..8);
        bits.fold(0, |byte, (entry, bit)| {
            byte | (u8::from(entry.vector.is_pending()) << bit)
        })
    }

    /// Brings vector `index` in step with its entry and with message control.
    fn refresh(&mut self, index: usize) {
        let at = entry_at(index);
        let message = MsiMessage {
            address: self.table.u64(at),
            data: self.table.u32(at.saturating_add(ENTRY_DATA)),
        };
        let masked = self.table.u32(at.saturating_add(ENTRY_CONTROL)) & ENTRY_MASKED != 0;
        let on = self.master && self.control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) == CONTROL_ENABLE;
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        // Until the guest has written an address there is nothing to send to; no interrupt controller listens at 0.
        let connected = if masked || !on || message.address == 0 {
            entry.vector.mask();
            entry.vector.disconnect(&*self.host)
        } else {
            entry.connect(&self.host, message)
        };
        if let Err(error) = connected {
            entry.vector.mask();
            self.refused.inc();
            // A guest can provoke this at will: the first one is told, the others are counted.
            if self.refused.get() == 1 {
                log::warn!("MSI-X vector {index} cannot be routed to {message:x?}: {error}");
            }
        }
    }
}

impl Entry {
    /// Lets the vector send `message`.
    fn connect(&mut self, host: &Arc<dyn Host>, message: MsiMessage) -> std::io::Result<()> {
        let source = match self.source.take() {
            Some(source) => source,
            None => host.msi()?,
        };
        let source = self.source.insert(source);
        if self.routed != Some(message) {
            // After a failure it is unknown which message the route holds.
            self.routed = None;
            host.route(source, Some(message))?;
            self.routed = Some(message);
        }
        self.vector.connect(host, message)?;
        self.vector.unmask(&source.irq);
        Ok(())
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        for entry in &mut self.entries {
            entry.vector.mask();
            entry.vector.release(&*self.host);
            if let Some(source) = entry.source.take() {
                self.host.release(&source);
            }
        }
    }
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix")
            .field("control", &self.control)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

fn entry_at(index: usize) -> usize {
    index.saturating_mul(ENTRY_SIZE)
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
