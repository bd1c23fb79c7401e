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
}

impl Backlog {
    /// Has an event wait, if there is room for it.
    pub(super) fn put(&mut self, record: &Record) {
        let line = record.line(self.dropped);
        if self.bytes.len().saturating_add(line.len()) > BACKLOG_BYTES {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.dropped = 0;
        self.bytes.extend(line);
    }

    /// Takes all that waits.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Writes what waits, as far as there is room. When nobody can read any more, nothing waits.
    pub(super) fn send(&mut self, sink: &Outlet) {
        while !self.bytes.is_empty() {
            match sink.write(&self.bytes) {
                Ok(written) => drop(self.bytes.drain(..written.min(self.bytes.len()))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.bytes.clear(),
            }
        }
    }
}
