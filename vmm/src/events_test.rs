use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn an_event_is_a_line_with_the_usual_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
    events.emit("vm", "booting");
    events
        .clone()
        .emit_with("vm", "device-added", [("id", Value::from("_disk0"))]);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(parsed).collect();
    assert_eq!(
        (&lines[0]["source"], &lines[0]["event"]),
        (&"vm".into(), &"booting".into())
    );
    assert!(lines[0]["timestamp"]["secs"].is_u64() && lines[0]["timestamp"]["nanos"].is_u64());
    assert!(lines[0]["properties"].is_null());
    assert_eq!(lines[1]["properties"]["id"], "_disk0");
}

#[test]
fn a_file_is_emptied_unless_husk_writes_to_it_already() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let log = NonBlockingFile::append(&path, MODE).unwrap();
    log.write(b"of before\n").unwrap();
    let mut protected = ProtectedFiles::default();
    protected.add("husk's log", log.file_id());
    Events::to_path(&path, &protected).unwrap().emit("vm", "booting");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("of before\n{"), "{text}");
    Events::to_path(&path, &ProtectedFiles::default()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
}

#[test]
fn a_fifo_has_events_for_a_reader_that_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = crate::terminal::testing::fifo(&folder);
    let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
    events.emit("vm", "booting");
    let mut line = String::new();
    BufReader::new(File::open(&path).unwrap()).read_line(&mut line).unwrap();
    assert_eq!(parsed(&line)["event"], "booting");
}

#[test]
fn a_reader_that_falls_behind_loses_whole_events_and_is_told() {
    let (reader, writer) = io::pipe().unwrap();
    let events = Events::to_fd(writer.into()).unwrap();
    for _ in 0..3000 {
        events.emit("vm", "paused");
    }
    events.emit("vm", "resumed");
    let mut reader = BufReader::new(reader);
    for _ in 0..3000 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let event = parsed(&line);
        if let Some(dropped) = event["properties"]["dropped"].as_u64() {
            assert!(dropped > 1000, "{dropped}");
            return;
        }
        assert_eq!(event["event"], "paused");
        events.emit("vm", "resumed");
    }
    panic!("nobody said that events were dropped");
}

/// A pipe as a monitor, and all that it holds.
fn piped() -> (io::PipeReader, Events) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, Events::to_fd(writer.into()).unwrap())
}

fn is_woken(events: &Events) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, events.monitor().unwrap(), event)
        .unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn what_waits_for_a_slow_reader_goes_out_when_there_is_room_without_another_event() {
    let (mut reader, events) = piped();
    // More than a pipe holds, and less than may wait beside that.
    let count = 1_000;
    for _ in 0..count {
        events.emit("vm", "paused");
    }
    assert!(!is_woken(&events), "nothing to do before the reader reads");
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let mut text = Vec::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < count {
        let mut piece = [0; 4096];
        match reader.read(&mut piece) {
            Ok(read) => text.extend(&piece[..read]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(is_woken(&events), "nobody is told that there is room");
                events.flush();
            }
        }
    }
    assert!(!is_woken(&events), "nothing waits any more");
    let text = String::from_utf8(text).unwrap();
    assert!(text.len() > 64 << 10, "{}", text.len());
    assert!(text.lines().all(|line| parsed(line)["properties"].is_null()));
}

#[test]
fn another_threads_events_are_the_main_threads_to_write_whatever_that_does() {
    let (mut reader, events) = piped();
    let other = events.for_other_thread();
    let shared = events.shared.as_ref().unwrap();
    let writing = shared.monitor.as_ref().unwrap().hold_writer();
    // The main thread is in the middle of a write that does not end.
    other.emit("vm", "unknown-field");
    assert!(other.has_listeners() && other.subscribe().is_some());
    drop(writing);
    assert!(is_woken(&events));
    events.flush();
    assert!(!is_woken(&events));
    let mut line = [0; 256];
    let count = reader.read(&mut line).unwrap();
    assert_eq!(
        parsed(str::from_utf8(&line[..count]).unwrap())["event"],
        "unknown-field"
    );
    // A regular file has room always, and cannot be watched for it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let events = Events::to_path(&path, &ProtectedFiles::default()).unwrap();
    events.for_other_thread().emit("vm", "unknown-field");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    assert!(is_woken(&events));
    events.flush();
    assert!(!is_woken(&events));
    assert_eq!(
        parsed(&std::fs::read_to_string(&path).unwrap())["event"],
        "unknown-field"
    );
}

#[test]
fn the_last_event_is_there_at_the_end_with_the_number_of_those_that_are_not() {
    let (reader, events) = piped();
    for _ in 0..3_000 {
        events.emit("vm", "paused");
    }
    events.emit_with("vmm", "shutdown", [("reason", "asked".into())]);
    let reading = std::thread::spawn(move || io::read_to_string(reader).unwrap());
    events.finish(Instant::now() + Duration::from_secs(60));
    drop(events);
    let text = reading.join().unwrap();
    let last = parsed(text.lines().last().unwrap());
    assert_eq!(
        (&last["event"], &last["properties"]["reason"]),
        (&"shutdown".into(), &"asked".into())
    );
    let dropped = last["properties"]["dropped"].as_u64().unwrap();
    assert_eq!(text.lines().count() as u64 + dropped, 3_001);
    // Nobody reads, and nobody is waited for beyond the deadline.
    let (reader, events) = piped();
    (0..3_000).for_each(|_| events.emit("vm", "paused"));
    events.finish(Instant::now());
    drop(reader);
    events.finish(Instant::now() + Duration::from_secs(600));
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let (reader, writer) = io::pipe().unwrap();
    let events = Events::to_fd(writer.into()).unwrap();
    drop(reader);
    events.emit("vm", "booting");
    let (reader, writer) = UnixStream::pair().unwrap();
    let events = Events::to_fd(writer.into()).unwrap();
    for _ in 0..10_000 {
        events.emit("vm", "booting");
    }
    drop(reader);
    events.emit("vm", "booting");
    Events::default().emit("vm", "booting");
}

fn lines(reader: &Reader) -> Vec<Value> {
    String::from_utf8(reader.take()).unwrap().lines().map(parsed).collect()
}

#[test]
fn a_reader_who_comes_late_has_what_was_before_and_what_comes_and_no_other_readers_events_twice() {
    let events = Events::new();
    let eventfd = Arc::new(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap());
    events.set_reader_eventfd(eventfd.clone());
    assert!(!events.has_listeners());
    events.emit("vm", "booting");
    assert!(eventfd.read().is_err(), "nobody reads");
    let reader = events.subscribe().unwrap();
    assert!(events.has_listeners());
    events.emit_with("guest", "panic", [("text", "Kernel panic".into())]);
    assert_eq!(eventfd.read().unwrap(), 1);
    let read = lines(&reader);
    let names: Vec<_> = read.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["booting", "listening", "panic"]);
    assert_eq!(
        read[1]["properties"],
        serde_json::json!({"version": VERSION, "forgotten": 0})
    );
    assert_eq!(read[2]["properties"]["text"], "Kernel panic");
    events.emit("vm", "paused");
    assert_eq!(lines(&reader)[0]["event"], "paused");
    assert_eq!(eventfd.read().unwrap(), 1);
    drop(reader);
    events.emit("vm", "resumed");
    assert!(!events.has_listeners());
    assert!(eventfd.read().is_err());
}

#[test]
fn old_events_are_forgotten_and_their_number_is_told() {
    let events = Events::new();
    for _ in 0..MAX_KEPT + 3 {
        events.emit("vm", "paused");
    }
    let read = lines(&events.subscribe().unwrap());
    assert_eq!(read.len(), MAX_KEPT + 1);
    assert_eq!(read[MAX_KEPT]["properties"]["forgotten"], 3);
}

#[test]
fn there_are_so_many_readers_and_a_slow_one_is_told_what_it_lost() {
    let events = Events::new();
    let readers: Vec<Reader> = (0..MAX_READERS).map(|_| events.subscribe().unwrap()).collect();
    assert_eq!(events.subscribe(), None);
    assert_eq!(Events::default().subscribe(), None);
    for _ in 0..3000 {
        events.emit("vm", "paused");
        readers[1].take();
    }
    let slow = lines(&readers[0]);
    events.emit("vm", "resumed");
    let next = lines(&readers[0]);
    let dropped = next[0]["properties"]["dropped"].as_u64().unwrap();
    // One of them is `listening`.
    assert_eq!(slow.len() as u64 - 1 + dropped, 3000);
    assert!(lines(&readers[1])[0]["properties"].is_null());
    drop(readers);
    assert!(events.subscribe().is_some());
}
