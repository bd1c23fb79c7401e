//! A descriptor that is written to and never waited for, whatever is behind it.
//!
//! | what the user names | how it is opened | a write without room |
//! |---|---|---|
//! | a regular file | for appending, so that it goes on at its end when somebody has shortened it | waits for the file system until a thread writes (below), then `WouldBlock` |
//! | a FIFO | at both ends, so that its reader may come, go and come again | `WouldBlock` |
//! | a terminal, another character device | as it is | `WouldBlock` |
//! | a directory, a socket, a block device | not at all | |
//!
//! What husk was started with is shared with other processes, which `O_NONBLOCK` would hit too, and
//! which can clear it: its flags are neither changed nor relied on. A terminal or pipe is opened a
//! second time instead. A socket, or a pipe that cannot be, is told with each write that this one
//! does not wait (`RWF_NOWAIT`). The master of a pseudo-terminal, which the Go shim gives as
//! standard output, knows neither: opened again it would be another one. It is asked first, and its
//! answer is good for one byte.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, IoSlice, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use husk_virtio::block::is_locked_by_anyone;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::{
    Content, FileId, NO_OFFSET, OutputTarget, ProtectedFiles, WriteProgress, WriterThread, writable_by, writable_within,
};
use crate::seccomp::Mode;

/// The most bytes of one write (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// The device that is every pseudo-terminal's master (Linux admin-guide/devices.txt, 5 char).
const PTMX: u64 = libc::makedev(5, 2);

/// Why nothing can be written at a path.
#[derive(Debug, thiserror::Error)]
pub enum OpenOutputError {
    /// Not something that is written to byte by byte.
    #[error("it is a {0}, allowed: a regular file, a FIFO, a terminal or another character device")]
    Kind(&'static str),
    /// Not a file that can be kept small.
    #[error("it is no regular file, which alone can have a limit")]
    Unlimited,
    /// A file that husk writes for itself, which nothing is to empty.
    #[error("it is {0} too: with a limit only the port can have it")]
    Protected(&'static str),
    /// A VM may have it, of this process or of another one.
    #[error("it is locked, as a VM locks the image of a disk: nothing is written over it")]
    Locked,
    /// The host does not let us have it.
    #[error("cannot open it")]
    Open(#[from] io::Error),
}

/// How a write without room comes back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// The file description says so, which is husk's own; or there is always room.
    Own,
    /// Each write says so. Where the kernel does not know that of this file, it is asked first.
    Told,
    /// poll(2) is asked before each write: neither `O_NONBLOCK` nor `RWF_NOWAIT` can be used on this descriptor.
    Asked,
}

/// Takes bytes as far as there is room. Usable from any thread.
#[derive(Debug)]
pub struct NonBlockingFile {
    file: File,
    room: Room,
    /// The most bytes of one write.
    chunk: usize,
    /// What the file has goes when a thread writes to it first.
    replaces: bool,
    /// The thread that writes, of a regular file for which one has been started.
    writer: OnceLock<WriterThread>,
}

impl NonBlockingFile {
    /// Opens what is at `path`, a regular file emptied unless it is one of `protected`, or made
    /// with the permissions `mode`.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn create(path: &Path, mode: u32, protected: &ProtectedFiles) -> Result<Self, OpenOutputError> {
        let opened = Self::append(path, mode)?;
        let file = opened.file_id();
        if file.is_some() && !protected.is_kept(file) {
            opened.file.set_len(0)?;
        }
        Ok(opened)
    }

    /// Which regular file this is, if it is one.
    pub fn file_id(&self) -> Option<FileId> {
        FileId::of(&self.file)
    }

    /// Opens what is at `path`, or makes a regular file with the permissions `mode`. What a file has stays.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn append(path: &Path, mode: u32) -> Result<Self, OpenOutputError> {
        Self::append_or_make(path, mode).map(|(opened, _)| opened)
    }

    /// As [`NonBlockingFile::append`], and whether a regular file was made at `path`.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn append_or_make(path: &Path, mode: u32) -> Result<(Self, bool), OpenOutputError> {
        let (file, made) = open(path, mode)?;
        check_kind(file.metadata()?.file_type())?;
        check_unlocked(&file)?;
        Ok((Self::wrap(file), made))
    }

    /// The same, for a file that is written once: what it has stays until the thread that [writes](Self::start_writer)
    /// to it begins.
    pub fn replacing(mut self) -> Self {
        self.replaces = true;
        self
    }

    /// Takes what does not block already, and is nobody else's.
    pub(super) fn wrap(file: File) -> Self {
        Self {
            file,
            room: Room::Own,
            chunk: CHUNK,
            replaces: false,
            writer: OnceLock::new(),
        }
    }

    /// Takes a descriptor that the process was started with.
    pub fn inherit(file: File) -> Self {
        let terminal = file.is_terminal();
        if let Some(own) = open_again(&file, terminal) {
            return Self::wrap(own);
        }
        let room = match file.metadata().map(|found| found.file_type()) {
            Ok(kind) if kind.is_file() => Room::Own,
            Ok(kind) if kind.is_socket() || kind.is_fifo() => Room::Told,
            _ => Room::Asked,
        };
        let chunk = if terminal { 1 } else { CHUNK };
        let writer = OnceLock::new();
        Self {
            file,
            room,
            chunk,
            replaces: false,
            writer,
        }
    }

    /// Whether this is a regular file, which writes wait for.
    fn is_file(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.is_file())
    }

    /// From now on a thread writes lines to this if it is a regular file, so that nobody waits for its file system.
    ///
    /// # Errors
    /// As of [`WriterThread::start`].
    pub fn start_writer(&self, seccomp: Mode) -> io::Result<()> {
        if self.writer.get().is_some() || !self.is_file() {
            return Ok(());
        }
        let (file, mut replaces) = (self.file.try_clone()?, self.replaces);
        let write = move |bytes: &[u8]| {
            if replaces {
                file.set_len(0)?;
                replaces = false;
            }
            (&file).write(bytes)
        };
        let writer = WriterThread::start(Content::Lines, seccomp, write)?;
        // Fails only when there is one already.
        let _ = self.writer.set(writer);
        Ok(())
    }

    /// This as the target of a guest's output: by a thread, which has the file then, if this is a regular one.
    ///
    /// # Errors
    /// As of [`WriterThread::start`].
    pub fn into_target(self, seccomp: Mode) -> io::Result<OutputTarget> {
        if !self.is_file() {
            return Ok(OutputTarget::Descriptor(self));
        }
        let writer = WriterThread::start(Content::Bytes, seccomp, move |bytes| (&self.file).write(bytes))?;
        Ok(OutputTarget::WriterThread(Arc::new(writer)))
    }

    /// How far the thread has come that writes, if one does.
    pub fn progress(&self) -> Option<&WriteProgress> {
        self.writer.get().map(WriterThread::progress)
    }

    /// Writes without the thread, if one writes. For the last words of a process, which wait for the file system then.
    pub fn write_bypassing_thread(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    /// Writes the head of `bytes`, and says how many bytes that was.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, `WriteZero` when nothing was taken and nothing said; what the host says
    /// otherwise. There may be room later in all cases.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let head = bytes.get(..self.chunk).unwrap_or(bytes);
        loop {
            let written = match self.writer.get() {
                Some(writer) => writer.write(head),
                None => self.write_once(head),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return reject_zero_write(head, written),
            }
        }
    }

    fn write_once(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.room == Room::Told {
            match pwritev2(&self.file, &[IoSlice::new(bytes)], NO_OFFSET, ReadWriteFlags::NOWAIT) {
                // Not of this file, or no call of the kind at all.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                written => return Ok(written?),
            }
        }
        if self.room != Room::Own && !writable_within(self.file.as_fd(), 0) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        (&self.file).write(bytes)
    }

    /// Writes all of `bytes`, and waits for room up to `limit`, and for a thread that writes them.
    /// For a process that has nothing else to do any more.
    ///
    /// # Errors
    /// `TimedOut` when there was no room for the rest, or it is not written; what the host says otherwise.
    pub fn write_all_within(&self, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while !bytes.is_empty() {
            match self.write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if !self.wait_writable_until(deadline) => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => {}
            }
        }
        match self.progress() {
            Some(progress) if !progress.wait(deadline) => Err(io::ErrorKind::TimedOut.into()),
            Some(progress) => progress.error().map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    /// Waits for room until `deadline`; whether there is some. Also true of what is broken: the write will say so.
    pub fn wait_writable_until(&self, deadline: Instant) -> bool {
        writable_by(self, deadline)
    }
}

/// What is to be watched for room.
impl AsFd for NonBlockingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.get().map_or_else(|| self.file.as_fd(), AsFd::as_fd)
    }
}

impl AsRawFd for NonBlockingFile {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Opens `path` for appending, and says whether a file was made there. Looks at it first: only a FIFO is opened at both
/// ends, and opening a device may have effects.
fn open(path: &Path, mode: u32) -> Result<(File, bool), OpenOutputError> {
    let mut options = OpenOptions::new();
    options.append(true).mode(mode);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let found = path.metadata().map(|found| found.file_type());
    if let Ok(found) = found {
        check_kind(found)?;
    }
    if let Ok(found) = found
        && found.is_fifo()
    {
        return match options.read(true).open(path) {
            // It is there to be written to only: then somebody has to read already.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok((options.read(false).open(path)?, false))
            }
            opened => Ok((opened?, false)),
        };
    }
    if found.is_err()
        && let Ok(made) = options.create_new(true).open(path)
    {
        return Ok((made, true));
    }
    Ok((options.create_new(false).create(true).open(path)?, false))
}

/// What a write of `bytes` has `written`. Nothing is an error: whoever went on with the rest would do so for ever. Some
/// file systems answer so, and POSIX does not forbid it (write(2)).
pub(super) fn reject_zero_write(bytes: &[u8], written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WriteZero.into()),
        written => written,
    }
}

/// Refuses the image of a VM that runs, whoever runs it. Files that are written to are locked by nobody otherwise.
pub(super) fn check_unlocked(file: &File) -> Result<(), OpenOutputError> {
    match file.metadata()?.is_file() && is_locked_by_anyone(file)? {
        true => Err(OpenOutputError::Locked),
        false => Ok(()),
    }
}

fn check_kind(kind: FileType) -> Result<(), OpenOutputError> {
    Err(OpenOutputError::Kind(match () {
        () if kind.is_dir() => "directory",
        () if kind.is_socket() => "socket",
        () if kind.is_block_device() => "block device",
        () => return Ok(()),
    }))
}

/// The same terminal or pipe with a file description of husk's own; `None` of a master, and of what is neither.
fn open_again(file: &File, terminal: bool) -> Option<File> {
    let found = file.metadata().ok()?;
    if found.rdev() == PTMX || !(terminal || found.file_type().is_fifo()) {
        return None;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

#[cfg(test)]
#[path = "non_blocking_file_test.rs"]
mod tests;
