//! The Generic Event Device (ACPI 6.5 §5.6.9): one interrupt line, one status register, and the AML
//! that sorts events out.
//!
//! Register map, in a window of [`Ged::WINDOW_BYTES`]:
//!
//! | offset | width | access | meaning |
//! |---|---|---|---|
//! | 0x00 | 4 | R | `ESTS`: one bit per [`GedEvent`] that has been rung since the last read. An aligned 4-byte read takes them all |
//!
//! Other reads see the register without taking anything from it, writes do nothing, and bytes beyond read as ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use acpi_tables::{Aml, AmlSink, aml};
use husk_devices::{BusDevice, Effect, Irq};

/// What the guest can be told of. The discriminant is the bit in `ESTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum GedEvent {
    /// A CPU slot has changed.
    Cpu = 1 << 0,
    /// A memory slot has changed.
    Memory = 1 << 1,
    /// A PCI slot has changed.
    Pci = 1 << 2,
    /// The power button was pressed (ACPI 6.5 §4.8.2.2.1.2).
    PowerButton = 1 << 3,
}

impl GedEvent {
    /// The event's bit in `ESTS`.
    pub fn bit(self) -> u32 {
        self as u32
    }
}

/// The host's end: tells the guest that something happened. Cheap to clone, any thread may call it, and it never
/// blocks.
#[derive(Clone, Debug)]
pub struct GedNotifier {
    status: Arc<AtomicU32>,
    irq: Irq,
}

impl GedNotifier {
    /// A notifier on `irq`, an edge-triggered line.
    pub fn new(irq: Irq) -> Self {
        Self {
            status: Arc::default(),
            irq,
        }
    }

    /// Sets the event's bit and raises the interrupt.
    pub fn notify(&self, event: GedEvent) {
        self.status.fetch_or(event.bit(), Ordering::AcqRel);
        self.irq.raise();
    }

    /// Raises the interrupt again if the guest has not taken every event, and says so. An edge is
    /// lost while the guest's driver has not yet unmasked the line, so whoever waits for a guest
    /// that is still starting should call this now and then.
    pub fn retrigger(&self) -> bool {
        let waiting = self.status.load(Ordering::Acquire) != 0;
        if waiting {
            self.irq.raise();
        }
        waiting
    }
}

/// The guest's end: the status register.
#[derive(Debug)]
pub struct Ged(GedNotifier);

impl Ged {
    /// Size of the register window.
    pub const WINDOW_BYTES: u64 = 4;

    /// The register behind `notifier`.
    pub fn new(notifier: GedNotifier) -> Self {
        Self(notifier)
    }
}

impl BusDevice for Ged {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let status = &self.0.status;
        let value = if offset == 0 && data.len() == 4 {
            status.swap(0, Ordering::AcqRel)
        } else {
            status.load(Ordering::Acquire)
        };
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = value
            .to_le_bytes()
            .into_iter()
            .skip(skipped)
            .chain(std::iter::repeat(0xff));
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = value;
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

/// The AML of the device, `\_SB_.GED_`, and of the power button, `\_SB_.PWRB`.
#[derive(Clone, Debug)]
pub struct GedAml {
    /// Guest-physical address of the register window.
    pub address: u64,
    /// GSI of the edge-triggered line that the GED's `_CRS` names.
    pub gsi: u32,
    /// Which method to call on which event: [`BankAml::scan`](crate::aml::BankAml::scan) of every bank there is.
    pub scans: Vec<(GedEvent, &'static str)>,
}

impl Aml for GedAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let interrupt = aml::Interrupt::new(true, true, false, false, self.gsi);
        aml::Device::new(
            "\\_SB_.PWRB".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
            ],
        )
        .to_aml_bytes(sink);
        aml::Device::new(
            "\\_SB_.GED_".into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0013"),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&interrupt])),
                &aml::OpRegion::new(
                    "EREG".into(),
                    aml::OpRegionSpace::SystemMemory,
                    &self.address,
                    &Ged::WINDOW_BYTES,
                ),
                &aml::Field::new(
                    "EREG".into(),
                    aml::FieldAccessType::DWord,
                    aml::FieldLockRule::NoLock,
                    aml::FieldUpdateRule::Preserve,
                    vec![aml::FieldEntry::Named(*b"ESTS", 32)],
                ),
                &Dispatch(&self.scans),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_EVT` (ACPI 6.5 §5.6.9.2): takes the status and serves every bit. One line carries all events, so its argument, the
/// interrupt's number, says nothing.
struct Dispatch<'a>(&'a [(GedEvent, &'static str)]);

impl Aml for Dispatch<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let status = aml::Path::new("ESTS");
        let take = aml::Store::new(&aml::Local(0), &status);
        let calls = self.0.iter().map(|(event, scan)| {
            let call: Box<dyn Aml> = Box::new(aml::MethodCall::new((*scan).into(), vec![]));
            (*event, call)
        });
        let button = aml::Path::new("\\_SB_.PWRB");
        // Notify value 0x80 on a power button: pressed (ACPI 6.5 §5.6.6, table "power button notification values").
        let press: Box<dyn Aml + '_> = Box::new(aml::Notify::new(&button, &0x80_u8));
        let arms: Vec<_> = calls
            .chain([(GedEvent::PowerButton, press)])
            .map(|(event, act)| Arm { event, act })
            .collect();
        let mut body: Vec<&dyn Aml> = vec![&take];
        body.extend(arms.iter().map(|arm| arm as &dyn Aml));
        aml::Method::new("_EVT".into(), 1, true, body).to_aml_bytes(sink);
    }
}

/// `If (Local0 & bit) { act }`.
struct Arm<'a> {
    event: GedEvent,
    act: Box<dyn Aml + 'a>,
}

impl Aml for Arm<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bit = self.event.bit();
        aml::If::new(&aml::And::new(&aml::ZERO, &aml::Local(0), &bit), vec![&*self.act]).to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "ged_test.rs"]
mod tests;
