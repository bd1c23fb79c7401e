//! The monitor: one descriptor that all events are written to, from the start of husk on.
//!
//! Whoever tells an event has its line wait, under a lock that is never held for longer. The main
//! thread writes what waits: its own events at once, and the rest when the monitor's descriptor is
//! readable, which is so when another thread has told one and when a reader that was slow has made
//! room. Nobody is waited for: what goes to a regular file a thread writes
//! (`terminal/writer_thread.rs`).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::time::Instant;

use husk_devices::lock;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backlog::{Backlog, send};
use super::record::Record;
use crate::seccomp::Mode;
use crate::terminal::{FileId, NonBlockingFile, UnwrittenLines};

#[derive(Debug)]
pub(super) struct Monitor {
    /// A leaf: nothing is locked or waited for while it is held.
    backlog: Mutex<Backlog>,
    writer: Mutex<Writer>,
    /// Readable while [`Monitor::flush`] has something to do.
    wakeup: Epoll,
    /// Another thread than the writer's has told something.
    eventfd: EventFd,
    /// Which regular file it is, if it is one.
    file: Option<FileId>,
}

/// Belongs to the thread that writes, which is the main thread.
#[derive(Debug)]
struct Writer {
    output: NonBlockingFile,
    /// Room in `output` is waited for.
    is_watched: bool,
}

impl Monitor {
    /// Nothing waits yet.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn new(output: NonBlockingFile) -> io::Result<Self> {
        let (wakeup, eventfd) = (Epoll::new()?, EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let event = EpollEvent::new(EventSet::IN, 0);
        wakeup.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)?;
        let file = output.file_id();
        Ok(Self {
            backlog: Mutex::default(),
            writer: Mutex::new(Writer {
                output,
                is_watched: false,
            }),
            wakeup,
            eventfd,
            file,
        })
    }

    /// Which regular file it is, if it is one.
    pub(super) fn file(&self) -> Option<FileId> {
        self.file
    }

    /// From now on a thread writes to a regular file.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub(super) fn start_writer(&self, seccomp: Mode) -> io::Result<()> {
        lock(&self.writer).output.start_writer(seccomp)
    }

    /// Has an event wait, if there is room for it. From any thread.
    pub(super) fn put(&self, record: &Record) {
        lock(&self.backlog).put(record);
    }

    /// Tells the main thread that something waits. From any thread.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then it is readable all the same.
        let _ = self.eventfd.write(1);
    }

    /// Writes what waits, as far as there is room. For the main thread.
    pub(super) fn flush(&self) {
        // Fails only when nobody has written to it.
        let _ = self.eventfd.read();
        let mut writer = lock(&self.writer);
        send(&self.backlog, &writer.output);
        if let Some(progress) = writer.output.progress() {
            let mut backlog = lock(&self.backlog);
            // First: the thread may have failed to write what tells of it already.
            progress.record_reported(backlog.take_told(), 0);
            let UnwrittenLines { lines, untold } = progress.take_unwritten();
            backlog.lose(lines.saturating_add(untold));
        }
        let operation = match (writer.is_watched, lock(&self.backlog).is_empty()) {
            (false, false) => ControlOperation::Add,
            (true, true) => ControlOperation::Delete,
            _ => return,
        };
        let event = EpollEvent::new(EventSet::OUT, 0);
        // A regular file that no thread writes is refused, and has no backlog: what another thread
        // has put meanwhile it has woken this for.
        if self.wakeup.ctl(operation, writer.output.as_raw_fd(), event).is_ok() {
            writer.is_watched = !writer.is_watched;
        }
    }

    /// Gives what waits until `deadline` to be read. For the main thread at the end of the process.
    pub(super) fn flush_until(&self, deadline: Instant) {
        loop {
            self.flush();
            let has_time = !lock(&self.backlog).is_empty() && Instant::now() < deadline;
            if !has_time || !lock(&self.writer).output.wait_writable_until(deadline) {
                return;
            }
        }
    }

    /// Gives a thread that writes to a file until `deadline`. For the main thread at the end of the process.
    pub(super) fn wait_written(&self, deadline: Instant) {
        if let Some(progress) = lock(&self.writer).output.progress() {
            progress.wait(deadline);
        }
    }

    /// Has `last`, the last event of all, wait after all if there had been no room for it and there is now.
    pub(super) fn put_lost(&self, last: &Record) {
        let mut backlog = lock(&self.backlog);
        if backlog.is_empty() && backlog.has_lost() {
            backlog.put_lost(last);
        }
    }

    /// Stands for a write that does not end.
    #[cfg(test)]
    pub(super) fn hold_writer(&self) -> impl Sized {
        lock(&self.writer)
    }
}

impl AsRawFd for Monitor {
    /// A descriptor to watch for reading, level-triggered: readable when [`Monitor::flush`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }
}
