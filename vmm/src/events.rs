//! The event monitor: what happens to the VM, one JSON object a line, in the fields of Cloud Hypervisor's.
//!
//! ```text
//! {"timestamp":{"secs":0,"nanos":81234567},"source":"vm","event":"booted","properties":null}
//! ```
//!
//! | source | event | properties |
//! |---|---|---|
//! | `vmm` | `starting`, `shutdown` | |
//! | `vm` | `booting`, `booted`, `pausing`, `paused`, `resuming`, `resumed`, `rebooting`, `shutdown`, `deleted` | |
//! | `vm` | `device-added`, `device-removed` | `id`, `bdf` |
//! | `vm` | `device-stuck` | `id` |
//! | `vm` | `unknown-field` | `request`, `field`, `nearest` |
//! | `guest` | `power-off`, `reset`, `panic` | |
//! | `guest` | `failed` | `reason` |
//! | `guest` | `device-refused` | `id`, `request`, `code` |
//! | `guest` | `vcpu-online`, `vcpu-removed` | `id`, `latency_ms` |
//! | `guest` | `memory-plugged`, `memory-unplugged` | `bytes`, `latency_ms` |
//! | `guest` | `resize-refused` | `what`, `code`, `latency_ms` |
//! | `guest` | `resize-unanswered` | `what`, `latency_ms` |
//! | `guest` | `device-unanswered` | `id`, `request` |
//!
//! Time is that since husk started. Whoever reads the events must not be able to stop the VM: when the reader falls behind by more
//! than 64 KiB, whole events are left out, and the next one that fits has their number in `properties.dropped`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::lock;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::terminal::{Outlet, OutletError};

/// Bytes of events that wait for their reader.
const BACKLOG_BYTES: usize = 64 << 10;
/// Permissions of a file that is made.
const MODE: u32 = 0o600;

/// Where events go. Clones share it; the default goes nowhere.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Arc<Mutex<Monitor>>>);

#[derive(Debug)]
struct Monitor {
    sink: Outlet,
    start: Instant,
    backlog: Vec<u8>,
    dropped: u64,
}

#[derive(Serialize)]
struct Event<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<Map<String, Value>>,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

impl Events {
    /// Events go to the file at `path`, which is emptied, or made and readable by its owner alone; or to a FIFO, whose reader may come
    /// later, or a terminal.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn to_path(path: &Path) -> Result<Self, OutletError> {
        Ok(Self::to_outlet(Outlet::create(path, MODE)?))
    }

    /// Events go to `fd`: a pipe, a file, a terminal, or a connected socket. Its flags stay as they are.
    pub fn to_fd(fd: OwnedFd) -> Self {
        Self::to_outlet(Outlet::inherit(File::from(fd)))
    }

    fn to_outlet(sink: Outlet) -> Self {
        Self(Some(Arc::new(Mutex::new(Monitor {
            sink,
            start: Instant::now(),
            backlog: Vec::new(),
            dropped: 0,
        }))))
    }

    /// Something happened. Never blocks.
    pub fn emit(&self, source: &str, event: &str) {
        self.emit_with(source, event, []);
    }

    /// Something happened, and there is more to say of it. Never blocks.
    pub fn emit_with<'a>(&self, source: &str, event: &str, properties: impl IntoIterator<Item = (&'a str, Value)>) {
        if let Some(monitor) = &self.0 {
            let properties = properties.into_iter().map(|(name, value)| (name.to_string(), value));
            let mut monitor = lock(monitor);
            monitor.emit(source, event, properties.collect());
        }
    }
}

impl Monitor {
    fn emit(&mut self, source: &str, event: &str, mut properties: Map<String, Value>) {
        if self.dropped > 0 {
            properties.insert("dropped".into(), self.dropped.into());
        }
        let elapsed = self.start.elapsed();
        let event = Event {
            timestamp: Timestamp {
                secs: elapsed.as_secs(),
                nanos: elapsed.subsec_nanos(),
            },
            source,
            event,
            properties: (!properties.is_empty()).then_some(properties),
        };
        self.send();
        let mut line = serde_json::to_vec(&event).expect("names and values have a JSON form");
        line.push(b'\n');
        if self.backlog.len().saturating_add(line.len()) > BACKLOG_BYTES {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.dropped = 0;
        self.backlog.extend(line);
        self.send();
    }

    /// Writes what waits, as far as there is room. When nobody can read any more, nothing waits.
    fn send(&mut self) {
        while !self.backlog.is_empty() {
            match self.sink.write(&self.backlog) {
                Ok(written) => drop(self.backlog.drain(..written.min(self.backlog.len()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.backlog.clear(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
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
}
