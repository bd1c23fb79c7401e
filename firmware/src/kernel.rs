//! A kernel file, vmlinux or bzImage: recognised and checked when it is opened, read into guest RAM when it is loaded.

mod bzimage;
mod elf;
mod load;
mod note;
mod payload;
mod scatter;
mod unpack;

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_loader::bootparam::setup_header;
use vm_memory::GuestMemoryError;

pub use bzimage::BzImageError;
pub use elf::{ElfError, Segment};
pub(crate) use load::low_ram_end;
pub use payload::{Codec, PayloadError};

use crate::GuestMemoryMmap;
use crate::file::{self, FileError};
use crate::layout::KERNEL_MIN;
use bzimage::Setup;
use elf::Plan;
use payload::Payload;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// In 32-bit mode, at the address in the kernel's PVH note (Xen `docs/misc/pvh.pandoc`).
    Pvh,
    /// In 64-bit mode, at the ELF entry (Linux `Documentation/arch/x86/boot.rst`).
    Linux64,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Linux64 => "64-bit Linux",
        })
    }
}

/// A kernel file that cannot be booted.
#[derive(Debug, thiserror::Error)]
#[error("kernel {}", path.display())]
pub struct KernelError {
    /// Path of the kernel file, as the caller gave it.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub fault: KernelFault,
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum KernelFault {
    /// Not a file to begin with.
    #[error(transparent)]
    File(#[from] FileError),
    /// The host cannot read it.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// Not a kernel.
    #[error("it starts with bytes {0:02x?}; it must be an ELF vmlinux or a bzImage")]
    Unknown(Vec<u8>),
    /// A bad vmlinux.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A bad bzImage.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// A bad payload of a bzImage.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A kernel for another memory size.
    #[error("segment from {start:#x} to {end:#x}; it must lie in RAM between {KERNEL_MIN:#x} and {ram_end:#x}")]
    OutsideRam {
        /// First address of the segment.
        start: u64,
        /// First address behind it.
        end: u64,
        /// End of RAM, below 3 GiB.
        ram_end: u64,
    },
    /// The file shrank, or the host cannot read it any more.
    #[error("cannot read {len:#x} bytes at offset {offset:#x} into guest RAM")]
    Load {
        /// Offset in the file.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// A kernel file that has been opened and whose headers have been checked.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    plan: Plan,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Vmlinux {
        file: File,
        pvh: Option<u64>,
    },
    BzImage {
        header: Box<setup_header>,
        payload: Payload,
    },
}

/// A kernel in guest RAM.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    /// The protocol by which the kernel is entered: the one asked for, else PVH where the kernel has a PVH note.
    pub protocol: Protocol,
    /// Address of its first instruction.
    pub entry: u64,
    /// First address behind it.
    pub end: u64,
    /// Highest guest-physical address that a byte of the initramfs may have.
    pub initrd_addr_max: u32,
    pub(crate) setup_header: Option<setup_header>,
}

impl KernelImage {
    /// Opens `path` and checks everything that can be checked without guest RAM. Of a bzImage it
    /// decompresses the first bytes.
    ///
    /// # Errors
    /// See [`KernelFault`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, KernelError> {
        let path = path.into();
        match Self::parse(&path) {
            Ok((plan, format)) => Ok(Self { path, plan, format }),
            Err(fault) => Err(KernelError { path, fault }),
        }
    }

    fn parse(path: &Path) -> Result<(Plan, Format), KernelFault> {
        let (file, file_len) = file::open(path)?;
        let head = head(&file).map_err(KernelFault::Read)?;
        if head.starts_with(&elf::MAGIC) {
            let plan = Plan::parse(&head, file_len)?;
            let pvh = pvh_in_file(&file, &plan).map_err(KernelFault::Read)?;
            return Ok((plan, Format::Vmlinux { file, pvh }));
        }
        let Some(setup) = Setup::parse(&head, file_len).transpose()? else {
            return Err(KernelFault::Unknown(head.into_iter().take(4).collect()));
        };
        let (payload, head) = Payload::open(&Arc::new(file), setup.payload_offset, setup.payload_len)?;
        if !head.starts_with(&elf::MAGIC) {
            return Err(KernelFault::Unknown(head.into_iter().take(4).collect()));
        }
        let plan = Plan::parse(&head, payload.declared)?;
        Ok((
            plan,
            Format::BzImage {
                header: Box::new(setup.header),
                payload,
            },
        ))
    }

    /// Reads the kernel into `mem`, which is fresh. `wanted` forces a protocol.
    ///
    /// # Errors
    /// See [`KernelFault`]. All but those of reading and decompressing come before RAM is touched.
    pub fn load(self, mem: &GuestMemoryMmap, wanted: Option<Protocol>) -> Result<LoadedKernel, KernelError> {
        let Self { path, plan, format } = self;
        plan.load(format, mem, wanted)
            .map_err(|fault| KernelError { path, fault })
    }
}

/// The first bytes of a file, up to [`elf::HEAD_LEN`].
fn head(file: &File) -> std::io::Result<Vec<u8>> {
    let mut head = vec![0; elf::HEAD_LEN];
    let mut len = 0;
    while let Some(rest @ [_, ..]) = head.get_mut(len..) {
        match file.read_at(rest, len as u64)? {
            0 => break,
            read => len = len.saturating_add(read),
        }
    }
    head.truncate(len);
    Ok(head)
}

/// Searches the notes of a vmlinux.
fn pvh_in_file(file: &File, plan: &Plan) -> std::io::Result<Option<u64>> {
    for notes in &plan.notes {
        let mut bytes = vec![0; notes.len];
        file.read_exact_at(&mut bytes, notes.offset)?;
        if let Some(entry) = note::pvh_entry(&bytes, notes.align) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
