//! The calls of the host that take raw pointers and have no safe wrapper.
#![expect(
    unsafe_code,
    reason = "vectored calls on guest memory, file handles and OFD locks have no safe wrapper"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::iovecs::{Buffers, Iovecs, MAX_IOVECS, pieces};

/// Largest handle that the kernel gives (`MAX_HANDLE_SZ` of linux/exportfs.h).
const MAX_HANDLE_BYTES: u32 = 128;
/// Words of `struct file_handle` before the handle itself: its length in bytes, and its type.
const HANDLE_HEADER: usize = 2;

/// `struct file_handle` (open_by_handle_at(2)), only as long as it need be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileHandle(Box<[u32]>);

/// A handle that need not be good for opening (linux/fcntl.h).
const AT_HANDLE_FID: libc::c_int = 0x200;

impl FileHandle {
    /// That of the node that `fd` holds.
    pub fn of(fd: impl AsFd) -> Result<Self, Errno> {
        Self::asked(fd, 0)
    }

    /// One that tells the node that `fd` holds from others, and may be good for nothing else: from
    /// file systems that have no handles as well, since Linux 6.5.
    pub fn telling(fd: impl AsFd) -> Result<Self, Errno> {
        Self::asked(&fd, 0).or_else(|_| Self::asked(&fd, AT_HANDLE_FID))
    }

    fn asked(fd: impl AsFd, flags: libc::c_int) -> Result<Self, Errno> {
        let mut words = [0u32; HANDLE_HEADER + MAX_HANDLE_BYTES as usize / 4];
        words[0] = MAX_HANDLE_BYTES;
        let mut mount: libc::c_int = 0;
        // SAFETY: the name is a C string, `words` has room for the header and as many bytes as its
        // first word says, and `mount` is an int; both outlive the call.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                words.as_mut_ptr(),
                &raw mut mount,
                libc::AT_EMPTY_PATH | flags,
            )
        };
        done(answer)?;
        let used = usize::try_from(words[0].div_ceil(4)).map_err(|_| Errno::OVERFLOW)?;
        let end = HANDLE_HEADER.saturating_add(used);
        Ok(Self(words.get(..end).ok_or(Errno::OVERFLOW)?.into()))
    }

    /// Opens the node, which is on the file system of `mount`, as `flags` say.
    pub fn open(&self, mount: BorrowedFd<'_>, flags: libc::c_int) -> Result<OwnedFd, Errno> {
        // SAFETY: the words are a header and as many bytes as its first word says. The kernel reads them only.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                self.0.as_ptr(),
                flags | libc::O_CLOEXEC,
            )
        };
        let fd = RawFd::try_from(done(answer)?).map_err(|_| Errno::BADF)?;
        // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Reads from `offset` on: fewer bytes than there is room for only at the end of the file.
///
/// # Errors
/// What the host says of any byte before that, also if it read others.
pub(super) fn read(file: impl AsFd, into: Buffers<'_>, offset: u64) -> Result<usize, Errno> {
    read_by(into, offset, |part, at| {
        move_all(part, at, |array, count, at| {
            // SAFETY: the array is borrowed, its buffers are mapped as long as `into`, and may be written by anybody.
            unsafe { libc::preadv(file.as_fd().as_raw_fd(), array, count, at) }
        })
    })
}

/// Has `read` read, and again behind what it read, as long as that falls short: it does so at the
/// end of the file, but also before what cannot be read, and only the next call says which of them
/// it was.
fn read_by(
    into: Buffers<'_>,
    offset: u64,
    mut read: impl FnMut(Buffers<'_>, u64) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut done = read(into, offset)?;
    let mut rest = Iovecs::default();
    while done > 0 {
        // One buffer will do: there is more only if somebody appends, or a signal came.
        let Some(piece) = pieces(into.slices(), done, usize::MAX).next() else {
            break;
        };
        let mut live = rest.begin();
        live.push(piece);
        let behind = u64::try_from(done).ok().and_then(|done| offset.checked_add(done));
        match read(live.buffers(), behind.ok_or(Errno::INVAL)?) {
            // The file ends inside of a block, where some file systems begin no direct I/O (open(2), `O_DIRECT`).
            Ok(0) | Err(Errno::INVAL) => break,
            more => done = done.saturating_add(more?),
        }
    }
    Ok(done)
}

/// Writes from `offset` on: fewer bytes than there are only when the host has no room for more.
pub(super) fn write(file: impl AsFd, from: Buffers<'_>, offset: u64) -> Result<usize, Errno> {
    move_all(from, offset, |array, count, at| {
        // SAFETY: as for the read; the kernel only reads the buffers.
        unsafe { libc::pwritev(file.as_fd().as_raw_fd(), array, count, at) }
    })
}

/// As [`write()`], but at the end of the file, wherever that is (`RWF_APPEND` of pwritev2(2)).
pub(super) fn append(file: impl AsFd, from: Buffers<'_>, offset: u64) -> Result<usize, Errno> {
    move_all(from, offset, |array, count, at| {
        // SAFETY: as for the write.
        unsafe { libc::pwritev2(file.as_fd().as_raw_fd(), array, count, at, libc::RWF_APPEND) }
    })
}

/// Calls `io` with as many buffers as one call can take, until a call falls short.
fn move_all(
    buffers: Buffers<'_>,
    offset: u64,
    io: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> Result<usize, Errno> {
    let mut moved = 0usize;
    let mut first = 0usize;
    loop {
        let end = first.saturating_add(MAX_IOVECS).min(buffers.as_slice().len());
        let part = buffers.range(first, end).as_slice();
        let at = u64::try_from(moved).ok().and_then(|moved| offset.checked_add(moved));
        let at = at.and_then(|at| libc::off_t::try_from(at).ok()).ok_or(Errno::INVAL)?;
        let count = libc::c_int::try_from(part.len()).map_err(|_| Errno::INVAL)?;
        match crate::syscall::retry(|| io(part.as_ptr(), count, at)) {
            Ok(bytes) => {
                moved = moved.saturating_add(bytes);
                let wanted = part.iter().map(|entry| entry.iov_len).fold(0, usize::saturating_add);
                if bytes < wanted || end >= buffers.as_slice().len() {
                    return Ok(moved);
                }
            }
            Err(_) if moved > 0 => return Ok(moved),
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
        first = end;
    }
}

/// Closes a copy of `file`, which has some file systems say what became of earlier writes.
pub(super) fn close_copy(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let Ok(copy) = file.try_clone_to_owned() else {
        return Ok(());
    };
    // SAFETY: the descriptor was just made, and is given up here.
    let answer = unsafe { libc::close(copy.into_raw_fd()) };
    done(answer.into()).map(|_| ())
}

/// Gives the calling thread its own umask and working directory.
pub(super) fn own_directories() -> Result<(), Errno> {
    // SAFETY: only `CLONE_FS`: descriptors and memory stay what they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// Gives the calling thread mounts of its own, which go with it.
#[cfg(test)]
pub(super) fn own_mounts() -> Result<(), Errno> {
    use rustix::thread::UnshareFlags;
    // SAFETY: descriptors and memory stay what they are.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }
}

/// What of a file is locked, or is to be (fcntl_locking(2), open file description locks).
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: libc::c_int,
    pub start: i64,
    /// 0 is up to the end of the file.
    pub len: i64,
}

/// Sets or takes a lock on `file`, without waiting: `EAGAIN` if somebody else has it.
pub(super) fn set_lock(file: BorrowedFd<'_>, range: Range) -> Result<(), Errno> {
    lock_call(file, libc::F_OFD_SETLK, range).map(|_| ())
}

/// The first lock that is in the way of `range`, if any.
pub(super) fn find_lock(file: BorrowedFd<'_>, range: Range) -> Result<Option<Range>, Errno> {
    let found = lock_call(file, libc::F_OFD_GETLK, range)?;
    Ok((found.kind != libc::F_UNLCK).then_some(found))
}

fn lock_call(file: BorrowedFd<'_>, command: libc::c_int, range: Range) -> Result<Range, Errno> {
    let mut lock = libc::flock {
        l_type: i16::try_from(range.kind).map_err(|_| Errno::INVAL)?,
        l_whence: 0,
        l_start: range.start,
        l_len: range.len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open as `file` is borrowed; the kernel reads and writes `lock`,
    // which outlives the call.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    done(answer.into())?;
    Ok(Range {
        kind: lock.l_type.into(),
        start: lock.l_start,
        len: lock.l_len,
    })
}

/// Which version of Landlock's rules the host has; 0 if none.
pub fn landlock_abi() -> u32 {
    const VERSION: libc::c_int = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag nothing is read, and no descriptor is made.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    u32::try_from(answer).unwrap_or(0)
}

/// The answer of a call that is negative on failure.
fn done(answer: libc::c_long) -> Result<libc::c_long, Errno> {
    if answer < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(answer)
}

#[cfg(test)]
#[path = "reading_test.rs"]
mod tests;
