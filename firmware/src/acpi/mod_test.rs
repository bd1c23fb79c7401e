#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use super::*;
use crate::layout::{ECAM, IOAPIC, LAPIC};
use crate::testing::{platform, ram, read};

const RAM: [(u64, u64); 1] = [(0, 1 << 30)];

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at `address`, with its length and checksum verified.
fn table(bytes: &[u8], address: u64) -> &[u8] {
    assert_eq!(address % 16, 0);
    let start = (address - ACPI) as usize;
    let table = &bytes[start..start + u32_at(bytes, start + 4) as usize];
    assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// The table with `signature`, found as a guest finds it.
fn find<'a>(bytes: &'a [u8], signature: &[u8; 4]) -> Option<&'a [u8]> {
    assert_eq!(&bytes[..8], b"RSD PTR ");
    assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
    assert_eq!((bytes[15], u32_at(bytes, 16), u32_at(bytes, 20)), (2, 0, 36));
    let xsdt = table(bytes, u64_at(bytes, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let mut tables = xsdt[36..].chunks(8).map(|entry| table(bytes, u64_at(entry, 0)));
    tables.find(|table| &table[..4] == signature)
}

#[test]
fn the_tables_are_where_the_rsdp_says() {
    let mem = ram(1 << 20);
    let platform = platform(&RAM);
    assert_eq!(write(&mem, &platform).unwrap(), ACPI);
    let expected = build(&platform).unwrap();
    assert_eq!(read(&mem, ACPI, expected.len()), expected);
    for signature in [b"FACP", b"APIC", b"MCFG"] {
        assert!(find(&expected, signature).is_some());
    }
}

#[test]
fn the_fadt_declares_a_reduced_machine_without_legacy_devices() {
    let bytes = build(&platform(&RAM)).unwrap();
    let fadt = find(&bytes, b"FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "ACPI 6.5");
    let flags = u32_at(fadt, 112);
    assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1 << 2 | 1);
    let boot_arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(
        boot_arch, 0b11_0100,
        "no VGA, no ASPM, no CMOS RTC; no legacy devices, no 8042"
    );
    // Reset, sleep control and sleep status: system I/O, 8 bits wide, byte access.
    assert_eq!(&fadt[116..120], &[1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0x602, 1));
    assert_eq!((&fadt[244..248], u64_at(fadt, 248)), (&[1, 8, 0, 1][..], 0x600));
    assert_eq!((&fadt[256..260], u64_at(fadt, 260)), (&[1, 8, 0, 1][..], 0x601));
    assert!(
        fadt[46..109].iter().enumerate().all(|(at, byte)| at == 0 || *byte == 0),
        "no fixed hardware"
    );
}

#[test]
fn the_dsdt_has_the_sleep_state_and_every_fragment_in_order() {
    let aml = [b"\x5b\x82\x05AAAA".to_vec(), b"\x5b\x82\x05BBBB".to_vec()];
    let bytes = build(&Platform {
        aml: &aml,
        ..platform(&RAM)
    })
    .unwrap();
    let dsdt = table(&bytes, u64_at(find(&bytes, b"FACP").unwrap(), 140));
    assert_eq!((&dsdt[..4], dsdt[8]), (&b"DSDT"[..], 2));
    // Name (_S5_, Package (4) {5, 0, 0, 0})
    let s5 = b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x00\x0a\x00\x0a\x00";
    let found = &dsdt[36..];
    assert!(found.starts_with(b"\x08_S5_\x12"), "{found:x?}");
    assert_eq!(found[8..10], s5[8..10]);
    // Scope (_SB_) with both fragments, to the end.
    let scope = [&[0x10, 19][..], b"_SB_", &aml.concat()].concat();
    assert!(found.ends_with(&scope), "{found:x?}");
}

#[test]
fn the_madt_lists_processors_then_the_ioapic() {
    let bytes = build(&Platform {
        apic_ids: &[0, 2, 254],
        spare_apic_ids: &[3],
        ..platform(&RAM)
    })
    .unwrap();
    let madt = find(&bytes, b"APIC").unwrap();
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (LAPIC, 0), "PCAT_COMPAT is clear");
    let processors: Vec<_> = madt[44..76]
        .chunks(8)
        .map(|e| (e[0], e[1], e[2], e[3], u32_at(e, 4)))
        .collect();
    assert_eq!(
        processors,
        [(0, 8, 0, 0, 1), (0, 8, 1, 2, 1), (0, 8, 2, 254, 1), (0, 8, 3, 3, 2)]
    );
    let ioapic = &madt[76..];
    assert_eq!(
        (ioapic[0], ioapic[1], ioapic[2], u32_at(ioapic, 4), u32_at(ioapic, 8)),
        (1, 12, 0, IOAPIC, 0)
    );
    assert_eq!(ioapic.len(), 12);
}

#[test]
fn large_apic_ids_have_x2apic_entries() {
    let ids: Vec<u32> = (0..300).collect();
    let bytes = build(&Platform {
        apic_ids: &ids[..256],
        spare_apic_ids: &ids[256..],
        ..platform(&RAM)
    })
    .unwrap();
    let madt = find(&bytes, b"APIC").unwrap();
    let (local, rest) = madt[44..].split_at(255 * 8);
    assert!(local.chunks(8).all(|entry| entry[0] == 0 && entry[1] == 8));
    let (x2apic, ioapic) = rest.split_at(45 * 16);
    for (uid, entry) in (255..).zip(x2apic.chunks(16)) {
        let flags = if uid < 256 { 1 } else { 2 };
        assert_eq!((entry[0], entry[1], entry[2], entry[3]), (9, 16, 0, 0));
        assert_eq!(
            (u32_at(entry, 4), u32_at(entry, 8), u32_at(entry, 12)),
            (uid, flags, uid)
        );
    }
    assert_eq!((ioapic[0], ioapic.len()), (1, 12));
}

#[test]
fn the_mcfg_is_there_only_with_pci() {
    let bytes = build(&platform(&RAM)).unwrap();
    let mcfg = find(&bytes, b"MCFG").unwrap();
    assert_eq!((u64_at(mcfg, 44), &mcfg[52..]), (ECAM, &[0; 8][..]));
    let bytes = build(&Platform {
        ecam: None,
        ..platform(&RAM)
    })
    .unwrap();
    assert!(find(&bytes, b"MCFG").is_none());
}

#[test]
fn more_aml_than_there_is_room_for_is_refused() {
    let aml = [vec![0; ACPI_LEN as usize + 1]];
    let error = build(&Platform {
        aml: &aml,
        ..platform(&RAM)
    })
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "ACPI tables have 131057 bytes; at most 131056 are allowed"
    );
    let aml = [vec![0; ACPI_LEN as usize]];
    assert!(matches!(
        build(&Platform {
            aml: &aml,
            ..platform(&RAM)
        }),
        Err(AcpiError::TooLarge { .. })
    ));
}
