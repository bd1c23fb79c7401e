//! What a guest's output can go to, behind one face.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use super::line::Terminal;
use super::{Journal, Outlet, Progress, Writer, writable_by};

/// Takes bytes as far as there is room.
#[derive(Debug)]
pub enum Way {
    /// A descriptor.
    Outlet(Outlet),
    /// A file, or files of limited size.
    Writer(Arc<Writer>),
    /// journald.
    Journal(Journal),
    /// The client of a socket, or the one that may come.
    Client(Option<Outlet>),
    /// A pseudo-terminal.
    Terminal(Terminal),
}

impl Way {
    /// Takes the head of `bytes`, and says how many bytes that was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; what the host says otherwise.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Outlet(outlet) => outlet.write(bytes),
            Self::Writer(writer) => writer.write(bytes),
            Self::Journal(journal) => journal.write(bytes),
            Self::Client(Some(outlet)) => outlet.write(bytes),
            Self::Client(None) => Err(io::ErrorKind::WouldBlock.into()),
            Self::Terminal(terminal) => terminal.master().write(bytes),
        }
    }

    /// Parts with the client, if that is what this leads to: there is none until another one comes.
    pub(super) fn part(&mut self) -> Option<Outlet> {
        match self {
            Self::Client(client) => client.take(),
            _ => None,
        }
    }

    /// Waits for room until `deadline`; whether there is some. Also true of what is broken: the write will say so.
    pub(super) fn has_room_by(&self, deadline: Instant) -> bool {
        match self {
            Self::Outlet(outlet) => outlet.has_room_by(deadline),
            Self::Writer(writer) => writable_by(writer.as_ref(), deadline),
            Self::Journal(journal) => writable_by(journal, deadline),
            Self::Client(client) => client.as_ref().is_some_and(|outlet| outlet.has_room_by(deadline)),
            Self::Terminal(terminal) => terminal.master().has_room_by(deadline),
        }
    }

    /// Whether what was taken would be lost if this were closed now.
    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Self::Terminal(terminal) if terminal.is_unread())
    }

    /// Gives what was taken until `deadline` to be read or written, if it would be lost when the process ends.
    pub(super) fn wait_for_reader(&self, deadline: Instant) {
        match self {
            Self::Terminal(terminal) => terminal.wait_for_reader(deadline),
            Self::Writer(writer) => {
                writer.progress().wait(deadline);
            }
            _ => {}
        }
    }

    /// What a thread does with what was taken, if one does.
    pub(super) fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Writer(writer) => Some(writer.progress()),
            _ => None,
        }
    }

    /// A descriptor that is writable when there is room; `None` if it takes somebody to come.
    pub(super) fn room(&self) -> Option<RawFd> {
        Some(match self {
            Self::Outlet(outlet) => outlet.as_raw_fd(),
            Self::Writer(writer) => writer.as_raw_fd(),
            Self::Journal(journal) => journal.as_raw_fd(),
            Self::Client(client) => client.as_ref()?.as_raw_fd(),
            Self::Terminal(terminal) => terminal.master().as_raw_fd(),
        })
    }
}

impl From<Outlet> for Way {
    fn from(outlet: Outlet) -> Self {
        Self::Outlet(outlet)
    }
}
