//! Kernels of a few hundred bytes: an ELF file with two segments and a PVH note, and bzImages of it.

use std::io::Write;

/// Where the kernel goes in RAM.
const TEXT: u64 = 0x20_0000;

/// An ELF file: header, three program headers, text with a PVH note in it, data with a bss behind.
pub fn vmlinux() -> Vec<u8> {
    let note = [
        &4_u32.to_le_bytes()[..],
        &8_u32.to_le_bytes(),
        &18_u32.to_le_bytes(),
        b"Xen\0",
        &(TEXT + 0x20).to_le_bytes(),
    ]
    .concat();
    let text = [&[0x90; 0x40][..], &note].concat();
    let data = b"data of a kernel".to_vec();
    let (text_at, data_at) = (0x100, 0x180);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let (executable, x86_64, version) = (2_u16, 62_u16, 1_u32);
    file.extend([executable, x86_64].map(u16::to_le_bytes).concat());
    file.extend(version.to_le_bytes());
    // Entry, program headers, section headers.
    file.extend([TEXT + 0x10, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    // Sizes and numbers: header, program headers, section headers, names.
    file.extend([64, 56, 3, 64, 0, 0].map(u16::to_le_bytes).concat());
    let (load, note_type) = (1, 4);
    file.extend(program(load, text_at, TEXT, text.len() as u64, 0x100));
    file.extend(program(load, data_at, TEXT + 0x1000, data.len() as u64, 0x800));
    file.extend(program(
        note_type,
        text_at + 0x40,
        TEXT + 0x40,
        note.len() as u64,
        note.len() as u64,
    ));
    for (at, bytes) in [(text_at, text), (data_at, data)] {
        file.resize(usize::try_from(at).unwrap(), 0);
        file.extend(bytes);
    }
    file
}

fn program(kind: u32, offset: u64, gpa: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let (flags, align) = (7_u32, 4);
    let mut header = [kind, flags].map(u32::to_le_bytes).concat();
    header.extend(
        [offset, gpa, gpa, in_file, in_memory, align]
            .map(u64::to_le_bytes)
            .concat(),
    );
    header
}

/// `image` by every codec that a kernel's build knows and husk, too; as in a kernel, its size follows all but gzip.
pub fn compressed(image: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(image).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(image).unwrap();
    let block = lz4_flex::block::compress(image);
    let block_bytes = u32::try_from(block.len()).unwrap().to_le_bytes();
    let lz4 = [&0x184c_2102_u32.to_le_bytes()[..], &block_bytes, &block].concat();
    let size = u32::try_from(image.len()).unwrap().to_le_bytes();
    let sized = |bytes: Vec<u8>| [&bytes[..], &size].concat();
    vec![
        ("bzimage-gzip", gzip.finish().unwrap()),
        ("bzimage-lz4", sized(lz4)),
        ("bzimage-xz", sized(xz.finish().unwrap())),
        ("bzimage-zstd", sized(zstd::encode_all(image, 3).unwrap())),
    ]
}

/// A bzImage whose setup is two sectors long (Linux `Documentation/arch/x86/boot.rst`).
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
    file.extend(payload);
    file
}
