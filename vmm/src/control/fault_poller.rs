//! What is looked for once a second while somebody listens to events, or the guest gives memory
//! back or gets more, and by nobody else: errors of devices, a host or a guest without memory. It
//! costs the data path nothing. A guest can cause such events without end: of a kind no more than
//! one a second and [`MAX_EVENTS`] in [`WINDOW`] are told, with the number of what there was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::memory_events::MemoryEvents;
use super::{Controller, Due};
use crate::api::{ApiError, Kind, Outcome, Reply};
use crate::event_limit::EventLimit;
use crate::events::MAX_READERS;
use crate::machine::{Counted, Machine, Tail};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Events of a kind in [`WINDOW`]. A guest that causes them for a day has written some MiB to a monitor's file.
const MAX_EVENTS: u64 = 8;
/// How long they count.
const WINDOW: Duration = Duration::from_secs(60);

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

/// What of the counters and of the guest's output has been told as events already, so that each is told once.
#[derive(Debug, Default)]
pub(super) struct FaultPoller {
    on: bool,
    /// Errors of the machine of this number, by device and counter.
    errors: BTreeMap<(String, &'static str), Errors>,
    of: u64,
    kills: OomKills,
    memory: Option<MemoryEvents>,
}

/// What a counter was when it was told of last.
#[derive(Debug)]
struct Errors {
    count: u64,
    limit: EventLimit,
}

/// Processes that the guest has killed for lack of memory.
#[derive(Debug)]
struct OomKills {
    limit: EventLimit,
    /// What it said of the last one that was not told.
    last: Option<String>,
}

impl Default for Errors {
    fn default() -> Self {
        Self {
            count: 0,
            limit: EventLimit::new(MAX_EVENTS, WINDOW),
        }
    }
}

impl Default for OomKills {
    fn default() -> Self {
        Self {
            limit: EventLimit::new(MAX_EVENTS, WINDOW),
            last: None,
        }
    }
}

impl Controller {
    /// `vm.events`: one who listens.
    pub(super) fn listen(&mut self) -> Outcome {
        let reader = self.events.subscribe().ok_or_else(|| {
            let what = format!("{MAX_READERS} clients read events, no more are allowed");
            ApiError::new(Kind::Conflict, what)
        })?;
        self.start_fault_polling();
        Ok(Reply::Events(reader))
    }

    /// Whether there is reason to look.
    fn polls_faults(&self) -> bool {
        self.events.has_listeners() || self.machine().is_some_and(Machine::is_straining)
    }

    /// Begins to look, if there is reason to.
    pub(super) fn start_fault_polling(&mut self) {
        if self.faults.on || !self.polls_faults() {
            return;
        }
        self.faults.on = true;
        self.options.tail.keep(true);
        if self.faults.memory.is_none() {
            self.faults.memory = MemoryEvents::open();
        }
        self.timers.set(Due::PollFaults, Instant::now() + INTERVAL);
    }

    /// Looks, and goes on with it for as long as there is reason to.
    pub(super) fn poll_faults(&mut self, now: Instant) {
        self.report_faults(now, false);
        if self.polls_faults() {
            self.timers.set(Due::PollFaults, now + INTERVAL);
        } else {
            self.faults.on = false;
            self.options.tail.keep(false);
        }
    }

    /// Tells what has gone wrong since the last look; all of it if that `is_last`.
    pub(super) fn report_faults(&mut self, now: Instant, is_last: bool) {
        if !self.faults.on {
            return;
        }
        if self.faults.of != self.boots {
            self.faults.errors.clear();
            self.faults.of = self.boots;
        }
        let counted = self.machine().map(Machine::counters).unwrap_or_default();
        // What nobody hears of is told to the next one who listens.
        let new = match self.events.has_listeners() {
            true => self.faults.new_errors(&counted, now, is_last),
            false => Vec::new(),
        };
        for (id, what, count) in new {
            let properties = [("id", id.into()), ("what", what.into()), ("count", count.into())];
            self.events.emit_with("vm", "device-errors", properties);
        }
        self.report_kills(now, is_last);
        if let Some(memory) = &mut self.faults.memory {
            memory.look(&self.events, now);
        }
    }

    /// Tells whom the guest has killed for want of memory since the last look, and goes by it.
    pub(super) fn report_kills(&mut self, now: Instant, is_last: bool) {
        let (lines, more) = self.options.tail.take_kills();
        let lack = lines.iter().rfind(|line| !Tail::is_of_group(line));
        if let Some(line) = lack.or(lines.last()) {
            self.keep_memory(line, lack.is_none());
        }
        for (line, count) in self.faults.kills.report(lines, more, now, is_last) {
            let others = match count {
                0 | 1 => String::new(),
                count => format!(" ({count} such lines)"),
            };
            log::warn!("the guest is out of memory: {line}{others}");
            let properties = [("text", line.into()), ("count", count.into())];
            self.events.emit_with("guest", "out-of-memory", properties);
        }
    }
}

impl FaultPoller {
    /// Device, counter, and how many more errors there are, where it is time to tell or this `is_last`.
    fn new_errors(&mut self, counted: &[Counted], now: Instant, is_last: bool) -> Vec<(String, &'static str, u64)> {
        let mut new = Vec::new();
        for device in counted {
            let errors = device.counters.iter().filter(|(name, _)| ERRORS.contains(name));
            for (name, count) in errors.filter(|(_, count)| *count > 0) {
                let known = self.errors.entry((device.name.clone(), *name)).or_default();
                if !is_last && !known.limit.allows(now) {
                    continue;
                }
                // A device may have gone, and another one have come under its name.
                let more = if *count < known.count {
                    *count
                } else {
                    count.saturating_sub(known.count)
                };
                known.count = *count;
                if more > 0 {
                    known.limit.record(now);
                    new.push((device.name.clone(), *name, more));
                }
            }
        }
        new
    }
}

impl OomKills {
    /// What is to be told of the guest's new `lines`, and `more` of which only the number is known: a line, and how
    /// many there were since the last one that was told, itself included.
    fn report(&mut self, lines: Vec<String>, more: u64, now: Instant, is_last: bool) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        for line in lines {
            if self.limit.allows(now) {
                self.limit.record(now);
                let count = self.limit.take_suppressed().saturating_add(1);
                self.last = None;
                told.push((line, count));
            } else {
                self.limit.suppress(1);
                self.last = Some(line);
            }
        }
        // Those came after the lines that are known.
        self.limit.suppress(more);
        if more > 0 && self.last.is_none() {
            self.last = told.last().map(|(line, _)| line.clone());
        }
        if self.limit.suppressed() > 0 && (is_last || self.limit.is_over(now)) {
            self.limit.record(now);
            let count = self.limit.take_suppressed();
            told.extend(self.last.take().map(|line| (line, count)));
        }
        told
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
        let (mut poller, now) = (FaultPoller::default(), Instant::now());
        let mut new_errors = |count| poller.new_errors(&disk(count), now, false);
        assert_eq!(new_errors(0), []);
        assert_eq!(new_errors(3), [("_disk0".into(), "failed_requests", 3)]);
        assert_eq!(new_errors(3), []);
        assert_eq!(new_errors(5), [("_disk0".into(), "failed_requests", 2)]);
        let another = [("_disk0".into(), "failed_requests", 1)];
        assert_eq!(new_errors(1), another, "another disk of this name");
    }

    #[test]
    fn errors_that_go_on_are_told_so_often_a_minute_and_none_is_missing() {
        let (mut poller, begun) = (FaultPoller::default(), Instant::now());
        let (mut told, mut sum) = (0, 0);
        for second in 1..=600 {
            let now = begun + Duration::from_secs(second);
            for (_, _, more) in poller.new_errors(&disk(second * 1_000), now, second == 600) {
                told += 1;
                sum += more;
            }
        }
        assert_eq!(sum, 600_000);
        assert!((MAX_EVENTS * 9..=MAX_EVENTS * 10 + 1).contains(&told), "{told}");
    }

    #[test]
    fn a_guest_that_kills_without_end_is_told_of_so_often_a_minute_and_none_is_missing() {
        let (mut kills, begun) = (OomKills::default(), Instant::now());
        let (mut told, mut sum) = (0, 0);
        for second in 1..=600 {
            let now = begun + Duration::from_secs(second);
            let lines = (0..8).map(|number| format!("{second}.{number}")).collect();
            for (_, count) in kills.report(lines, 5, now, second == 600) {
                told += 1;
                sum += count;
            }
        }
        assert_eq!(sum, 600 * 13);
        assert!((MAX_EVENTS * 9..=MAX_EVENTS * 10 + 2).contains(&told), "{told}");
        assert_eq!(kills.report(Vec::new(), 0, begun, true), []);
    }

    #[test]
    fn the_last_kills_of_a_burst_are_told_although_no_other_follows() {
        let (mut kills, begun) = (OomKills::default(), Instant::now());
        let lines = |count: u64| (0..count).map(|number| format!("process {number}")).collect();
        let told = kills.report(lines(MAX_EVENTS + 2), 0, begun, false);
        let one_each = |(number, line): (usize, &(String, u64))| *line == (format!("process {number}"), 1);
        assert!(
            told.len() as u64 == MAX_EVENTS && told.iter().enumerate().all(one_each),
            "{told:?}"
        );
        assert_eq!(kills.report(Vec::new(), 0, begun + WINDOW / 2, false), []);
        assert_eq!(
            kills.report(Vec::new(), 0, begun + WINDOW, false),
            [("process 9".into(), 2)]
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
