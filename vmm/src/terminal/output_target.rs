//! What a guest's output can go to, behind one face.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use super::chardev::PseudoTerminal;
use super::{Journal, NonBlockingFile, WriteProgress, WriterThread, writable_by};

/// Takes bytes as far as there is room.
#[derive(Debug)]
pub enum OutputTarget {
    /// A descriptor.
    Descriptor(NonBlockingFile),
    /// A file, or files of limited size.
    WriterThread(Arc<WriterThread>),
    /// journald.
    Journal(Journal),
    /// The client of a socket, or the one that may come.
    Client(Option<NonBlockingFile>),
    /// A pseudo-terminal.
    PseudoTerminal(PseudoTerminal),
}

impl OutputTarget {
    /// Takes the head of `bytes`, and says how many bytes that was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room; what the host says otherwise.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Descriptor(file) => file.write(bytes),
            Self::WriterThread(writer) => writer.write(bytes),
            Self::Journal(journal) => journal.write(bytes),
            Self::Client(Some(file)) => file.write(bytes),
            Self::Client(None) => Err(io::ErrorKind::WouldBlock.into()),
            Self::PseudoTerminal(terminal) => terminal.master().write(bytes),
        }
    }

    /// Takes the client, if this has one: there is none until another one connects.
    pub(super) fn disconnect_client(&mut self) -> Option<NonBlockingFile> {
        match self {
            Self::Client(client) => client.take(),
            _ => None,
        }
    }

    /// Waits for room until `deadline`; whether there is some. Also true of what is broken: the write will say so.
    pub(super) fn wait_writable_until(&self, deadline: Instant) -> bool {
        match self {
            Self::Descriptor(file) => file.wait_writable_until(deadline),
            Self::WriterThread(writer) => writable_by(writer.as_ref(), deadline),
            Self::Journal(journal) => writable_by(journal, deadline),
            Self::Client(client) => client.as_ref().is_some_and(|file| file.wait_writable_until(deadline)),
            Self::PseudoTerminal(terminal) => terminal.master().wait_writable_until(deadline),
        }
    }

    /// Whether what was taken would be lost if this were closed now.
    pub(super) fn has_unread_bytes(&self) -> bool {
        matches!(self, Self::PseudoTerminal(terminal) if terminal.has_unread_bytes())
    }

    /// Gives what was taken until `deadline` to be read or written, if it would be lost when the process ends.
    pub(super) fn wait_drained(&self, deadline: Instant) {
        match self {
            Self::PseudoTerminal(terminal) => terminal.wait_drained(deadline),
            Self::WriterThread(writer) => {
                writer.progress().wait(deadline);
            }
            _ => {}
        }
    }

    /// What a thread does with what was taken, if one does.
    pub(super) fn progress(&self) -> Option<&WriteProgress> {
        match self {
            Self::WriterThread(writer) => Some(writer.progress()),
            _ => None,
        }
    }

    /// A descriptor that is writable when there is room; `None` if it takes somebody to come.
    pub(super) fn writable_fd(&self) -> Option<RawFd> {
        Some(match self {
            Self::Descriptor(file) => file.as_raw_fd(),
            Self::WriterThread(writer) => writer.as_raw_fd(),
            Self::Journal(journal) => journal.as_raw_fd(),
            Self::Client(client) => client.as_ref()?.as_raw_fd(),
            Self::PseudoTerminal(terminal) => terminal.master().as_raw_fd(),
        })
    }
}

impl From<NonBlockingFile> for OutputTarget {
    fn from(file: NonBlockingFile) -> Self {
        Self::Descriptor(file)
    }
}
