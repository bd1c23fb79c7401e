//! The PCI face of a virtio device (virtio 1.2 §4.1): modern only, interrupts by MSI-X only.
//!
//! One 64-bit memory BAR, number 0, holds everything, each part in a page of its own:
//!
//! | offset | size          | part                                         | section  |
//! |--------|---------------|----------------------------------------------|----------|
//! | 0x0000 | 0x3c          | common configuration                         | §4.1.4.3 |
//! | 0x1000 | 1             | ISR status, cleared by a read                | §4.1.4.5 |
//! | 0x2000 | 0x1000        | device configuration                         | §4.1.4.6 |
//! | 0x3000 | 4 per queue   | doorbells, each queue its own                | §4.1.4.4 |
//! | 0x4000 | 16 per vector | MSI-X table                                  | §4.1.2.2 |
//! | 0x5000 | 1 bit per vector | MSI-X pending bits                        |          |
//!
//! Vector 0 is by custom the configuration's, the others the queues': there is one more than queues. Bytes between the parts read
//! as 0 and ignore writes.

mod capability;
mod common;
mod doorbells;

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use husk_devices::memory::GuestMemory;
use husk_devices::pci::{Bar, BarPlace, CAP_VENDOR, ConfigError, ConfigSpace, Identity, Msix, PciFunction};
use husk_devices::{Effect, Host};

use super::ProfileError;
use super::core::{Core, Source};
use crate::device::{ConfigAccess, Profile, VirtioDevice};
use crate::ring::{Notify, RingState};
use capability::{Part, Window};
use common::{COMMON_BYTES, Common};
use doorbells::Doorbells;

/// The vendor of all virtio devices (virtio 1.2 §4.1.2).
const VENDOR_ID: u16 = 0x1af4;
/// Device ID of a modern device: this plus its virtio ID (virtio 1.2 §4.1.2.1).
const DEVICE_ID_BASE: u16 = 0x1040;
/// Modern devices have revision 1 or higher (virtio 1.2 §4.1.2.1).
const REVISION: u8 = 1;
/// The BAR that holds everything.
const BAR: u8 = 0;
const BAR_BYTES: u64 = 0x8000;
const PART_BYTES: u32 = 0x1000;
const COMMON: u32 = 0x0000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PBA: u32 = 0x5000;
/// A page of the MSI-X table has 256 entries, one of which is the configuration's.
const QUEUES_MAX: u16 = 255;
/// ISR status bits (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// Why a device cannot be put on the PCI bus.
#[derive(Debug, thiserror::Error)]
pub enum VirtioPciError {
    /// The device's profile is not one that this transport can serve.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A virtio device ID that has no PCI device ID.
    #[error("{device}: virtio device ID {id} is above {allowed}")]
    DeviceId {
        /// Name of the device.
        device: String,
        /// What the profile says.
        id: u32,
        /// The largest that fits.
        allowed: u16,
    },
    /// The configuration space has no room.
    #[error("{device}: cannot set the PCI function up")]
    Pci {
        /// Name of the device.
        device: String,
        /// What does not fit.
        source: ConfigError,
    },
}

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
    ) -> Result<Self, VirtioPciError> {
        let device_config = device.config();
        let core = Core::new(device, name, mem, QUEUES_MAX)?;
        let queues = core.queue_count();
        let mut msix = Msix::new(host.clone(), queues.saturating_add(1));
        let mut space = ConfigSpace::new(&identity(core.profile(), core.name())?);
        let window = add_capabilities(&mut space, &mut msix, queues).map_err(|source| VirtioPciError::Pci {
            device: core.name().to_owned(),
            source,
        })?;
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

    /// The device's name.
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// The device behind the function.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.core.device()
    }

    /// Times that the device came to need a reset, by the driver's or the host's fault.
    pub fn failures(&self) -> u64 {
        self.core.failures()
    }

    /// Stops the device, waits until no I/O thread touches guest memory, and returns where the rings stood. Blocks as long as
    /// the host's I/O does: for control threads, once no vCPU uses the function. Doorbells stay until [`PciFunction::bar_moved`]
    /// takes them away, or with them the VM.
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
            let Some(kick) = self.core.kick(queue) else { continue };
            if let Err(error) = self.doorbells.live(queue, kick) {
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
        match place(bar, offset) {
            Some((part, offset)) => self.read_part(part, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Effect {
        if let Some((part, offset)) = place(bar, offset) {
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

fn identity(profile: &Profile, device: &str) -> Result<Identity, VirtioPciError> {
    let id = u16::try_from(profile.id)
        .ok()
        .and_then(|id| id.checked_add(DEVICE_ID_BASE));
    let id = id.ok_or_else(|| VirtioPciError::DeviceId {
        device: device.to_owned(),
        id: profile.id,
        allowed: u16::MAX.saturating_sub(DEVICE_ID_BASE),
    })?;
    Ok(Identity {
        vendor: VENDOR_ID,
        device: id,
        revision: REVISION,
        class: profile.class,
        subsystem_vendor: VENDOR_ID,
        subsystem: id,
    })
}

/// Adds the BAR and all capabilities; returns where the window is.
fn add_capabilities(space: &mut ConfigSpace, msix: &mut Msix, queues: u16) -> Result<Window, ConfigError> {
    space.add_bar(BAR, Bar::memory64(BAR_BYTES))?;
    let doorbells = u32::from(queues).saturating_mul(doorbells::STRIDE);
    for (part, offset, length, multiplier) in [
        (Part::Common, COMMON, COMMON_BYTES, None),
        (Part::Isr, ISR, 1, None),
        (Part::Device, DEVICE, PART_BYTES, None),
        (Part::Notify, NOTIFY, doorbells, Some(doorbells::STRIDE)),
    ] {
        space.add_capability(CAP_VENDOR, &capability::body(part, offset, length, multiplier), &[])?;
    }
    let (body, writable) = capability::window_body();
    let at = space.add_capability(CAP_VENDOR, &body, &writable)?;
    let [table, pba] = [MSIX_TABLE, MSIX_PBA].map(|offset| BarPlace { bar: BAR, offset });
    msix.add_capability(space, table, pba)?;
    Ok(Window { at })
}

/// The interrupt of `source` by MSI-X `vector`, and its trace in the ISR status: the configuration's always, the queues' only
/// where there is no message (virtio 1.2 §4.1.4.5.1).
fn notify(msix: &Msix, isr: &Arc<AtomicU8>, source: Source, vector: u16) -> Notify {
    let (vector, isr) = (msix.vector(vector), isr.clone());
    match (source, vector) {
        (Source::Queue(_), Some(vector)) => Notify::new(move || vector.signal()),
        (Source::Queue(_), None) => Notify::new(move || {
            isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }),
        (Source::Config, vector) => Notify::new(move || {
            isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            if let Some(vector) = &vector {
                vector.signal();
            }
        }),
    }
}

/// The part of the BAR that `offset` is in, and the offset into that part.
fn place(bar: u8, offset: u64) -> Option<(u32, u64)> {
    let offset = u32::try_from(offset)
        .ok()
        .filter(|offset| bar == BAR && u64::from(*offset) < BAR_BYTES)?;
    let inside = offset.checked_rem(PART_BYTES)?;
    Some((offset.saturating_sub(inside), inside.into()))
}

/// A device that panicked leaves configuration bytes behind, not broken invariants.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
