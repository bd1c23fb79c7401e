//! Host operations as plain, synchronous system calls, and reads of what the host has in its page cache.
#![expect(
    unsafe_code,
    reason = "preadv, pwritev and fallocate on guest memory take raw pointers"
)]

use std::io;
use std::os::fd::AsRawFd;

use super::engine::Op;
use crate::iovecs::Iovecs;

/// Carries `op` out, again when a signal interrupts it.
///
/// # Safety
/// The memory that the buffers of `op` point to must stay mapped until this returns.
pub(super) unsafe fn run(op: Op<'_>) -> io::Result<usize> {
    loop {
        // SAFETY: handed on from the caller.
        match unsafe { run_once(op) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// What a read that does not wait came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AtHand {
    /// So many bytes: at least one, and maybe fewer than were asked for.
    Read(usize),
    /// Nothing of it is at hand, or there is nothing at the end of the file, or it is no read.
    Not,
    /// This host, or this file, has no reads that do not wait.
    Never,
}

/// Carries `op` out if it is a read of what the page cache has (`RWF_NOWAIT`, preadv2(2)). Not for
/// files that are open for direct I/O: those reads would wait for the device.
///
/// # Safety
/// As for [`run`].
pub(super) unsafe fn read_at_hand(op: Op<'_>) -> AtHand {
    let Op::Read { file, buffers, offset } = op else {
        return AtHand::Not;
    };
    let (Ok((array, count)), Ok(offset)) = (parts(buffers), off_t(offset)) else {
        return AtHand::Not;
    };
    // SAFETY: the array is borrowed, its buffers are mapped as the caller promises, the descriptor is open.
    let read = moved(unsafe { libc::preadv2(file.as_raw_fd(), array, count, offset, libc::RWF_NOWAIT) });
    match read {
        // Linux 5.9 and 5.10 say so of what is not at hand, too (preadv2(2), BUGS). A read that
        // waits tells the end of the file from that.
        Ok(0) => AtHand::Not,
        Ok(bytes) => AtHand::Read(bytes),
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => AtHand::Never,
            // An error of the host is told by whoever waits for it.
            _ => AtHand::Not,
        },
    }
}

/// # Safety
/// As for [`run`].
unsafe fn run_once(op: Op<'_>) -> io::Result<usize> {
    match op {
        Op::Read { file, buffers, offset } => {
            let (array, count) = parts(buffers)?;
            // SAFETY: the array is borrowed, its buffers are mapped as the caller promises, the descriptor is open.
            moved(unsafe { libc::preadv(file.as_raw_fd(), array, count, off_t(offset)?) })
        }
        Op::Write { file, buffers, offset } => {
            let (array, count) = parts(buffers)?;
            // SAFETY: as for the read; the kernel only reads the buffers.
            moved(unsafe { libc::pwritev(file.as_raw_fd(), array, count, off_t(offset)?) })
        }
        Op::Sync { file } => file.sync_data().map(|()| 0),
        Op::Allocate {
            file,
            mode,
            offset,
            len,
        } => {
            let (offset, len) = (off_t(offset)?, off_t(len)?);
            // SAFETY: no memory is involved, and the descriptor is open as `file` is borrowed.
            let answer = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
            moved(isize::try_from(answer).unwrap_or(-1))
        }
    }
}

fn parts(buffers: &Iovecs) -> io::Result<(*const libc::iovec, libc::c_int)> {
    let array = buffers.as_slice();
    let count = libc::c_int::try_from(array.len()).map_err(|_| invalid())?;
    Ok((array.as_ptr(), count))
}

fn off_t(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| invalid())
}

fn moved(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
