//! Those who read events, the monitor aside: what waits for each, and what is kept for those who come later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use husk_devices::lock;
use serde::Serialize;
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use super::backlog::Backlog;
use super::monitor::Monitor;
use super::record::Record;
use super::{MAX_KEPT, MAX_READERS, VERSION};

#[derive(Debug)]
pub(super) struct Subscribers {
    pub(super) start: Instant,
    /// Each with what waits for it. Whoever has gone is left out when something happens.
    pub(super) readers: Vec<Weak<Mutex<Backlog>>>,
    /// Tells whoever serves the readers.
    pub(super) eventfd: Option<Arc<EventFd>>,
    pub(super) kept: VecDeque<Record>,
    /// How many are not kept any more.
    pub(super) forgotten: u64,
}

/// One who reads events: those that were kept, then `listening`, then what happens. Dropped,
/// nothing is kept for it any more.
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

impl Default for PastEvents {
    fn default() -> Self {
        Self {
            version: VERSION,
            forgotten: 0,
            events: Vec::new(),
        }
    }
}

impl Subscribers {
    pub(super) fn subscribe(&mut self) -> Option<Reader> {
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

    pub(super) fn past(&self) -> PastEvents {
        PastEvents {
            forgotten: self.forgotten,
            events: self.kept.iter().map(Record::value).collect(),
            ..PastEvents::default()
        }
    }

    pub(super) fn publish(&mut self, record: Record, monitor: Option<&Monitor>) {
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
