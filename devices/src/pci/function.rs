//! What the machine asks of a PCI function, and the window through which a BAR is reached.

use std::io;
use std::sync::{Arc, Mutex};

use super::{BarRange, Bdf, ConfigSpace};
use crate::bus::{BusDevice, Effect};
use crate::lock;

/// One PCI function.
///
/// A function owns a [`ConfigSpace`], and most of this trait is answered from there. One whose
/// capabilities have side effects (MSI-X control, virtio's window into the BARs) overrides
/// [`PciFunction::read_config`] and [`PciFunction::write_config`]. Called on vCPU threads, and on
/// control threads while it is added or removed; never blocks.
pub trait PciFunction: Send {
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, for the machine to place BARs in.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Fills `data` from `offset`, which is below 4096. Exclusive, since some capabilities change by being read.
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Takes a write of `data` at `offset`, which is below 4096.
    fn write_config(&mut self, offset: u16, data: &[u8]) -> Effect {
        self.config_mut().write(offset, data)
    }

    /// Fills `data` with what the guest reads at `offset` into memory BAR `bar`; all ones where no register is.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` into memory BAR `bar`.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Effect;

    /// What each memory BAR decodes at present: empty while memory space is off, without BARs that have no address.
    fn decoded(&self) -> Vec<BarRange> {
        self.config().decoded()
    }

    /// The machine has moved the window of a BAR, or with `None` taken it away: doorbells and the like must follow.
    ///
    /// # Errors
    /// The host refused; the BAR's registers still work.
    fn bar_moved(&mut self, _bar: u8, _to: Option<u64>) -> io::Result<()> {
        Ok(())
    }

    /// The root has given the function its place.
    fn set_bdf(&mut self, bdf: Bdf) {
        self.config_mut().set_bdf(bdf);
    }
}

/// The window of one memory BAR on the memory bus.
///
/// Locks the function while the bus holds the window: window before function, and no function ever locks a window.
pub struct BarWindow {
    function: Arc<Mutex<dyn PciFunction>>,
    bar: u8,
}

impl BarWindow {
    /// A window onto BAR `bar` of `function`.
    pub fn new(function: Arc<Mutex<dyn PciFunction>>, bar: u8) -> Self {
        Self { function, bar }
    }
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.function).read_bar(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        lock(&self.function).write_bar(self.bar, offset, data)
    }
}
