use husk_guest::frame::{self, Kind};
use husk_guest::pattern;

use super::*;

/// A connection to an agent that runs in this process.
fn connect() -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || converse(&theirs, &Arc::default()));
    ours
}

fn send(mut stream: &UnixStream, call: &Call) {
    let line = serde_json::to_string(call).unwrap() + "\n";
    stream.write_all(line.as_bytes()).unwrap();
}

fn ask(stream: &UnixStream, call: &Call) -> Reply {
    send(stream, call);
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn one_connection_carries_many_calls_and_a_bad_one_does_not_end_it() {
    let stream = connect();
    let echo = |text: &str| Call::Run {
        command: vec!["cat".into()],
        input: text.into(),
    };
    // `cat` is in /bin here as in a pod.
    for text in ["one", "two"] {
        let ran = Reply::Ran {
            code: 0,
            stdout: text.into(),
            stderr: String::new(),
        };
        assert_eq!(ask(&stream, &echo(text)), ran);
        (&stream).write_all(b"nonsense\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("not a call"), "{line}");
    }
}

#[test]
fn a_failure_has_its_error_number() {
    let Reply::Failed { error, errno } = ask(
        &connect(),
        &Call::Text {
            path: "/no/such".into(),
        },
    ) else {
        panic!("it was read")
    };
    assert_eq!(errno, Some(libc::ENOENT));
    assert!(error.contains("/no/such"), "{error}");
    let refused = ask(&connect(), &Call::step(&Step::Echo));
    assert!(
        matches!(&refused, Reply::Failed { error, .. } if error.contains("console")),
        "{refused:?}"
    );
    let refused = ask(
        &connect(),
        &Call::DiskAt {
            bdf: "0000:00:../../x".into(),
        },
    );
    assert!(
        matches!(&refused, Reply::Failed { error, .. } if error.contains("bus 0")),
        "{refused:?}"
    );
}

#[test]
fn a_timed_call_is_replied_as_usual_and_with_its_time() {
    let time = |call| Call::Time { of: Box::new(call) };
    let asked = Instant::now();
    let Reply::Timed { nanoseconds, result } = ask(&connect(), &time(Call::run(&["echo", "timed"]))) else {
        panic!("no time")
    };
    let around = asked.elapsed();
    assert!(
        (1..=around.as_nanos()).contains(&nanoseconds.into()),
        "{nanoseconds} ns in {around:?}"
    );
    assert!(
        matches!(&*result, Reply::Ran { code: 0, stdout, .. } if stdout == "timed\n"),
        "{result:?}"
    );
    // What fails took no time that would mean anything, and what has no reply takes none.
    for call in [Call::run(&["/no/such"]), Call::Echo, Call::step(&Step::PowerOff)] {
        let refused = ask(&connect(), &time(call));
        assert!(matches!(refused, Reply::Failed { .. }), "{refused:?}");
    }
}

#[test]
fn stored_sourced_sunk_and_summed_bytes_are_the_pattern() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f").to_string_lossy().into_owned();
    let (seed, bytes) = (3, 200_001);
    let expected = pattern::checksum(&pattern::bytes(seed, 200_001));
    let stream = connect();
    for call in [
        Call::Store {
            path: path.clone(),
            seed,
            bytes,
        },
        Call::Sum { path },
    ] {
        let Reply::Data {
            bytes: count, checksum, ..
        } = ask(&stream, &call)
        else {
            panic!("{call:?} failed")
        };
        assert_eq!((count, checksum), (bytes, expected));
    }
    send(&stream, &Call::Source { seed, bytes });
    let mut all = Vec::new();
    (&stream).read_to_end(&mut all).unwrap();
    assert_eq!(all, pattern::bytes(seed, 200_001));
    let stream = connect();
    send(&stream, &Call::Sink);
    (&stream).write_all(&all).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains(&expected.to_string()), "{line}");
}

#[test]
fn an_echo_ends_with_what_is_echoed() {
    let stream = connect();
    send(&stream, &Call::Echo);
    (&stream).write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = String::new();
    (&stream).read_to_string(&mut back).unwrap();
    assert_eq!(back, "hello");
}

/// Everything that comes on a stream, then the exit code.
fn collect(mut stream: &UnixStream) -> (Vec<u8>, Vec<u8>, i32) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        match frame::read(&mut stream).unwrap().expect("no exit code") {
            (Kind::Output, content) => output.extend(content),
            (Kind::Errors, content) => errors.extend(content),
            (Kind::Exit, code) => return (output, errors, i32::from_le_bytes(code.try_into().unwrap())),
            (Kind::Input, _) => panic!("input comes back"),
        }
    }
}

fn exec(command: &[&str]) -> UnixStream {
    let stream = connect();
    let command = command.iter().map(ToString::to_string).collect();
    send(&stream, &Call::Exec { command });
    stream
}

#[test]
fn a_programs_streams_pass_while_it_runs() {
    let stream = exec(&["sh", "-c", "read a; echo got $a; cat >&2; exit 7"]);
    frame::write(&mut &stream, Kind::Input, b"first\n").unwrap();
    let (kind, content) = frame::read(&mut &stream).unwrap().unwrap();
    assert_eq!((kind, content.as_slice()), (Kind::Output, b"got first\n".as_slice()));
    let long = vec![b'x'; 60_000];
    frame::write(&mut &stream, Kind::Input, &long).unwrap();
    frame::write(&mut &stream, Kind::Input, b"").unwrap();
    assert_eq!(collect(&stream), (Vec::new(), long, 7));
}

#[test]
fn a_program_that_reads_nothing_still_ends_its_stream() {
    assert_eq!(
        collect(&exec(&["sh", "-c", "kill -9 $$"])),
        (Vec::new(), Vec::new(), 137)
    );
    let (_, errors, code) = collect(&exec(&["no-such-program"]));
    assert_eq!(code, 127);
    assert!(String::from_utf8_lossy(&errors).contains("no-such-program"));
}

#[test]
fn the_log_has_a_line_a_call() {
    let log = Arc::new(Log::default());
    let (reader, follower) = UnixStream::pair().unwrap();
    log.follow(follower);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let service = {
        let log = Arc::clone(&log);
        thread::spawn(move || converse(&theirs, &log))
    };
    ask(&ours, &Call::run(&["true"]));
    drop(ours);
    service.join().unwrap().unwrap();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    assert!(line.starts_with("agent: ") && line.contains("true"), "{line}");
}

#[test]
fn a_folder_is_planted_surveyed_mapped_and_stormed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let stream = connect();
    let plan = tree::Plan {
        seed: 3,
        files: 20,
        per_folder: 10,
        empty: false,
    };
    let tree_path = path("tree");
    assert_eq!(
        ask(
            &stream,
            &Call::Plant {
                path: tree_path.clone(),
                plan
            }
        ),
        Reply::Done
    );
    let survey = tree::survey(tree_path.as_ref(), tree::Depth::Contents).unwrap();
    let call = Call::Survey {
        path: tree_path,
        depth: tree::Depth::Contents,
    };
    assert_eq!(ask(&stream, &call), Reply::Surveyed { survey });

    let file = path("file");
    fs::write(&file, pattern::bytes(1, 10_000)).unwrap();
    for (seed, shared, after) in [(2, false, 1), (3, true, 3)] {
        let call = Call::Map {
            path: file.clone(),
            seed,
            bytes: 10_000,
            shared,
        };
        let before = pattern::checksum(&pattern::bytes(1, 10_000));
        assert_eq!(
            ask(&stream, &call),
            Reply::Data {
                bytes: 10_000,
                checksum: before
            }
        );
        assert!(fs::read(&file).unwrap() == pattern::bytes(after, 10_000));
    }

    let call = Call::Storm {
        path: path(""),
        threads: 4,
        rounds: 50,
    };
    assert_eq!(ask(&stream, &call), Reply::Text { text: "200".into() });
}
