//! Reading a boot trace: Chrome trace events (Trace Event Format, "JSON Object Format").

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A boot trace that is valid JSON with a list of events.
#[derive(Debug)]
pub struct Trace(Vec<Value>);

impl Trace {
    /// Reads the file, or panics with what is wrong with it.
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("no trace {}: {error}", path.display()));
        let trace: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("trace is not JSON: {error}\n{text}"));
        let events = trace.get("traceEvents").or(Some(&trace)).and_then(Value::as_array);
        Self(
            events
                .unwrap_or_else(|| panic!("trace has no list of events: {text}"))
                .clone(),
        )
    }

    /// Start and duration in microseconds of the event whose name contains `name`.
    pub fn event(&self, name: &str) -> (f64, f64) {
        let named = |event: &&Value| {
            event
                .get("name")
                .and_then(Value::as_str)
                .is_some_and(|own| own.contains(name))
        };
        let timed = |event: &&Value| event.get("ts").is_some();
        let event = self
            .0
            .iter()
            .filter(named)
            .find(timed)
            .unwrap_or_else(|| panic!("no event {name}: {:#?}", self.0));
        let number = |key: &str| event.get(key).and_then(Value::as_f64);
        (
            number("ts").unwrap_or_else(|| panic!("event {name} has no time")),
            number("dur").unwrap_or(0.0),
        )
    }
}
