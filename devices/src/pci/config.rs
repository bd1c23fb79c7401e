//! Configuration space of one function with a type 0 header (PCIe 5.0 §7.5.1).
//!
//! | offset | bytes | guest may write | meaning |
//! |---|---|---|---|
//! | 0x00 | 4 | - | vendor ID, device ID |
//! | 0x04 | 2 | bits 1, 2, 10 | command: memory space, bus master, interrupt disable |
//! | 0x06 | 2 | - | status: bit 4 says that there are capabilities |
//! | 0x08 | 4 | - | revision ID, class code |
//! | 0x0c | 1 | all | cache line size: no meaning, kept for old software |
//! | 0x0d | 3 | - | latency timer, header type 0, BIST: 0 |
//! | 0x10 | 24 | address bits | BARs, see [`Bar`] |
//! | 0x2c | 4 | - | subsystem vendor ID, subsystem ID |
//! | 0x34 | 1 | - | offset of the first capability |
//! | 0x3c | 1 | all | interrupt line: no meaning |
//! | 0x3d | 1 | - | interrupt pin 0: no INTx |
//! | 0x40 | 192 | as each says | capabilities |
//! | 0x100 | 3840 | - | 0: no extended capabilities |

mod error;

pub use error::ConfigError;

use super::registers::Registers;
use super::{Bar, BarRange, Bdf};
use crate::bus::Effect;

/// Vendor-specific capability ID (PCI Code and ID Assignment 1.11 §2).
pub const CAP_VENDOR: u8 = 0x09;

const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BARS: [usize; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;
/// Where extended space begins.
const HEADER_SIZE: usize = 256;
/// Capability ID and link.
const CAPABILITY_HEADER: usize = 2;

/// Who a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class, subclass and programming interface in the low 24 bits.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// The registers of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    registers: Registers,
    bars: [Option<Bar>; 6],
    bdf: Bdf,
    /// Where the offset of the next capability goes.
    link: usize,
    /// First byte without a capability.
    free: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities, memory space off.
    pub fn new(identity: &Identity) -> Self {
        let mut registers = Registers::new(HEADER_SIZE);
        registers.set(0, &identity.vendor.to_le_bytes());
        registers.set(DEVICE, &identity.device.to_le_bytes());
        registers.set(
            REVISION,
            &((identity.class << 8) | u32::from(identity.revision)).to_le_bytes(),
        );
        registers.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        registers.set(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        registers.allow(
            COMMAND,
            &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE).to_le_bytes(),
        );
        registers.allow(CACHE_LINE, &[0xff]);
        registers.allow(INTERRUPT_LINE, &[0xff]);
        Self {
            registers,
            bars: [None; 6],
            bdf: Bdf::default(),
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        }
    }

    /// Gives the function memory BAR number `index`. A 64-bit BAR also takes the next number.
    ///
    /// # Errors
    /// The number or the size is not possible, or the number is taken.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Result<(), ConfigError> {
        if !bar.is_valid() {
            return Err(ConfigError::BarSize {
                bar: index,
                size: bar.size(),
                max: bar.max_size(),
            });
        }
        let no_bar = ConfigError::NoBar { bar: index };
        let first = usize::from(index);
        let registers = first..first.saturating_add(bar.registers());
        let taken = self.bars.get(registers).ok_or(no_bar)?.iter().any(Option::is_some);
        if taken || self.is_upper_half(first) {
            return Err(ConfigError::BarTaken { bar: index });
        }
        let (slot, at) = self.bars.get_mut(first).zip(BARS.get(first)).ok_or(no_bar)?;
        *slot = Some(bar);
        // Of a 32-bit BAR only the lower half: the upper one would be the next BAR.
        let width = bar.registers().saturating_mul(4);
        self.registers
            .allow(*at, bar.mask().to_le_bytes().get(..width).unwrap_or_default());
        self.registers
            .set(*at, bar.raw(0).to_le_bytes().get(..width).unwrap_or_default());
        Ok(())
    }

    /// The BARs, each with its number.
    pub fn bars(&self) -> impl Iterator<Item = (u8, Bar)> + use<> {
        (0..).zip(self.bars).filter_map(|(index, bar)| Some((index, bar?)))
    }

    /// Puts BAR `index` at guest-physical address `base`, as firmware would. It is decoded once the
    /// guest turns memory space on.
    ///
    /// # Errors
    /// No such BAR, or `base` is not a multiple of its size or too high for its width.
    pub fn place_bar(&mut self, index: u8, base: u64) -> Result<(), ConfigError> {
        let (bar, at) = self.bar(index).ok_or(ConfigError::NoBar { bar: index })?;
        if base & !bar.mask() != 0 {
            return Err(ConfigError::BarAddress {
                bar: index,
                base,
                mask: bar.mask(),
            });
        }
        let width = bar.registers().saturating_mul(4);
        self.registers
            .set(at, bar.raw(base).to_le_bytes().get(..width).unwrap_or_default());
        Ok(())
    }

    /// Appends a capability (PCIe 5.0 §7.5.1.1.11) and returns its offset. `body` follows the ID
    /// and the link; `writable` has the bits of the body set that the guest may change, and may be
    /// shorter than it. The body of a [`CAP_VENDOR`] capability begins with the length of the
    /// whole.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, ConfigError> {
        let at = self.free;
        let len = body.len().saturating_add(CAPABILITY_HEADER);
        let end = at.checked_add(len).filter(|end| *end <= HEADER_SIZE);
        let (Ok(offset), Some(end)) = (u8::try_from(at), end) else {
            return Err(ConfigError::NoRoom { id, len, at });
        };
        let body_at = at.saturating_add(CAPABILITY_HEADER);
        self.registers.set(at, &[id, 0]);
        self.registers.set(body_at, body);
        self.registers
            .allow(body_at, writable.get(..body.len()).unwrap_or(writable));
        self.registers.set(self.link, &[offset]);
        self.registers.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at.saturating_add(1);
        self.free = end.next_multiple_of(4);
        Ok(u16::from(offset))
    }

    /// Fills `data`, of any length, from `offset` on.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        self.registers.read(usize::from(offset), data);
    }

    /// Takes a guest's write of any length. [`Effect::Remap`] when it changes what the BARs decode.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Effect {
        let before = self.decoded_bars();
        self.registers.write(usize::from(offset), data);
        if self.decoded_bars() == before {
            Effect::None
        } else {
            Effect::Remap(self.bdf)
        }
    }

    /// Changes bytes on the function's own behalf, read-only ones too.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        self.registers.set(usize::from(offset), data);
    }

    /// The 16-bit register at `offset`.
    pub fn u16_at(&self, offset: u16) -> u16 {
        self.registers.u16(usize::from(offset))
    }

    /// The 32-bit register at `offset`.
    #[cfg(test)]
    pub(crate) fn u32_at(&self, offset: u16) -> u32 {
        self.registers.u32(usize::from(offset))
    }

    /// What the BARs decode at present: empty while memory space is off, without BARs that have no address.
    pub fn decoded(&self) -> Vec<BarRange> {
        self.decoded_bars().into_iter().flatten().collect()
    }

    /// Whether the function may issue memory requests: read and write memory, and send messages
    /// (PCIe 5.0 §7.5.1.1.3). Not after reset.
    pub fn is_bus_master(&self) -> bool {
        self.registers.u16(COMMAND) & COMMAND_MASTER != 0
    }

    /// Where the function sits.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Remembers where the function sits.
    pub fn set_bdf(&mut self, bdf: Bdf) {
        self.bdf = bdf;
    }

    fn bar(&self, index: u8) -> Option<(Bar, usize)> {
        let index = usize::from(index);
        Some((self.bars.get(index).copied().flatten()?, *BARS.get(index)?))
    }

    fn is_upper_half(&self, index: usize) -> bool {
        let below = index
            .checked_sub(1)
            .and_then(|below| self.bars.get(below))
            .copied()
            .flatten();
        below.is_some_and(Bar::is_64bit)
    }

    fn decoded_bars(&self) -> [Option<BarRange>; 6] {
        if self.registers.u16(COMMAND) & COMMAND_MEMORY == 0 {
            return [None; 6];
        }
        [0, 1, 2, 3, 4, 5].map(|index| {
            let (bar, at) = self.bar(index)?;
            bar.decode(index, self.registers.u64(at))
        })
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
