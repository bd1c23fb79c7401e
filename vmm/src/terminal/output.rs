//! A guest's output on husk's standard output, without ever holding up the guest.
//!
//! Policy: bytes go out at once while standard output takes them. When it does not (a full pipe, a terminal that was stopped) they
//! wait, up to [`BACKLOG_BYTES`]; beyond that the newest are dropped and counted. When the reader has gone (`EPIPE`, `EIO`) all are
//! dropped and counted. Nothing here blocks, panics or fails.
//!
//! The descriptor's flags are never changed: a terminal or pipe is shared with other processes, and `O_NONBLOCK` would hit them too.
//! A terminal is opened a second time instead; a pipe is asked first, which suffices for writes of up to `PIPE_BUF` bytes. The master of
//! a pseudo-terminal, which the Go shim gives as standard output, cannot be opened a second time: that would be another one. It is
//! asked first, too, and its answer is good for one byte.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The most bytes that wait for a reader: a boot's worth of kernel messages.
const BACKLOG_BYTES: usize = 256 << 10;
/// The most bytes of one write (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// The device that is every pseudo-terminal's master (Linux admin-guide/devices.txt, 5 char).
const PTMX: u64 = libc::makedev(5, 2);

/// Standard output as a device's `Write`. Clones share it.
///
/// Its lock is a leaf: it is taken with a device locked, and nothing is locked under it. Everything `write` is given counts as
/// written.
#[derive(Clone, Debug)]
pub struct StdoutSink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Readable while bytes wait and the descriptor has room for some.
    wakeup: Epoll,
}

#[derive(Debug)]
struct State {
    /// `None` once nobody can read any more.
    file: Option<File>,
    /// Whether a write that has no room says so instead of blocking.
    nonblocking: bool,
    /// The most bytes of one write.
    chunk: usize,
    backlog: VecDeque<u8>,
    dropped: u64,
}

impl StdoutSink {
    /// Takes standard output. When it is closed, everything is dropped.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn new() -> io::Result<Self> {
        match io::stdout().as_fd().try_clone_to_owned() {
            Ok(fd) => Self::over(Some(File::from(fd))),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Self::over(None),
            Err(error) => Err(error),
        }
    }

    fn over(file: Option<File>) -> io::Result<Self> {
        let terminal = file.as_ref().filter(|file| file.is_terminal());
        let second = terminal.and_then(open_again);
        let nonblocking = second.is_some();
        let chunk = if terminal.is_some() && !nonblocking { 1 } else { CHUNK };
        let state = State {
            file: second.or(file),
            nonblocking,
            chunk,
            backlog: VecDeque::new(),
            dropped: 0,
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            wakeup: Epoll::new()?,
        })))
    }

    /// Writes what waits, as far as there is room. To be called when the sink's descriptor is readable.
    pub fn drain(&self) {
        let mut state = self.locked();
        state.send_backlog();
        if state.backlog.is_empty() {
            self.watch(&state, ControlOperation::Delete);
        }
    }

    /// Gives what waits up to `limit` to be read. For the end of the VM.
    pub fn finish(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.locked();
        while !state.backlog.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now()).as_micros();
            let left = i32::try_from(left.div_ceil(1000)).unwrap_or(i32::MAX);
            let writable = state
                .file
                .as_ref()
                .is_some_and(|file| writable_within(file.as_fd(), left));
            state.send_backlog();
            if !writable {
                return;
            }
        }
    }

    /// Bytes that nobody will read.
    pub fn dropped(&self) -> u64 {
        self.locked().dropped
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, state: &State, operation: ControlOperation) {
        if let Some(file) = &state.file {
            // Regular files are refused, and never have a backlog. Anything else waits for the next write instead.
            let _ = self
                .0
                .wakeup
                .ctl(operation, file.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0));
        }
    }
}

impl Write for StdoutSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.locked();
        let waited = !state.backlog.is_empty();
        state.put(bytes);
        if !waited && !state.backlog.is_empty() {
            self.watch(&state, ControlOperation::Add);
        }
        Ok(bytes.len())
    }

    /// Nothing to do: see [`StdoutSink::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for StdoutSink {
    /// A descriptor to watch for reading, level-triggered: readable when [`StdoutSink::drain`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.0.wakeup.as_raw_fd()
    }
}

impl State {
    fn put(&mut self, bytes: &[u8]) {
        self.send_backlog();
        let sent = if self.backlog.is_empty() { self.send(bytes) } else { 0 };
        let rest = bytes.get(sent..).unwrap_or_default();
        let room = if self.file.is_some() {
            BACKLOG_BYTES.saturating_sub(self.backlog.len())
        } else {
            0
        };
        let (kept, lost) = rest.split_at(room.min(rest.len()));
        self.backlog.extend(kept);
        self.lose(lost.len());
    }

    fn send_backlog(&mut self) {
        let mut waiting = std::mem::take(&mut self.backlog);
        while !waiting.is_empty() && self.file.is_some() {
            match self.send(waiting.as_slices().0) {
                0 => break,
                sent => drop(waiting.drain(..sent)),
            }
        }
        if self.file.is_none() {
            self.lose(waiting.len());
            waiting.clear();
        }
        self.backlog = waiting;
    }

    /// Writes the head of `bytes` without blocking, and says how many bytes that was.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while let (Some(file), Some(rest)) = (&mut self.file, bytes.get(sent..).filter(|rest| !rest.is_empty())) {
            if !self.nonblocking && !writable_within(file.as_fd(), 0) {
                break;
            }
            match file.write(rest.get(..self.chunk).unwrap_or(rest)) {
                Ok(0) => break,
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.file = None,
            }
        }
        sent
    }

    fn lose(&mut self, count: usize) {
        self.dropped = self.dropped.saturating_add(count as u64);
    }
}

/// The same terminal with a file description of husk's own; `None` of a master.
fn open_again(file: &File) -> Option<File> {
    if file.metadata().ok()?.rdev() == PTMX {
        return None;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}

/// Whether `fd` takes a write within `timeout_ms`; also true of a descriptor that is broken.
pub(super) fn writable_within(fd: BorrowedFd<'_>, timeout_ms: i32) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd, as the count says.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) > 0 }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
