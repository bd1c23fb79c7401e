//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1).
//!
//! The RSDP is at [`ACPI`], and where there is room the other tables follow it. Those of some 900
//! vCPUs and more do not fit below 1 MiB: then all but the RSDP are in the highest free pages of
//! RAM below 4 GiB, which the memory map gives to ACPI.

mod dsdt;
mod madt;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::kernel::low_ram_end;
use crate::layout::{ACPI, ACPI_LEN};
use crate::{GuestMemoryMmap, Loaded, Platform};

/// `SLP_TYP` that the guest writes to power off: the first element of `\_S5` (ACPI 6.5 §7.4.2.6).
pub const S5_SLEEP_TYPE: u8 = 5;

const OEM_ID: [u8; 6] = *b"HUSK  ";
const OEM_TABLE_ID: [u8; 8] = *b"HUSKVM  ";
const OEM_REVISION: u32 = 1;

/// Tables start on a multiple of this, as the RSDP must (ACPI 6.5 §5.2.5.1).
const ALIGN: usize = 16;

/// Bytes of AML that a machine may have. A vCPU takes about 120, so that 4096 of them have half a
/// MiB; what is far above is a mistake, and would reach the bound of AML's own lengths, 2^28 (ACPI
/// 6.5 §20.2.4).
const AML_MAX: usize = 8 << 20;

/// Tables among RAM have whole pages for themselves: a guest deals in nothing less.
const PAGE: u64 = 4096;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More AML than any machine has.
    #[error("the AML of the devices has {found} bytes; at most {} are allowed", AML_MAX)]
    Aml {
        /// Bytes of all fragments.
        found: usize,
    },
    /// They fit neither below 1 MiB nor beside kernel and initramfs.
    #[error(
        "the ACPI tables of {processors} vCPUs have {bytes:#x} bytes; between the kernel's end {kernel_end:#x} and \
         {limit:#x} there is room for {room:#x}"
    )]
    NoRoom {
        /// vCPUs that there are or may be.
        processors: usize,
        /// Bytes of the tables.
        bytes: u64,
        /// First page behind the kernel.
        kernel_end: u64,
        /// End of RAM below 4 GiB, or the start of an initramfs that lies there.
        limit: u64,
        /// Bytes between the two.
        room: u64,
    },
    /// They do not reach RAM.
    #[error("cannot write the ACPI tables at {address:#x}")]
    Write {
        /// Guest-physical address.
        address: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// Where the tables have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Address of the RSDP.
    pub(crate) rsdp: u64,
    /// Whole pages of RAM from 1 MiB on (base, bytes) that tables are in: the guest must not use them as RAM.
    pub(crate) high: Option<(u64, u64)>,
}

/// Writes all tables of `platform` into RAM that holds `loaded`.
///
/// # Errors
/// See [`AcpiError`].
pub(crate) fn write(mem: &GuestMemoryMmap, platform: &Platform, loaded: &Loaded) -> Result<Placed, AcpiError> {
    let tables = build(platform, |bytes| {
        let (start, limit) = free_ram(loaded, low_ram_end(mem), bytes);
        let base = limit.checked_sub(bytes).map(|base| base & !(PAGE - 1));
        base.filter(|base| *base >= start).ok_or_else(|| AcpiError::NoRoom {
            processors: platform.processors(),
            bytes,
            kernel_end: start,
            limit,
            room: limit.saturating_sub(start),
        })
    })?;
    for piece in [&tables.low].into_iter().chain(&tables.high) {
        let (address, bytes) = (piece.base, &piece.bytes);
        mem.write_slice(bytes, GuestAddress(address))
            .map_err(|source| AcpiError::Write { address, source })?;
    }
    let pages = |piece: Piece| {
        (
            piece.base,
            piece.end().next_multiple_of(PAGE).saturating_sub(piece.base),
        )
    };
    Ok(Placed {
        rsdp: tables.low.base,
        high: tables.high.map(pages),
    })
}

/// The highest RAM below `ram_end` that `loaded` leaves free (start, end), whole pages: above the
/// initramfs if there are `bytes` bytes, else below it.
fn free_ram(loaded: &Loaded, ram_end: u64, bytes: u64) -> (u64, u64) {
    let kernel_end = loaded.kernel.end.next_multiple_of(PAGE);
    let ram_end = ram_end & !(PAGE - 1);
    let Some((base, len)) = loaded.initramfs else {
        return (kernel_end, ram_end);
    };
    let above = base.saturating_add(len).next_multiple_of(PAGE);
    if ram_end.saturating_sub(above) >= bytes.next_multiple_of(PAGE) {
        (above, ram_end)
    } else {
        (kernel_end, base & !(PAGE - 1))
    }
}

/// Tables one after another, and where they are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address of the first byte, a multiple of 16.
    pub base: u64,
    /// The tables.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// Appends a table at the next aligned offset; tells the address that it will have.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = self.end();
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    fn end(&self) -> u64 {
        self.base.saturating_add(self.bytes.len() as u64)
    }
}

/// All tables of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The RSDP at [`ACPI`], and the other tables if they fit, [`ACPI_LEN`] bytes at most.
    pub low: Piece,
    /// The other tables, if they do not.
    pub high: Option<Piece>,
}

/// Builds all tables of `platform`. `place` is called if they do not fit at [`ACPI`]: it takes the
/// bytes that all but the RSDP have, and tells where in RAM they are to be, a multiple of 16.
///
/// # Errors
/// [`AcpiError::Aml`], and those of `place`.
pub fn build(platform: &Platform, place: impl FnOnce(u64) -> Result<u64, AcpiError>) -> Result<Tables, AcpiError> {
    let found = platform.aml.iter().map(Vec::len).fold(0, usize::saturating_add);
    if found > AML_MAX {
        return Err(AcpiError::Aml { found });
    }
    let (dsdt, madt) = (dsdt::build(platform), madt::build(platform));
    let append_all = |piece: &mut Piece| {
        let dsdt = piece.append(&dsdt);
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(piece.append(&tables::fadt(&platform.power, dsdt)));
        xsdt.add_entry(piece.append(&madt));
        if let Some(ecam) = platform.ecam {
            xsdt.add_entry(piece.append(&tables::mcfg(ecam)));
        }
        piece.append(&xsdt)
    };
    let mut low = Piece {
        base: ACPI,
        bytes: vec![0; Rsdp::len()],
    };
    let mut xsdt = append_all(&mut low);
    let mut high = None;
    if low.bytes.len() as u64 > ACPI_LEN {
        // Behind the RSDP they begin at a multiple of ALIGN; no table's length depends on where it is.
        let bytes = low.bytes.len().saturating_sub(Rsdp::len().next_multiple_of(ALIGN));
        let mut piece = Piece {
            base: place(bytes as u64)?,
            bytes: Vec::with_capacity(bytes),
        };
        xsdt = append_all(&mut piece);
        low.bytes.truncate(Rsdp::len());
        high = Some(piece);
    }
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    low.bytes.splice(..rsdp.len(), rsdp);
    Ok(Tables { low, high })
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
