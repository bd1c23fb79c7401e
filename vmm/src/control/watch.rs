//! What is looked for once a second while somebody listens to events, and by nobody else: errors of devices, a host or a guest without
//! memory. It costs the data path nothing, and no more than one event a second and kind is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::memory_events::MemoryEvents;
use super::{Controller, Due};
use crate::api::{ApiError, Kind, Outcome, Reply};
use crate::events::READERS;
use crate::machine::{Counted, Machine};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counters that count what the host, or whoever serves a device, has failed to do.
const ERRORS: [&str; 10] = [
    "failures",
    "failed_requests",
    "flush_errors",
    "rx_tap_errors",
    "tap_losses",
    "ring_faults",
    "backend_failures",
    "lost_requests",
    "source_errors",
    "discard_failures",
];

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct Watch {
    on: bool,
    /// Errors of the machine of this number, by device and counter.
    errors: BTreeMap<(String, &'static str), u64>,
    of: u64,
    memory: Option<MemoryEvents>,
}

impl Controller {
    /// `vm.events`: one who listens.
    pub(super) fn listen(&mut self) -> Outcome {
        let reader = self.events.subscribe().ok_or_else(|| {
            let what = format!("{READERS} clients read events, no more are allowed");
            ApiError::new(Kind::Conflict, what)
        })?;
        self.watch();
        Ok(Reply::Events(reader))
    }

    /// Begins to look, if somebody listens.
    pub(super) fn watch(&mut self) {
        if self.watch.on || !self.events.is_heard() {
            return;
        }
        self.watch.on = true;
        self.options.tail.keep(true);
        if self.watch.memory.is_none() {
            self.watch.memory = MemoryEvents::open();
        }
        self.timers.set(Due::Watch, Instant::now() + INTERVAL);
    }

    /// Looks, and goes on with it for as long as somebody listens.
    pub(super) fn look_out(&mut self, now: Instant) {
        self.tell_errors(now);
        if self.events.is_heard() {
            self.timers.set(Due::Watch, now + INTERVAL);
        } else {
            self.watch.on = false;
            self.options.tail.keep(false);
        }
    }

    /// Tells what has gone wrong since the last look.
    pub(super) fn tell_errors(&mut self, now: Instant) {
        if !self.watch.on {
            return;
        }
        if self.watch.of != self.boots {
            self.watch.errors.clear();
            self.watch.of = self.boots;
        }
        let counted = self.machine().map(Machine::counters).unwrap_or_default();
        for (id, what, count) in self.watch.new_errors(&counted) {
            let properties = [("id", id.into()), ("what", what.into()), ("count", count.into())];
            self.events.emit_with("vm", "device-errors", properties);
        }
        for line in self.options.tail.take_kills() {
            log::warn!("the guest is out of memory: {line}");
            self.events.emit_with("guest", "out-of-memory", [("text", line.into())]);
        }
        if let Some(memory) = &mut self.watch.memory {
            memory.look(&self.events, now);
        }
    }
}

impl Watch {
    /// Device, counter, and how many more errors there are.
    fn new_errors(&mut self, counted: &[Counted]) -> Vec<(String, &'static str, u64)> {
        let mut new = Vec::new();
        for device in counted {
            let errors = device.counters.iter().filter(|(name, _)| ERRORS.contains(name));
            for (name, count) in errors.filter(|(_, count)| *count > 0) {
                let known = self.errors.entry((device.name.clone(), *name)).or_default();
                // A device may have gone, and another one have come under its name.
                let more = if *count < *known {
                    *count
                } else {
                    count.saturating_sub(*known)
                };
                *known = *count;
                if more > 0 {
                    new.push((device.name.clone(), *name, more));
                }
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(failed_requests: u64) -> Vec<Counted> {
        vec![Counted {
            name: "_disk0".into(),
            kind: "block",
            counters: vec![("read_requests", 9), ("failed_requests", failed_requests)],
            queues: Vec::new(),
        }]
    }

    #[test]
    fn errors_are_told_once_by_device_and_kind() {
        let mut watch = Watch::default();
        assert_eq!(watch.new_errors(&disk(0)), []);
        assert_eq!(watch.new_errors(&disk(3)), [("_disk0".into(), "failed_requests", 3)]);
        assert_eq!(watch.new_errors(&disk(3)), []);
        assert_eq!(watch.new_errors(&disk(5)), [("_disk0".into(), "failed_requests", 2)]);
        assert_eq!(
            watch.new_errors(&disk(1)),
            [("_disk0".into(), "failed_requests", 1)],
            "another disk of this name"
        );
    }

    #[test]
    fn what_counts_as_an_error_is_counted_by_some_device() {
        let families: Vec<String> = crate::metrics::families().map(|family| family.name).collect();
        for error in ERRORS {
            let known = families.iter().any(|name| {
                name.ends_with(&format!("_{error}")) || name == "husk_device_failures" && error == "failures"
            });
            assert!(known, "{error}");
        }
    }
}
