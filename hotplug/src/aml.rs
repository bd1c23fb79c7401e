//! The AML that drives a bank: the same registers and methods for processors, memory and PCI functions.
//!
//! ```text
//! Device (\_SB.HCPU)                          or \_SB.HMEM, or Scope (\_SB.PCI0)
//!   OperationRegion BREG, Field { TAKE, EJCT, SIGN, OSTR }
//!   Method SCAN ()                            called by the GED: while (TAKE) NTFY (slot, value)
//!   Method NTFY (slot, value)                 a binary tree of If/Else down to one Notify
//!   Method HEJ0 (slot), HOST (slot, source, status), HSUN (slot), HMAT (slot)
//!   Device (C001)                             one per slot
//!     Field { _STA }   _EJ0 -> HEJ0 (1)   _OST -> HOST (1, …)   _SUN -> HSUN (1)   _MAT -> HMAT (1)
//! ```
//!
//! A guest pays for a slot at its start, whether it is ever filled or not: it asks for `_STA`
//! several times and for little else. So that is a field and no method: an access costs less than
//! an interpreter does for a method. Why no other way: ADR 18.
//!
//! The DSDT must have revision 2 or higher, so that integers have 64 bits (ACPI 6.5 §19.3.5.7), and
//! the PCI bank's fragment must come after the one that defines `\_SB_.PCI0`.

use acpi_tables::{Aml, AmlSink, aml};

use crate::bank::{self, RECORD_BYTES, RECORDS, SlotKind};
use crate::ged::GedEvent;

/// Local APIC IDs and processor UIDs from this on have no room in a Processor Local APIC structure:
/// 0xff is the broadcast ID.
const X2APIC_FROM: u32 = 0xff;

/// The AML of one bank.
#[derive(Clone, Debug)]
pub struct BankAml {
    /// What sits in the slots. Processors are `\_SB_.HCPU.Cxxx` (ACPI0007), where slot, `_UID` and
    /// local APIC ID are the same; memory devices are `\_SB_.HMEM.Mxxx` (PNP0C80); functions 0 of
    /// bus 0 are `\_SB_.PCI0.Sxxx`, where slot and device number are the same.
    pub kind: SlotKind,
    /// Guest-physical address of the bank's register window.
    pub address: u64,
    /// Number of slots, at most [`Bank::MAX_SLOTS`](crate::bank::Bank::MAX_SLOTS); 32 for PCI.
    pub slots: u32,
    /// How many slots, from 0 on, are pinned. A pinned processor is always there and cannot be
    /// ejected, other pinned slots have no device here at all.
    pub pinned: u32,
}

impl BankAml {
    /// The GED event that announces a change in this bank.
    pub fn event(&self) -> GedEvent {
        self.kind.event()
    }

    /// The method to call on that event.
    pub fn scan(&self) -> &'static str {
        match self.kind {
            SlotKind::Cpu => "\\_SB_.HCPU.SCAN",
            SlotKind::Memory => "\\_SB_.HMEM.SCAN",
            SlotKind::Pci => "\\_SB_.PCI0.SCAN",
        }
    }

    /// The name of a slot's device, beside the methods.
    fn device(&self, slot: u32) -> aml::Path {
        let letter = match self.kind {
            SlotKind::Cpu => 'C',
            SlotKind::Memory => 'M',
            SlotKind::Pci => 'S',
        };
        aml::Path::new(&format!("{letter}{:03X}", slot & 0xfff))
    }

    fn window_bytes(&self) -> u64 {
        bank::window_bytes(self.kind, self.slots)
    }

    /// The slots that can be notified.
    fn movable(&self) -> std::ops::Range<u32> {
        self.pinned.min(self.slots)..self.slots
    }
}

impl Aml for BankAml {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let body = Raw(self.body());
        match self.kind {
            SlotKind::Cpu => {
                let hid = aml::Name::new("_HID".into(), &"ACPI0010");
                aml::Device::new("\\_SB_.HCPU".into(), vec![&hid, &body]).to_aml_bytes(sink);
            }
            SlotKind::Memory => {
                let hid = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A06"));
                aml::Device::new("\\_SB_.HMEM".into(), vec![&hid, &body]).to_aml_bytes(sink);
            }
            SlotKind::Pci => aml::Scope::new("\\_SB_.PCI0".into(), vec![&body]).to_aml_bytes(sink),
        }
    }
}

impl BankAml {
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.registers(&mut body);
        scan(&mut body);
        NotifyMethod(self).to_aml_bytes(&mut body);
        reports(&mut body);
        match self.kind {
            SlotKind::Cpu => {
                sign(&mut body);
                self.interrupt_controllers(&mut body);
            }
            SlotKind::Memory => range(&mut body),
            SlotKind::Pci => {}
        }
        let first = if self.kind == SlotKind::Cpu {
            0
        } else {
            self.movable().start
        };
        for slot in first..self.slots {
            self.slot_device(slot, &mut body);
        }
        body
    }

    fn registers(&self, sink: &mut dyn AmlSink) {
        let (space, length) = (aml::OpRegionSpace::SystemMemory, self.window_bytes());
        aml::OpRegion::new("BREG".into(), space, &self.address, &length).to_aml_bytes(sink);
        let words = [
            at(bank::TAKE, 0, b"TAKE", 32),
            at(bank::EJCT, 4, b"EJCT", 32),
            at(bank::SIGN, 8, b"SIGN", 32),
        ];
        field(aml::FieldAccessType::DWord, words.concat()).to_aml_bytes(sink);
        field(aml::FieldAccessType::QWord, at(bank::OSTR, 0, b"OSTR", 64)).to_aml_bytes(sink);
    }

    fn slot_device(&self, slot: u32, sink: &mut dyn AmlSink) {
        let mut body = Vec::new();
        match self.kind {
            SlotKind::Cpu => {
                name("_HID", &"ACPI0007", &mut body);
                name("_UID", &slot, &mut body);
                forward("_MAT", 0, "HMAT", slot, &mut body);
                forward("_SUN", 0, "HSUN", slot, &mut body);
            }
            SlotKind::Memory => {
                name("_HID", &aml::EISAName::new("PNP0C80"), &mut body);
                name("_UID", &slot, &mut body);
                let record = RECORD_BYTES.saturating_mul(slot.into()).saturating_add(RECORDS);
                let extent = [at(record, 0, b"BASE", 64), vec![aml::FieldEntry::Named(*b"SIZE", 64)]];
                field(aml::FieldAccessType::QWord, extent.concat()).to_aml_bytes(&mut body);
                let (base, size) = (aml::Path::new("BASE"), aml::Path::new("SIZE"));
                let range = aml::MethodCall::new("MRNG".into(), vec![&base, &size]);
                aml::Method::new("_CRS".into(), 0, true, vec![&aml::Return::new(&range)]).to_aml_bytes(&mut body);
            }
            SlotKind::Pci => {
                name("_ADR", &(slot << 16), &mut body);
                name("_SUN", &slot, &mut body);
            }
        }
        if self.movable().contains(&slot) {
            status(slot, &mut body);
            forward("_EJ0", 1, "HEJ0", slot, &mut body);
            forward("_OST", 3, "HOST", slot, &mut body);
        }
        aml::Device::new(self.device(slot), vec![&Raw(body)]).to_aml_bytes(sink);
    }

    /// `HMAT (slot)`: the interrupt controller structure of an enabled processor (ACPI 6.5
    /// §6.2.10): Processor Local APIC (§5.2.12.2) where the numbers fit, else Processor Local
    /// x2APIC (§5.2.12.12).
    fn interrupt_controllers(&self, sink: &mut dyn AmlSink) {
        const LOCAL_APIC: [u8; 8] = [0, 8, 0, 0, 1, 0, 0, 0];
        const LOCAL_X2APIC: [u8; 16] = [9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        let low = Filled {
            template: &LOCAL_APIC,
            low: &[2, 3],
            high: &[],
        };
        let high = Filled {
            template: &LOCAL_X2APIC,
            low: &[4, 12],
            high: &[5, 13],
        };
        let fits = aml::LessThan::new(&aml::Arg(0), &X2APIC_FROM);
        let choice = aml::If::new(&fits, vec![&low]);
        let body: Vec<&dyn Aml> = if self.slots > X2APIC_FROM {
            vec![&choice, &high]
        } else {
            vec![&low]
        };
        aml::Method::new("HMAT".into(), 1, true, body).to_aml_bytes(sink);
    }
}

/// Returns a buffer like `template` in which `low` have the low byte of the argument and `high` the one above.
struct Filled {
    template: &'static [u8],
    low: &'static [u8],
    high: &'static [u8],
}

impl Aml for Filled {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (buffer, slot) = (aml::Local(0), aml::Arg(0));
        aml::Store::new(&buffer, &aml::BufferData::new(self.template.to_vec())).to_aml_bytes(sink);
        let above = aml::ShiftRight::new(&aml::ZERO, &slot, &8_u8);
        let low = self.low.iter().map(|at| (at, &slot as &dyn Aml));
        let high = self.high.iter().map(|at| (at, &above as &dyn Aml));
        for (at, value) in low.chain(high) {
            aml::Store::new(&aml::Index::new(&aml::ZERO, &buffer, at), value).to_aml_bytes(sink);
        }
        aml::Return::new(&buffer).to_aml_bytes(sink);
    }
}

fn name(name: &str, value: &dyn Aml, sink: &mut dyn AmlSink) {
    aml::Name::new(name.into(), value).to_aml_bytes(sink);
}

/// The field at byte `offset`, where the one before has ended at byte `end`.
fn at(offset: u64, end: u64, name: &[u8; 4], bits: usize) -> Vec<aml::FieldEntry> {
    let skipped = offset.saturating_sub(end).saturating_mul(8);
    let named = aml::FieldEntry::Named(*name, bits);
    match usize::try_from(skipped) {
        Ok(0) => vec![named],
        skipped => vec![aml::FieldEntry::Reserved(skipped.unwrap_or(usize::MAX)), named],
    }
}

/// Fields on the registers: nothing is read back before a write.
fn field(access: aml::FieldAccessType, entries: Vec<aml::FieldEntry>) -> aml::Field {
    let rule = aml::FieldUpdateRule::WriteAsZeroes;
    aml::Field::new("BREG".into(), access, aml::FieldLockRule::NoLock, rule, entries)
}

/// A method of a slot's device that leaves the work to `shared`, with the slot's number and the
/// first two of its `args` arguments.
fn forward(name: &str, args: u8, shared: &str, slot: u32, sink: &mut dyn AmlSink) {
    let (source, status) = (aml::Arg(0), aml::Arg(1));
    let mut passed: Vec<&dyn Aml> = vec![&slot];
    if args > 1 {
        passed.extend([&source as &dyn Aml, &status]);
    }
    let call = aml::MethodCall::new(shared.into(), passed);
    let returned = aml::Return::new(&call);
    let body: &dyn Aml = if args == 0 { &returned } else { &call };
    aml::Method::new(name.into(), args, true, vec![body]).to_aml_bytes(sink);
}

/// AML that has been written already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `SCAN`: takes events until there are no more and passes each on. As many register reads as events, and one.
fn scan(sink: &mut dyn AmlSink) {
    let (event, take) = (aml::Local(0), aml::Path::new("TAKE"));
    let next = aml::Store::new(&event, &take);
    let slot = aml::And::new(&aml::ZERO, &event, &0xffff_u16);
    let value = aml::ShiftRight::new(&aml::ZERO, &event, &16_u8);
    let notify = aml::MethodCall::new("NTFY".into(), vec![&slot, &value]);
    let more = aml::While::new(&event, vec![&notify, &next]);
    aml::Method::new("SCAN".into(), 0, true, vec![&next, &more]).to_aml_bytes(sink);
}

/// `_STA` of a slot (ACPI 6.5 §6.3.7): its four bits in the words of the bank, an object and no method.
fn status(slot: u32, sink: &mut dyn AmlSink) {
    let word = u64::from(slot / bank::STATUS_SLOTS).saturating_mul(4);
    let before = (slot % bank::STATUS_SLOTS).saturating_mul(bank::STATUS_BITS);
    let bits = |bits: u32| usize::try_from(bits).unwrap_or(usize::MAX);
    let skipped = usize::try_from(bank::STATUS.saturating_add(word).saturating_mul(8)).unwrap_or(usize::MAX);
    let entries = vec![
        aml::FieldEntry::Reserved(skipped.saturating_add(bits(before))),
        aml::FieldEntry::Named(*b"_STA", bits(bank::STATUS_BITS)),
    ];
    field(aml::FieldAccessType::DWord, entries).to_aml_bytes(sink);
}

/// `HEJ0 (slot)` and `HOST (slot, source, status)`: `_EJ0` and `_OST` (ACPI 6.5 §6.3.3, §6.3.5), one write each.
fn reports(sink: &mut dyn AmlSink) {
    let (slot, eject, report) = (aml::Arg(0), aml::Path::new("EJCT"), aml::Path::new("OSTR"));
    let ejected = aml::Store::new(&eject, &slot);
    aml::Method::new("HEJ0".into(), 1, true, vec![&ejected]).to_aml_bytes(sink);

    let source = aml::And::new(&aml::ZERO, &aml::Arg(1), &0xffff_u16);
    let source = aml::ShiftLeft::new(&aml::ZERO, &source, &16_u8);
    let status = aml::ShiftLeft::new(&aml::ZERO, &aml::Arg(2), &32_u8);
    let low = aml::Or::new(&aml::ZERO, &slot, &source);
    let whole = aml::Or::new(&aml::ZERO, &low, &status);
    let reported = aml::Store::new(&report, &whole);
    aml::Method::new("HOST".into(), 3, true, vec![&reported]).to_aml_bytes(sink);
}

/// `HSUN (slot)`: `_SUN` (ACPI 6.5 §6.1.11), the slot's number, and the bank learns that it was asked for.
fn sign(sink: &mut dyn AmlSink) {
    let sign = aml::Path::new("SIGN");
    let signed = aml::Store::new(&sign, &aml::Arg(0));
    let answer = aml::Return::new(&aml::Arg(0));
    aml::Method::new("HSUN".into(), 1, true, vec![&signed, &answer]).to_aml_bytes(sink);
}
/// `NTFY (slot, value)`: notifies the slot's device. A tree and not a list of comparisons, because
/// the interpreter is slow and a machine may have hundreds of slots.
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
fn range(sink: &mut dyn AmlSink) {
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

#[cfg(test)]
#[path = "aml_test.rs"]
mod tests;
