//! A trace for people (a table) and for programs (trace event JSON).

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Log, Trace, Track};

/// How many guest marks the table shows.
const TABLE_GUEST_MARKS: usize = 16;

impl Trace {
    /// Writes the trace event format that `chrome://tracing` and Perfetto read ("Trace Event
    /// Format", JSON object form). Writes an empty trace when off.
    ///
    /// # Errors
    /// What writing to `out` says.
    pub fn write_json(&self, mut out: impl Write) -> io::Result<()> {
        let events = self
            .0
            .as_ref()
            .map_or_else(Vec::new, |recorder| events(&recorder.locked()));
        serde_json::to_writer(&mut out, &json!({ "displayTimeUnit": "ms", "traceEvents": events }))?;
        writeln!(out)
    }

    /// The phases in the order in which they began, then the guest's marks, one a line, in
    /// milliseconds since exec. Empty when off.
    pub fn table(&self) -> String {
        self.0
            .as_ref()
            .map_or_else(String::new, |recorder| table(&recorder.locked()))
    }
}

fn events(log: &Log) -> Vec<Value> {
    let pid = std::process::id();
    let mut events = vec![json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": "husk"}})];
    events.extend(Track::ALL.iter().map(|(track, name)| {
        json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": *track as u32, "args": {"name": name}})
    }));
    events.extend(log.records.iter().map(|record| {
        json!({
            "ph": "X", "cat": "phase", "name": record.phase.name(), "pid": pid, "tid": record.track as u32,
            "ts": micros(record.start), "dur": micros(record.end.saturating_sub(record.start)),
        })
    }));
    events.extend(log.guest_marks.iter().map(|(byte, at)| {
        json!({
            "ph": "i", "s": "t", "cat": "guest", "name": format!("mark {byte:#04x}"), "pid": pid, "tid": Track::Guest as u32,
            "ts": micros(*at), "args": {"byte": byte},
        })
    }));
    if log.guest_marks_lost > 0 {
        events.push(json!({
            "ph": "M", "name": "thread_labels", "pid": pid, "tid": Track::Guest as u32,
            "args": {"labels": format!("{} more marks not kept", log.guest_marks_lost)},
        }));
    }
    events
}

fn table(log: &Log) -> String {
    let mut rows: Vec<(Duration, Option<Duration>, String)> = log
        .records
        .iter()
        .map(|record| {
            (
                record.start,
                Some(record.end.saturating_sub(record.start)),
                record.phase.name().to_string(),
            )
        })
        .collect();
    let marks = log.guest_marks.iter().take(TABLE_GUEST_MARKS);
    rows.extend(marks.map(|(byte, at)| (*at, None, format!("guest mark {byte:#04x}"))));
    rows.sort_by_key(|(start, ..)| *start);
    let mut text = format!("{:>10} {:>10}  phase (ms since exec)\n", "from", "for");
    for (start, length, name) in rows {
        let length = length.map_or_else(String::new, |length| format!("{:.3}", millis(length)));
        text.push_str(&format!("{:>10.3} {length:>10}  {name}\n", millis(start)));
    }
    let more = log.guest_marks.len().saturating_sub(TABLE_GUEST_MARKS) as u64;
    match more.saturating_add(log.guest_marks_lost) {
        0 => {}
        more => text.push_str(&format!("{:>23}{more} more guest marks\n", "")),
    }
    text
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
