//! DSDT (ACPI 6.5 §5.2.11.1): the power-off state, and the AML that every device brings with it.

use acpi_tables::Aml;
use acpi_tables::aml::{Name, Package, Path, Scope};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, S5_SLEEP_TYPE};
use crate::Platform;

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;
const HEADER_LEN: u32 = 36;

pub(super) fn build(platform: &Platform) -> Sdt {
    let mut aml = Vec::new();
    // \_S5: one sleep type for either half of a register that here exists once (ACPI 6.5 §7.4.2).
    let s5 = Package::new(vec![&S5_SLEEP_TYPE, &0u8, &0u8, &0u8]);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut aml);
    aml.extend(Scope::raw(Path::new("_SB_"), platform.aml.concat()));
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}
