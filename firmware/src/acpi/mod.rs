//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1), RSDP first, in one piece at [`ACPI`].

mod dsdt;
mod madt;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{ACPI, ACPI_LEN};
use crate::{GuestMemoryMmap, Platform};

/// `SLP_TYP` that the guest writes to power off: the first element of `\_S5` (ACPI 6.5 §7.4.2.6).
pub const S5_SLEEP_TYPE: u8 = 5;

const OEM_ID: [u8; 6] = *b"HUSK  ";
const OEM_TABLE_ID: [u8; 8] = *b"HUSKVM  ";
const OEM_REVISION: u32 = 1;

/// Tables start on a multiple of this, as the RSDP must (ACPI 6.5 §5.2.5.1).
const ALIGN: usize = 16;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They need more room than the layout gives them.
    #[error("ACPI tables have {found} bytes; at most {} are allowed", ACPI_LEN)]
    TooLarge {
        /// Bytes needed.
        found: usize,
    },
    /// They do not reach RAM.
    #[error("cannot write the ACPI tables at {:#x}", ACPI)]
    Write(#[source] GuestMemoryError),
}

/// Writes all tables of `platform`; tells the address of the RSDP.
///
/// # Errors
/// See [`AcpiError`].
pub fn write(mem: &GuestMemoryMmap, platform: &Platform) -> Result<u64, AcpiError> {
    let bytes = build(platform)?;
    mem.write_slice(&bytes, GuestAddress(ACPI)).map_err(AcpiError::Write)?;
    Ok(ACPI)
}

/// All tables of `platform`, to be put at [`ACPI`].
///
/// # Errors
/// [`AcpiError::TooLarge`].
pub fn build(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    fits(platform.aml.iter().map(Vec::len).sum())?;
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, &dsdt::build(platform));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(append(&mut bytes, &tables::fadt(&platform.power, dsdt)));
    xsdt.add_entry(append(&mut bytes, &madt::build(platform)));
    if let Some(ecam) = platform.ecam {
        xsdt.add_entry(append(&mut bytes, &tables::mcfg(ecam)));
    }
    let rsdp = Rsdp::new(OEM_ID, append(&mut bytes, &xsdt));
    let mut first = Vec::with_capacity(Rsdp::len());
    rsdp.to_aml_bytes(&mut first);
    bytes.splice(..first.len(), first);
    fits(bytes.len())?;
    Ok(bytes)
}

/// Appends a table at the next aligned offset; tells the address that it will have.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    let address = ACPI.saturating_add(bytes.len() as u64);
    table.to_aml_bytes(bytes);
    address
}

fn fits(found: usize) -> Result<(), AcpiError> {
    if found as u64 > ACPI_LEN {
        Err(AcpiError::TooLarge { found })
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
