//! The initramfs: read straight into guest RAM, as high as the boot protocol allows.

use std::fs::File;
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::file::{self, FileError};
use crate::kernel::low_ram_end;
use crate::{GuestMemoryMmap, LoadedKernel};

const PAGE: u64 = 4096;

/// Why an initramfs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The file is not one.
    #[error("initramfs {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FileError,
    },
    /// There is no room for it.
    #[error(
        "initramfs {} has {len:#x} bytes; between the kernel's end {kernel_end:#x} and {limit:#x} there is room for {room:#x}",
        path.display()
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Its size.
        len: u64,
        /// First page behind the kernel.
        kernel_end: u64,
        /// End of RAM, or of what the kernel can reach.
        limit: u64,
        /// Bytes between the two.
        room: u64,
    },
    /// The file shrank, or the host cannot read it any more.
    #[error("cannot read the {len:#x} bytes of initramfs {} into guest RAM", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        len: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// An initramfs file that has been opened.
#[derive(Debug)]
pub struct Initramfs {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Initramfs {
    /// Opens `path`. What is in it is the guest's business.
    ///
    /// # Errors
    /// [`InitramfsError::File`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, InitramfsError> {
        let path = path.into();
        match file::open(&path) {
            Ok((file, len)) => Ok(Self { path, file, len }),
            Err(source) => Err(InitramfsError::File { path, source }),
        }
    }

    /// Reads it into `mem`, above `kernel`; tells where it went (base, bytes).
    ///
    /// # Errors
    /// [`InitramfsError::NoRoom`] or [`InitramfsError::Load`].
    pub fn load(self, mem: &GuestMemoryMmap, kernel: &LoadedKernel) -> Result<(u64, u64), InitramfsError> {
        let Self { path, mut file, len } = self;
        let limit = low_ram_end(mem).min(u64::from(kernel.initrd_addr_max).saturating_add(1));
        let kernel_end = kernel.end.next_multiple_of(PAGE);
        let base = limit
            .checked_sub(len)
            .map(|base| base & !(PAGE - 1))
            .filter(|base| *base >= kernel_end);
        let Some(base) = base else {
            let room = limit.saturating_sub(kernel_end);
            return Err(InitramfsError::NoRoom {
                path,
                len,
                kernel_end,
                limit,
                room,
            });
        };
        let count = usize::try_from(len).expect("it lies below 3 GiB");
        match mem.read_exact_volatile_from(GuestAddress(base), &mut file, count) {
            Ok(()) => Ok((base, len)),
            Err(source) => Err(InitramfsError::Load { path, len, source }),
        }
    }
}

#[cfg(test)]
#[path = "initramfs_test.rs"]
mod tests;
