//! One event, and its line.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// What has happened. Nothing of it is written before somebody reads it.
#[derive(Debug)]
pub(super) struct Record {
    /// Since husk started.
    pub(super) at: Duration,
    pub(super) source: &'static str,
    pub(super) event: &'static str,
    pub(super) properties: Box<[(&'static str, Value)]>,
}

#[derive(Serialize)]
struct EventLine<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<Properties<'a>>,
}

#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

struct Properties<'a> {
    of: &'a [(&'static str, Value)],
    dropped: u64,
}

impl Record {
    /// The event as a reader gets it, of whom `dropped` events were withheld before.
    pub(super) fn line(&self, dropped: u64) -> Vec<u8> {
        let mut line = serde_json::to_vec(&self.told(dropped)).expect("names and values have a JSON form");
        line.push(b'\n');
        line
    }

    /// The event as an object of JSON, nothing withheld before it.
    pub(super) fn value(&self) -> Value {
        serde_json::to_value(self.told(0)).expect("names and values have a JSON form")
    }

    fn told(&self, dropped: u64) -> EventLine<'_> {
        let of = &*self.properties;
        EventLine {
            timestamp: Timestamp {
                secs: self.at.as_secs(),
                nanos: self.at.subsec_nanos(),
            },
            source: self.source,
            event: self.event,
            properties: (dropped > 0 || !of.is_empty()).then_some(Properties { of, dropped }),
        }
    }
}

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (name, value) in self.of {
            map.serialize_entry(name, value)?;
        }
        if self.dropped > 0 {
            map.serialize_entry("dropped", &self.dropped)?;
        }
        map.end()
    }
}
