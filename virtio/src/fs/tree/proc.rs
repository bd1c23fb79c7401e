//! `/proc/self/fd`, held open: the way from a descriptor that only names a file to one that reads or changes it.
//!
//! An entry there is a magic link. It leads to the very file that the descriptor holds, whatever
//! its name has become since, and is followed no further: that of a symbolic link leads to the link
//! itself. No name that a guest chose is ever looked up here.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

/// Room for the number of a descriptor, and a NUL.
const DIGITS: usize = 12;

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct ProcFds(Arc<OwnedFd>);

impl ProcFds {
    /// Opens it. The process must not fork afterwards: a child would find the descriptors of its parent.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(Arc::new(openat(CWD, c"/proc/self/fd", flags, Mode::empty())?)))
    }

    /// Opens what `fd` holds as `flags` say. Not for symbolic links; and special files would do what they do.
    pub fn reopen(&self, fd: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(&*self.0, Number::of(fd).as_c_str(), flags, Mode::empty())
    }

    /// The directory, for calls that take a name in it.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The name of a descriptor's entry.
pub(super) struct Number([u8; DIGITS]);

impl Number {
    /// That of `fd`.
    pub fn of(fd: impl AsFd) -> Self {
        let mut digits = [0; DIGITS];
        let (most, _) = digits.split_at_mut(DIGITS - 1);
        let mut rest = most;
        write!(rest, "{}", fd.as_fd().as_raw_fd()).expect("eleven digits are enough for any descriptor");
        Self(digits)
    }

    /// For the host.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).expect("the last byte is NUL")
    }
}
