//! The AML that drives a bank: the same registers and scan method for CPUs, memory and PCI functions.
//!
//! ```text
//! Device (\_SB.HCPU)                          one controller per bank
//!   OperationRegion BREG, Field { TAKE }
//!   Method SCAN ()                            called by the GED: while (TAKE) NTFY (slot, value)
//!   Method NTFY (slot, value)                 a binary tree of If/Else down to one Notify
//!   Device (C001)                             one per slot
//!     Field (BREG) { STAT, EJCT, OSTE, OSTS }
//!     _STA -> STAT   _EJ0 -> EJCT   _OST -> OSTE, OSTS   and _MAT, _CRS or _ADR
//! ```
//!
//! The DSDT must have revision 2 or higher, so that integers have 64 bits (ACPI 6.5 §19.3.5.7), and the PCI bank's fragment must
//! come after the one that defines `\_SB_.PCI0`.

use acpi_tables::{Aml, AmlSink, aml};

use crate::bank::{self, RECORD_BYTES};
use crate::ged::GedEvent;

/// What sits in the slots of a bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processors `\_SB_.HCPU.Cxxx` (ACPI0007), where slot and `_UID` are the same.
    Cpu {
        /// The local APIC ID of each slot; where the list ends, the slot's number.
        apic_ids: Vec<u32>,
    },
    /// Memory devices `\_SB_.HMEM.Mxxx` (PNP0C80).
    Memory,
    /// Functions 0 of bus 0, `\_SB_.PCI0.Sxxx`, where slot and device number are the same.
    Pci,
}

/// The AML of one bank.
#[derive(Clone, Debug)]
pub struct BankAml {
    /// What sits in the slots.
    pub kind: Kind,
    /// Guest-physical address of the bank's register window.
    pub address: u64,
    /// Number of slots, at most [`Bank::MAX_SLOTS`](crate::bank::Bank::MAX_SLOTS); 32 for PCI.
    pub slots: u32,
    /// How many slots, from 0 on, are pinned. A pinned processor is always there and cannot be ejected, other pinned slots have
    /// no device here at all.
    pub pinned: u32,
}

impl BankAml {
    /// The GED event that announces a change in this bank.
    pub fn event(&self) -> GedEvent {
        match self.kind {
            Kind::Cpu { .. } => GedEvent::Cpu,
            Kind::Memory => GedEvent::Memory,
            Kind::Pci => GedEvent::Pci,
        }
    }

    /// The method to call on that event.
    pub fn scan(&self) -> &'static str {
        match self.kind {
            Kind::Cpu { .. } => "\\_SB_.HCPU.SCAN",
            Kind::Memory => "\\_SB_.HMEM.SCAN",
            Kind::Pci => "\\_SB_.HPCI.SCAN",
        }
    }

    fn controller(&self) -> &'static str {
        match self.kind {
            Kind::Cpu { .. } => "\\_SB_.HCPU",
            Kind::Memory => "\\_SB_.HMEM",
            Kind::Pci => "\\_SB_.HPCI",
        }
    }

    fn region(&self) -> aml::Path {
        aml::Path::new(&format!("{}.BREG", self.controller()))
    }

    /// The full path of a slot's device.
    fn device(&self, slot: u32) -> aml::Path {
        let (parent, letter) = match self.kind {
            Kind::Cpu { .. } => ("\\_SB_.HCPU", 'C'),
            Kind::Memory => ("\\_SB_.HMEM", 'M'),
            Kind::Pci => ("\\_SB_.PCI0", 'S'),
        };
        aml::Path::new(&format!("{parent}.{letter}{:03X}", slot & 0xfff))
    }

    fn window_bytes(&self) -> u64 {
        bank::window_bytes(self.slots)
    }

    /// The slots that can be notified.
    fn movable(&self) -> std::ops::Range<u32> {
        self.pinned.min(self.slots)..self.slots
    }
}

impl Aml for BankAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        self.controller_device(sink);
        let first = if matches!(self.kind, Kind::Cpu { .. }) {
            0
        } else {
            self.movable().start
        };
        for slot in first..self.slots {
            self.slot_device(slot, sink);
        }
    }
}

impl BankAml {
    fn controller_device(&self, sink: &mut dyn AmlSink) {
        let last = self.address.saturating_add(self.window_bytes()).saturating_sub(1);
        let cacheable = aml::AddressSpaceCacheable::NotCacheable;
        let window = aml::AddressSpace::<u64>::new_memory(cacheable, true, self.address, last, None);
        let hid = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A06"));
        let uid = aml::Name::new("_UID".into(), &self.event().bit());
        let crs = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&window]));
        let (space, length) = (aml::OpRegionSpace::SystemMemory, self.window_bytes());
        let region = aml::OpRegion::new("BREG".into(), space, &self.address, &length);
        let take = field("BREG".into(), vec![aml::FieldEntry::Named(*b"TAKE", 32)]);
        let notify = NotifyMethod(self);
        let mut children: Vec<&dyn Aml> = vec![&hid, &uid, &crs, &region, &take, &ScanMethod, &notify];
        if self.kind == Kind::Memory {
            children.push(&RangeMethod);
        }
        aml::Device::new(self.controller().into(), children).to_aml_bytes(sink);
    }

    fn slot_device(&self, slot: u32, sink: &mut dyn AmlSink) {
        let mut body = Vec::new();
        let name = |name: &str, value: &dyn Aml| aml::Name::new(name.into(), value);
        match &self.kind {
            Kind::Cpu { apic_ids } => {
                name("_HID", &"ACPI0007").to_aml_bytes(&mut body);
                name("_UID", &slot).to_aml_bytes(&mut body);
                let apic_id = usize::try_from(slot)
                    .ok()
                    .and_then(|slot| apic_ids.get(slot))
                    .copied()
                    .unwrap_or(slot);
                name("_MAT", &aml::BufferData::new(madt_entry(slot, apic_id))).to_aml_bytes(&mut body);
            }
            Kind::Memory => {
                name("_HID", &aml::EISAName::new("PNP0C80")).to_aml_bytes(&mut body);
                name("_UID", &slot).to_aml_bytes(&mut body);
            }
            Kind::Pci => {
                name("_ADR", &(slot << 16)).to_aml_bytes(&mut body);
                name("_SUN", &slot).to_aml_bytes(&mut body);
            }
        }
        if self.movable().contains(&slot) {
            self.slot_methods(slot, &mut body);
        }
        aml::Device::new(self.device(slot), vec![&Raw(body)]).to_aml_bytes(sink);
    }

    /// `_STA`, `_EJ0` and `_OST` (ACPI 6.5 §6.3.7, §6.3.3, §6.3.5), and `_CRS` of memory, on the slot's record.
    fn slot_methods(&self, slot: u32, sink: &mut dyn AmlSink) {
        let record_bits = RECORD_BYTES
            .saturating_mul(u64::from(slot).saturating_add(1))
            .saturating_mul(8);
        let named = |name: &[u8; 4], bits| aml::FieldEntry::Named(*name, bits);
        let mut entries = vec![aml::FieldEntry::Reserved(
            usize::try_from(record_bits).unwrap_or(usize::MAX),
        )];
        entries.extend([b"STAT", b"EJCT", b"OSTE", b"OSTS"].map(|name| named(name, 32)));
        if self.kind == Kind::Memory {
            entries.extend([b"BASE", b"SIZE"].map(|name| named(name, 64)));
        }
        field(self.region(), entries).to_aml_bytes(sink);

        let [stat, eject, event, status] = ["STAT", "EJCT", "OSTE", "OSTS"].map(aml::Path::new);
        aml::Method::new("_STA".into(), 0, false, vec![&aml::Return::new(&stat)]).to_aml_bytes(sink);
        aml::Method::new("_EJ0".into(), 1, true, vec![&aml::Store::new(&eject, &aml::ONE)]).to_aml_bytes(sink);
        let (event, status) = (
            aml::Store::new(&event, &aml::Arg(0)),
            aml::Store::new(&status, &aml::Arg(1)),
        );
        aml::Method::new("_OST".into(), 3, true, vec![&event, &status]).to_aml_bytes(sink);
        if self.kind == Kind::Memory {
            let (base, size) = (aml::Path::new("BASE"), aml::Path::new("SIZE"));
            let range = aml::MethodCall::new("\\_SB_.HMEM.MRNG".into(), vec![&base, &size]);
            aml::Method::new("_CRS".into(), 0, true, vec![&aml::Return::new(&range)]).to_aml_bytes(sink);
        }
    }
}

/// Fields on the registers: 32 bits at a time, nothing read back before a write.
fn field(region: aml::Path, entries: Vec<aml::FieldEntry>) -> aml::Field {
    let (access, rule) = (aml::FieldAccessType::DWord, aml::FieldUpdateRule::WriteAsZeroes);
    aml::Field::new(region, access, aml::FieldLockRule::NoLock, rule, entries)
}

/// The interrupt controller structure that `_MAT` gives of an enabled processor (ACPI 6.5 §6.2.10): Processor Local APIC
/// (§5.2.12.2) where the IDs fit, else Processor Local x2APIC (§5.2.12.12).
fn madt_entry(uid: u32, apic_id: u32) -> Vec<u8> {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    let flags = ENABLED.to_le_bytes();
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        // 0xff is the broadcast ID, in both fields.
        (Ok(uid @ ..=0xfe), Ok(apic_id @ ..=0xfe)) => [&[LOCAL_APIC, 8, uid, apic_id][..], &flags].concat(),
        _ => [
            &[LOCAL_X2APIC, 16, 0, 0][..],
            &apic_id.to_le_bytes(),
            &flags,
            &uid.to_le_bytes(),
        ]
        .concat(),
    }
}

/// AML that has been written already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `SCAN`: takes events until there are no more and passes each on. As many register reads as events, and one.
struct ScanMethod;

impl Aml for ScanMethod {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (event, take) = (aml::Local(0), aml::Path::new("TAKE"));
        let next = aml::Store::new(&event, &take);
        let slot = aml::And::new(&aml::ZERO, &event, &0xffff_u16);
        let value = aml::ShiftRight::new(&aml::ZERO, &event, &16_u8);
        let notify = aml::MethodCall::new("NTFY".into(), vec![&slot, &value]);
        let more = aml::While::new(&event, vec![&notify, &next]);
        aml::Method::new("SCAN".into(), 0, true, vec![&next, &more]).to_aml_bytes(sink);
    }
}

/// `NTFY (slot, value)`: notifies the slot's device. A tree and not a list of comparisons, because the interpreter is slow and a
/// machine may have hundreds of slots.
struct NotifyMethod<'a>(&'a BankAml);

impl Aml for NotifyMethod<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let slots = self.0.movable();
        let tree = Raw(if slots.is_empty() {
            Vec::new()
        } else {
            self.tree(slots.start, slots.end)
        });
        aml::Method::new("NTFY".into(), 2, true, vec![&tree]).to_aml_bytes(sink);
    }
}

impl NotifyMethod<'_> {
    /// The tree for the slots from `first` up to `end`, of which there is at least one.
    fn tree(&self, first: u32, end: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let middle = first.midpoint(end);
        if middle == first {
            aml::Notify::new(&self.0.device(first), &aml::Arg(1)).to_aml_bytes(&mut bytes);
        } else {
            let (low, high) = (Raw(self.tree(first, middle)), Raw(self.tree(middle, end)));
            aml::If::new(&aml::LessThan::new(&aml::Arg(0), &middle), vec![&low]).to_aml_bytes(&mut bytes);
            aml::Else::new(vec![&high]).to_aml_bytes(&mut bytes);
        }
        bytes
    }
}

/// `MRNG (base, size)`: the resource template of a memory slot.
struct RangeMethod;

impl Aml for RangeMethod {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // Offsets in the QWord Address Space Descriptor (ACPI 6.5 §6.4.3.5.1).
        const MIN: u8 = 14;
        const MAX: u8 = 22;
        const LENGTH: u8 = 38;
        let cacheable = aml::AddressSpaceCacheable::Cacheable;
        let template = aml::AddressSpace::<u64>::new_memory(cacheable, true, 0, u64::MAX - 1, None);
        let (base, size) = (aml::Arg(0), aml::Arg(1));
        let [buffer, min, max, length] = ["RBUF", "RMIN", "RMAX", "RLEN"].map(aml::Path::new);
        let end = aml::Add::new(&aml::ZERO, &base, &size);
        aml::Method::new(
            "MRNG".into(),
            2,
            true,
            vec![
                &aml::Name::new("RBUF".into(), &aml::ResourceTemplate::new(vec![&template])),
                &aml::CreateQWordField::new(&min, &buffer, &MIN),
                &aml::CreateQWordField::new(&max, &buffer, &MAX),
                &aml::CreateQWordField::new(&length, &buffer, &LENGTH),
                &aml::Store::new(&min, &base),
                &aml::Store::new(&length, &size),
                &aml::Subtract::new(&max, &end, &aml::ONE),
                &aml::Return::new(&buffer),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "aml_test.rs"]
mod tests;
