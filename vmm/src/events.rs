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

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use husk_devices::lock;
use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use self::backlog::Backlog;
use self::monitor::Monitor;
use self::record::Record;
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

#[derive(Debug)]
struct Subscribers {
    start: Instant,
    /// Each with what waits for it. Whoever has gone is left out when something happens.
    readers: Vec<Weak<Mutex<Backlog>>>,
    /// Tells whoever serves the readers.
    eventfd: Option<Arc<EventFd>>,
    kept: VecDeque<Record>,
    /// How many are not kept any more.
    forgotten: u64,
}

/// One who reads events: those that were kept, then `listening`, then what happens. Dropped, nothing is kept for it any more.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Mutex<Backlog>>);

/// What has happened, as far as it is kept: the answer to `vm.past-events`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastEvents {
    version: u32,
    /// How many are not kept any more.
    forgotten: u64,
    /// The oldest first.
    events: Vec<Value>,
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
        let mut past = PastEvents {
            version: VERSION,
            forgotten: 0,
            events: Vec::new(),
        };
        if let Some(shared) = &self.shared {
            let subscribers = lock(&shared.subscribers);
            past.forgotten = subscribers.forgotten;
            past.events = subscribers.kept.iter().map(Record::value).collect();
        }
        past
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

impl Subscribers {
    fn subscribe(&mut self) -> Option<Reader> {
        self.readers.retain(|reader| reader.strong_count() > 0);
        if self.readers.len() >= MAX_READERS {
            return None;
        }
        let mut backlog = Backlog::default();
        self.kept.iter().for_each(|record| backlog.put(record));
        backlog.put(&Record {
            at: self.start.elapsed(),
            source: "vmm",
            event: "listening",
            properties: [("version", VERSION.into()), ("forgotten", self.forgotten.into())].into(),
        });
        let backlog = Arc::new(Mutex::new(backlog));
        self.readers.push(Arc::downgrade(&backlog));
        Some(Reader(backlog))
    }

    fn publish(&mut self, record: Record, monitor: Option<&Monitor>) {
        if let Some(monitor) = monitor {
            monitor.put(&record);
        }
        self.readers.retain(|reader| {
            let reader = reader.upgrade();
            reader.is_some_and(|backlog| {
                lock(&backlog).put(&record);
                true
            })
        });
        if let (Some(eventfd), false) = (&self.eventfd, self.readers.is_empty()) {
            // Fails only when the counter is full, and then it is readable all the same.
            let _ = eventfd.write(1);
        }
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        self.kept.push_back(record);
    }
}

impl Reader {
    /// All that waits: whole lines.
    pub fn take(&self) -> Vec<u8> {
        lock(&self.0).take()
    }
}

/// Two readers are one if they read the same.
impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    fn parsed(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn an_event_is_a_line_with_the_usual_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
        events.emit("vm", "booting");
        events
            .clone()
            .emit_with("vm", "device-added", [("id", Value::from("_disk0"))]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(parsed).collect();
        assert_eq!(
            (&lines[0]["source"], &lines[0]["event"]),
            (&"vm".into(), &"booting".into())
        );
        assert!(lines[0]["timestamp"]["secs"].is_u64() && lines[0]["timestamp"]["nanos"].is_u64());
        assert!(lines[0]["properties"].is_null());
        assert_eq!(lines[1]["properties"]["id"], "_disk0");
    }

    #[test]
    fn a_file_is_emptied_unless_husk_writes_to_it_already() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let log = NonBlockingFile::append(&path, MODE).unwrap();
        log.write(b"of before\n").unwrap();
        let mut protected = ProtectedFiles::default();
        protected.add("husk's log", log.file_id());
        Events::to_path(&path, &protected).unwrap().emit("vm", "booting");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("of before\n{"), "{text}");
        Events::to_path(&path, &ProtectedFiles::default()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_fifo_has_events_for_a_reader_that_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = crate::terminal::testing::fifo(&folder);
        let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
        events.emit("vm", "booting");
        let mut line = String::new();
        BufReader::new(File::open(&path).unwrap()).read_line(&mut line).unwrap();
        assert_eq!(parsed(&line)["event"], "booting");
    }

    #[test]
    fn a_reader_that_falls_behind_loses_whole_events_and_is_told() {
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::to_fd(writer.into()).unwrap();
        for _ in 0..3000 {
            events.emit("vm", "paused");
        }
        events.emit("vm", "resumed");
        let mut reader = BufReader::new(reader);
        for _ in 0..3000 {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let event = parsed(&line);
            if let Some(dropped) = event["properties"]["dropped"].as_u64() {
                assert!(dropped > 1000, "{dropped}");
                return;
            }
            assert_eq!(event["event"], "paused");
            events.emit("vm", "resumed");
        }
        panic!("nobody said that events were dropped");
    }

    /// A pipe as a monitor, and all that it holds.
    fn piped() -> (io::PipeReader, Events) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, Events::to_fd(writer.into()).unwrap())
    }

    fn is_woken(events: &Events) -> bool {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, events.monitor().unwrap(), event)
            .unwrap();
        epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn what_waits_for_a_slow_reader_goes_out_when_there_is_room_without_another_event() {
        let (mut reader, events) = piped();
        // More than a pipe holds, and less than may wait beside that.
        let count = 1_000;
        for _ in 0..count {
            events.emit("vm", "paused");
        }
        assert!(!is_woken(&events), "nothing to do before the reader reads");
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut text = Vec::new();
        while text.iter().filter(|byte| **byte == b'\n').count() < count {
            let mut piece = [0; 4096];
            match reader.read(&mut piece) {
                Ok(read) => text.extend(&piece[..read]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(is_woken(&events), "nobody is told that there is room");
                    events.flush();
                }
            }
        }
        assert!(!is_woken(&events), "nothing waits any more");
        let text = String::from_utf8(text).unwrap();
        assert!(text.len() > 64 << 10, "{}", text.len());
        assert!(text.lines().all(|line| parsed(line)["properties"].is_null()));
    }

    #[test]
    fn another_threads_events_are_the_main_threads_to_write_whatever_that_does() {
        let (mut reader, events) = piped();
        let other = events.for_other_thread();
        let shared = events.shared.as_ref().unwrap();
        let writing = shared.monitor.as_ref().unwrap().hold_writer();
        // The main thread is in the middle of a write that does not end.
        other.emit("vm", "unknown-field");
        assert!(other.has_listeners() && other.subscribe().is_some());
        drop(writing);
        assert!(is_woken(&events));
        events.flush();
        assert!(!is_woken(&events));
        let mut line = [0; 256];
        let count = reader.read(&mut line).unwrap();
        assert_eq!(
            parsed(str::from_utf8(&line[..count]).unwrap())["event"],
            "unknown-field"
        );
        // A regular file has room always, and cannot be watched for it.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
        events.for_other_thread().emit("vm", "unknown-field");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        assert!(is_woken(&events));
        events.flush();
        assert!(!is_woken(&events));
        assert_eq!(
            parsed(&std::fs::read_to_string(&path).unwrap())["event"],
            "unknown-field"
        );
    }

    #[test]
    fn the_last_event_is_there_at_the_end_with_the_number_of_those_that_are_not() {
        let (reader, events) = piped();
        for _ in 0..3_000 {
            events.emit("vm", "paused");
        }
        events.emit_with("vmm", "shutdown", [("reason", "asked".into())]);
        let reading = std::thread::spawn(move || io::read_to_string(reader).unwrap());
        events.finish(Instant::now() + Duration::from_secs(60));
        drop(events);
        let text = reading.join().unwrap();
        let last = parsed(text.lines().last().unwrap());
        assert_eq!(
            (&last["event"], &last["properties"]["reason"]),
            (&"shutdown".into(), &"asked".into())
        );
        let dropped = last["properties"]["dropped"].as_u64().unwrap();
        assert_eq!(text.lines().count() as u64 + dropped, 3_001);
        // Nobody reads, and nobody is waited for beyond the deadline.
        let (reader, events) = piped();
        (0..3_000).for_each(|_| events.emit("vm", "paused"));
        events.finish(Instant::now());
        drop(reader);
        events.finish(Instant::now() + Duration::from_secs(600));
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::to_fd(writer.into()).unwrap();
        drop(reader);
        events.emit("vm", "booting");
        let (reader, writer) = UnixStream::pair().unwrap();
        let events = Events::to_fd(writer.into()).unwrap();
        for _ in 0..10_000 {
            events.emit("vm", "booting");
        }
        drop(reader);
        events.emit("vm", "booting");
        Events::default().emit("vm", "booting");
    }

    fn lines(reader: &Reader) -> Vec<Value> {
        String::from_utf8(reader.take()).unwrap().lines().map(parsed).collect()
    }

    #[test]
    fn a_reader_who_comes_late_has_what_was_before_and_what_comes_and_no_other_readers_events_twice() {
        let events = Events::new();
        let eventfd = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
        events.set_reader_eventfd(eventfd.clone());
        assert!(!events.has_listeners());
        events.emit("vm", "booting");
        assert!(eventfd.read().is_err(), "nobody reads");
        let reader = events.subscribe().unwrap();
        assert!(events.has_listeners());
        events.emit_with("guest", "panic", [("text", "Kernel panic".into())]);
        assert_eq!(eventfd.read().unwrap(), 1);
        let read = lines(&reader);
        let names: Vec<_> = read.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["booting", "listening", "panic"]);
        assert_eq!(
            read[1]["properties"],
            serde_json::json!({"version": VERSION, "forgotten": 0})
        );
        assert_eq!(read[2]["properties"]["text"], "Kernel panic");
        events.emit("vm", "paused");
        assert_eq!(lines(&reader)[0]["event"], "paused");
        assert_eq!(eventfd.read().unwrap(), 1);
        drop(reader);
        events.emit("vm", "resumed");
        assert!(!events.has_listeners());
        assert!(eventfd.read().is_err());
    }

    #[test]
    fn old_events_are_forgotten_and_their_number_is_told() {
        let events = Events::new();
        for _ in 0..MAX_KEPT + 3 {
            events.emit("vm", "paused");
        }
        let read = lines(&events.subscribe().unwrap());
        assert_eq!(read.len(), MAX_KEPT + 1);
        assert_eq!(read[MAX_KEPT]["properties"]["forgotten"], 3);
    }

    #[test]
    fn there_are_so_many_readers_and_a_slow_one_is_told_what_it_lost() {
        let events = Events::new();
        let readers: Vec<Reader> = (0..MAX_READERS).map(|_| events.subscribe().unwrap()).collect();
        assert_eq!(events.subscribe(), None);
        assert_eq!(Events::default().subscribe(), None);
        for _ in 0..3000 {
            events.emit("vm", "paused");
            readers[1].take();
        }
        let slow = lines(&readers[0]);
        events.emit("vm", "resumed");
        let next = lines(&readers[0]);
        let dropped = next[0]["properties"]["dropped"].as_u64().unwrap();
        // One of them is `listening`.
        assert_eq!(slow.len() as u64 - 1 + dropped, 3000);
        assert!(lines(&readers[1])[0]["properties"].is_null());
        drop(readers);
        assert!(events.subscribe().is_some());
    }
}
