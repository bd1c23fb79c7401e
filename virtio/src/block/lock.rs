//! The locks that keep two virtual machines from writing one image, in the bytes that QEMU locks
//! (`block/file-posix.c` of QEMU 7.2).
//!
//! | byte | a read lock on it says |
//! |---|---|
//! | 100 + p | somebody does p |
//! | 200 + p | somebody does not let others do p |
//!
//! where p is 0 to read consistent data, 1 to write, 2 to rewrite what is there with the same, 3 to
//! resize. Whoever opens an image locks its bytes first, and looks at those of others afterwards:
//! nobody may do what it does not allow, or not allow what it does.
//!
//! Other VMMs lock the whole file instead, as one reader of many or as the only writer. A read lock
//! over the whole file is known by where it begins, and is a reader. To such a reader a writer is
//! known by a write lock on the bytes behind QEMU's.
#![expect(
    unsafe_code,
    reason = "fcntl(F_OFD_SETLK) has no safe wrapper in the standard library"
)]

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// First of the bytes that no version of QEMU locks.
const BEHIND: i64 = 300;

/// The bytes of one thing that can be done with an image.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    /// Locked by whoever does it.
    does: i64,
    /// Locked by whoever lets nobody else do it.
    forbids: i64,
}

const READ: Bytes = Bytes {
    does: 100,
    forbids: 200,
};
const WRITE: Bytes = Bytes {
    does: 101,
    forbids: 201,
};
const RESIZE: Bytes = Bytes {
    does: 103,
    forbids: 203,
};

/// What nobody lets others do.
const FORBIDDEN: [Bytes; 2] = [WRITE, RESIZE];

/// How an image is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Any number of readers.
    Shared,
    /// One writer.
    Exclusive,
}

impl Hold {
    /// What whoever holds it so does. A writer resizes: its first write to an incomplete last sector makes it whole.
    fn does(self) -> &'static [Bytes] {
        match self {
            Self::Shared => &[READ],
            Self::Exclusive => &[READ, WRITE, RESIZE],
        }
    }
}

/// What came of asking for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Locked {
    /// It is held until [`unlock`], or until the last descriptor of the open file is closed.
    Held,
    /// Somebody else holds a lock that excludes it.
    Busy,
    /// The file system has no locks.
    Unsupported,
}

/// Takes the open-file-description locks of `hold` (fcntl_locking(2)), without waiting. Some of
/// them may be held when it fails: they go with `file`.
///
/// Not `flock(2)`: other VMMs use this kind on disk images; and udev takes `flock` on block devices
/// for moments of its own, which would refuse a disk by chance.
///
/// # Errors
/// What the host answered, if it was none of the outcomes above.
pub(super) fn lock(file: &File, hold: Hold) -> io::Result<Locked> {
    // First of all, so that of two writers that come at once one goes on.
    let behind = (hold == Hold::Exclusive).then(|| range(libc::F_WRLCK, BEHIND, 0));
    let does = hold.does().iter().map(|bytes| bytes.does);
    let forbids = FORBIDDEN.iter().map(|bytes| bytes.forbids);
    let bytes = does.chain(forbids).map(|byte| range(libc::F_RDLCK, byte, 1));
    for mut own in behind.into_iter().chain(bytes) {
        match outcome(fcntl(file, libc::F_OFD_SETLK, &mut own))? {
            Locked::Held => {}
            other => return Ok(other),
        }
    }
    let forbidden = hold.does().iter().map(|bytes| bytes.forbids);
    let done = FORBIDDEN.iter().map(|bytes| bytes.does);
    for byte in forbidden.chain(done) {
        if is_locked(file, byte, hold)? {
            return Ok(Locked::Busy);
        }
    }
    Ok(Locked::Held)
}

/// Gives up every lock on `file` (fcntl_locking(2)).
///
/// Closing it would do the same, but only once all copies of the descriptor are gone: a process
/// that is being started has one until it executes its program, and an io_uring until the kernel
/// has taken it down, some time after it was closed. A disk that is attached again at once would be
/// refused.
fn unlock(file: &File) {
    // What cannot be given up here goes with the last descriptor.
    let _ = fcntl(file, libc::F_OFD_SETLK, &mut range(libc::F_UNLCK, 0, 0));
}

/// A file that is locked until this is dropped, as a disk's image is: other VMs and QEMU are
/// excluded as is written above, whatever the file is to the guest.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks the open file of `file`, without waiting: as its only writer, or as one of any number
    /// of readers. `None` if somebody else excludes that. A file system without locks grants
    /// everything, and the log says so, with `what` the file is.
    ///
    /// # Errors
    /// What the host says.
    pub fn take(file: File, writes: bool, what: impl Display) -> io::Result<Option<Self>> {
        let hold = if writes { Hold::Exclusive } else { Hold::Shared };
        match lock(&file, hold)? {
            Locked::Held => Ok(Some(Self(file))),
            Locked::Busy => Ok(None),
            Locked::Unsupported => {
                log::warn!("{what}: no locks on this file system");
                Ok(Some(Self(file)))
            }
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    /// A file system may write out at each close what it has of a file, and wait for it (FUSE,
    /// NFS): the image stays locked for that.
    fn drop(&mut self) {
        drop(self.0.try_clone());
        unlock(&self.0);
    }
}

/// Whether another open file has a lock of any kind on `file`, as each VMM has on the image of a disk. On a file system
/// without locks nobody has.
///
/// # Errors
/// What the host answered otherwise.
pub fn is_locked_by_anyone(file: &File) -> io::Result<bool> {
    let mut found = range(libc::F_WRLCK, 0, 0);
    let asked = outcome(fcntl(file, libc::F_OFD_GETLK, &mut found))?;
    Ok(asked == Locked::Held && i32::from(found.l_type) != libc::F_UNLCK)
}

/// Whether somebody else has locked `byte` in a way that excludes `hold`.
fn is_locked(file: &File, byte: i64, hold: Hold) -> io::Result<bool> {
    let mut found = range(libc::F_WRLCK, byte, 1);
    fcntl(file, libc::F_OFD_GETLK, &mut found)?;
    let kind = i32::from(found.l_type);
    // The kernel joins neighbouring bytes of one holder, so that the length tells nothing.
    let whole_file_reader = kind == libc::F_RDLCK && found.l_start < READ.does;
    Ok(kind != libc::F_UNLCK && !(whole_file_reader && hold == Hold::Shared))
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock types are 0 to 2"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: libc::c_int, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open as `file` is borrowed, and the kernel reads and writes
    // `range`, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut *range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn outcome(answer: io::Result<()>) -> io::Result<Locked> {
    match answer {
        Ok(()) => Ok(Locked::Held),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(Locked::Busy),
            Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP) => Ok(Locked::Unsupported),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
#[path = "lock_test.rs"]
mod tests;
