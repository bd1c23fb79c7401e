//! MADT (ACPI 6.5 §5.2.12): vCPUs and the I/O APIC.
//!
//! `PCAT_COMPAT` is clear: there is no 8259, and Linux does not look for one. GSIs 0 to 23 are the
//! pins of the I/O APIC, without overrides: whoever uses one says its trigger and polarity in AML.

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use zerocopy::byteorder::{LE, U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::Platform;
use crate::layout::{IOAPIC, LAPIC};

/// Revision of the table (ACPI 6.5 §5.2.12). From 5 on, a guest takes a disabled processor for one
/// that may come only if it is marked online capable.
const REVISION: u8 = 6;
const HEADER_LEN: u32 = 44;
const LAPIC_OFFSET: usize = 36;

/// Processor Local x2APIC (ACPI 6.5 §5.2.12.12), for APIC ids from 255 on.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
struct LocalX2Apic {
    type_: u8,
    length: u8,
    reserved: U16<LE>,
    x2apic_id: U32<LE>,
    flags: U32<LE>,
    processor_uid: U32<LE>,
}

const _: () = assert!(size_of::<LocalX2Apic>() == 16);

impl LocalX2Apic {
    fn new(processor_uid: u32, x2apic_id: u32, status: EnabledStatus) -> Self {
        let flags = (status as u32).into();
        let (x2apic_id, processor_uid) = (x2apic_id.into(), processor_uid.into());
        Self {
            type_: 9,
            length: 16,
            reserved: 0.into(),
            x2apic_id,
            flags,
            processor_uid,
        }
    }
}

impl Aml for LocalX2Apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

pub(super) fn build(platform: &Platform) -> Sdt {
    let mut entries = Vec::new();
    let present = platform.apic_ids.iter().map(|id| (*id, EnabledStatus::Enabled));
    let spare = platform
        .spare_apic_ids
        .iter()
        .map(|id| (*id, EnabledStatus::DisabledOnlineCapable));
    for (uid, (apic_id, status)) in (0..).zip(present.chain(spare)) {
        processor(&mut entries, uid, apic_id, status);
    }
    IoApic::new(0, IOAPIC, 0).to_aml_bytes(&mut entries);
    let mut madt = Sdt::new(*b"APIC", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(LAPIC_OFFSET, LAPIC);
    madt.append_slice(&entries);
    madt
}

/// One processor: a local APIC where its ids fit, else an x2APIC. 255 is the broadcast id of the former.
fn processor(entries: &mut Vec<u8>, uid: u32, apic_id: u32, status: EnabledStatus) {
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid @ ..=254), Ok(apic_id @ ..=254)) => ProcessorLocalApic::new(uid, apic_id, status).to_aml_bytes(entries),
        _ => LocalX2Apic::new(uid, apic_id, status).to_aml_bytes(entries),
    }
}
