//! Alignments and block sizes as the host reports them.
#![expect(
    unsafe_code,
    reason = "statx(2) and the block device ioctls have no safe wrapper in the standard library"
)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// `_IO(0x12, 94)` (linux/fs.h).
const BLKROGET: libc::Ioctl = 0x125e;

/// What direct I/O asks of a request; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of each buffer's address, in bytes.
    pub memory: usize,
    /// Of offset and length in the file, in bytes.
    pub offset: usize,
}

impl Alignment {
    /// Assumed where the host does not tell: a page, which satisfies every device and file system in use.
    const UNKNOWN: Self = Self {
        memory: 4096,
        offset: 4096,
    };
}

/// Alignment for direct I/O on `file` (statx(2), `STATX_DIOALIGN`, Linux 6.1). `None`: no direct I/O on this file.
pub(super) fn direct_io(file: &File) -> io::Result<Option<Alignment>> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is a C string, and the kernel writes one statx structure into `answer`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all fields are integers, so the zeroed structure was valid even before the kernel filled it.
    let answer = unsafe { answer.assume_init() };
    if answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(Some(Alignment::UNKNOWN));
    }
    let (Ok(memory), Ok(offset)) = (
        usize::try_from(answer.stx_dio_mem_align),
        usize::try_from(answer.stx_dio_offset_align),
    ) else {
        return Ok(None);
    };
    let usable = memory.is_power_of_two() && offset.is_power_of_two();
    Ok(usable.then_some(Alignment { memory, offset }))
}

/// Block sizes of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockSizes {
    /// Smallest unit the device addresses, in bytes (`BLKSSZGET`).
    pub logical: u32,
    /// Smallest unit it writes without reading first, in bytes (`BLKPBSZGET`).
    pub physical: u32,
    /// Preferred least request, in bytes (`BLKIOMIN`).
    pub min_io: u32,
    /// Preferred request, in bytes; 0 if there is none (`BLKIOOPT`).
    pub opt_io: u32,
}

/// Asks a block device for its block sizes.
pub(super) fn block_sizes(device: &File) -> io::Result<BlockSizes> {
    Ok(BlockSizes {
        logical: ask(device, libc::BLKSSZGET)?,
        physical: ask(device, libc::BLKPBSZGET)?,
        min_io: ask(device, libc::BLKIOMIN)?,
        opt_io: ask(device, libc::BLKIOOPT)?,
    })
}

/// Whether a block device takes no writes (`BLKROGET`). It can be opened for writing all the same,
/// and loses what is written to its cache.
///
/// # Errors
/// What the host says: of what is no block device, for instance.
pub fn is_readonly(device: &File) -> io::Result<bool> {
    Ok(ask(device, BLKROGET)? != 0)
}

fn ask(device: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut value: libc::c_uint = 0;
    // SAFETY: each of the requests writes one int or unsigned int through its argument (linux/fs.h).
    let answer = unsafe { ioctl_with_mut_ref(device, request, &mut value) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}
