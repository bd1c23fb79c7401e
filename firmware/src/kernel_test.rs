#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use proptest::prelude::*;

use vm_memory::GuestAddress;

use super::*;
use crate::testing::{
    DATA, ENTRY_PVH, ENTRY64, Elf, assert_kernel_loaded, bzimage, bzimage_of, file, payload, phdr, ram, setup,
};

const RAM: usize = 16 << 20;
const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Lz4, Codec::Zstd, Codec::Xz];

fn load(image: &[u8], wanted: Option<Protocol>) -> Result<(LoadedKernel, GuestMemoryMmap), KernelError> {
    let (_dir, path) = file(image);
    let mem = ram(RAM);
    Ok((KernelImage::open(path)?.load(&mem, wanted)?, mem))
}

/// The one line that a user sees.
fn refusal(image: &[u8], wanted: Option<Protocol>) -> String {
    let (_dir, path) = file(image);
    let error = KernelImage::open(&path)
        .and_then(|image| image.load(&ram(RAM), wanted))
        .unwrap_err();
    line(&error).replace(path.to_str().unwrap(), "K")
}

fn line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

#[test]
fn a_vmlinux_with_a_pvh_note_is_entered_by_pvh() {
    let (kernel, mem) = load(&Elf::kernel().build(), None).unwrap();
    assert_eq!((kernel.protocol, kernel.entry), (Protocol::Pvh, ENTRY_PVH));
    assert_eq!(kernel.end, DATA + 0x9000);
    assert_kernel_loaded(&mem, RAM as u64);
}

#[test]
fn the_64_bit_protocol_can_be_forced_and_is_the_choice_without_a_note() {
    for (elf, wanted) in [(Elf::kernel(), Some(Protocol::Linux64)), (Elf::without_note(), None)] {
        let (kernel, _) = load(&elf.build(), wanted).unwrap();
        assert_eq!((kernel.protocol, kernel.entry), (Protocol::Linux64, ENTRY64));
    }
}

#[test]
fn every_compression_yields_the_same_ram() {
    for codec in CODECS {
        let (kernel, mem) = load(&bzimage(codec, &Elf::kernel().build()), None).unwrap();
        assert_eq!((kernel.protocol, kernel.entry), (Protocol::Pvh, ENTRY_PVH), "{codec:?}");
        assert!(kernel.setup_header.is_some());
        assert_kernel_loaded(&mem, RAM as u64);
    }
}

#[test]
fn a_payload_larger_than_any_buffer_arrives_whole() {
    // LZ4's legacy blocks have 8 MiB.
    for (codec, mib) in [(Codec::Gzip, 1), (Codec::Lz4, 9), (Codec::Zstd, 1), (Codec::Xz, 1)] {
        let mut elf = Elf::kernel();
        let data: Vec<u8> = (0..mib << 20).map(|index: u32| (index / 3 % 255) as u8 + 1).collect();
        elf.programs[1] = (phdr(0x8000, DATA, data.len() as u64, data.len() as u64), data.clone());
        let (_, mem) = load(&bzimage(codec, &elf.build()), None).unwrap();
        assert!(crate::testing::read(&mem, DATA, data.len()) == data, "{codec:?}");
    }
}

#[test]
fn files_that_are_no_kernel_are_named() {
    assert_eq!(
        refusal(b"#!/bin/sh\n", None),
        "kernel K: it starts with bytes [23, 21, 2f, 62]; it must be an ELF vmlinux or a bzImage"
    );
    assert_eq!(refusal(b"", None), "kernel K: it is empty");
    assert_eq!(
        refusal(b"\x7fELF", None),
        "kernel K: ELF header is cut off after 4 bytes; it has 64"
    );
    let missing = line(&KernelImage::open("/nonexistent/vmlinux").unwrap_err());
    assert_eq!(
        missing,
        "kernel /nonexistent/vmlinux: cannot open it: No such file or directory (os error 2)"
    );
    let payload = bzimage(Codec::Zstd, &[b'x'; 9000]);
    assert!(refusal(&payload, None).contains("starts with bytes [78, 78, 78, 78]"));
}

#[test]
fn pvh_cannot_be_forced_without_a_note() {
    let error = refusal(&Elf::without_note().build(), Some(Protocol::Pvh));
    assert_eq!(
        error,
        "kernel K: no PVH note (Xen, type 18); only the 64-bit Linux protocol can boot it"
    );
}

#[test]
fn segments_must_lie_in_ram_above_the_boot_structures() {
    let mut elf = Elf::kernel();
    elf.programs[1].0.p_memsz = 64 << 20;
    assert_eq!(
        refusal(&elf.build(), None),
        "kernel K: segment from 0x204000 to 0x4204000; it must lie in RAM between 0x100000 and 0x1000000"
    );
    let mut elf = Elf::kernel();
    elf.programs[0].0.p_paddr = 0x1000;
    assert!(refusal(&elf.build(), None).contains("segment from 0x1000 to 0x4000;"));
}

#[test]
fn ram_is_untouched_by_a_refused_vmlinux() {
    let mut elf = Elf::without_note();
    elf.header.e_entry = 0x1234;
    let (_dir, path) = file(&elf.build());
    let mem = ram(RAM);
    assert!(KernelImage::open(path).unwrap().load(&mem, None).is_err());
    assert!(crate::testing::read(&mem, 0, RAM).iter().all(|byte| *byte == 0));
}

#[test]
fn a_vmlinux_that_shrinks_after_it_was_opened_is_an_error() {
    let bytes = Elf::kernel().build();
    let (_dir, path) = file(&bytes);
    let image = KernelImage::open(&path).unwrap();
    std::fs::write(&path, &bytes[..0x8100]).unwrap();
    let error = line(&image.load(&ram(RAM), None).unwrap_err());
    assert!(
        error.contains("cannot read 0x2800 bytes at offset 0x8000 into guest RAM"),
        "{error}"
    );
}

#[test]
fn a_payload_must_be_what_it_declares() {
    for codec in [Codec::Lz4, Codec::Zstd, Codec::Xz] {
        let image = Elf::kernel().build();
        let len = image.len() as u32;
        for (declared, expected) in [
            (len - 1, format!("decompresses to more than the {:#x} bytes", len - 1)),
            (
                len + 1,
                format!("decompresses to {len:#x} bytes; it declares {:#x}", len + 1),
            ),
            (
                1 << 30,
                "payload declares 0x40000000 bytes; there are 0x1000000 bytes of RAM".to_owned(),
            ),
        ] {
            let mut payload = payload(codec, &image);
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&declared.to_le_bytes());
            let error = refusal(&bzimage_of(&setup(payload.len() as u32), &payload), None);
            assert!(error.contains(&expected), "{codec:?} {declared:#x}: {error}");
        }
    }
}

#[test]
fn a_bomb_ends_where_its_declared_size_does() {
    let mut image = Elf::kernel().build();
    let declared = image.len() as u32;
    image.resize(3 * RAM, 0);
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mut payload = payload(codec, &image);
        let at = payload.len() - 4;
        payload[at..].copy_from_slice(&declared.to_le_bytes());
        let error = refusal(&bzimage_of(&setup(payload.len() as u32), &payload), None);
        assert!(error.contains("more than the"), "{codec:?}: {error}");
    }
}

#[test]
fn a_truncated_payload_is_an_error_for_every_compression() {
    let mut elf = Elf::kernel();
    // Incompressible, so that half of the payload is well behind the head that is looked at first.
    let noise = |state: &mut u64| {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        Some((*state >> 56) as u8)
    };
    let data: Vec<u8> = std::iter::repeat_with({
        let mut state = 1;
        move || noise(&mut state)
    })
    .flatten()
    .take(1 << 20)
    .collect();
    elf.programs[1] = (phdr(0x8000, DATA, data.len() as u64, data.len() as u64), data);
    let image = elf.build();
    for codec in CODECS {
        let whole = payload(codec, &image);
        let size = (image.len() as u32).to_le_bytes();
        let cut = [&whole[..whole.len() / 2], &size].concat();
        let error = refusal(&bzimage_of(&setup(cut.len() as u32), &cut), None);
        assert!(error.starts_with("kernel K: payload "), "{codec:?}: {error}");
    }
}

#[test]
fn low_ram_ends_at_the_first_gap_and_at_three_gib() {
    let mem = |ranges: &[(u64, usize)]| {
        let ranges: Vec<_> = ranges.iter().map(|(base, len)| (GuestAddress(*base), *len)).collect();
        low_ram_end(&GuestMemoryMmap::from_ranges(&ranges).unwrap())
    };
    assert_eq!(mem(&[(0, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)]), 0x2000);
    assert_eq!(mem(&[(0x1000, 0x1000)]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_vmlinux_with_mutated_headers_never_panics(changes in mutations(64 + 3 * 56), pvh in any::<bool>()) {
        let _ = load(&mutated(Elf::kernel().build(), &changes), pvh.then_some(Protocol::Linux64));
    }

    #[test]
    fn a_mutated_note_never_panics(changes in mutations(0x30)) {
        let mut elf = Elf::kernel().build();
        let notes = mutated(elf[0x3000..0x3030].to_vec(), &changes);
        elf[0x3000..0x3030].copy_from_slice(&notes);
        let _ = load(&elf, None);
    }

    #[test]
    fn a_bzimage_with_a_mutated_setup_header_never_panics(changes in mutations(0x70)) {
        let mut image = bzimage(Codec::Zstd, &Elf::kernel().build());
        let header = mutated(image[0x1f1..0x261].to_vec(), &changes);
        image[0x1f1..0x261].copy_from_slice(&header);
        let _ = load(&image, None);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_mutated_payload_never_panics(codec in prop::sample::select(&CODECS[..]), changes in mutations(0x800)) {
        let payload = mutated(payload(codec, &Elf::kernel().build()), &changes);
        let _ = load(&bzimage_of(&setup(payload.len() as u32), &payload), None);
    }

    #[test]
    fn a_payload_with_mutated_elf_headers_never_panics(
        codec in prop::sample::select(&CODECS[..]),
        changes in mutations(64 + 3 * 56),
    ) {
        let elf = mutated(Elf::kernel().build(), &changes);
        let _ = load(&bzimage(codec, &elf), None);
    }
}

/// Up to eight changed bytes in the first `len`.
fn mutations(len: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    prop::collection::vec((0..len, byte), 1..8)
}

fn mutated(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in changes {
        if let Some(byte) = bytes.get_mut(*at) {
            *byte = *value;
        }
    }
    bytes
}
