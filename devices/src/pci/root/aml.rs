//! AML of the PCI root: what it owns, and what it leaves to the guest.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, If, Local,
    Memory32Fixed, Method, Name, NotEqual, ONE, Or, Path, ResourceTemplate, Return, Store, Uuid, ZERO,
};

use super::PciRoot;
use crate::pci::Window;

/// UUID by which an operating system negotiates PCIe features (PCI Firmware 3.3 §4.5.1).
const OSC_PCI_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// Control fields given to the guest: PME (bit 2), AER (3), the PCIe capability (4). Not hot-plug
/// by PCIe slots or SHPC (0, 1): there are none, and ACPI does that.
const OSC_GRANTED: u8 = 0b1_1100;
/// Status bits in the first dword: unrecognised UUID, unrecognised revision, capabilities masked
/// (PCI Firmware 3.3 table 4-4).
const OSC_BAD_UUID: u8 = 1 << 2;
const OSC_BAD_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;

impl PciRoot {
    /// The devices `PCI0` (host bridge, `_CRS` with bus 0 and the two memory windows; one of size 0
    /// is left out) and `ECAM` (a motherboard resource that reserves the ECAM window, which Linux
    /// wants before it trusts MCFG). For `\_SB`.
    pub fn aml(ecam: Window, mmio32: Window, mmio64: Window) -> Vec<u8> {
        let mut aml = Vec::new();
        host_bridge(&[mmio32, mmio64], &mut aml);
        motherboard(ecam, &mut aml);
        aml
    }
}

fn host_bridge(windows: &[Window], aml: &mut Vec<u8>) {
    let buses = AddressSpace::<u16>::new_bus_number(0, 0);
    let memory: Vec<_> = windows.iter().filter_map(|window| address_space(*window)).collect();
    let mut resources: Vec<&dyn Aml> = vec![&buses];
    resources.extend(memory.iter().map(|window| window as &dyn Aml));
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            &Osc,
        ],
    )
    .to_aml_bytes(aml);
}

/// A window that the bridge passes on. Not marked prefetchable: Linux puts no other BAR into such a window.
fn address_space(window: Window) -> Option<AddressSpace<u64>> {
    let last = window.base.checked_add(window.size.checked_sub(1)?)?;
    Some(AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window.base,
        last,
        None,
    ))
}

/// `_OSC(UUID, revision, dwords, buffer)` (ACPI 6.5 §6.2.11, PCI Firmware 3.3 §4.5.1).
struct Osc;

impl Aml for Osc {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
        let (granted, third_dword) = (OSC_GRANTED, 8u8);
        Method::new(
            Path::new("_OSC"),
            4,
            // The fields below are named objects, which two threads must not create at once.
            true,
            vec![
                &CreateDWordField::new(&status, &Arg(3), &ZERO),
                &If::new(
                    &Equal::new(&Arg(0), &Uuid::new(OSC_PCI_UUID)),
                    vec![
                        &CreateDWordField::new(&control, &Arg(3), &third_dword),
                        &And::new(&Local(0), &control, &granted),
                        &If::new(
                            &NotEqual::new(&Local(0), &control),
                            vec![&Or::new(&status, &status, &OSC_MASKED)],
                        ),
                        &Store::new(&control, &Local(0)),
                        &If::new(
                            &NotEqual::new(&Arg(1), &ONE),
                            vec![&Or::new(&status, &status, &OSC_BAD_REVISION)],
                        ),
                    ],
                ),
                &Else::new(vec![&Or::new(&status, &status, &OSC_BAD_UUID)]),
                &Return::new(&Arg(3)),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn motherboard(ecam: Window, aml: &mut Vec<u8>) {
    let fixed = match (u32::try_from(ecam.base), u32::try_from(ecam.size)) {
        (Ok(base), Ok(size)) => Some(Memory32Fixed::new(true, base, size)),
        _ => None,
    };
    let wide = address_space(ecam);
    let resource = fixed
        .as_ref()
        .map(|fixed| fixed as &dyn Aml)
        .or(wide.as_ref().map(|wide| wide as &dyn Aml));
    Device::new(
        Path::new("ECAM"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(resource.into_iter().collect()),
            ),
        ],
    )
    .to_aml_bytes(aml);
}
