#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use super::*;
use crate::testing::{platform, ram, read, read_obj};

fn entry(protocol: Protocol) -> Entry {
    Entry {
        protocol,
        address: 0x100_0a30,
        params: 0x1000,
    }
}

fn sregs(protocol: Protocol) -> kvm_sregs {
    let mut sregs = kvm_sregs {
        apic_base: 0xfee0_0900,
        cr3: 7,
        cr4: 7,
        efer: 7,
        ..Default::default()
    };
    boot_sregs(&entry(protocol), &platform(&[]), &mut sregs);
    sregs
}

#[test]
fn pvh_starts_in_flat_32_bit_mode_with_start_info_in_ebx() {
    let regs = boot_regs(&entry(Protocol::Pvh));
    assert_eq!((regs.rip, regs.rbx, regs.rsi, regs.rflags), (0x100_0a30, 0x1000, 0, 2));
    let sregs = sregs(Protocol::Pvh);
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    assert_eq!(
        (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l),
        (0, 0xffff_ffff, 1, 0)
    );
    assert_eq!((sregs.tr.limit, sregs.tr.type_, sregs.tr.s), (0x67, 0xb, 0));
}

#[test]
fn linux64_starts_in_long_mode_with_the_zero_page_in_rsi() {
    let regs = boot_regs(&entry(Protocol::Linux64));
    assert_eq!((regs.rip, regs.rsi, regs.rbx), (0x100_0a30, 0x1000, 0));
    let sregs = sregs(Protocol::Linux64);
    assert_eq!(
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
        (0x8000_0011, PAGE_TABLES, 0x20, 0x500)
    );
    assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
    assert_eq!((sregs.ds.selector, sregs.ss.selector, sregs.ss.type_), (0x18, 0x18, 3));
    assert_eq!((sregs.gdt.base, sregs.gdt.limit), (GDT, 31));
}

#[test]
fn what_the_protocols_do_not_prescribe_stays() {
    assert_eq!(sregs(Protocol::Pvh).apic_base, 0xfee0_0900);
    assert_eq!(sregs(Protocol::Linux64).apic_base, 0xfee0_0900);
}

#[test]
fn the_local_apic_starts_in_x2apic_mode_where_an_id_needs_that_and_nowhere_else() {
    let ids: Vec<u32> = (0..4096).collect();
    for (boot, max, expected) in [
        (1, 1, 0xfee0_0900),
        (255, 255, 0xfee0_0900),
        (1, 255, 0xfee0_0900),
        (1, 256, 0xfee0_0d00),
        (256, 256, 0xfee0_0d00),
        (1, 4096, 0xfee0_0d00),
    ] {
        let platform = Platform {
            apic_ids: &ids[..boot],
            spare_apic_ids: &ids[boot..max],
            ..platform(&[])
        };
        let mut sregs = kvm_sregs {
            apic_base: 0xfee0_0900,
            ..Default::default()
        };
        boot_sregs(&entry(Protocol::Pvh), &platform, &mut sregs);
        assert_eq!(sregs.apic_base, expected, "{boot} of {max}");
    }
}

/// Walks the page tables as the CPU would.
fn translate(mem: &GuestMemoryMmap, address: u64) -> Option<u64> {
    let mut table = PAGE_TABLES;
    for shift in [39, 30, 21] {
        let entry: u64 = read_obj(mem, table + 8 * ((address >> shift) & 511));
        if entry & 1 == 0 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if shift == 21 {
            assert_eq!(entry & 0x80, 0x80, "a large page");
        }
    }
    Some(table | (address & (LARGE_PAGE - 1)))
}

#[test]
fn four_gib_are_mapped_one_to_one_and_no_more() {
    let mem = ram(1 << 20);
    write_tables(&mem, &entry(Protocol::Linux64)).unwrap();
    for address in [0, 0x1000, 0x100_0a30, 0x3fff_ffff, 0xbfff_ffff, 0xffff_ffff] {
        assert_eq!(translate(&mem, address), Some(address));
    }
    assert_eq!(translate(&mem, 1 << 32), None);
    assert_eq!(translate(&mem, 1 << 39), None);
}

#[test]
fn the_gdt_agrees_with_the_segments_that_are_loaded() {
    let mem = ram(1 << 20);
    write_tables(&mem, &entry(Protocol::Linux64)).unwrap();
    let sregs = sregs(Protocol::Linux64);
    for segment in [sregs.cs, sregs.ds] {
        let descriptor: u64 = read_obj(&mem, GDT + u64::from(segment.selector));
        assert_eq!((descriptor >> 40) as u8 & 0xf, segment.type_);
        assert_eq!((descriptor >> 53) as u8 & 1, segment.l);
        assert_eq!((descriptor >> 54) as u8 & 1, segment.db);
        assert_eq!(descriptor & 0xf_0000_0000_ffff, 0xf_0000_0000_ffff, "limit 4 GiB");
    }
}

#[test]
fn pvh_needs_no_tables() {
    let mem = ram(1 << 20);
    write_tables(&mem, &entry(Protocol::Pvh)).unwrap();
    assert!(read(&mem, GDT, 0x7000).iter().all(|byte| *byte == 0));
}

#[test]
fn too_little_ram_is_an_error_that_names_the_table() {
    let error = write_tables(&ram(0x4000), &entry(Protocol::Linux64)).unwrap_err();
    assert_eq!(error.to_string(), "cannot write the page tables at 0x4000");
}
