//! A guest's output on its way to an [`OutputTarget`]: a descriptor, a file, journald or a client,
//! without ever holding up the guest.
//!
//! Policy: bytes go out at once while the target takes them. When it has no room (a full pipe, a
//! terminal that was stopped) they wait, up to [`BACKLOG_BYTES`]; beyond that the newest are
//! refused. When the target fails (`EPIPE`, `EIO`, a full file system) what waits is dropped and
//! what comes is refused, each time anew: a reader that comes back, or room in the file system, is
//! found by the next write. Whoever writes counts what is refused; what was taken and is dropped
//! later is added to a counter of the same. A client that fails has gone, and what waits does so
//! for the next one.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::lock;
use husk_devices::metrics::Counter;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{NonBlockingFile, OutputTarget};

/// The most bytes that wait for a reader: a boot's worth of kernel messages.
const BACKLOG_BYTES: usize = 256 << 10;
/// How often the end of the process looks whether an output that is in use is free.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A target as a device's `Write`. Clones share it.
///
/// Its lock is a leaf: it is taken with a device locked, and nothing is locked under it. Nothing here blocks or panics.
#[derive(Clone, Debug)]
pub struct BufferedOutput(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Readable while bytes wait and the target has room for some.
    wakeup: Epoll,
}

#[derive(Debug)]
struct State {
    /// `None` where there never was one.
    target: Option<OutputTarget>,
    backlog: VecDeque<u8>,
    /// Bytes that waited and were dropped.
    lost_bytes: Arc<Counter>,
    /// A client that has gone, and may still be watched.
    gone: Option<NonBlockingFile>,
}

impl BufferedOutput {
    /// An output for which nothing waits. Without a target it refuses everything.
    ///
    /// # Errors
    /// What the host says when it has no descriptor left.
    pub fn new(target: Option<OutputTarget>) -> io::Result<Self> {
        let state = State {
            target,
            backlog: VecDeque::new(),
            lost_bytes: Arc::default(),
            gone: None,
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            wakeup: Epoll::new()?,
        })))
    }

    /// Writes what waits, as far as there is room. To be called when the output's descriptor is readable.
    pub fn drain(&self) {
        let mut state = self.locked();
        let waited = !state.backlog.is_empty();
        state.send_backlog();
        self.watch_writable(&mut state, waited);
    }

    /// From now on `counter` counts bytes that were taken, and dropped because the target failed.
    pub fn count_lost_in(&self, counter: Arc<Counter>) {
        let mut state = self.locked();
        if let Some(progress) = state.target.as_ref().and_then(OutputTarget::progress) {
            progress.count_lost_in(counter.clone());
        }
        state.lost_bytes = counter;
    }

    /// Has everything go to `target` from now on, with what waits; `None` refuses it.
    pub(super) fn set_target(&self, target: Option<OutputTarget>) {
        let mut state = self.locked();
        if !state.backlog.is_empty() {
            self.watch(&state, ControlOperation::Delete);
        }
        state.target = target;
        state.send_backlog();
        self.watch_writable(&mut state, false);
    }

    /// Gives what waits until `deadline` to be read or written. For the end of the VM.
    pub fn finish(&self, deadline: Instant) {
        let Some(mut state) = self.locked_by(deadline) else {
            return;
        };
        while !state.backlog.is_empty() {
            let target = state.target.as_ref();
            let writable = target.is_some_and(|target| target.wait_writable_until(deadline));
            state.send_backlog();
            self.watch_writable(&mut state, true);
            if !writable {
                return;
            }
        }
        if let Some(target) = &state.target {
            target.wait_drained(deadline);
        }
    }

    /// Whether bytes wait, here or where they went.
    pub(super) fn has_backlog(&self) -> bool {
        let state = self.locked();
        !state.backlog.is_empty() || state.target.as_ref().is_some_and(OutputTarget::has_unread_bytes)
    }

    /// Whether both are one.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether nobody else has this output.
    pub(super) fn is_only_one(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// As `locked`, but for `deadline`: whoever ends the process does not depend on a thread that
    /// may be in the middle of a write.
    fn locked_by(&self, deadline: Instant) -> Option<MutexGuard<'_, State>> {
        loop {
            match self.0.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Has room looked for while bytes wait; `waited` says whether it has been.
    fn watch_writable(&self, state: &mut State, waited: bool) {
        if let Some(gone) = state.gone.take() {
            if waited {
                // Closing it would not take it out of the set: its chardev has a duplicate.
                self.control(ControlOperation::Delete, gone.as_raw_fd());
            }
            return;
        }
        match (waited, !state.backlog.is_empty()) {
            (false, true) => self.watch(state, ControlOperation::Add),
            (true, false) => self.watch(state, ControlOperation::Delete),
            _ => {}
        }
    }

    fn watch(&self, state: &State, operation: ControlOperation) {
        if let Some(fd) = state.target.as_ref().and_then(OutputTarget::writable_fd) {
            self.control(operation, fd);
        }
    }

    fn control(&self, operation: ControlOperation, fd: RawFd) {
        // What epoll refuses waits for the next write instead.
        let _ = self.0.wakeup.ctl(operation, fd, EpollEvent::new(EventSet::OUT, 0));
    }
}

impl Write for BufferedOutput {
    /// Takes what goes out or can wait.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.locked();
        let waited = !state.backlog.is_empty();
        let taken = state.put(bytes);
        self.watch_writable(&mut state, waited);
        taken
    }

    /// Nothing to do: see [`BufferedOutput::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for BufferedOutput {
    /// A descriptor to watch for reading, level-triggered: readable when [`BufferedOutput::drain`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.0.wakeup.as_raw_fd()
    }
}

impl State {
    fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_backlog();
        let (sent, end) = match self.backlog.is_empty() {
            true => self.send(bytes),
            false => (0, Err(io::ErrorKind::WouldBlock.into())),
        };
        let kept = match &end {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.keep(bytes.get(sent..).unwrap_or_default()),
            _ => 0,
        };
        match sent.saturating_add(kept) {
            0 => end.map(|()| 0),
            taken => Ok(taken),
        }
    }

    /// Has the head of `bytes` wait, and says how many bytes that is.
    fn keep(&mut self, bytes: &[u8]) -> usize {
        let room = BACKLOG_BYTES.saturating_sub(self.backlog.len()).min(bytes.len());
        self.backlog.extend(bytes.iter().take(room));
        room
    }

    fn send_backlog(&mut self) {
        let mut waiting = std::mem::take(&mut self.backlog);
        while !waiting.is_empty() {
            let (sent, end) = self.send(waiting.as_slices().0);
            waiting.drain(..sent);
            match end {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.lost_bytes.add(u64::try_from(waiting.len()).unwrap_or(u64::MAX));
                    waiting.clear();
                }
            }
        }
        self.backlog = waiting;
    }

    /// Writes the head of `bytes`; how many bytes that was, and why no more.
    fn send(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let Some(target) = &mut self.target else {
            return (0, Err(io::ErrorKind::BrokenPipe.into()));
        };
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match target.write(rest) {
                Ok(count) => sent = sent.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (sent, Err(error)),
                Err(error) => match target.disconnect_client() {
                    None => return (sent, Err(error)),
                    // Its chardev hears of it, on the main thread, and takes the next one.
                    gone => {
                        self.gone = gone;
                        return (sent, Err(io::ErrorKind::WouldBlock.into()));
                    }
                },
            }
        }
        (sent, Ok(()))
    }
}

#[cfg(test)]
#[path = "buffered_output_test.rs"]
mod tests;
