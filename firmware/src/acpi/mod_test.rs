#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use super::*;
use crate::layout::{ECAM, IOAPIC, LAPIC};
use crate::testing::{loaded, platform, ram, read};

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

/// The tables of a machine that has room for all of them at [`ACPI`].
fn build_low(platform: &Platform) -> Vec<u8> {
    let tables = build(platform, |_| panic!("they fit")).unwrap();
    assert_eq!((tables.low.base, tables.high), (ACPI, None));
    tables.low.bytes
}

#[test]
fn the_tables_are_where_the_rsdp_says() {
    let mem = ram(1 << 20);
    let platform = platform(&RAM);
    let placed = write(&mem, &platform, &loaded(None)).unwrap();
    assert_eq!(placed, Placed { rsdp: ACPI, high: None });
    let expected = build_low(&platform);
    assert_eq!(read(&mem, ACPI, expected.len()), expected);
    for signature in [b"FACP", b"APIC", b"MCFG"] {
        assert!(find(&expected, signature).is_some());
    }
}

#[test]
fn the_fadt_declares_a_reduced_machine_without_legacy_devices() {
    let bytes = build_low(&platform(&RAM));
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
    let bytes = build_low(&Platform {
        aml: &aml,
        ..platform(&RAM)
    });
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
    let bytes = build_low(&Platform {
        apic_ids: &[0, 2, 254],
        spare_apic_ids: &[3],
        ..platform(&RAM)
    });
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
    let bytes = build_low(&Platform {
        apic_ids: &ids[..256],
        spare_apic_ids: &ids[256..],
        ..platform(&RAM)
    });
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
    let bytes = build_low(&platform(&RAM));
    let mcfg = find(&bytes, b"MCFG").unwrap();
    assert_eq!((u64_at(mcfg, 44), &mcfg[52..]), (ECAM, &[0; 8][..]));
    let bytes = build_low(&Platform {
        ecam: None,
        ..platform(&RAM)
    });
    assert!(find(&bytes, b"MCFG").is_none());
}

/// A vCPU's AML, or a little more.
const VCPU_AML: usize = 128;

/// What [`write`] makes of `aml` and `processors` in 64 MiB of RAM with `loaded`: where, and the bytes there.
fn write_many(processors: u32, aml: &[Vec<u8>], loaded: &Loaded) -> Result<(u64, Vec<u8>, Vec<u8>), AcpiError> {
    let (mem, ids) = (ram(64 << 20), (0..processors).collect::<Vec<_>>());
    let many = Platform {
        apic_ids: &ids[..1],
        spare_apic_ids: &ids[1..],
        aml,
        ..platform(&RAM)
    };
    let placed = write(&mem, &many, loaded)?;
    let (base, len) = placed.high.unwrap();
    assert_eq!((placed.rsdp, base % PAGE, len % PAGE), (ACPI, 0, 0));
    assert_eq!(read(&mem, ACPI + 36, 4096), [0; 4096], "the RSDP is there alone");
    Ok((base, read(&mem, ACPI, 36), read(&mem, base, len as usize)))
}

#[test]
fn tables_of_4096_vcpus_are_at_the_end_of_ram() {
    let aml = vec![vec![0xa3; VCPU_AML]; 4096];
    let (base, rsdp, bytes) = write_many(4096, &aml, &loaded(None)).unwrap();
    assert_eq!(base + bytes.len() as u64, 64 << 20);
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let table = |address: u64| {
        let start = usize::try_from(address - base).unwrap();
        let table = &bytes[start..start + u32_at(&bytes, start + 4) as usize];
        assert_eq!((address % 16, sum(table)), (0, 0));
        table
    };
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
    let xsdt = table(u64_at(&rsdp, 24));
    let tables: Vec<_> = xsdt[36..].chunks(8).map(|entry| table(u64_at(entry, 0))).collect();
    let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    assert_eq!(tables[1].len(), 44 + 255 * 8 + (4096 - 255) * 16 + 12);
    let dsdt = table(u64_at(tables[0], 140));
    assert!(&dsdt[..4] == b"DSDT" && dsdt.ends_with(&aml.concat()));
}

#[test]
fn tables_that_do_not_fit_are_below_an_initramfs_at_the_end_of_ram_and_above_one_that_is_not() {
    let aml = [vec![0; ACPI_LEN as usize]];
    let at_the_end = loaded(Some(((64 << 20) - 0x2000, 5000)));
    let (base, _, bytes) = write_many(1, &aml, &at_the_end).unwrap();
    assert_eq!(base + bytes.len() as u64, (64 << 20) - 0x2000);

    let further_down = loaded(Some((32 << 20, 5000)));
    let (base, _, bytes) = write_many(1, &aml, &further_down).unwrap();
    assert_eq!(base + bytes.len() as u64, 64 << 20);
}

#[test]
fn the_last_byte_that_fits_below_1_mib_is_there() {
    let with = |aml: usize| {
        let aml = [vec![0; aml]];
        let platform = Platform {
            aml: &aml,
            ..platform(&RAM)
        };
        build(&platform, |_| Ok(16 << 20)).unwrap()
    };
    let rest = build_low(&platform(&RAM)).len();
    let most = (0..64).find_map(|less| {
        let tables = with(ACPI_LEN as usize - rest - less);
        tables.high.is_none().then_some(tables.low.bytes.len())
    });
    let most = most.unwrap() as u64;
    assert!(most <= ACPI_LEN && ACPI_LEN - most < 16, "{most}");
}

#[test]
fn tables_without_room_are_refused_with_figures() {
    let aml = [vec![0; ACPI_LEN as usize]];
    let mut full = loaded(Some(((64 << 20) - 0x2000, 5000)));
    full.kernel.end = (63 << 20) + 0xf_8000;
    assert_eq!(
        write_many(2, &aml, &full).unwrap_err().to_string(),
        "the ACPI tables of 2 vCPUs have 0x2021c bytes; between the kernel's end 0x3ff8000 and 0x3ffe000 there is room \
         for 0x6000"
    );
}

#[test]
fn more_aml_than_any_machine_has_is_refused() {
    let aml = [vec![0; AML_MAX], vec![0]];
    let platform = Platform {
        aml: &aml,
        ..platform(&RAM)
    };
    assert_eq!(
        build(&platform, |_| panic!("asked for room")).unwrap_err().to_string(),
        "the AML of the devices has 8388609 bytes; at most 8388608 are allowed"
    );
}
