//! Persistent memory: files of the host in the guest's address space, above everything else.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use husk_devices::PathHandle;
use husk_virtio::block::{FileLock, is_readonly};
use husk_virtio::pmem::Pmem;

use super::build::BuildError;
use crate::config::PmemConfig;
use crate::memory::{AddressSpace, BLOCK_BYTES, MemoryError};

/// Why a file cannot be persistent memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened, or has no size.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// Its writes are to be kept, where the host lets nobody write.
    #[error("it cannot be written, with discard_writes=on it can be read")]
    NotWritable(#[source] io::Error),
    /// No whole number of units, or nothing.
    #[error("{bytes} bytes are not a multiple of {BLOCK_BYTES}, and at least that")]
    Unit {
        /// The size asked for, or the file's.
        bytes: u64,
    },
    /// More than there is.
    #[error("size is {asked} bytes, the file has {found}")]
    Short {
        /// What was asked for.
        asked: u64,
        /// What there is.
        found: u64,
    },
    /// Another process, or another device of this VM, has it and excludes this one.
    #[error(
        "it is in use already: whoever writes it excludes all others, those that discard their writes can share it"
    )]
    Busy,
    /// It cannot be locked.
    #[error("cannot lock it")]
    Lock(#[source] io::Error),
    /// It cannot be the guest's.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Makes the device that `config` describes, its memory mapped into the guest.
///
/// # Errors
/// [`BuildError::Device`], named by the file.
pub fn open(config: &PmemConfig, memory: &Arc<AddressSpace>) -> Result<Pmem, BuildError> {
    device(config, memory).map_err(|e| BuildError::device(format!("pmem {}", config.file.display()), e))
}

fn device(config: &PmemConfig, memory: &Arc<AddressSpace>) -> Result<Pmem, PmemError> {
    let keep = !config.discard_writes;
    let (file, found) = open_file(&config.file, keep)?;
    let bytes = config.size.unwrap_or(found);
    if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(PmemError::Unit { bytes });
    }
    if bytes > found {
        return Err(PmemError::Short { asked: bytes, found });
    }
    let what = format_args!("persistent memory {}", config.file.display());
    let lock = FileLock::take(file.try_clone().map_err(PmemError::Open)?, keep, what);
    let lock = lock.map_err(PmemError::Lock)?.ok_or(PmemError::Busy)?;
    let flushed = if keep {
        Some(file.try_clone().map_err(PmemError::Open)?)
    } else {
        None
    };
    let region = memory.add_file(file, &config.file.display().to_string(), bytes, keep)?;
    // In this order: nobody else has the file before the guest has let go of it.
    let gpa = region.info().gpa;
    Ok(Pmem::new(gpa, bytes, flushed, what, Box::new((region, lock))))
}

/// Opens a file or block device, and nothing else; says how long it is.
fn open_file(path: &Path, write: bool) -> Result<(File, u64), PmemError> {
    let looked = PathHandle::at(path).map_err(PmemError::Open)?;
    let kind = looked.metadata().file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let error = io::Error::other("it is no file and no block device");
        return Err(PmemError::Open(error));
    }
    let opened = looked.open(OpenOptions::new().read(true).write(write));
    let mut file = opened.map_err(|error| match error.raw_os_error() {
        // As of a disk: a permission, an immutable file; a file system that is mounted read-only; a program that runs.
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) if write => PmemError::NotWritable(error),
        _ => PmemError::Open(error),
    })?;
    // Older kernels map one that is read-only all the same, and lose the guest's stores.
    if write && kind.is_block_device() && is_readonly(&file).map_err(PmemError::Open)? {
        return Err(PmemError::NotWritable(io::Error::from_raw_os_error(libc::EROFS)));
    }
    let length = file.seek(SeekFrom::End(0)).map_err(PmemError::Open)?;
    Ok((file, length))
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
