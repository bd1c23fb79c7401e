//! The raw image behind a disk: opened, checked, locked and measured once.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use husk_devices::PathHandle;

use super::limits::{self, Alignment, BlockSizes};
use super::lock::FileLock;
use super::scratch::BOUNCE_BYTES;
use super::{BlockConfig, MAX_QUEUES};
use crate::durability::Durability;

/// The sector of virtio 1.2 §5.2.4: the unit of every offset and length, whatever the block size.
pub(super) const SECTOR_BYTES: u32 = 512;

/// Why a disk cannot be. Whoever asked for it knows the image, which is not named.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Number of queues out of range.
    #[error("{0} queues: a disk has 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// Size of the queues not allowed.
    #[error("queue size {0} is not a power of two from 4 to 32768")]
    QueueSize(u16),
    /// Serial number too long or not printable.
    #[error("serial number {0:?} is not at most 20 printable ASCII characters")]
    Serial(String),
    /// The host does not let us have the file.
    #[error("cannot open it")]
    Open(#[source] io::Error),
    /// To be written, where the host lets nobody write.
    #[error("it cannot be written, with readonly=on it can be read")]
    NotWritable(#[source] io::Error),
    /// Not something that holds sectors.
    #[error("it is a {found}: only regular files and block devices are allowed")]
    Kind {
        /// What it is.
        found: &'static str,
    },
    /// Nothing in it.
    #[error("it is empty: a disk has at least one byte")]
    Empty,
    /// Another process, or another disk of this one, holds a lock that excludes the one wanted.
    #[error("it is in use already: a writable disk excludes all others, read-only disks can share it")]
    Busy,
    /// Direct I/O asked for where there is none.
    #[error("it cannot do direct I/O: its file system or device has none")]
    NoDirectIo,
    /// The host refuses to say something about the open file.
    #[error("cannot find out {what}")]
    Host {
        /// What was asked.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open image. Shared by all queues of a disk; every access names its own offset.
#[derive(Debug)]
pub(super) struct Image {
    file: FileLock,
    /// For each queue but the first, to sync what was written.
    sync_files: Vec<File>,
    direct: Option<Direct>,
    readonly: bool,
    discard: bool,
    is_device: bool,
    bytes: u64,
    sizes: BlockSizes,
    durability: Durability,
}

/// What direct I/O needs beside the file.
#[derive(Debug)]
struct Direct {
    alignment: Alignment,
    /// The same file through the page cache, for what direct I/O cannot do. The kernel keeps the two views coherent.
    cached: File,
}

/// How a byte range of the image is reached.
#[derive(Clone, Copy)]
pub(super) enum Route<'a> {
    /// Through the page cache: any buffer will do.
    Cached(&'a File),
    /// By direct I/O: buffers must keep the alignment.
    Direct(&'a File, Alignment),
}

impl Image {
    /// Whether it is read and written past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Opens, checks, locks and measures the image that `config` names.
    pub fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        let handle = PathHandle::at(&config.path).map_err(BlockError::Open)?;
        let found = handle.metadata();
        check_kind(found)?;
        let flags = if config.direct { libc::O_DIRECT } else { 0 };
        let file = open(config, flags, &handle)?;
        let direct = match config.direct {
            true => Some(Self::set_up_direct(config, &file, &handle)?),
            false => None,
        };
        let written_queues = if config.readonly { 1 } else { config.queues };
        let sync_files = (1..written_queues).map(|_| open(config, flags, &handle));
        let sync_files = sync_files.collect::<Result<_, _>>()?;
        let what = format_args!("disk image {}", config.path.display());
        let locked = FileLock::take(file, !config.readonly, what).map_err(|source| unknown("the lock", source))?;
        let locked = locked.ok_or(BlockError::Busy)?;
        let file = locked.file();
        let is_device = found.file_type().is_block_device();
        if is_device && !config.readonly {
            let readonly = limits::is_readonly(file).map_err(|source| unknown("the mode", source))?;
            check_writable(readonly)?;
        }
        let mut end = file;
        let bytes = end
            .seek(SeekFrom::End(0))
            .map_err(|source| unknown("the size", source))?;
        if bytes == 0 {
            return Err(BlockError::Empty);
        }
        let sizes = match is_device {
            true => limits::block_sizes(file).map_err(|source| unknown("the block size", source))?,
            false => file_sizes(found, direct.as_ref()),
        };
        Ok(Self {
            file: locked,
            sync_files,
            direct,
            readonly: config.readonly,
            discard: config.discard && !config.readonly,
            is_device,
            bytes,
            sizes,
            durability: Durability::new(what),
        })
    }

    fn set_up_direct(config: &BlockConfig, file: &File, handle: &PathHandle) -> Result<Direct, BlockError> {
        let alignment = limits::direct_io(file)
            .map_err(|source| unknown("the direct I/O alignment", source))?
            // Bounce buffers are aligned to a page and hold whole units; nothing is known to ask for more.
            .filter(|alignment| alignment.memory <= 4096 && BOUNCE_BYTES.is_multiple_of(alignment.offset))
            .ok_or(BlockError::NoDirectIo)?;
        let cached = open(config, 0, handle)?;
        Ok(Direct { alignment, cached })
    }

    /// Sectors of the disk. A last sector that the file fills only in part counts: its missing bytes read as zeros, and
    /// the first write to it makes the file end with it.
    pub fn sectors(&self) -> u64 {
        self.bytes.div_ceil(u64::from(SECTOR_BYTES))
    }

    /// Bytes that the file had when it was opened. Nothing is missing before this offset.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether writes are refused. The descriptor is read-only then, too.
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Whether space may be given back to the host.
    pub fn discard(&self) -> bool {
        self.discard
    }

    /// Block sizes as the driver is told of them. A file's logical block is always 512 bytes, with direct I/O too, for
    /// the partition table in it must mean the same however the image is opened; a device's is its own.
    pub fn sizes(&self) -> BlockSizes {
        self.sizes
    }

    /// Unit of fallocate(2) on the image, in bytes; a file has none.
    pub fn allocation_unit(&self) -> u64 {
        if self.is_device {
            u64::from(self.sizes.logical)
        } else {
            1
        }
    }

    /// Whether what was written to it can be called stable.
    pub fn durability(&self) -> &Durability {
        &self.durability
    }

    /// The descriptor for operations without data.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// What `queue` brings to stable storage what was written by: fdatasync(2) is for the whole
    /// image. Each queue has an open file of its own, and so is told itself of a write-back that
    /// failed: of one that all had, another queue might have been told while this one finds success
    /// ([`Durability`]).
    pub fn sync_file(&self, queue: u16) -> &File {
        let own = usize::from(queue).checked_sub(1);
        own.and_then(|own| self.sync_files.get(own)).unwrap_or(self.file())
    }

    /// How to reach `len` bytes at `offset`. What is not in whole units of direct I/O goes through the page cache.
    pub fn route(&self, offset: u64, len: usize) -> Route<'_> {
        match &self.direct {
            None => Route::Cached(self.file()),
            Some(Direct { alignment, cached }) => {
                let unit = alignment.offset;
                let whole =
                    len.is_multiple_of(unit) && u64::try_from(unit).is_ok_and(|unit| offset.is_multiple_of(unit));
                match whole {
                    true => Route::Direct(self.file(), *alignment),
                    false => Route::Cached(cached),
                }
            }
        }
    }
}

/// Opens the image once.
fn open(config: &BlockConfig, flags: i32, handle: &PathHandle) -> Result<File, BlockError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!config.readonly).custom_flags(flags);
    handle.open(&options).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) if flags & libc::O_DIRECT != 0 => BlockError::NoDirectIo,
        // A permission, an immutable file; a file system that is mounted read-only; a program that runs.
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) if !config.readonly => {
            BlockError::NotWritable(source)
        }
        _ => BlockError::Open(source),
    })
}

/// A block device that is read-only can be opened for writing all the same, and loses what is written to its cache.
fn check_writable(readonly: bool) -> Result<(), BlockError> {
    match readonly {
        true => Err(BlockError::NotWritable(io::Error::from_raw_os_error(libc::EROFS))),
        false => Ok(()),
    }
}

fn check_kind(metadata: &Metadata) -> Result<(), BlockError> {
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "FIFO",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () => "file of unknown kind",
    };
    Err(BlockError::Kind { found })
}

/// Block sizes of a regular file. The file system's block, up to a page, is what the host writes without reading first.
fn file_sizes(metadata: &Metadata, direct: Option<&Direct>) -> BlockSizes {
    let unit = direct
        .and_then(|direct| u32::try_from(direct.alignment.offset).ok())
        .unwrap_or(SECTOR_BYTES);
    let block = u32::try_from(metadata.blksize())
        .unwrap_or(SECTOR_BYTES)
        .clamp(SECTOR_BYTES, 4096);
    let physical = block.max(unit);
    BlockSizes {
        logical: SECTOR_BYTES,
        physical,
        min_io: physical,
        opt_io: 0,
    }
}

fn unknown(what: &'static str, source: io::Error) -> BlockError {
    BlockError::Host { what, source }
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
