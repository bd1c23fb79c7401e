//! Small kernels, built byte by byte, and RAM to put them in.

#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use std::io::Write;
use std::path::PathBuf;

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use tempfile::TempDir;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::layout::{ECAM, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use crate::{Codec, CommandLine, Ecam, GuestMemoryMmap, Loaded, LoadedKernel, Platform, PowerRegisters, Protocol};

/// Where the test kernel's first segment goes.
pub const TEXT: u64 = 0x20_0000;
/// Where its second segment goes.
pub const DATA: u64 = TEXT + 0x4000;
/// ELF entry of the test kernel.
pub const ENTRY64: u64 = TEXT + 0x10;
/// PVH entry of the test kernel.
pub const ENTRY_PVH: u64 = TEXT + 0x20;

/// A machine with `ram`, one vCPU and PCI.
pub fn platform(ram: &[(u64, u64)]) -> Platform<'_> {
    let power = PowerRegisters {
        sleep_control: SLEEP_CONTROL_PORT,
        sleep_status: SLEEP_STATUS_PORT,
        reset: RESET_PORT,
        reset_value: 1,
    };
    Platform {
        ram,
        apic_ids: &[0],
        spare_apic_ids: &[],
        ecam: Some(Ecam { base: ECAM, end_bus: 0 }),
        power,
        aml: &[],
    }
}

/// A PVH kernel that ends at 3 MiB, and an initramfs (base, bytes), as if they had been loaded.
pub fn loaded(initramfs: Option<(u64, u64)>) -> Loaded {
    Loaded {
        kernel: LoadedKernel {
            protocol: Protocol::Pvh,
            entry: TEXT,
            end: 0x30_0000,
            initrd_addr_max: 0x7fff_ffff,
            setup_header: None,
        },
        initramfs,
        cmdline: CommandLine::default(),
    }
}

/// RAM of `size` bytes from address 0.
pub fn ram(size: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

/// `len` bytes of RAM from `gpa`.
pub fn read(mem: &GuestMemoryMmap, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    mem.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// The `T` at `gpa`.
pub fn read_obj<T: ByteValued>(mem: &GuestMemoryMmap, gpa: u64) -> T {
    mem.read_obj(GuestAddress(gpa)).unwrap()
}

/// `bytes` as a file in a folder of its own.
pub fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// An ELF file under construction.
#[derive(Clone, Debug)]
pub struct Elf {
    /// Its header; offset and number of program headers are set by [`Elf::build`].
    pub header: Elf64_Ehdr,
    /// Program headers, and for each the bytes at its `p_offset`.
    pub programs: Vec<(Elf64_Phdr, Vec<u8>)>,
    /// Bytes at the end that no segment wants, as the relocations of a kernel.
    pub tail: usize,
}

impl Elf {
    /// A kernel laid out like a stock one: two segments, of which the second is aligned more widely in the file than in
    /// memory and has a bss, and a PVH note inside the first.
    pub fn kernel() -> Self {
        let mut text: Vec<u8> = (0..0x3000u32).map(|index| (index % 251) as u8).collect();
        let note = note(18, b"Xen\0", &ENTRY_PVH.to_le_bytes());
        text[0x2000..0x2000 + note.len()].copy_from_slice(&note);
        text[0x1000..0x2000].fill(0);
        let data: Vec<u8> = (0..0x2800u32).map(|index| (index % 241) as u8 + 1).collect();
        let note_header = Elf64_Phdr {
            p_type: PT_NOTE,
            p_offset: 0x3000,
            p_filesz: note.len() as u64,
            ..phdr(0, 0, 0, 0)
        };
        Self {
            header: header(),
            programs: vec![
                (phdr(0x1000, TEXT, 0x3000, 0x3000), text),
                (phdr(0x8000, DATA, 0x2800, 0x9000), data),
                (note_header, Vec::new()),
            ],
            tail: 0x1800,
        }
    }

    /// The same without a PVH note.
    pub fn without_note() -> Self {
        let mut elf = Self::kernel();
        elf.programs.pop();
        elf
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let header = Elf64_Ehdr {
            e_phoff: 64,
            e_phnum: self.programs.len() as u16,
            ..self.header
        };
        let mut file = header.as_slice().to_vec();
        self.programs
            .iter()
            .for_each(|(program, _)| file.extend(program.as_slice()));
        for (program, bytes) in &self.programs {
            let start = program.p_offset as usize;
            file.resize(file.len().max(start + bytes.len()), 0);
            file[start..start + bytes.len()].copy_from_slice(bytes);
        }
        file.extend(vec![0xee; self.tail]);
        file
    }
}

fn header() -> Elf64_Ehdr {
    let mut header = Elf64_Ehdr {
        e_type: ET_EXEC,
        e_machine: EM_X86_64,
        e_entry: ENTRY64,
        e_phentsize: size_of::<Elf64_Phdr>() as u16,
        ..Default::default()
    };
    header.e_ident[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    header
}

/// A program header of a loadable segment.
pub fn phdr(offset: u64, gpa: u64, file_size: u64, mem_size: u64) -> Elf64_Phdr {
    Elf64_Phdr {
        p_type: PT_LOAD,
        p_offset: offset,
        p_paddr: gpa,
        p_filesz: file_size,
        p_memsz: mem_size,
        ..Default::default()
    }
}

/// A note, aligned to 4.
pub fn note(type_: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
    let header = Elf64_Nhdr {
        n_namesz: name.len() as u32,
        n_descsz: value.len() as u32,
        n_type: type_,
    };
    let mut note = header.as_slice().to_vec();
    for part in [name, value] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A setup header that points to a payload behind five sectors.
pub fn setup(payload_len: u32) -> setup_header {
    setup_header {
        setup_sects: 4,
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 0x01,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        payload_offset: 0x100,
        payload_length: payload_len,
        ..Default::default()
    }
}

/// A bzImage with `setup` and `payload` where [`setup`] says.
pub fn bzimage_of(setup: &setup_header, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 0x100];
    file[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(setup.as_slice());
    file.extend(payload);
    file
}

/// A bzImage with `image` compressed as a kernel's build does it.
pub fn bzimage(codec: Codec, image: &[u8]) -> Vec<u8> {
    let payload = payload(codec, image);
    bzimage_of(&setup(payload.len() as u32), &payload)
}

/// `image` compressed, and its size.
pub fn payload(codec: Codec, image: &[u8]) -> Vec<u8> {
    let mut payload = compress(codec, image);
    if codec != Codec::Gzip {
        payload.extend((image.len() as u32).to_le_bytes());
    }
    payload
}

fn compress(codec: Codec, image: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(image).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Lz4 => {
            let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in image.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend((block.len() as u32).to_le_bytes());
                frame.extend(block);
            }
            frame
        }
        Codec::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(27).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(image).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(image).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// The kernel of [`Elf::kernel`] is in `mem`, and nothing else up to `end`.
pub fn assert_kernel_loaded(mem: &GuestMemoryMmap, end: u64) {
    let elf = Elf::kernel();
    let mut expected = vec![0; (end - 0x10_0000) as usize];
    for (program, bytes) in &elf.programs[..2] {
        let start = (program.p_paddr - 0x10_0000) as usize;
        expected[start..start + bytes.len()].copy_from_slice(bytes);
    }
    assert!(
        read(mem, 0x10_0000, expected.len()) == expected,
        "RAM from 1 MiB to {end:#x} differs"
    );
}
