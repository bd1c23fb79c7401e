//! What happens to the VM, one JSON object a line, in the fields of Cloud Hypervisor's event monitor.
//!
//! ```text
//! {"timestamp":{"secs":0,"nanos":81234567},"source":"vm","event":"booted","properties":null}
//! ```
//!
//! | source | event | properties |
//! |---|---|---|
//! | `vmm` | `starting` | `version`, `pid` |
//! | `vmm` | `listening` | `version`, `forgotten` |
//! | `vmm` | `shutdown` | `reason` |
//! | `vm` | `booting`, `booted`, `pausing`, `paused`, `resuming`, `resumed`, `rebooting`, `shutdown`, `deleted` | |
//! | `vm` | `device-added`, `device-removed` | `id`, `bdf` |
//! | `vm` | `device-stuck` | `id` |
//! | `vm` | `device-errors` | `id`, `what`, `count` |
//! | `vm` | `unknown-field` | `request`, `field`, `nearest` |
//! | `host` | `memory-pressure` | `high`, `max` |
//! | `host` | `out-of-memory` | `limit`, `oom`, `oom_kill` |
//! | `guest` | `power-off`, `reset` | |
//! | `guest` | `panic` | `text` |
//! | `guest` | `out-of-memory` | `text` |
//! | `guest` | `failed` | `reason` |
//! | `guest` | `device-refused` | `id`, `request`, `code` |
//! | `guest` | `vcpu-online`, `vcpu-removed` | `id`, `latency_ms` |
//! | `guest` | `memory-plugged`, `memory-unplugged` | `bytes`, `latency_ms` |
//! | `guest` | `resize-refused` | `what`, `code`, `latency_ms` |
//! | `guest` | `resize-unanswered` | `what`, `latency_ms` |
//! | `guest` | `device-unanswered` | `id`, `request` |
//!
//! Time is that since husk started. There is one monitor at most, to which events are written, and there are a few readers, who come and go
//! (`vm.events`): the last events are kept for those who come later. Nobody who reads must be able to stop the VM: when one falls behind by
//! more than 64 KiB, whole events are left out for him, and the next one that fits has their number in `properties.dropped`.

mod backlog;
mod record;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use husk_devices::lock;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use self::backlog::Backlog;
use self::record::Record;
use crate::terminal::{Outlet, OutletError};

/// Of what is written: it changes when a reader that knows an older one would misunderstand it. New events and properties do not change it.
pub const VERSION: u32 = 1;
/// Those who may read at a time, the monitor aside.
pub const READERS: usize = 8;
/// Events that are kept for readers who come later.
const KEPT: usize = 64;
/// Permissions of a file that is made.
const MODE: u32 = 0o600;

/// Where events go. Clones share it; the default goes nowhere, and has no readers.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Arc<Mutex<Hub>>>);

#[derive(Debug)]
struct Hub {
    start: Instant,
    monitor: Option<Monitor>,
    /// Each with what waits for it. Whoever has gone is left out when something happens.
    readers: Vec<Weak<Mutex<Backlog>>>,
    /// Tells whoever serves the readers.
    bell: Option<Arc<EventFd>>,
    kept: VecDeque<Record>,
    /// How many are not kept any more.
    forgotten: u64,
}

#[derive(Debug)]
struct Monitor {
    sink: Outlet,
    backlog: Backlog,
}

/// One who reads events: those that were kept, then `listening`, then what happens. Dropped, nothing is kept for it any more.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Mutex<Backlog>>);

impl Events {
    /// Events are for readers alone.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// Events also go to the file at `path`, which is emptied, or made and readable by its owner alone; or to a FIFO, whose reader may come
    /// later, or a terminal.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn to_path(path: &Path) -> Result<Self, OutletError> {
        Ok(Self::with(Some(Outlet::create(path, MODE)?)))
    }

    /// Events also go to `fd`: a pipe, a file, a terminal, or a connected socket. Its flags stay as they are.
    pub fn to_fd(fd: OwnedFd) -> Self {
        Self::with(Some(Outlet::inherit(File::from(fd))))
    }

    fn with(sink: Option<Outlet>) -> Self {
        let backlog = Backlog::default();
        Self(Some(Arc::new(Mutex::new(Hub {
            start: Instant::now(),
            monitor: sink.map(|sink| Monitor { sink, backlog }),
            readers: Vec::new(),
            bell: None,
            kept: VecDeque::new(),
            forgotten: 0,
        }))))
    }

    /// From now on `bell` rings when readers have something to read.
    pub fn ring(&self, bell: Arc<EventFd>) {
        if let Some(hub) = &self.0 {
            lock(hub).bell = Some(bell);
        }
    }

    /// One reader more; `None` when there are [`READERS`] already, or events go nowhere.
    pub fn subscribe(&self) -> Option<Reader> {
        lock(self.0.as_ref()?).subscribe()
    }

    /// Whether somebody could listen.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether somebody listens: a monitor, or a reader.
    pub fn is_heard(&self) -> bool {
        let is_read = |hub: &Hub| hub.monitor.is_some() || hub.readers.iter().any(|reader| reader.strong_count() > 0);
        self.0.as_ref().is_some_and(|hub| is_read(&lock(hub)))
    }

    /// Something happened. Never blocks.
    pub fn emit(&self, source: &'static str, event: &'static str) {
        self.emit_with(source, event, []);
    }

    /// Something happened, and there is more to say of it. Never blocks.
    pub fn emit_with(
        &self,
        source: &'static str,
        event: &'static str,
        properties: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        if let Some(hub) = &self.0 {
            let properties = properties.into_iter().collect();
            let mut hub = lock(hub);
            let at = hub.start.elapsed();
            hub.tell(Record {
                at,
                source,
                event,
                properties,
            });
        }
    }
}

impl Hub {
    fn subscribe(&mut self) -> Option<Reader> {
        self.readers.retain(|reader| reader.strong_count() > 0);
        if self.readers.len() >= READERS {
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

    fn tell(&mut self, record: Record) {
        if let Some(monitor) = &mut self.monitor {
            monitor.tell(&record);
        }
        self.readers.retain(|reader| {
            let reader = reader.upgrade();
            reader.is_some_and(|backlog| {
                lock(&backlog).put(&record);
                true
            })
        });
        if let (Some(bell), false) = (&self.bell, self.readers.is_empty()) {
            // Fails only when the counter is full, and then it is readable all the same.
            let _ = bell.write(1);
        }
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
            self.forgotten = self.forgotten.saturating_add(1);
        }
        self.kept.push_back(record);
    }
}

impl Monitor {
    fn tell(&mut self, record: &Record) {
        // What waits first: it may make room.
        self.backlog.send(&self.sink);
        self.backlog.put(record);
        self.backlog.send(&self.sink);
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
    use std::io::{self, BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn parsed(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn an_event_is_a_line_with_the_usual_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let events = Events::to_path(&path).unwrap();
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
    fn a_fifo_has_events_for_a_reader_that_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = crate::terminal::testing::fifo(&folder);
        let events = Events::to_path(&path).unwrap();
        events.emit("vm", "booting");
        let mut line = String::new();
        BufReader::new(File::open(&path).unwrap()).read_line(&mut line).unwrap();
        assert_eq!(parsed(&line)["event"], "booting");
    }

    #[test]
    fn a_reader_that_falls_behind_loses_whole_events_and_is_told() {
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::to_fd(writer.into());
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

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::to_fd(writer.into());
        drop(reader);
        events.emit("vm", "booting");
        let (reader, writer) = UnixStream::pair().unwrap();
        let events = Events::to_fd(writer.into());
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
        let bell = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
        events.ring(bell.clone());
        assert!(!events.is_heard());
        events.emit("vm", "booting");
        assert!(bell.read().is_err(), "nobody reads");
        let reader = events.subscribe().unwrap();
        assert!(events.is_heard());
        events.emit_with("guest", "panic", [("text", "Kernel panic".into())]);
        assert_eq!(bell.read().unwrap(), 1);
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
        assert_eq!(bell.read().unwrap(), 1);
        drop(reader);
        events.emit("vm", "resumed");
        assert!(!events.is_heard());
        assert!(bell.read().is_err());
    }

    #[test]
    fn old_events_are_forgotten_and_their_number_is_told() {
        let events = Events::new();
        for _ in 0..KEPT + 3 {
            events.emit("vm", "paused");
        }
        let read = lines(&events.subscribe().unwrap());
        assert_eq!(read.len(), KEPT + 1);
        assert_eq!(read[KEPT]["properties"]["forgotten"], 3);
    }

    #[test]
    fn there_are_so_many_readers_and_a_slow_one_is_told_what_it_lost() {
        let events = Events::new();
        let readers: Vec<Reader> = (0..READERS).map(|_| events.subscribe().unwrap()).collect();
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
