//! A kernel file, and at times an initramfs, on their way into 4 MiB of guest RAM.
//!
//! The first byte chooses: bits 0 and 1 the protocol (none, PVH, 64-bit), bit 2 whether the file is
//! the initramfs, too, bit 3 whether RAM is in two pieces. The rest is the file.

use husk_firmware::layout;
use husk_firmware::{
    CommandLine, Ecam, GuestMemoryMmap, Initramfs, KernelImage, Payload, Platform, PowerRegisters, Protocol,
};
use vm_memory::GuestAddress;

use crate::file::{MemoryFile, with_file};
use crate::{Seeds, elf};

const RAM: usize = 4 << 20;

pub fn run(input: &[u8]) {
    let Some((flags, file)) = input.split_first() else {
        return;
    };
    with_file(file, |file| load(file, *flags));
}

fn load(file: &MemoryFile, flags: u8) {
    let Ok(kernel) = KernelImage::open(file.path()) else {
        return;
    };
    let initramfs = (flags & 4 != 0).then(|| Initramfs::open(file.path()).unwrap());
    let payload = Payload {
        kernel,
        initramfs,
        cmdline: CommandLine::default(),
        protocol: match flags & 3 {
            1 => Some(Protocol::Pvh),
            2 => Some(Protocol::Linux64),
            _ => None,
        },
    };
    let ram: &[(u64, u64)] = if flags & 8 != 0 {
        &[(0, 2 << 20), (2 << 20, 2 << 20)]
    } else {
        &[(0, RAM as u64)]
    };
    let regions: Vec<_> = ram
        .iter()
        .map(|(base, len)| (GuestAddress(*base), usize::try_from(*len).unwrap()))
        .collect();
    let mem = GuestMemoryMmap::from_ranges(&regions).unwrap();
    let Ok(loaded) = payload.load(&mem) else { return };
    let kernel = &loaded.kernel;
    assert!((layout::KERNEL_MIN..=RAM as u64).contains(&kernel.end));
    assert!(
        (layout::KERNEL_MIN..kernel.end).contains(&kernel.entry),
        "entry {:#x}",
        kernel.entry
    );
    if let Some((base, len)) = loaded.initramfs {
        assert!(
            base >= kernel.end && base + len <= RAM as u64,
            "initramfs at {base:#x}, {len:#x} bytes"
        );
        assert!(base + len - 1 <= kernel.initrd_addr_max.into());
    }
    let entry = husk_firmware::describe(&mem, &platform(ram), &loaded).unwrap();
    assert_eq!(entry.address, kernel.entry);
}

fn platform(ram: &[(u64, u64)]) -> Platform<'_> {
    Platform {
        ram,
        apic_ids: &[0],
        spare_apic_ids: &[],
        ecam: Some(Ecam {
            base: layout::ECAM,
            end_bus: 0,
        }),
        power: PowerRegisters {
            sleep_control: layout::SLEEP_CONTROL_PORT,
            sleep_status: layout::SLEEP_STATUS_PORT,
            reset: layout::RESET_PORT,
            reset_value: 1,
        },
        aml: &[],
    }
}

pub fn seeds() -> Seeds {
    let vmlinux = elf::vmlinux();
    let with = |flags: u8, file: &[u8]| [&[flags], file].concat();
    let mut seeds = vec![
        ("vmlinux-pvh", with(1 | 4, &vmlinux)),
        ("vmlinux-64", with(2 | 8, &vmlinux)),
    ];
    for (name, compressed) in elf::compressed(&vmlinux) {
        seeds.push((name, with(4, &elf::bzimage(&compressed))));
    }
    seeds
}
