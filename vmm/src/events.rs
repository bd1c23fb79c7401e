//! What happens to the VM, one JSON object a line, in the fields of Cloud Hypervisor's event monitor.
//!
//! ```text
//! {"timestamp":{"secs":0,"nanos":81234567},"source":"vm","event":"booted","properties":null}
//! ```
//!
//! Which there are, and what is told with each, is in `docs/api.md`, Events.
//!
//! Time is that since husk started. There is one monitor at most, to which events are written (`monitor.rs`), and there
//! are a few readers, who come and go (`vm.events`): the last events are kept for those who come later. No reader can
//! stop the VM: when one falls behind by more than 64 KiB, whole events are left out for it, and the next one that fits
//! has their number in `properties.dropped`.

mod backlog;
mod monitor;
mod record;
mod subscribers;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::lock;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use self::monitor::Monitor;
use self::record::Record;
use self::subscribers::Subscribers;
pub use self::subscribers::{PastEvents, Reader};
use crate::seccomp::Mode;
use crate::terminal::{FileId, NonBlockingFile, OpenOutputError, ProtectedFiles};

/// Of what is written: it changes when a reader that knows an older one would misunderstand it. New events and properties do not change it.
pub const VERSION: u32 = 1;
/// Those who may read at a time, the monitor aside.
pub const MAX_READERS: usize = 8;
/// Events that are kept for readers who come later.
const MAX_KEPT: usize = 64;
/// Permissions of a file that is made.
const MODE: u32 = 0o600;

/// Where events go. Clones share it; the default goes nowhere, and has no readers.
#[derive(Clone, Debug, Default)]
pub struct Events {
    shared: Option<Arc<Shared>>,
    /// Told by another thread than the main one, which is to write them.
    is_off_main_thread: bool,
}

#[derive(Debug)]
struct Shared {
    /// Never held while something is written.
    subscribers: Mutex<Subscribers>,
    monitor: Option<Monitor>,
}

impl Events {
    /// Events are for readers alone.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Events also go to the file at `path`, which is made and readable by its owner alone, or emptied unless it is one
    /// of `protected`; or to a FIFO, whose reader may come later, or a terminal.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn to_path(path: &Path, protected: &ProtectedFiles) -> Result<Self, OpenOutputError> {
        Ok(Self::with(Some(Monitor::new(NonBlockingFile::create(
            path, MODE, protected,
        )?)?)))
    }

    /// Events also go to `fd`: a pipe, a file, a terminal, or a connected socket. Its flags stay as they are.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn to_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::with(Some(Monitor::new(NonBlockingFile::inherit(File::from(
            fd,
        )))?)))
    }

    fn with(monitor: Option<Monitor>) -> Self {
        let subscribers = Mutex::new(Subscribers {
            start: Instant::now(),
            readers: Vec::new(),
            eventfd: None,
            kept: VecDeque::new(),
            forgotten: 0,
        });
        Self {
            shared: Some(Arc::new(Shared { subscribers, monitor })),
            is_off_main_thread: false,
        }
    }

    /// The same for another thread than the main one, which writes to the monitor what this thread tells.
    pub fn for_other_thread(&self) -> Self {
        Self {
            is_off_main_thread: true,
            ..self.clone()
        }
    }

    /// From now on `eventfd` is written to when readers have something to read.
    pub fn set_reader_eventfd(&self, eventfd: Arc<EventFd>) {
        if let Some(shared) = &self.shared {
            lock(&shared.subscribers).eventfd = Some(eventfd);
        }
    }

    /// One reader more; `None` when there are [`MAX_READERS`] already, or events go nowhere.
    pub fn subscribe(&self) -> Option<Reader> {
        lock(&self.shared.as_ref()?.subscribers).subscribe()
    }

    /// What has happened, as far as it is kept. Takes no reader's place.
    pub fn past(&self) -> PastEvents {
        self.shared
            .as_ref()
            .map_or_else(PastEvents::default, |shared| lock(&shared.subscribers).past())
    }

    /// From now on a thread, confined as `seccomp` says, writes to the monitor if that is a regular file: nobody else
    /// waits for its file system.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn start_writer(&self, seccomp: Mode) -> io::Result<()> {
        let monitor = self.shared.as_ref().and_then(|shared| shared.monitor.as_ref());
        monitor.map_or(Ok(()), |monitor| monitor.start_writer(seccomp))
    }

    /// Whether somebody could listen.
    pub fn is_enabled(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether somebody listens: a monitor, or a reader.
    pub fn has_listeners(&self) -> bool {
        let is_read = |subscribers: &Subscribers| subscribers.readers.iter().any(|reader| reader.strong_count() > 0);
        let shared = self.shared.as_ref();
        shared.is_some_and(|shared| shared.monitor.is_some() || is_read(&lock(&shared.subscribers)))
    }

    /// Something happened. Waits for nobody once [`Events::start_writer`] was called.
    pub fn emit(&self, source: &'static str, event: &'static str) {
        self.emit_with(source, event, []);
    }

    /// As [`Events::emit`], and there is more to say of it.
    pub fn emit_with(
        &self,
        source: &'static str,
        event: &'static str,
        properties: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        let Some(shared) = &self.shared else { return };
        let monitor = shared.monitor.as_ref();
        // What waits first: it may make room.
        self.write();
        let properties = properties.into_iter().collect();
        let mut subscribers = lock(&shared.subscribers);
        let at = subscribers.start.elapsed();
        subscribers.publish(
            Record {
                at,
                source,
                event,
                properties,
            },
            monitor,
        );
        drop(subscribers);
        match monitor {
            Some(monitor) if self.is_off_main_thread => monitor.wake(),
            _ => self.write(),
        }
    }

    /// Has the monitor written to if that is this thread's to do.
    fn write(&self) {
        if !self.is_off_main_thread {
            self.flush();
        }
    }

    /// A descriptor for the main thread to watch for reading, level-triggered: readable when [`Events::flush`] has
    /// something to do. `None` if there is no monitor.
    pub fn monitor(&self) -> Option<RawFd> {
        let monitor = self.shared.as_ref()?.monitor.as_ref()?;
        Some(monitor.as_raw_fd())
    }

    /// The regular file that is the monitor, if one is.
    pub fn file(&self) -> Option<FileId> {
        self.shared.as_ref()?.monitor.as_ref()?.file()
    }

    /// Writes to the monitor what waits, as far as there is room. For the main thread.
    pub fn flush(&self) {
        if let Some(monitor) = self.shared.as_ref().and_then(|shared| shared.monitor.as_ref()) {
            monitor.flush();
        }
    }

    /// Gives the monitor's reader until `deadline` to read what waits. The last event is the one that it gets if it can
    /// get but one more. For the main thread at the end of the process.
    pub fn finish(&self, deadline: Instant) {
        if let Some(shared) = &self.shared
            && let Some(monitor) = &shared.monitor
        {
            monitor.flush_until(deadline);
            monitor.wait_written(deadline);
            // What the file did not take is known now.
            monitor.flush_until(deadline);
            if let Some(last) = lock(&shared.subscribers).kept.back() {
                monitor.put_lost(last);
            }
            monitor.flush_until(deadline);
            monitor.wait_written(deadline);
        }
    }
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
