//! Lines that wait for one reader: bounded, and what does not fit is counted.

use std::io;
use std::sync::Mutex;

use husk_devices::lock;

use super::record::Record;
use crate::terminal::{LostLines, NonBlockingFile, PendingLines};

/// Bytes of events that wait for their reader.
const BACKLOG_BYTES: usize = 64 << 10;
/// The most bytes of one write.
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    lines: PendingLines,
    /// Events that found no room since the last one that did.
    lost_lines: LostLines,
    /// Lost events that those tell of which were put since this was asked for.
    told: u64,
}

impl Backlog {
    /// Has an event wait, if there is room for it.
    pub(super) fn put(&mut self, record: &Record) {
        let line = record.line(self.lost_lines.lost());
        if self.lines.bytes().len().saturating_add(line.len()) > BACKLOG_BYTES {
            self.lost_lines.lose(1);
            return;
        }
        let loss = self.lost_lines.take();
        self.lines.end_torn(loss, "\n");
        self.lines.push(&line, loss.lost);
        self.told = self.told.saturating_add(loss.lost);
    }

    /// Takes how many lost events those tell of that were put since it was asked.
    pub(super) fn take_told(&mut self) -> u64 {
        std::mem::take(&mut self.told)
    }

    /// `events` more are lost that were taken.
    pub(super) fn lose(&mut self, events: u64) {
        self.lost_lines.lose(events);
    }

    /// Takes all that waits.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.lines.take_bytes()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.bytes().is_empty()
    }

    /// Whether the last event was lost.
    pub(super) fn has_lost(&self) -> bool {
        self.lost_lines.lost() > 0
    }

    /// Has the last event wait after all, which was lost, with the number of the others that were.
    pub(super) fn put_lost(&mut self, last: &Record) {
        let loss = self.lost_lines.take();
        let others = loss.lost.saturating_sub(1);
        self.lines.end_torn(loss, "\n");
        self.lines.push(&last.line(others), others);
        self.told = self.told.saturating_add(others);
    }

    /// A copy of what is to be written first.
    fn head(&self) -> Vec<u8> {
        let bytes = self.lines.bytes();
        bytes.get(..CHUNK).unwrap_or(bytes).to_vec()
    }

    /// What has become of the head; whether the rest can be tried.
    fn wrote(&mut self, written: io::Result<usize>) -> bool {
        match written {
            Ok(count) => self.lines.wrote(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => self.lost_lines.add(self.lines.take_unwritten()),
        }
        true
    }
}

/// Writes what waits in `backlog`, as far as there is room, with its lock free meanwhile. What cannot be written, on a
/// full file system for example, is lost, and counted. One thread at a time may do so for a backlog, while others put
/// events into it.
pub(super) fn send(backlog: &Mutex<Backlog>, file: &NonBlockingFile) {
    loop {
        let head = lock(backlog).head();
        if head.is_empty() {
            return;
        }
        let written = file.write(&head);
        if !lock(backlog).wrote(written) {
            return;
        }
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
        let full = NonBlockingFile::append(Path::new("/dev/full"), 0o600).unwrap();
        let file = NonBlockingFile::append(&path, 0o600).unwrap();
        let backlog = Mutex::new(Backlog::default());
        for _ in 0..3 {
            lock(&backlog).put(&record("lost"));
            send(&backlog, &full);
        }
        lock(&backlog).put(&record("there"));
        lock(&backlog).put(&record("there"));
        send(&backlog, &file);
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
        let pipe = NonBlockingFile::inherit(File::from(OwnedFd::from(writer)));
        let full = NonBlockingFile::append(Path::new("/dev/full"), 0o600).unwrap();
        let file = NonBlockingFile::append(&path, 0o600).unwrap();
        let backlog = Mutex::new(Backlog::default());
        lock(&backlog).put(&record(&"x".repeat(6000)));
        send(&backlog, &pipe);
        send(&backlog, &full);
        // The end of the torn line is lost as well, and no event of its own.
        for _ in 0..2 {
            lock(&backlog).put(&record("lost"));
            send(&backlog, &full);
        }
        lock(&backlog).put(&record("there"));
        send(&backlog, &file);
        drop(pipe);
        let mut head = Vec::new();
        reader.read_to_end(&mut head).unwrap();
        assert!(head.len() == 64 << 10 && head.ends_with(b"xxx"));
        let after = fs::read_to_string(&path).unwrap();
        assert!(after.starts_with("\n{"), "{after}");
        assert_eq!(events(&after)[0]["properties"]["dropped"], 3);
    }
}
