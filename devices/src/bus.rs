//! The seam between a vCPU exit and a device: offsets in, an [`Effect`] out.

use crate::pci::Bdf;

/// A device that answers reads and writes in a window of an I/O or memory bus.
///
/// Called on vCPU threads, one at a time per device. A device must not block: no sleep, no wait for another thread.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset` bytes into the window. `data` is 1, 2, 4 or 8 bytes long. Bytes that
    /// no register covers read as all ones.
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
