//! The lock that keeps two virtual machines from writing one image.
#![expect(
    unsafe_code,
    reason = "fcntl(F_OFD_SETLK) has no safe wrapper in the standard library"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// How an image is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Any number of readers.
    Shared,
    /// One writer.
    Exclusive,
}

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locked {
    /// It is held until the last descriptor of the open file is closed.
    Held,
    /// Somebody else holds a lock that excludes it.
    Busy,
    /// The file system has no locks.
    Unsupported,
}

/// Asks for an open-file-description lock on the whole file (fcntl_locking(2)), without waiting.
///
/// Not `flock(2)`: other VMMs use this kind on disk images, so the two exclude each other; and udev takes `flock` on
/// block devices for moments of its own, which would refuse a disk by chance.
///
/// # Errors
/// What the host answered, if it was neither of the outcomes above.
pub(super) fn lock(file: &File, hold: Hold) -> io::Result<Locked> {
    let kind = match hold {
        Hold::Shared => libc::F_RDLCK,
        Hold::Exclusive => libc::F_WRLCK,
    };
    let range = libc::flock {
        l_type: i16::try_from(kind).expect("lock types are 0 to 2"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as `file` is borrowed, and the kernel only reads `range`, which outlives the call.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if answer == 0 {
        return Ok(Locked::Held);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(Locked::Busy),
        Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(Locked::Unsupported),
        _ => Err(error),
    }
}
