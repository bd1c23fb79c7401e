//! The PCI face of a virtio device (virtio 1.2 §4.1): modern only, interrupts by MSI-X only.
//!
//! One BAR holds everything, each part in a page of its own: see `pci/layout.rs` for the map.

mod capability;
mod common;
mod doorbells;
mod error;
mod layout;

pub use error::{RefusedDevice, VirtioPciError};

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::memory::GuestMemory;
use husk_devices::pci::{ConfigSpace, Msix, PciFunction};
use husk_devices::{Counter, Effect, Host, lock};

use super::core::{Core, InterruptSource};
use super::profile;
use super::workers::Workers;
use crate::device::{ConfigAccess, Profile, VirtioDevice};
use crate::ring::{Notify, QueueProbe, RingState};
use crate::threads::Threads;
use capability::Window;
use common::Common;
use doorbells::Doorbells;
pub use layout::QUEUES_MAX;
use layout::{BAR, COMMON, DEVICE, ISR, MSIX_PBA, MSIX_TABLE, NOTIFY};

/// ISR status bits (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// A virtio device as a PCI function.
///
/// Lock order: the function, then its device's configuration; both are held for one access only.
pub struct VirtioPci {
    core: Core,
    common: Common,
    device_config: Arc<Mutex<dyn ConfigAccess>>,
    isr: Arc<AtomicU8>,
    msix: Msix,
    space: ConfigSpace,
    window: Window,
    doorbells: Doorbells,
}

/// What the driver finds of a function.
struct Registers {
    msix: Msix,
    space: ConfigSpace,
    window: Window,
}

impl Registers {
    fn new(profile: &Profile, name: &str, host: &Arc<dyn Host>) -> Result<Self, VirtioPciError> {
        let queues = profile::check(profile, name, QUEUES_MAX)?;
        let mut msix = Msix::new(host.clone(), queues.saturating_add(1));
        let mut space = ConfigSpace::new(&layout::identity(profile, name)?);
        let window = layout::add_capabilities(&mut space, &mut msix, queues).map_err(|source| VirtioPciError::Pci {
            device: name.to_owned(),
            source,
        })?;
        Ok(Self { msix, space, window })
    }
}

impl VirtioPci {
    /// `device` as a PCI function called `name`, in its reset state. Nothing is asked of the host yet.
    ///
    /// # Errors
    /// When the device's profile has no place on this bus.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        name: String,
        host: Arc<dyn Host>,
        mem: GuestMemory,
    ) -> Result<Self, RefusedDevice> {
        let profile = device.profile();
        let registers = match Registers::new(&profile, &name, &host) {
            Ok(registers) => registers,
            Err(source) => return Err(RefusedDevice { device, source }),
        };
        let Registers { msix, space, window } = registers;
        let device_config = device.config();
        let core = Core::new(device, profile, name, mem);
        // Until the driver sets the bit, which is clear after reset.
        core.set_bus_master(false);
        let queues = core.queue_count();
        Ok(Self {
            core,
            common: Common::new(queues),
            device_config,
            isr: Arc::default(),
            msix,
            space,
            window,
            doorbells: Doorbells::new(host, queues),
        })
    }

    /// Has the device's threads come from `threads`; without this they are
    /// [`UnconfinedThreads`](crate::threads::UnconfinedThreads).
    pub fn set_threads(&mut self, threads: Arc<dyn Threads>) {
        self.core.set_threads(threads);
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// The device behind the function.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.core.device()
    }

    /// Times that the device came to need a reset, by the driver's or the host's fault.
    pub fn failures(&self) -> &Arc<Counter> {
        self.core.failures()
    }

    /// What looks at each queue, in the order of the queues.
    pub fn queue_probes(&self) -> Vec<Arc<QueueProbe>> {
        self.core.queue_probes()
    }

    /// The device's I/O threads, for whoever holds and stops it without this function's lock.
    pub fn workers(&self) -> &Arc<Workers> {
        self.core.workers()
    }

    /// Stops the device, waits until no I/O thread touches guest memory, and returns where the rings stood. Blocks as
    /// long as the host's I/O does, unless [`Workers::is_stopped`]: for control threads, once no vCPU uses the
    /// function. Doorbells stay until [`PciFunction::bar_moved`] takes them away, or with them the VM.
    pub fn shutdown(&mut self) -> Vec<RingState> {
        self.core.shutdown()
    }

    fn read_part(&mut self, part: u32, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match part {
            COMMON => {
                let generation = lock(&self.device_config).generation();
                self.common.read(&mut self.core, generation, offset, data);
            }
            ISR if offset == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE => lock(&self.device_config).read(offset, data),
            MSIX_TABLE if offset < self.msix.table_len() => self.msix.read_table(offset, data),
            MSIX_PBA if offset < self.msix.pba_len() => self.msix.read_pba(offset, data),
            _ => {}
        }
    }

    fn write_part(&mut self, part: u32, offset: u64, data: &[u8]) {
        match part {
            COMMON => self.write_common(offset, data),
            DEVICE => lock(&self.device_config).write(offset, data),
            NOTIFY => self.ring_doorbell(offset),
            MSIX_TABLE => self.msix.write_table(offset, data),
            _ => {}
        }
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let Self { msix, isr, .. } = self;
        let was_live = self.core.is_live();
        self.common.write(&mut self.core, offset, data, |source, vector| {
            notify(msix, isr, source, vector)
        });
        if !was_live && self.core.is_live() {
            self.connect_doorbells();
        }
    }

    fn connect_doorbells(&mut self) {
        for queue in 0..self.core.queue_count() {
            let Some(doorbell) = self.core.doorbell(queue) else {
                continue;
            };
            if let Err(error) = self.doorbells.live(queue, &doorbell) {
                log::debug!(
                    "{}: no doorbell for queue {queue}, kicks go through exits: {error}",
                    self.core.name()
                );
            }
        }
    }

    /// A kick that the kernel did not catch: before the doorbell was connected, or where the host refused one.
    fn ring_doorbell(&mut self, offset: u64) {
        let stride = u64::from(doorbells::STRIDE);
        let queue = u16::try_from(offset.div_euclid(stride))
            .ok()
            .filter(|_| offset.is_multiple_of(stride));
        if let (true, Some(kick)) = (self.core.is_live(), queue.and_then(|queue| self.core.kick(queue))) {
            // Fails only when the counter is full, and then the handler wakes anyway.
            let _ = kick.write(1);
        }
    }

    /// What an access through the window in configuration space means at present (virtio 1.2 §4.1.4.9).
    fn window_target(&self) -> Option<(u64, usize)> {
        let mut registers = [0; Window::BYTES];
        self.space.read(self.window.at, &mut registers);
        Window::target(&registers)
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.space
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
        if !self.window.is_touched(offset, data.len()) {
            return;
        }
        if let Some((target, width)) = self.window_target() {
            let mut value = [0; 4];
            self.read_bar(BAR, target, value.get_mut(..width).unwrap_or_default());
            for (at, byte) in (u64::from(offset)..).zip(data) {
                let lane = at
                    .checked_sub(self.window.data_at().into())
                    .and_then(|lane| usize::try_from(lane).ok());
                if let Some(value) = lane.and_then(|lane| value.get(lane)) {
                    *byte = *value;
                }
            }
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Effect {
        let effect = self.space.write(offset, data);
        self.msix.config_written(&self.space);
        self.core.set_bus_master(self.space.is_bus_master());
        if self.window.is_touched(offset, data.len())
            && let Some((target, width)) = self.window_target()
        {
            let mut value = [0; 4];
            self.space.read(self.window.data_at(), &mut value);
            // Nothing in the BAR has an effect on the machine.
            let _ = self.write_bar(BAR, target, value.get(..width).unwrap_or_default());
        }
        effect
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match layout::place(bar, offset) {
            Some((part, offset)) => self.read_part(part, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Effect {
        if let Some((part, offset)) = layout::place(bar, offset) {
            self.write_part(part, offset, data);
        }
        Effect::None
    }

    fn bar_moved(&mut self, bar: u8, to: Option<u64>) -> io::Result<()> {
        match bar {
            BAR => self
                .doorbells
                .moved(to.and_then(|base| base.checked_add(NOTIFY.into()))),
            _ => Ok(()),
        }
    }
}

/// The interrupt of `source` by MSI-X `vector`, and its trace in the ISR status: the
/// configuration's always, the queues' only where there is no message (virtio 1.2 §4.1.4.5.1).
fn notify(msix: &Msix, isr: &Arc<AtomicU8>, source: InterruptSource, vector: u16) -> Notify {
    let (vector, isr) = (msix.vector(vector), isr.clone());
    match (source, vector) {
        (InterruptSource::Queue(_), Some(vector)) => Notify::new(vector),
        (InterruptSource::Queue(_), None) => Notify::new(move || {
            isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }),
        (InterruptSource::Config, vector) => Notify::new(move || {
            isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            if let Some(vector) = &vector {
                vector.signal();
            }
        }),
    }
}

#[cfg(test)]
#[path = "pci/guest_test.rs"]
mod guest;

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;

#[cfg(test)]
#[path = "pci/hostile_test.rs"]
mod hostile;
