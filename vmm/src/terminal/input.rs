//! Keys and bytes for the guest, from standard input.
//!
//! Others have the same open file description, and may take what epoll has told of: a read says for
//! itself that it does not wait (`RWF_NOWAIT`), or where that is not known (a terminal) asks once
//! more right before it.

use std::fs::File;
use std::io::{self, IoSliceMut, IsTerminal, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vmm_sys_util::eventfd::EventFd;

use super::{Escape, NO_OFFSET, Quit, ready_within};

/// The most bytes of one read.
const CHUNK: usize = 256;

/// What one [`Input::read`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Bytes, or for a moment none. There may be more.
    Bytes,
    /// The pipe or file has ended. The VM goes on without input; the descriptor is not to be watched any more.
    Ended,
    /// The terminal was closed: the VM ends.
    Hangup,
    /// The escape sequence was typed: the VM ends.
    Quit,
}

/// Standard input.
///
/// The escape sequence is looked for only on a terminal: bytes from a pipe or file reach the guest unchanged.
#[derive(Debug)]
pub struct Input {
    file: File,
    escape: Option<Escape>,
    /// Stands in for what epoll refuses, regular files and `/dev/null`: always readable.
    ready: Option<EventFd>,
}

impl Input {
    /// Takes standard input; `None` when it is closed.
    ///
    /// # Errors
    /// What the host says.
    pub fn stdin() -> io::Result<Option<Self>> {
        match io::stdin().as_fd().try_clone_to_owned() {
            Ok(fd) => Self::new(File::from(fd)).map(Some),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes `file` in its place.
    ///
    /// # Errors
    /// What the host says.
    pub fn new(file: File) -> io::Result<Self> {
        let escape = file.is_terminal().then(Escape::default);
        let kind = file.metadata()?.file_type();
        let pollable = escape.is_some() || kind.is_fifo() || kind.is_socket();
        let ready = (!pollable).then(always_ready).transpose()?;
        Ok(Self { file, escape, ready })
    }

    /// Whether this is a terminal.
    pub const fn is_terminal(&self) -> bool {
        self.escape.is_some()
    }

    /// Appends at most `room` bytes for the guest to `out`. Call it when the descriptor is
    /// readable; with no `room` nothing is read. May append one byte more when a lone Ctrl-A had
    /// been held back.
    pub fn read(&mut self, room: usize, out: &mut Vec<u8>) -> Arrival {
        let mut buffer = [0; CHUNK];
        let Some(buffer) = buffer.get_mut(..room.min(CHUNK)).filter(|buffer| !buffer.is_empty()) else {
            return Arrival::Bytes;
        };
        let count = match self.read_once(buffer) {
            Ok(count) => count,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                return Arrival::Bytes;
            }
            // EIO is a terminal's way of saying that it is gone. Whatever else fails will fail again.
            Err(_) => 0,
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        match &mut self.escape {
            Some(_) if bytes.is_empty() => Arrival::Hangup,
            None if bytes.is_empty() => Arrival::Ended,
            Some(escape) => match escape.feed(bytes, out) {
                Some(Quit) => Arrival::Quit,
                None => Arrival::Bytes,
            },
            None => {
                out.extend_from_slice(bytes);
                Arrival::Bytes
            }
        }
    }

    /// One read that does not wait for whoever writes.
    fn read_once(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // A file waits for nobody.
        if self.ready.is_none() {
            match preadv2(
                &self.file,
                &mut [IoSliceMut::new(buffer)],
                NO_OFFSET,
                ReadWriteFlags::NOWAIT,
            ) {
                // Not of this file, or no call of the kind at all.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                read => return Ok(read?),
            }
            if !ready_within(self.file.as_fd(), libc::POLLIN, 0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        (&self.file).read(buffer)
    }
}

fn always_ready() -> io::Result<EventFd> {
    let event = EventFd::new(libc::EFD_CLOEXEC)?;
    event.write(1)?;
    Ok(event)
}

impl AsRawFd for Input {
    /// The descriptor to watch for reading, level-triggered.
    fn as_raw_fd(&self) -> RawFd {
        self.ready
            .as_ref()
            .map_or_else(|| self.file.as_raw_fd(), AsRawFd::as_raw_fd)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    fn read(input: &mut Input, room: usize) -> (Arrival, Vec<u8>) {
        let mut out = Vec::new();
        (input.read(room, &mut out), out)
    }

    fn is_readable(input: &Input) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll
            .ctl(
                ControlOperation::Add,
                input.as_raw_fd(),
                EpollEvent::new(EventSet::IN, 0),
            )
            .unwrap();
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn a_pipe_passes_everything_and_its_end_does_not_end_the_vm() {
        let (from, mut to) = io::pipe().unwrap();
        let mut input = Input::new(File::from(OwnedFd::from(from))).unwrap();
        assert!(!is_readable(&input));
        to.write_all(b"\x01xyz").unwrap();
        assert!(is_readable(&input));
        assert_eq!(read(&mut input, 2), (Arrival::Bytes, b"\x01x".to_vec()));
        assert_eq!(read(&mut input, 0), (Arrival::Bytes, vec![]));
        assert_eq!(read(&mut input, 64), (Arrival::Bytes, b"yz".to_vec()));
        drop(to);
        assert_eq!(read(&mut input, 64), (Arrival::Ended, vec![]));
    }

    #[test]
    fn what_another_reader_has_taken_is_not_waited_for() {
        let (from, mut to) = io::pipe().unwrap();
        let (one, mut other) = UnixStream::pair().unwrap();
        to.write_all(b"ab").unwrap();
        other.write_all(b"ab").unwrap();
        for fd in [OwnedFd::from(from), OwnedFd::from(one)] {
            let mut neighbour = File::from(fd.try_clone().unwrap());
            let mut input = Input::new(File::from(fd)).unwrap();
            assert_eq!(read(&mut input, 1), (Arrival::Bytes, b"a".to_vec()));
            assert!(is_readable(&input));
            neighbour.read_exact(&mut [0]).unwrap();
            assert_eq!(read(&mut input, 1), (Arrival::Bytes, vec![]));
        }
    }

    #[test]
    fn a_terminal_without_keys_is_not_waited_for() {
        let (_keyboard, terminal) = crate::terminal::testing::pty();
        let mut input = Input::new(terminal).unwrap();
        assert!(input.is_terminal());
        assert_eq!(read(&mut input, 1), (Arrival::Bytes, vec![]));
    }

    #[test]
    fn a_file_can_be_watched_although_epoll_refuses_files() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"echo\n").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut input = Input::new(file).unwrap();
        assert!(is_readable(&input));
        assert_eq!(read(&mut input, 64), (Arrival::Bytes, b"echo\n".to_vec()));
        assert!(is_readable(&input));
        assert_eq!(read(&mut input, 64), (Arrival::Ended, vec![]));
    }

    #[test]
    fn dev_null_ends_at_once() {
        let mut input = Input::new(File::open("/dev/null").unwrap()).unwrap();
        assert!(is_readable(&input));
        assert_eq!(read(&mut input, 64), (Arrival::Ended, vec![]));
    }
}
