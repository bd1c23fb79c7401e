//! Host operations as plain, synchronous system calls.
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
