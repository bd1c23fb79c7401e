use linux_loader::bootparam::XLF_KERNEL_64;
use vm_memory::ByteValued;

use super::*;
use crate::testing::{platform, ram, read, read_obj, setup};
use crate::{CommandLine, LoadedKernel};

const RSDP: u64 = 0xe_0000;
const TABLES: Placed = Placed { rsdp: RSDP, high: None };

fn loaded(protocol: Protocol, setup_header: Option<setup_header>) -> Loaded {
    let kernel = LoadedKernel {
        protocol,
        entry: 0x20_0000,
        end: 0x30_0000,
        initrd_addr_max: 0x7fff_ffff,
        setup_header,
    };
    let cmdline = CommandLine::new("console=ttyS0 dm=\"a b\"").unwrap();
    Loaded {
        kernel,
        initramfs: Some((0x40_0000, 5000)),
        cmdline,
    }
}

fn written(loaded: &Loaded, ram_bytes: u64) -> (GuestMemoryMmap, u64) {
    let mem = ram(1 << 20);
    let params = write(&mem, &platform(&layout::ram_ranges(ram_bytes)), loaded, TABLES).unwrap();
    assert_eq!(read(&mem, layout::CMDLINE, 24), b"console=ttyS0 dm=\"a b\"\0\0");
    (mem, params)
}

#[test]
fn a_pvh_kernel_finds_everything_from_start_info() {
    let (mem, params) = written(&loaded(Protocol::Pvh, None), 5 << 30);
    let start_info: hvm_start_info = read_obj(&mem, params);
    assert_eq!((start_info.magic, start_info.version), (0x336e_c578, 1));
    assert_eq!(
        (start_info.cmdline_paddr, start_info.rsdp_paddr),
        (layout::CMDLINE, RSDP)
    );
    assert_eq!(start_info.nr_modules, 1);
    let module: hvm_modlist_entry = read_obj(&mem, start_info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (0x40_0000, 5000));
    assert_eq!(start_info.memmap_entries, 6);
    let last: hvm_memmap_table_entry = read_obj(&mem, start_info.memmap_paddr + 5 * 24);
    assert_eq!((last.addr, last.size, last.type_), (4 << 30, 2 << 30, 1));
}

#[test]
fn without_an_initramfs_there_is_no_module() {
    let (mem, params) = written(
        &Loaded {
            initramfs: None,
            ..loaded(Protocol::Pvh, None)
        },
        1 << 30,
    );
    let start_info: hvm_start_info = read_obj(&mem, params);
    assert_eq!((start_info.nr_modules, start_info.modlist_paddr), (0, 0));
}

#[test]
fn a_vmlinux_gets_a_zero_page_of_its_own() {
    let (mem, params) = written(&loaded(Protocol::Linux64, None), 5 << 30);
    let page: boot_params = read_obj(&mem, params);
    let header = page.hdr;
    assert_eq!(({ header.boot_flag }, { header.header }), (0xaa55, 0x5372_6448));
    assert_eq!((header.type_of_loader, header.loadflags), (0xff, LOADED_HIGH));
    assert_eq!({ header.cmd_line_ptr }, 0x1800);
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x40_0000, 5000));
    assert_eq!({ page.acpi_rsdp_addr }, RSDP);
    assert_eq!(page.sentinel, 0, "Linux would forget everything outside the header");
    assert_eq!(page.e820_entries, 6);
    let (first, last) = (page.e820_table[0], page.e820_table[5]);
    assert_eq!(({ first.addr }, { first.size }, { first.r#type }), (0, 0xa_0000, 1));
    assert_eq!(({ last.addr }, { last.size }, { last.r#type }), (4 << 30, 2 << 30, 1));
    assert_eq!(page.as_slice().len(), 4096);
}

#[test]
fn a_bzimage_keeps_its_own_header() {
    let mut header = setup(64);
    header.xloadflags = XLF_KERNEL_64;
    header.loadflags = LOADED_HIGH | CAN_USE_HEAP;
    let (mem, params) = written(&loaded(Protocol::Linux64, Some(header)), 1 << 30);
    let page: boot_params = read_obj(&mem, params);
    let header = page.hdr;
    assert_eq!({ header.version }, 0x020f);
    assert_eq!({ header.xloadflags }, XLF_KERNEL_64);
    assert_eq!((header.loadflags, header.type_of_loader), (LOADED_HIGH, 0xff));
}

#[test]
fn a_memory_map_that_is_too_long_is_refused() {
    let ranges: Vec<(u64, u64)> = (0..70).map(|index| (index << 30, 1 << 20)).collect();
    let error = write(&ram(1 << 20), &platform(&ranges), &loaded(Protocol::Pvh, None), TABLES).unwrap_err();
    assert_eq!(error.to_string(), "memory map has 73 ranges; at most 64 are allowed");
}

#[test]
fn an_initramfs_above_four_gib_does_not_fit_the_zero_page() {
    let loaded = Loaded {
        initramfs: Some((4 << 30, 1)),
        ..loaded(Protocol::Linux64, None)
    };
    let error = write(&ram(1 << 20), &platform(&[(0, 1 << 30)]), &loaded, TABLES).unwrap_err();
    assert!(matches!(
        error,
        ParamsError::Initramfs {
            base: 0x1_0000_0000,
            len: 1
        }
    ));
}

#[test]
fn too_little_ram_is_an_error() {
    let mem = ram(0x1000);
    for protocol in [Protocol::Pvh, Protocol::Linux64] {
        let error = write(&mem, &platform(&[(0, 1 << 30)]), &loaded(protocol, None), TABLES).unwrap_err();
        assert!(matches!(error, ParamsError::CommandLine(_)));
    }
    let error = write(
        &ram(0x2000),
        &platform(&[(0, 1 << 30)]),
        &loaded(Protocol::Linux64, None),
        TABLES,
    )
    .unwrap_err();
    assert!(matches!(error, ParamsError::Write(_)));
}
