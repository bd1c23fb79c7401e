//! What the C library's functions answer, as results; and poll(2), which the standard library lacks.

#![expect(unsafe_code, reason = "poll(2) has no safe wrapper in the standard library")]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// An answer that is negative on failure.
pub(crate) fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Calls `io`, which answers with a number of bytes or a negative one, again as long as a signal interrupts it.
pub(crate) fn retry(mut io: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(io()) {
            Ok(done) => return Ok(done),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Waits until `fd` is ready for one of `events` (poll(2)), at most for `patience`. A patience of
/// zero looks, and does not wait.
///
/// # Errors
/// What poll(2) says, an interruption included.
pub(crate) fn is_ready(fd: RawFd, events: i16, patience: Duration) -> io::Result<bool> {
    // Rounded up: what is left of a deadline must not become a busy loop.
    let patience = patience.as_micros().div_ceil(1000);
    let mut polled = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the kernel writes to the local alone, during the call only.
    match unsafe { libc::poll(&raw mut polled, 1, i32::try_from(patience).unwrap_or(i32::MAX)) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn readiness_is_looked_at_without_waiting_for_it() {
        let (here, there) = UnixStream::pair().unwrap();
        let is_readable = || is_ready(here.as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap();
        assert!(!is_readable());
        io::Write::write_all(&mut &there, b"x").unwrap();
        assert!(is_readable());
        assert!(is_ready(here.as_raw_fd(), libc::POLLOUT, Duration::from_secs(60)).unwrap());
    }
}
