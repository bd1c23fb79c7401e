//! What the C library's functions answer, as results.

use std::io;

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
