//! Lines that wait for one reader: bounded, and what does not fit is counted.

use std::io;

use super::record::Record;
use crate::terminal::Outlet;

/// Bytes of events that wait for their reader.
const BACKLOG_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    /// Events that found no room since the last one that did.
    dropped: u64,
    /// How many of these a line among `bytes` tells of.
    told: u64,
    /// The head of the line that `bytes` begins with has been written.
    is_begun: bool,
    /// A line was written in part, and its rest is lost: the next one has to end it.
    is_torn: bool,
}

impl Backlog {
    /// Has an event wait, if there is room for it.
    pub(super) fn put(&mut self, record: &Record) {
        let line = record.line(self.dropped);
        if self.bytes.len().saturating_add(line.len()) > BACKLOG_BYTES {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.told = self.told.saturating_add(std::mem::take(&mut self.dropped));
        if std::mem::take(&mut self.is_torn) {
            self.bytes.push(b'\n');
        }
        self.bytes.extend(line);
    }

    /// Takes all that waits.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Writes what waits, as far as there is room. What cannot be written, on a full file system for example, is lost, and counted.
    pub(super) fn send(&mut self, sink: &Outlet) {
        while !self.bytes.is_empty() {
            match sink.write(&self.bytes) {
                Ok(written) => {
                    let written: Vec<u8> = self.bytes.drain(..written.min(self.bytes.len())).collect();
                    if written.contains(&b'\n') {
                        self.told = 0;
                    }
                    if let Some(last) = written.last() {
                        self.is_begun = *last != b'\n';
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.lose(),
            }
        }
    }

    /// Gives up all that waits.
    fn lose(&mut self) {
        let lines = self.bytes.iter().filter(|byte| **byte == b'\n').count();
        let lines = u64::try_from(lines).unwrap_or(u64::MAX);
        let told = std::mem::take(&mut self.told);
        self.dropped = self.dropped.saturating_add(told).saturating_add(lines);
        self.is_torn |= std::mem::take(&mut self.is_begun);
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    fn record(text: &str) -> Record {
        Record {
            at: Duration::ZERO,
            source: "vm",
            event: "paused",
            properties: Box::new([("text", text.into())]),
        }
    }

    fn events(text: &str) -> Vec<Value> {
        let lines = text.lines().filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_by_the_next_that_it_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let full = Outlet::append(Path::new("/dev/full"), 0o600).unwrap();
        let file = Outlet::append(&path, 0o600).unwrap();
        let mut backlog = Backlog::default();
        for _ in 0..3 {
            backlog.put(&record("lost"));
            backlog.send(&full);
        }
        backlog.put(&record("there"));
        backlog.put(&record("there"));
        backlog.send(&file);
        let found = events(&fs::read_to_string(&path).unwrap());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0]["properties"]["dropped"], 3);
        assert_eq!(found[1]["properties"]["dropped"], Value::Null);
    }

    #[test]
    fn an_event_that_got_there_in_part_is_ended_before_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        // A pipe of 64 KiB with room for one write.
        let (mut reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[b'.'; (64 << 10) - 4096]).unwrap();
        let pipe = Outlet::inherit(File::from(OwnedFd::from(writer)));
        let full = Outlet::append(Path::new("/dev/full"), 0o600).unwrap();
        let file = Outlet::append(&path, 0o600).unwrap();
        let mut backlog = Backlog::default();
        backlog.put(&record(&"x".repeat(6000)));
        backlog.send(&pipe);
        backlog.send(&full);
        backlog.put(&record("there"));
        backlog.send(&file);
        drop(pipe);
        let mut head = Vec::new();
        reader.read_to_end(&mut head).unwrap();
        assert!(head.len() == 64 << 10 && head.ends_with(b"xxx"));
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.starts_with("\n{"), "{after}");
        assert_eq!(events(&after)[0]["properties"]["dropped"], 1);
    }
}
