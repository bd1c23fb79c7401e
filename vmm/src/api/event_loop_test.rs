use std::net::Shutdown;

use serde_json::{Value, json};

use super::super::command::{Command, Reply};
use super::super::routes::readable;
use super::super::testing::{Bench, Client, PING};
use super::*;
use crate::events::MAX_READERS;

const EVENTS: &[u8] = b"GET /api/v1/vm.events HTTP/1.1\r\n\r\n";

/// Asks for events, and has the answer begin.
fn stream(bench: &Bench, events: &Events) -> Client {
    let mut client = bench.client();
    client.send(EVENTS);
    let request = bench.command();
    assert!(matches!(request.command, Command::Events));
    request.respond.send(Ok(Reply::Events(events.subscribe().unwrap())));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head += &client.line();
    }
    assert!(
        head.starts_with("HTTP/1.1 200 \r\n") && head.contains("\r\nTransfer-Encoding: chunked\r\n"),
        "{head}"
    );
    assert!(client.chunk().unwrap().contains("listening"));
    client
}

#[test]
fn events_go_out_as_they_happen_to_all_who_read_and_end_with_the_server() {
    let events = Events::new();
    let mut bench = Bench::with_events(&events);
    let mut readers = [stream(&bench, &events), stream(&bench, &events)];
    events.emit("vm", "paused");
    for reader in &mut readers {
        assert!(reader.chunk().unwrap().contains("paused"));
    }
    // Others are served meanwhile.
    assert_eq!(bench.client().ask(PING).0, 200);
    events.emit("vmm", "shutdown");
    bench.commands = None;
    bench.running = None;
    for reader in &mut readers {
        let mut last = reader.chunk().unwrap();
        while let Some(more) = reader.chunk() {
            last += &more;
        }
        assert!(last.contains("shutdown"));
        assert!(reader.is_at_end());
    }
}

/// Nobody but the server's thread has a part in it.
#[test]
fn what_has_happened_is_told_at_once_however_many_read() {
    let events = Events::new();
    let bench = Bench::with_events(&events);
    let readers: Vec<_> = (0..MAX_READERS).map(|_| events.subscribe().unwrap()).collect();
    for _ in 0..65 {
        events.emit("vm", "paused");
    }
    events.emit_with("vm", "device-added", [("id", "é".into())]);
    let (status, body) = bench.client().ask(b"GET /api/v1/vm.past-events HTTP/1.1\r\n\r\n");
    let told = body;
    assert_eq!(
        (status, &told["version"], &told["forgotten"]),
        (200, &1.into(), &2.into())
    );
    let told = told["events"].as_array().unwrap();
    assert_eq!(told.len(), 64);
    assert_eq!(
        (&told[0]["event"], &told[63]["properties"]["id"]),
        (&"paused".into(), &"é".into())
    );
    assert_eq!(events.subscribe(), None);
    drop(readers);
}

#[test]
fn a_reader_that_reads_nothing_holds_up_nobody_and_is_told_what_it_lost() {
    let events = Events::new();
    let bench = Bench::with_events(&events);
    let mut slow = stream(&bench, &events);
    let long = "x".repeat(1000);
    for number in 0..2000 {
        events.emit_with("vm", "paused", [("text", long.as_str().into())]);
        if number % 10 == 0 {
            // What has been told by now has been read.
            assert_eq!(bench.client().ask(PING).0, 200);
        }
    }
    let dropped = |client: &mut Client| -> u64 {
        let text = client.chunk().unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|event| event["properties"]["dropped"].as_u64()).sum()
    };
    // Of two megabytes a socket and two backlogs hold less than one: what has room again tells how many had none.
    let mut lost = 0;
    while lost == 0 {
        lost = dropped(&mut slow);
        events.emit("vm", "resumed");
    }
    assert!((1000..2000).contains(&lost), "{lost}");
}

#[test]
fn a_reader_that_goes_is_forgotten() {
    let events = Events::new();
    let bench = Bench::with_events(&events);
    drop(stream(&bench, &events));
    while events.has_listeners() {
        assert_eq!(bench.client().ask(PING).0, 200);
    }
}

/// The lines of the head of the answer to `method`, but for numbers: two looks at the figures differ in length.
fn head_of(bench: &Bench, events: &Events, method: &str, path: &str) -> Vec<String> {
    let mut client = bench.client();
    client.send(format!("{method} {path} HTTP/1.1\r\n\r\n").as_bytes());
    if !["vmm.ping", "vmm.log-level", "vm.info"]
        .iter()
        .any(|at_once| path.ends_with(at_once))
    {
        let request = bench.command();
        let reply = match request.command {
            Command::Events => Reply::Events(events.subscribe().unwrap()),
            Command::Metrics => Reply::Figures(Box::default()),
            _ => Reply::Json(json!({})),
        };
        request.respond.send(Ok(reply));
    }
    let lines = std::iter::from_fn(|| Some(client.line()).filter(|line| line != "\r\n"));
    let head = lines.map(|line| match line.strip_prefix("Content-Length: ") {
        Some(length) => format!("Content-Length, none: {}", length.trim() == "0"),
        None => line,
    });
    let head = head.collect();
    // What `HEAD` is answered ends there.
    if method == "HEAD" {
        client.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(client.is_at_end(), "{path}");
    }
    head
}

#[test]
fn the_head_of_everything_that_can_be_read_is_that_of_the_whole() {
    let events = Events::new();
    let bench = Bench::with_events(&events);
    for has_vm in [false, true] {
        if has_vm {
            bench.create_vm();
        }
        let paths = readable().map(|name| format!("/api/v1/{name}"));
        for path in paths.chain(["/metrics".into()]) {
            let head = head_of(&bench, &events, "HEAD", &path);
            assert!(head.len() > 3, "{path}: {head:?}");
            assert_eq!(head, head_of(&bench, &events, "GET", &path), "{path}");
        }
    }
}
