//! The seam between a vCPU exit and a device: offsets in, an [`Effect`] out. And the map from addresses to devices.

use std::sync::{Arc, Mutex, RwLock};

use crate::{lock, read, write};

use crate::pci::Bdf;

/// A device that answers reads and writes in a window of an I/O or memory bus.
///
/// Called on vCPU threads, one at a time per device. A device must not block: no sleep, no wait for another thread.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset` bytes into the window. `data` is 1 to 8
    /// bytes long: mostly 1, 2, 4 or 8, another length where an access was cut at a page or at the
    /// end of the window. Bytes that no register covers read as all ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` bytes into the window, and says what it asks of the machine.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
}

/// What a register write asks of the machine. The vCPU loop carries it out after the bus and device locks are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest powered itself off (ACPI S5).
    Shutdown,
    /// The guest asked for a reset (i8042, ACPI reset register).
    Reboot,
    /// The guest reported that its kernel panicked (pvpanic).
    Panic,
    /// The memory BARs that the function decodes have changed: ask it and move its windows.
    Remap(Bdf),
}

/// Why a window was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// A window without bytes.
    #[error("bus window at {base:#x} is empty; at least 1 byte is needed")]
    Empty {
        /// First address.
        base: u64,
    },
    /// A window that runs past the last address.
    #[error(
        "bus window at {base:#x} of {len:#x} bytes runs past the last address, {:#x}",
        u64::MAX
    )]
    Wraps {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers part of the window.
    #[error("bus window {base:#x}..={last:#x} overlaps {other_base:#x}..={other_last:#x}")]
    Overlap {
        /// First address wanted.
        base: u64,
        /// Last address wanted.
        last: u64,
        /// First address of the window in the way.
        other_base: u64,
        /// Last address of the window in the way.
        other_last: u64,
    },
}

struct Window {
    base: u64,
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// One address space and the devices in it.
///
/// Shared by all vCPU threads. The map is unlocked before a device is locked, so a thread never
/// holds both; a device may therefore still see the end of an access that began before
/// [`Bus::remove`].
#[derive(Default)]
pub struct Bus {
    /// Sorted by `base`, disjoint.
    windows: RwLock<Vec<Window>>,
}

impl Bus {
    /// Lets `device` answer `len` bytes from `base` on.
    ///
    /// # Errors
    /// The window is empty, runs past the last address or overlaps another; the bus stays as it was.
    pub fn insert(&self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let beyond_first = len.checked_sub(1).ok_or(BusError::Empty { base })?;
        let last = base.checked_add(beyond_first).ok_or(BusError::Wraps { base, len })?;
        let mut windows = write(&self.windows);
        let place = windows.partition_point(|window| window.last < base);
        match windows.get(place) {
            Some(other) if other.base <= last => Err(BusError::Overlap {
                base,
                last,
                other_base: other.base,
                other_last: other.last,
            }),
            _ => {
                windows.insert(place, Window { base, last, device });
                Ok(())
            }
        }
    }

    /// Takes away the window that begins at `base`, and gives back its device; `None` if there is no such window.
    pub fn remove(&self, base: u64) -> Option<Arc<Mutex<dyn BusDevice>>> {
        let mut windows = write(&self.windows);
        let place = windows.binary_search_by_key(&base, |window| window.base).ok()?;
        Some(windows.remove(place).device)
    }

    /// Whether a window covers `addr`.
    pub fn covers(&self, addr: u64) -> bool {
        self.find(addr).is_some()
    }

    /// Answers a guest's read. What no window covers reads as all ones, and so does the rest of an
    /// access that leaves the window in which it begins.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some(hit) = self.find(addr) else { return };
        if let Some(inside) = data.get_mut(..hit.room(data.len())) {
            lock(&hit.device).read(hit.offset, inside);
        }
    }

    /// Passes on a guest's write. What no window covers is dropped, and so is the rest of an access
    /// that leaves the window in which it begins.
    pub fn write(&self, addr: u64, data: &[u8]) -> Effect {
        let Some(hit) = self.find(addr) else {
            return Effect::None;
        };
        match data.get(..hit.room(data.len())) {
            Some(inside) => lock(&hit.device).write(hit.offset, inside),
            None => Effect::None,
        }
    }

    fn find(&self, addr: u64) -> Option<Hit> {
        let windows = read(&self.windows);
        let window = windows.get(windows.partition_point(|window| window.last < addr))?;
        let offset = addr.checked_sub(window.base)?;
        Some(Hit {
            device: window.device.clone(),
            offset,
            beyond: window.last.saturating_sub(addr),
        })
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let windows = read(&self.windows);
        f.debug_list()
            .entries(
                windows
                    .iter()
                    .map(|w| format_args!("{:#x}..={:#x}", w.base, w.last).to_string()),
            )
            .finish()
    }
}

struct Hit {
    device: Arc<Mutex<dyn BusDevice>>,
    offset: u64,
    /// Bytes of the window after the first one accessed.
    beyond: u64,
}

impl Hit {
    /// How many of `len` bytes are inside the window.
    fn room(&self, len: usize) -> usize {
        usize::try_from(self.beyond.saturating_add(1)).map_or(len, |room| room.min(len))
    }
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
