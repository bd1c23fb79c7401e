//! The system calls of the suites that have no safe wrapper: mappings of files, locks of ranges,
//! and threads with tables of their own.
#![expect(
    unsafe_code,
    reason = "mappings, locks of ranges and unshared tables have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use rustix::io::Errno;

/// The beginning of a file as this process has it in its memory.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<libc::c_void>,
    bytes: usize,
}

impl Mapping {
    /// Maps the first `bytes` bytes of a file for reading and writing. With `shared` unset, nobody
    /// else sees what is written.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new(file: impl AsFd, bytes: usize, shared: bool) -> io::Result<Self> {
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let file = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping of an open file, wherever the kernel puts it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, file, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, bytes })
    }

    /// The bytes at `offset`, as many as there is room for.
    ///
    /// # Panics
    ///
    /// They are not all mapped.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: checked to be in the mapping, of which nobody has a reference. That others write
        // meanwhile tears bytes and no more.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start.as_ptr().cast::<u8>().add(offset), to.as_mut_ptr(), to.len());
        }
    }

    /// Puts `from` at `offset`.
    ///
    /// # Panics
    ///
    /// It would not all be in the mapping.
    pub fn write(&mut self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: checked to be in the mapping, of which nobody has a reference.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.as_ptr().cast::<u8>().add(offset), from.len());
        }
    }

    /// Waits until the file has what was written.
    ///
    /// # Errors
    ///
    /// It could not be written.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping is there as long as this.
        match unsafe { libc::msync(self.start.as_ptr(), self.bytes, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn check(&self, offset: usize, length: usize) {
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{length} bytes at {offset} of {}", self.bytes);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody has its address after this.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// Sets the size of the file `path`, for which rustix wants a descriptor.
///
/// # Errors
///
/// As truncate(2).
pub fn truncate(path: &CStr, bytes: i64) -> Result<(), Errno> {
    // SAFETY: a C string.
    match unsafe { libc::truncate(path.as_ptr(), bytes) } {
        0 => Ok(()),
        _ => Err(last()),
    }
}

/// What a lock of a range is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Several may have it.
    Shared,
    /// Only one has it.
    Exclusive,
    /// Nobody of this process has it any more.
    None,
}

/// Locks `length` bytes of a file at `start` for this process without waiting (`F_SETLK`); 0 bytes are all to its end.
///
/// # Errors
///
/// `EAGAIN`: somebody else has a lock in the way.
pub fn lock_range(file: impl AsFd, lock: Lock, start: i64, length: i64) -> Result<(), Errno> {
    record_lock(file, libc::F_SETLK, lock, start, length).map(drop)
}

/// As [`lock_range`], but for the open file in place of the process (`F_OFD_SETLK`).
///
/// # Errors
///
/// `EAGAIN`: somebody else has a lock in the way.
pub fn lock_range_of_file(file: impl AsFd, lock: Lock, start: i64, length: i64) -> Result<(), Errno> {
    record_lock(file, libc::F_OFD_SETLK, lock, start, length).map(drop)
}

/// As [`lock_range`], but waits (`F_SETLKW`).
///
/// # Errors
///
/// `EINTR`, `EDEADLK`.
pub fn wait_for_range(file: impl AsFd, lock: Lock, start: i64, length: i64) -> Result<(), Errno> {
    record_lock(file, libc::F_SETLKW, lock, start, length).map(drop)
}

/// The first lock of somebody else that is in the way of `lock`, where it begins, and how long it is.
///
/// # Errors
///
/// The file has no locks.
pub fn in_the_way(file: impl AsFd, lock: Lock, start: i64, length: i64) -> Result<Option<(Lock, i64, i64)>, Errno> {
    let found = record_lock(file, libc::F_GETLK, lock, start, length)?;
    let lock = match libc::c_int::from(found.l_type) {
        libc::F_RDLCK => Lock::Shared,
        libc::F_WRLCK => Lock::Exclusive,
        _ => return Ok(None),
    };
    Ok(Some((lock, found.l_start, found.l_len)))
}

fn record_lock(
    file: impl AsFd,
    command: libc::c_int,
    lock: Lock,
    start: i64,
    length: i64,
) -> Result<libc::flock, Errno> {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let mut request = libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::INVAL)?,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: these commands read and fill a `struct flock`.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut request) } {
        0 => Ok(request),
        _ => Err(last()),
    }
}

/// Gives the calling thread a working directory and a umask of its own.
///
/// # Errors
///
/// The kernel refuses.
pub fn own_directories() -> Result<(), Errno> {
    // SAFETY: no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// Gives the calling thread a table of descriptors of its own, which makes it somebody else to
/// locks of ranges. Those that were open are open in both.
///
/// # Errors
///
/// The kernel refuses.
pub fn own_descriptors() -> Result<(), Errno> {
    // SAFETY: the copy has all descriptors of the table that was shared; who closes one closes it
    // in their own table only.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }
}

fn last() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
