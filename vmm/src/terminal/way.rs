//! What a guest's output can go to, behind one face.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use super::{Files, Journal, Outlet, writable_by};

/// Takes bytes as far as there is room.
#[derive(Debug)]
pub enum Way {
    /// A descriptor.
    Outlet(Outlet),
    /// Files of limited size.
    Files(Files),
    /// journald.
    Journal(Journal),
}

impl Way {
    /// Takes the head of `bytes`, and says how many bytes that was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; what the host says otherwise.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Outlet(outlet) => outlet.write(bytes),
            Self::Files(files) => files.write(bytes),
            Self::Journal(journal) => journal.write(bytes),
        }
    }

    /// Makes room where that is ours to do. For the main thread.
    pub(super) fn make_room(&mut self) {
        if let Self::Files(files) = self {
            files.make_room();
        }
    }

    /// Waits for room until `deadline`; whether there is some. Also true of what is broken: the write will say so.
    pub(super) fn has_room_by(&self, deadline: Instant) -> bool {
        match self {
            Self::Outlet(outlet) => outlet.has_room_by(deadline),
            Self::Files(_) => true,
            Self::Journal(journal) => writable_by(journal, deadline),
        }
    }
}

impl From<Outlet> for Way {
    fn from(outlet: Outlet) -> Self {
        Self::Outlet(outlet)
    }
}

impl AsRawFd for Way {
    /// A descriptor that is writable when there is room, or when some can be made.
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Outlet(outlet) => outlet.as_raw_fd(),
            Self::Files(files) => files.as_raw_fd(),
            Self::Journal(journal) => journal.as_raw_fd(),
        }
    }
}
