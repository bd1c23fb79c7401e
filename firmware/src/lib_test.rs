use linux_loader::start_info::hvm_start_info;

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
fn payload_and_tables_can_be_written_by_two_threads() {
    let mem = ram(RAM);
    let ranges = layout::ram_ranges(RAM as u64);
    let platform = platform(&ranges);
    let payload = payload(&bzimage(Codec::Zstd, &Elf::kernel().build()), None);
    let (loaded, rsdp) = std::thread::scope(|scope| {
        let loader = scope.spawn(|| payload.load(&mem));
        let rsdp = acpi::write(&mem, &platform).unwrap();
        (loader.join().unwrap().unwrap(), rsdp)
    });
    let entry = describe(&mem, &platform, &loaded, rsdp).unwrap();
    assert_eq!(entry.address, ENTRY_PVH);
}
