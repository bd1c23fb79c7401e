use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_start_info};

use super::*;
use crate::testing::{ENTRY_PVH, ENTRY64, Elf, bzimage, file, platform, ram, read, read_obj};

const RAM: usize = 16 << 20;

fn payload(image: &[u8], protocol: Option<Protocol>) -> Payload {
    let (_dir, kernel) = file(image);
    let (_dir, initramfs) = file(b"070701");
    Payload {
        kernel: KernelImage::open(kernel).unwrap(),
        initramfs: Some(Initramfs::open(initramfs).unwrap()),
        cmdline: CommandLine::new("quiet").unwrap(),
        protocol,
    }
}

#[test]
fn a_pvh_guest_is_complete_in_ram() {
    let mem = ram(RAM);
    let ranges = layout::ram_ranges(RAM as u64);
    let entry = load(&mem, &platform(&ranges), payload(&Elf::kernel().build(), None)).unwrap();
    assert_eq!(
        entry,
        Entry {
            protocol: Protocol::Pvh,
            address: ENTRY_PVH,
            params: layout::START_INFO
        }
    );
    let start_info: hvm_start_info = read_obj(&mem, entry.params);
    assert_eq!(read(&mem, start_info.rsdp_paddr, 8), b"RSD PTR ");
    assert_eq!(read(&mem, start_info.cmdline_paddr, 6), b"quiet\0");
    assert_eq!(read(&mem, RAM as u64 - 4096, 6), b"070701");
}

#[test]
fn a_linux64_guest_from_a_bzimage_is_complete_in_ram() {
    let mem = ram(RAM);
    let ranges = layout::ram_ranges(RAM as u64);
    let image = bzimage(Codec::Xz, &Elf::kernel().build());
    let entry = load(&mem, &platform(&ranges), payload(&image, Some(Protocol::Linux64))).unwrap();
    assert_eq!(
        entry,
        Entry {
            protocol: Protocol::Linux64,
            address: ENTRY64,
            params: layout::ZERO_PAGE
        }
    );
    assert_eq!(read(&mem, layout::PAGE_TABLES, 2), [0x03, 0x50]);
}

#[test]
fn a_payload_can_be_loaded_by_another_thread() {
    let mem = ram(RAM);
    let ranges = layout::ram_ranges(RAM as u64);
    let payload = payload(&bzimage(Codec::Zstd, &Elf::kernel().build()), None);
    let loaded = std::thread::scope(|scope| scope.spawn(|| payload.load(&mem)).join().unwrap().unwrap());
    let entry = describe(&mem, &platform(&ranges), &loaded).unwrap();
    assert_eq!(entry.address, ENTRY_PVH);
}

/// Neither the guest, which has them out of its RAM, nor the initramfs is in their way.
#[test]
fn tables_of_many_vcpus_have_pages_of_their_own_whichever_the_protocol() {
    let (ids, ranges) = ((0..4096).collect::<Vec<_>>(), layout::ram_ranges(RAM as u64));
    let aml = vec![vec![0; 100]; 4096];
    let many = Platform {
        spare_apic_ids: &ids[1..],
        aml: &aml,
        ..platform(&ranges)
    };
    for protocol in [Protocol::Pvh, Protocol::Linux64] {
        let mem = ram(RAM);
        let entry = load(&mem, &many, payload(&Elf::kernel().build(), Some(protocol))).unwrap();
        assert_eq!(
            read(&mem, RAM as u64 - 4096, 6),
            b"070701",
            "the initramfs is where it always is"
        );
        let (rsdp, map) = match protocol {
            Protocol::Pvh => {
                let info: hvm_start_info = read_obj(&mem, entry.params);
                let entries = (0..u64::from(info.memmap_entries)).map(|index| {
                    let range: hvm_memmap_table_entry = read_obj(&mem, info.memmap_paddr + index * 24);
                    (range.addr, range.size, range.type_)
                });
                (info.rsdp_paddr, entries.collect::<Vec<_>>())
            }
            Protocol::Linux64 => {
                let page: boot_params = read_obj(&mem, entry.params);
                let entries = page.e820_table.into_iter().take(page.e820_entries.into());
                (
                    page.acpi_rsdp_addr,
                    entries.map(|range| (range.addr, range.size, range.r#type)).collect(),
                )
            }
        };
        assert_eq!(rsdp, layout::ACPI);
        let xsdt: u64 = read_obj(&mem, rsdp + 24);
        assert_eq!(read(&mem, xsdt, 4), b"XSDT");
        let (base, len, kind) = map[3];
        assert_eq!((base + len, kind), (RAM as u64 - 4096, 3), "AddressRangeACPI, {map:x?}");
        assert!((base..base + len).contains(&xsdt));
        assert_eq!((map[2].0 + map[2].1, map[2].2), (base, 1));
        assert_eq!(map[4], (RAM as u64 - 4096, 4096, 1));
    }
}
