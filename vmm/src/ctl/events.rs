//! What happens to a VM, followed as it happens.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::client::{Client, ClientError};
use super::show::plain;

/// What is between those that were before and those that come.
const LISTENING: &str = "listening";
/// What tells those that were before, and takes no reader's place.
const PAST: &str = "vm.past-events";

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The line of JSON as it came.
    pub line: String,
    /// The object that the line is.
    pub value: Value,
}

impl From<Value> for Event {
    fn from(value: Value) -> Self {
        let line = value.to_string();
        Self { line, value }
    }
}

/// The events that the husk that serves `socket` has kept. It has `patience` for its answer.
///
/// # Errors
/// A refusal, or no answer.
pub fn past(socket: &Path, patience: Duration) -> Result<Vec<Event>, ClientError> {
    match Client::connect(socket, patience)?.get(PAST) {
        Ok(mut answer) => match answer.get_mut("events").map(Value::take) {
            Some(Value::Array(events)) => Ok(events.into_iter().map(Event::from).collect()),
            _ => Err(ClientError::Nonsense {
                request: PAST.into(),
                what: "no list of events".into(),
            }),
        },
        // A husk from before there was this, which an upgrade has left running.
        Err(error) if error.status() == Some(404) => {
            let mut events = Vec::new();
            read(socket, patience, true, |event| {
                events.push(event.clone());
                true
            })?;
            Ok(events)
        }
        Err(error) => Err(error),
    }
}

/// Calls `show` with each event of the husk that serves `socket`: first those that it has kept,
/// then those that happen, until husk ends or `show` says false. The connection, and all that was
/// kept, have `patience`.
///
/// # Errors
/// A refusal, no answer, or the end of a husk that did not say so.
pub fn follow(socket: &Path, patience: Duration, show: impl FnMut(&Event) -> bool) -> Result<(), ClientError> {
    read(socket, patience, false, show)
}

/// As [`follow`]; with `past`, only those that it has kept.
fn read(
    socket: &Path,
    patience: Duration,
    past: bool,
    mut show: impl FnMut(&Event) -> bool,
) -> Result<(), ClientError> {
    let mut lines = Client::connect(socket, patience)?.lines("vm.events")?;
    let mut limit = Some(patience);
    while let Some(line) = lines.next(limit)? {
        let line = String::from_utf8_lossy(&line).into_owned();
        let value: Value = serde_json::from_str(&line).map_err(|e| ClientError::Nonsense {
            request: "vm.events".into(),
            what: format!("no JSON: {e}"),
        })?;
        if value["event"] == LISTENING {
            limit = None;
            if past {
                return Ok(());
            }
        }
        if !show(&Event { line, value }) {
            return Ok(());
        }
    }
    Ok(())
}

/// An event for people: when, from whom, what, and what else there is to say.
pub fn row(event: &Value) -> String {
    let at = &event["timestamp"];
    let (secs, nanos) = (at["secs"].as_u64().unwrap_or(0), at["nanos"].as_u64().unwrap_or(0));
    let word = |value: &Value| plain(value.as_str().unwrap_or("?"));
    let (source, name) = (word(&event["source"]), word(&event["event"]));
    let mut row = format!("{secs:>6}.{:03}  {source:<5}  {name:<18}", nanos / 1_000_000);
    for (name, value) in event["properties"].as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => plain(text),
            other => other.to_string(),
        };
        row.push_str(&format!("  {}={value}", plain(name)));
    }
    format!("{}\n", row.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{PATIENCE, Reply, Server};
    use super::*;

    /// What a client reads of an answer of these bytes, which are its whole connection.
    fn followed(bytes: &'static str, past: bool) -> (Vec<Value>, Result<(), String>) {
        let server = Server::new(move |request, _| {
            assert_eq!(request, "GET vm.events");
            Reply::Bytes(bytes.into())
        });
        let mut events = Vec::new();
        let result = read(&server.socket(), PATIENCE, past, |event| {
            events.push(event.value["event"].clone());
            true
        });
        (events, result.map_err(|error| error.to_string()))
    }

    const HEAD: &str = "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn events_are_read_from_chunks_however_they_are_cut() {
        let whole: &'static str = format!(
            "{HEAD}5\r\n{{\"eve\r\n10\r\nnt\":\"booted\"}}\n{{\"\r\n16\r\nevent\":\"listening\"}}\n{{}}\r\n1\r\n\n\r\n0\r\n\r\n"
        )
        .leak();
        let (events, result) = followed(whole, false);
        assert_eq!(
            (events, result),
            (vec![json!("booted"), json!("listening"), Value::Null], Ok(()))
        );
        let (events, result) = followed(whole, true);
        assert_eq!((events, result), (vec![json!("booted")], Ok(())));
    }

    #[test]
    fn what_is_kept_is_asked_for_and_read_from_the_stream_of_an_older_husk() {
        let kept = json!([{"event": "booted"}]);
        let answer = json!({"version": 1, "forgotten": 0, "events": kept.clone()});
        let server = Server::new(move |request, _| {
            assert_eq!(request, "GET vm.past-events");
            Reply::Answer(200, answer.clone())
        });
        let read = |server: &Server| {
            let events = past(&server.socket(), PATIENCE).unwrap();
            Value::Array(events.into_iter().map(|event| event.value).collect())
        };
        assert_eq!(read(&server), kept);
        let older = Server::new(|request, _| match request {
            "GET vm.past-events" => Reply::Answer(404, json!(["no such path: /api/v1/vm.past-events"])),
            _ => {
                let lines = "{\"event\":\"booted\"}\n{\"event\":\"listening\"}\n";
                Reply::Bytes(format!("{HEAD}{:x}\r\n{lines}\r\n", lines.len()).into())
            }
        });
        assert_eq!(read(&older), kept);
        let other = Server::new(|_, _| Reply::Answer(200, json!([])));
        let error = past(&other.socket(), PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "the answer to vm.past-events is no list of events");
    }

    #[test]
    fn an_end_that_was_not_announced_and_nonsense_are_told() {
        let cut: &'static str = format!("{HEAD}3\r\n{{}}\n\r\n").leak();
        let (events, result) = followed(cut, false);
        assert_eq!(events, [Value::Null]);
        assert!(result.unwrap_err().contains("ended before vm.events was answered"));
        for (bytes, says) in [
            (format!("{HEAD}z\r\n"), "no stream of chunks"),
            (format!("{HEAD}ffffffff\r\n"), "too large a chunk"),
            (format!("{HEAD}2\r\nx\n\r\n"), "no JSON"),
            ("HTTP/1.1 204 \r\n\r\n".into(), "no stream"),
            (
                "HTTP/1.1 409 \r\nContent-Length: 5\r\n\r\n[\"a\"]".into(),
                "refused (409): a",
            ),
        ] {
            let error = followed(bytes.leak(), false).1.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_row_is_one_line_whatever_a_guest_says() {
        let event = json!({
            "timestamp": {"secs": 4, "nanos": 1_200_345},
            "source": "guest", "event": "panic", "properties": {"text": "a\nb\u{1b}[2J", "n": 1},
        });
        assert_eq!(
            row(&event),
            "     4.001  guest  panic               n=1  text=a b [2J\n"
        );
        assert_eq!(row(&json!({})), "     0.000  ?      ?\n");
    }
}
