//! The ELF headers of a vmlinux: which bytes go where, and how the kernel is entered (ELF-64 Object File Format 1.5).

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, EM_X86_64, ET_DYN, ET_EXEC,
    Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use vm_memory::ByteValued;

use super::Protocol;
use super::note::Notes;

/// The program headers must lie in this many bytes at the head of the file; those of a vmlinux end at 344.
pub(super) const HEAD_LEN: usize = 64 << 10;
const HEADERS_MAX: u16 = 128;
/// The longest note segment that is searched.
const NOTES_MAX: u64 = 64 << 10;

pub(super) const MAGIC: [u8; 4] = [ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3];

/// Why an ELF file is no kernel that can be loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file ends inside its header.
    #[error("ELF header is cut off after {found} bytes; it has {}", size_of::<Elf64_Ehdr>())]
    Short {
        /// Bytes there are.
        found: usize,
    },
    /// Another machine's file.
    #[error(
        "ELF class {class}, data {data}, machine {machine}; a vmlinux is 64-bit (2), little-endian (1), x86-64 (62)"
    )]
    Machine {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        data: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// An object file, a core dump or the like.
    #[error("ELF type {0}; EXEC (2) and DYN (3) are allowed")]
    Type(u16),
    /// Program headers of a foreign format.
    #[error("program headers of {0} bytes each; they have 56")]
    HeaderSize(u16),
    /// None, or absurdly many.
    #[error("{found} program headers; 1 to {HEADERS_MAX} are allowed")]
    HeaderCount {
        /// `e_phnum`.
        found: u16,
    },
    /// Program headers that are not where they can be read.
    #[error("program headers at offset {offset:#x} end beyond the first {available:#x} bytes")]
    HeadersOutside {
        /// `e_phoff`.
        offset: u64,
        /// Bytes in which they must lie.
        available: usize,
    },
    /// Nothing to load.
    #[error("no loadable segment")]
    NoSegments,
    /// A segment or note whose bytes are not in the file.
    #[error("segment {index} has {len:#x} bytes at offset {offset:#x}; the image has {image_len:#x} bytes")]
    OutsideImage {
        /// Index of the program header.
        index: usize,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        len: u64,
        /// Size of the file or of the decompressed payload.
        image_len: u64,
    },
    /// More bytes in the file than in memory.
    #[error("segment {index} has {file:#x} bytes in the file but {memory:#x} in memory")]
    FileExceedsMemory {
        /// Index of the program header.
        index: usize,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// A segment that wraps round the address space.
    #[error("segment {index} has {len:#x} bytes at {gpa:#x}, beyond the end of the address space")]
    Wraps {
        /// Index of the program header.
        index: usize,
        /// `p_paddr`.
        gpa: u64,
        /// `p_memsz`.
        len: u64,
    },
    /// Two segments that want the same memory.
    #[error("segments at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Start of the lower one.
        first: u64,
        /// Start of the other.
        second: u64,
    },
    /// A note section too long to be searched.
    #[error("note segment {index} has {len:#x} bytes; at most {NOTES_MAX:#x} are allowed")]
    LongNote {
        /// Index of the program header.
        index: usize,
        /// `p_filesz`.
        len: u64,
    },
    /// PVH was asked for, and there is no such entry.
    #[error("no PVH note (Xen, type 18); only the 64-bit Linux protocol can boot it")]
    NoPvhNote,
    /// An entry that leads nowhere.
    #[error("{protocol} entry {entry:#x} is in no segment")]
    EntryOutside {
        /// The protocol that uses it.
        protocol: Protocol,
        /// The address.
        entry: u64,
    },
}

/// One piece of a kernel and its place in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Where its bytes start in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; those beyond `file_size` are zero.
    pub mem_size: u64,
}

impl Segment {
    /// First address behind it. [`Plan::parse`] has made sure that there is one.
    pub(super) fn end(&self) -> u64 {
        self.gpa.saturating_add(self.mem_size)
    }

    /// First offset behind its bytes in the file, which [`Plan::parse`] has bounded.
    pub(super) fn file_end(&self) -> u64 {
        self.file_offset.saturating_add(self.file_size)
    }
}

/// What the headers say. Everything in it has been checked against the size of the image, nothing against RAM.
#[derive(Debug)]
pub(super) struct Plan {
    /// Sorted by address, disjoint, not empty.
    pub(super) segments: Vec<Segment>,
    pub(super) notes: Vec<Notes>,
    entry: u64,
}

impl Plan {
    /// Reads the headers in `head`, the first [`HEAD_LEN`] bytes of an image of `image_len` bytes.
    pub(super) fn parse(head: &[u8], image_len: u64) -> Result<Self, ElfError> {
        let header: Elf64_Ehdr = pod(head, 0).ok_or(ElfError::Short { found: head.len() })?;
        check_header(&header)?;
        let mut plan = Self {
            segments: Vec::new(),
            notes: Vec::new(),
            entry: header.e_entry,
        };
        for index in 0..usize::from(header.e_phnum) {
            let program: Elf64_Phdr = usize::try_from(header.e_phoff)
                .ok()
                .and_then(|offset| pod(head, offset.checked_add(index.checked_mul(size_of::<Elf64_Phdr>())?)?))
                .ok_or(ElfError::HeadersOutside {
                    offset: header.e_phoff,
                    available: head.len(),
                })?;
            plan.add(index, &program, image_len)?;
        }
        plan.segments.sort_by_key(|segment| segment.gpa);
        plan.check_segments()?;
        Ok(plan)
    }

    fn add(&mut self, index: usize, program: &Elf64_Phdr, image_len: u64) -> Result<(), ElfError> {
        let &Elf64_Phdr {
            p_type,
            p_offset: offset,
            p_filesz: len,
            p_paddr: gpa,
            p_memsz: memory,
            p_align,
            ..
        } = program;
        if !matches!(p_type, PT_LOAD | PT_NOTE) {
            return Ok(());
        }
        if offset.checked_add(len).is_none_or(|end| end > image_len) {
            return Err(ElfError::OutsideImage {
                index,
                offset,
                len,
                image_len,
            });
        }
        if p_type == PT_NOTE {
            let len = usize::try_from(len)
                .ok()
                .filter(|_| len <= NOTES_MAX)
                .ok_or(ElfError::LongNote { index, len })?;
            self.notes.push(Notes {
                offset,
                len,
                align: if p_align == 8 { 8 } else { 4 },
            });
            return Ok(());
        }
        if len > memory {
            return Err(ElfError::FileExceedsMemory {
                index,
                file: len,
                memory,
            });
        }
        if gpa.checked_add(memory).is_none() {
            return Err(ElfError::Wraps {
                index,
                gpa,
                len: memory,
            });
        }
        if memory > 0 {
            self.segments.push(Segment {
                gpa,
                file_offset: offset,
                file_size: len,
                mem_size: memory,
            });
        }
        Ok(())
    }

    fn check_segments(&self) -> Result<(), ElfError> {
        if self.segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        for (first, second) in self.segments.iter().zip(self.segments.iter().skip(1)) {
            if first.end() > second.gpa {
                return Err(ElfError::Overlap {
                    first: first.gpa,
                    second: second.gpa,
                });
            }
        }
        Ok(())
    }

    /// First address behind the kernel.
    pub(super) fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// Chooses the protocol, PVH before Linux64, and tells where it enters the kernel.
    pub(super) fn entry(&self, pvh: Option<u64>, wanted: Option<Protocol>) -> Result<(Protocol, u64), ElfError> {
        let (protocol, entry) = match (wanted, pvh) {
            (Some(Protocol::Pvh), None) => return Err(ElfError::NoPvhNote),
            (Some(Protocol::Linux64), _) | (None, None) => (Protocol::Linux64, self.entry),
            (_, Some(entry)) => (Protocol::Pvh, entry),
        };
        if !self
            .segments
            .iter()
            .any(|segment| (segment.gpa..segment.end()).contains(&entry))
        {
            return Err(ElfError::EntryOutside { protocol, entry });
        }
        Ok((protocol, entry))
    }

    /// Where the byte at `offset` of the image is once it has been loaded, if it and `len - 1` more are.
    pub(super) fn address_of(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        let holds = |segment: &&Segment| segment.file_offset <= offset && end <= segment.file_end();
        let segment = self.segments.iter().find(holds)?;
        segment.gpa.checked_add(offset.checked_sub(segment.file_offset)?)
    }
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), ElfError> {
    let ident = |index: usize| header.e_ident.get(index).copied().unwrap_or_default();
    let (class, data, machine) = (ident(EI_CLASS), ident(EI_DATA), header.e_machine);
    if (class, data, machine) != (ELFCLASS64, ELFDATA2LSB, EM_X86_64) {
        return Err(ElfError::Machine { class, data, machine });
    }
    if !matches!(header.e_type, ET_EXEC | ET_DYN) {
        return Err(ElfError::Type(header.e_type));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(ElfError::HeaderSize(header.e_phentsize));
    }
    if !(1..=HEADERS_MAX).contains(&header.e_phnum) {
        return Err(ElfError::HeaderCount { found: header.e_phnum });
    }
    Ok(())
}

/// The `T` at `offset`.
pub(super) fn pod<T: ByteValued + Default>(bytes: &[u8], offset: usize) -> Option<T> {
    let mut value = T::default();
    value
        .as_mut_slice()
        .copy_from_slice(bytes.get(offset..offset.checked_add(size_of::<T>())?)?);
    Some(value)
}

#[cfg(test)]
#[path = "elf_test.rs"]
mod tests;
