//! The PCI root: bus 0 of segment 0, reached through the ECAM window (PCIe 5.0 §7.2.2).
//!
//! | bits of the offset | meaning |
//! |---|---|
//! | 27:20 | bus, always 0: the window is 1 MiB long |
//! | 19:15 | device |
//! | 14:12 | function, always 0 |
//! | 11:0 | register |
//!
//! Slot 0 holds the host bridge. There are no bridges below it, hence no other bus, no I/O space and no INTx.

use std::sync::{Arc, Mutex};

use super::{Bdf, ConfigSpace, Identity, PciFunction};
use crate::bus::{BusDevice, Effect};
use crate::lock;

mod aml;

/// Length of the ECAM window of one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Length of one function's part of it.
const FUNCTION_SIZE: u64 = 1 << 12;
const SLOTS: u8 = 32;

/// Vendor ID of Red Hat, Inc., as QEMU's generic devices use it.
const HOST_BRIDGE_VENDOR: u16 = 0x1b36;
/// Device ID of QEMU's generic PCIe host bridge, which needs no driver (QEMU `docs/specs/pci-ids`).
const HOST_BRIDGE_DEVICE: u16 = 0x0008;
/// Host bridge (PCI Code and ID Assignment 1.11 §1.7).
const HOST_BRIDGE_CLASS: u32 = 0x06_00_00;

/// Why a function was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// All 31 slots are in use.
    #[error("all PCI slots from 1 to 31 are taken")]
    Full,
    /// The slot asked for is in use.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
    /// The slot asked for is not there.
    #[error("there is no PCI slot {0}; slots are 1 to 31")]
    NoSlot(u8),
}

/// Bus 0 and the functions in it. Its lock is held for a look or a change: whoever uses a function has let go of it.
pub struct PciRoot {
    slots: [Option<Arc<Mutex<dyn PciFunction>>>; SLOTS as usize],
}

impl PciRoot {
    /// A bus with nothing but the host bridge.
    pub fn new() -> Self {
        let mut slots = [const { None }; SLOTS as usize];
        if let Some(first) = slots.first_mut() {
            let bridge: Arc<Mutex<dyn PciFunction>> = Arc::new(Mutex::new(HostBridge::new()));
            *first = Some(bridge);
        }
        Self { slots }
    }

    /// Puts `function` into slot `device`, or into the first free one, and tells it where it is.
    ///
    /// # Errors
    /// The slot is taken or not there, or none is free.
    pub fn insert(&mut self, device: Option<u8>, function: Arc<Mutex<dyn PciFunction>>) -> Result<Bdf, PciError> {
        let device = match device {
            Some(device @ 1..SLOTS) => device,
            Some(device) => return Err(PciError::NoSlot(device)),
            None => self.first_free().ok_or(PciError::Full)?,
        };
        let slot = self
            .slots
            .get_mut(usize::from(device))
            .ok_or(PciError::NoSlot(device))?;
        if slot.is_some() {
            return Err(PciError::Taken(device));
        }
        let bdf = Bdf {
            bus: 0,
            device,
            function: 0,
        };
        lock(&function).set_bdf(bdf);
        *slot = Some(function);
        Ok(bdf)
    }

    /// Takes the function at `bdf` out. The host bridge stays.
    pub fn remove(&mut self, bdf: Bdf) -> Option<Arc<Mutex<dyn PciFunction>>> {
        if bdf.device == 0 {
            return None;
        }
        self.slot(bdf).and_then(|index| self.slots.get_mut(index)?.take())
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<Arc<Mutex<dyn PciFunction>>> {
        self.slot(bdf).and_then(|index| self.slots.get(index)?.clone())
    }

    fn first_free(&self) -> Option<u8> {
        (0..)
            .zip(&self.slots)
            .find(|(_, slot)| slot.is_none())
            .map(|(device, _)| device)
    }

    fn slot(&self, bdf: Bdf) -> Option<usize> {
        (bdf.bus == 0 && bdf.function == 0).then_some(usize::from(bdf.device))
    }

    /// What an access to `len` bytes at an ECAM offset is for.
    fn target(&self, offset: u64, len: usize) -> Option<Target> {
        let slots_apart = FUNCTION_SIZE.saturating_mul(8);
        let slot = usize::try_from(offset.div_euclid(slots_apart)).ok()?;
        let register = offset.rem_euclid(slots_apart);
        if register >= FUNCTION_SIZE {
            return None;
        }
        let function = self.slots.get(slot)?.as_ref()?;
        let room = usize::try_from(FUNCTION_SIZE.saturating_sub(register)).ok()?;
        Some(Target {
            function: function.clone(),
            register: u16::try_from(register).ok()?,
            inside: len.min(room),
        })
    }
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(
                (0..SLOTS)
                    .zip(&self.slots)
                    .filter(|(_, slot)| slot.is_some())
                    .map(|(device, _)| device),
            )
            .finish()
    }
}

/// The ECAM window of a root.
///
/// Locks a function while the bus holds the window: window before function, as with the window of a BAR. The root is
/// unlocked before: a vCPU stays in a function for as long as the kernel keeps it there, and whoever adds or removes
/// another one must not wait for it.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<Mutex<PciRoot>>,
}

impl Ecam {
    /// The window of `root`, [`ECAM_SIZE`] bytes long.
    pub const fn new(root: Arc<Mutex<PciRoot>>) -> Self {
        Self { root }
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let target = lock(&self.root).target(offset, data.len());
        let Some(target) = target else { return };
        if let Some(inside) = data.get_mut(..target.inside) {
            lock(&target.function).read_config(target.register, inside);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let target = lock(&self.root).target(offset, data.len());
        let Some(target) = target else {
            return Effect::None;
        };
        data.get(..target.inside).map_or(Effect::None, |inside| {
            lock(&target.function).write_config(target.register, inside)
        })
    }
}

/// What an access to configuration space is for.
struct Target {
    function: Arc<Mutex<dyn PciFunction>>,
    /// Offset of its first byte in the function's configuration space.
    register: u16,
    /// How many of its bytes belong to the function. Those behind them belong to nobody: an access
    /// does not go on in the next function.
    inside: usize,
}

/// The function in slot 0. It has no registers beyond its header.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        Self(ConfigSpace::new(&Identity {
            vendor: HOST_BRIDGE_VENDOR,
            device: HOST_BRIDGE_DEVICE,
            class: HOST_BRIDGE_CLASS,
            ..Identity::default()
        }))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

#[cfg(test)]
#[path = "root_test.rs"]
mod tests;
