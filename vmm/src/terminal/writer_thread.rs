//! A thread that writes to a regular file, so that nobody else waits for its file system.
//!
//! Nothing tells whether a regular file takes a write at once: on a network file system whose
//! server is away, a FUSE file system whose process has stopped or a volume that is frozen,
//! write(2) returns when that is over, perhaps never. So what goes to a file goes into a pipe,
//! which is full or not, and a thread writes it from there. A pipe has room and no room as every
//! other output has, and whoever has something to write does with it as with those.
//!
//! The thread writes bytes in the order in which the pipe took them, and ends when the [`WriterThread`] is dropped and
//! everything is written. What the file does not take is lost and counted. One file, one thread: another file's file
//! system is another's trouble.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::lock;
use husk_devices::metrics::Counter;
use rustix::io::ioctl_fionbio;

use super::pause;
use crate::seccomp::{Mode, Role};

/// The most bytes of one write to the file.
const CHUNK: usize = 16 << 10;
/// How often a thread that can take no lock looks whether all is written.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// What bytes are, and with it what is lost if some are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A guest's output: what comes next is as good without what is lost.
    Bytes,
    /// Lines: one that is lost in part is ended before the next one, which is whole.
    Lines,
}

/// Has a thread write to a file. Usable from any thread.
#[derive(Debug)]
pub struct WriterThread {
    pipe: File,
    progress: WriteProgress,
}

/// How far a [`WriterThread`]'s thread has come. Keeps neither the file nor the thread.
#[derive(Clone)]
pub struct WriteProgress(Arc<Shared>);

struct Shared {
    /// Bytes that the pipe has taken, and those of them that are written or lost.
    taken: AtomicU64,
    done: AtomicU64,
    /// Lines that are lost and were not asked for yet.
    lost_lines: AtomicU64,
    /// Why something was lost last, an errno; 0 while nothing was.
    error: AtomicI32,
    lost_bytes: Mutex<Arc<Counter>>,
    /// LostLines that lines tell of which may not be written yet.
    told: Mutex<Told>,
    /// For those who wait for `done`.
    gate: Mutex<()>,
    moved: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Lines that were lost.
    lines: u64,
    /// Lines that do nothing but tell of others.
    notices: u64,
}

/// What a thread could not write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwrittenLines {
    /// Lines that were lost since this was asked for last.
    pub lines: u64,
    /// Lines that were lost before, of which lines told that are lost now.
    pub untold: u64,
}

impl WriterThread {
    /// Starts a thread that writes by `write`, which says how many bytes it took and may wait, and that is confined as
    /// `seccomp` says.
    ///
    /// # Errors
    /// The host has no thread or descriptor left; the thread cannot be confined.
    pub fn start(
        content: Content,
        seccomp: Mode,
        write: impl FnMut(&[u8]) -> io::Result<usize> + Send + 'static,
    ) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let pipe = File::from(OwnedFd::from(writer));
        // This end alone: the thread waits.
        ioctl_fionbio(&pipe, true)?;
        let progress = WriteProgress(Arc::new(Shared {
            taken: AtomicU64::new(0),
            done: AtomicU64::new(0),
            lost_lines: AtomicU64::new(0),
            error: AtomicI32::new(0),
            lost_bytes: Mutex::default(),
            told: Mutex::default(),
            gate: Mutex::default(),
            moved: Condvar::new(),
        }));
        let tail = Tail {
            content,
            write,
            progress: progress.clone(),
            is_mid_line: false,
            is_broken: false,
            is_skipping: false,
        };
        let (confined, answer) = channel();
        let body = move || {
            let entered = seccomp.enter(Role::Writer).map_err(io::Error::other);
            let is_confined = entered.is_ok();
            // Whoever starts this waits for it.
            let _ = confined.send(entered);
            if is_confined {
                tail.follow(reader);
            }
        };
        thread::Builder::new().name("writer".into()).spawn(body)?;
        answer
            .recv()
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        Ok(Self { pipe, progress })
    }

    /// Has the head of `bytes` written, and says how many bytes that is. Up to `PIPE_BUF` are taken in one piece or not
    /// at all, so that lines of two threads do not mix (pipe(7)).
    ///
    /// # Errors
    /// `WouldBlock` while the file does not keep up.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&self.pipe).write(bytes)?;
        self.progress
            .0
            .taken
            .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::AcqRel);
        Ok(count)
    }

    /// How far the thread has come.
    pub fn progress(&self) -> &WriteProgress {
        &self.progress
    }
}

impl WriteProgress {
    /// Whether both are of one thread.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the thread has ended, and nobody can give it anything.
    pub fn is_over(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Waits until everything that was taken so far is written or lost, up to `deadline`; whether it is.
    pub fn wait(&self, deadline: Instant) -> bool {
        let target = self.taken();
        let mut gate = lock(&self.0.gate);
        while !self.is_done_to(target) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.moved.wait_timeout(gate, left);
            gate = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(gate, _)| gate);
        }
        true
    }

    /// As [`WriteProgress::wait`], for a signal handler: no lock, no allocation.
    pub fn wait_unlocked(&self, limit: Duration) -> bool {
        let target = self.taken();
        let deadline = Instant::now() + limit;
        while !self.is_done_to(target) {
            if Instant::now() >= deadline {
                return false;
            }
            pause(POLL_INTERVAL);
        }
        true
    }

    /// Takes note that what was written last tells of `lines` that were lost, in `notices` lines of their own.
    pub fn record_reported(&self, lines: u64, notices: u64) {
        let mut told = lock(&self.0.told);
        told.lines = told.lines.saturating_add(lines);
        told.notices = told.notices.saturating_add(notices);
    }

    /// Takes the number of lines that were lost since it was asked for last. A file that fails does
    /// so for all that is on its way: what was told meanwhile is to be told again.
    pub fn take_unwritten(&self) -> UnwrittenLines {
        let mut told = lock(&self.0.told);
        let is_done = self.is_done_to(self.taken());
        let lost = self.0.lost_lines.swap(0, Ordering::Relaxed);
        if lost == 0 {
            if is_done {
                *told = Told::default();
            }
            return UnwrittenLines::default();
        }
        let Told { lines: untold, notices } = std::mem::take(&mut *told);
        let lines = lost.saturating_sub(notices);
        UnwrittenLines { lines, untold }
    }

    /// Why something was lost last, if something was.
    pub fn error(&self) -> Option<io::Error> {
        let number = self.0.error.load(Ordering::Relaxed);
        (number != 0).then(|| io::Error::from_raw_os_error(number))
    }

    /// From now on `counter` counts bytes that are lost.
    pub fn count_lost_in(&self, counter: Arc<Counter>) {
        *lock(&self.0.lost_bytes) = counter;
    }

    fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Acquire)
    }

    fn is_done_to(&self, target: u64) -> bool {
        self.0.done.load(Ordering::Acquire) >= target
    }

    fn advance(&self, count: usize) {
        self.0
            .done
            .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::AcqRel);
        // Who has looked and not waited yet holds the gate.
        drop(lock(&self.0.gate));
        self.0.moved.notify_all();
    }

    fn lose(&self, bytes: usize, lines: u64, why: &io::Error) {
        self.0
            .error
            .store(why.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
        self.0.lost_lines.fetch_add(lines, Ordering::Relaxed);
        lock(&self.0.lost_bytes).add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

impl fmt::Debug for WriteProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = self.0.done.load(Ordering::Relaxed);
        f.debug_struct("WriteProgress")
            .field("taken", &self.taken())
            .field("done", &done)
            .finish_non_exhaustive()
    }
}

/// What the thread has: the end of the file.
struct Tail<W> {
    content: Content,
    write: W,
    progress: WriteProgress,
    /// The last byte that was written ends no line.
    is_mid_line: bool,
    /// Something was lost since then.
    is_broken: bool,
    /// The rest of a line comes whose head was lost.
    is_skipping: bool,
}

impl<W: FnMut(&[u8]) -> io::Result<usize>> Tail<W> {
    fn follow(mut self, mut from: PipeReader) {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    self.put(buffer.get(..count).unwrap_or_default());
                    self.progress.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No pipe of ours says so.
                Err(_) => return,
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let bytes = self.skip(bytes);
        if bytes.is_empty() {
            return;
        }
        if self.is_broken
            && self.is_mid_line
            && let Err(error) = self.write_all(b"\n")
        {
            return self.lose(bytes, &error);
        }
        self.is_broken = false;
        if let Err((written, error)) = self.write_counted(bytes) {
            self.lose(bytes.get(written..).unwrap_or_default(), &error);
        }
    }

    /// Leaves out the rest of a line whose head was lost and counted.
    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if !self.is_skipping {
            return bytes;
        }
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return &[];
        };
        self.is_skipping = false;
        bytes.get(end.saturating_add(1)..).unwrap_or_default()
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_counted(bytes).map_err(|(_, error)| error)
    }

    /// On failure says how many bytes were written before it.
    fn write_counted(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0_usize;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match (self.write)(rest) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written = written.saturating_add(count);
                    let last = bytes.get(written.saturating_sub(1));
                    self.is_mid_line = last.is_some_and(|byte| *byte != b'\n');
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    fn lose(&mut self, rest: &[u8], why: &io::Error) {
        if self.content == Content::Bytes {
            return self.progress.lose(rest.len(), 0, why);
        }
        let ends = rest.iter().filter(|byte| **byte == b'\n').count();
        self.is_skipping = !rest.ends_with(b"\n");
        self.is_broken = true;
        let lines = ends.saturating_add(usize::from(self.is_skipping));
        self.progress
            .lose(rest.len(), u64::try_from(lines).unwrap_or(u64::MAX), why);
    }
}

impl AsFd for WriterThread {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl AsRawFd for WriterThread {
    /// A descriptor that is writable while there is room.
    fn as_raw_fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "writer_thread_test.rs"]
mod tests;
