//! FADT (ACPI 6.5 §5.2.9) and MCFG (PCI Firmware 3.3 §4.1.2).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::{Ecam, PowerRegisters};

/// `IAPC_BOOT_ARCH`: what Linux need not look for (ACPI 6.5 §5.2.9.3). `LEGACY_DEVICES` and `8042`
/// are left out on purpose: the keyboard controller is there to be told "reset", and a driver that
/// probed it would only lose time.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// No power management of links: bus 0 has none.
const PCIE_ASPM_CONTROLS: u16 = 1 << 4;
/// No real-time clock at ports 0x70 and 0x71.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The fixed description of a machine without fixed hardware. Power and sleep buttons are declared absent from it.
pub(super) fn fadt(power: &PowerRegisters, dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | PCIE_ASPM_CONTROLS | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(power.reset);
    fadt.reset_value = power.reset_value;
    fadt.sleep_control_reg = port(power.sleep_control);
    fadt.sleep_status_reg = port(power.sleep_status);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"HUSK    ").into();
    fadt.finalize()
}

/// A register of one byte in I/O space (ACPI 6.5 §5.2.3.2).
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

/// Configuration space of segment 0.
pub(super) fn mcfg(ecam: Ecam) -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ecam.base, 0, 0, ecam.end_bus);
    mcfg
}
