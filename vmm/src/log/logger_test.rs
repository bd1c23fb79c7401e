use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use log::LevelFilter;

use super::super::Options;
use super::*;
use crate::terminal::LossReport;
use crate::terminal::testing::fifo;

fn logger(options: &Options) -> Logger {
    let setup = Setup {
        target: Target::open(&options.destination).unwrap(),
        destination: options.destination.clone(),
        format: options.format,
        tag: options.tag.clone(),
    };
    Logger {
        lines: [const { AtomicU64::new(0) }; LEVELS.len()],
        left_out: [const { AtomicU64::new(0) }; LEVELS.len()],
        lost_lines: LostLines::new(),
        lost_ever: AtomicU64::new(0),
        limiter: LogLimiter::new(),
        stderr: OnceLock::new(),
        setup: OnceLock::from(setup),
        away: AtomicBool::new(false),
    }
}

fn say(logger: &Logger, message: &str) {
    logger.say(&Entry {
        level: Level::Warn,
        target: "husk::x",
        place: None,
        message: format_args!("{message}"),
        remark: "",
    });
}

/// Entries as journald takes them: fields of `NAME=value` lines, or of a name, a length of 64 bits and as many bytes.
fn fields(mut datagram: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    while !datagram.is_empty() {
        let end = datagram.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
        match line.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                found.push((String::from_utf8_lossy(&line[..at]).into(), line[at + 1..].to_vec()));
                datagram = rest;
            }
            None => {
                let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
                found.push((String::from_utf8_lossy(line).into(), rest[8..8 + length].to_vec()));
                datagram = &rest[8 + length + 1..];
            }
        }
    }
    found
}

/// A log that goes to a daemon, whose socket is in the folder.
fn to_syslog() -> (tempfile::TempDir, UnixDatagram, Logger) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let logger = logger(&Options {
        destination: Destination::Syslog(path),
        ..Options::default()
    });
    (folder, daemon, logger)
}

fn receive(daemon: &UnixDatagram) -> Vec<(String, Vec<u8>)> {
    let mut bytes = vec![0; 8_192];
    let count = daemon.recv(&mut bytes).unwrap();
    fields(&bytes[..count])
}

fn field<'a>(entry: &'a [(String, Vec<u8>)], name: &str) -> &'a str {
    let found: Vec<_> = entry.iter().filter(|(found, _)| found == name).collect();
    assert_eq!(found.len(), 1, "{name} of {entry:?}");
    str::from_utf8(&found[0].1).unwrap()
}

#[test]
fn journald_gets_an_entry_a_line_and_is_told_what_it_had_no_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let logger = logger(&Options {
        destination: Destination::Journal(path),
        tag: Some("web".parse().unwrap()),
        ..Options::default()
    });
    say(&logger, "a\nMESSAGE_ID=forged");
    let entry = receive(&daemon);
    assert_eq!(field(&entry, "MESSAGE"), "a MESSAGE_ID=forged");
    assert_eq!(field(&entry, "PRIORITY"), "4");
    assert_eq!(field(&entry, "SYSLOG_IDENTIFIER"), "web");
    while logger.lost_ever.load(Ordering::Relaxed) < 3 {
        say(&logger, "too much");
    }
    daemon.set_nonblocking(true).unwrap();
    while daemon.recv(&mut [0; 8_192]).is_ok() {}
    daemon.set_nonblocking(false).unwrap();
    say(&logger, "room again");
    assert_eq!(
        field(&receive(&daemon), "MESSAGE"),
        "3 log lines were dropped: nobody read them, or there was no room for them"
    );
    assert_eq!(field(&receive(&daemon), "MESSAGE"), "room again");
}

/// A notice takes the room of a line: it must not be the reason why lines are lost for ever.
#[test]
fn a_notice_that_got_through_is_not_told_again_by_the_next() {
    let (_folder, daemon, logger) = to_syslog();
    daemon.set_nonblocking(true).unwrap();
    let receive = || {
        let mut bytes = [0; 8_192];
        let count = daemon.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..count].to_vec()).unwrap())
    };
    let (mut said, mut heard) = (0_u64, Vec::new());
    let mut count_and_say = |text: &str| {
        say(&logger, text);
        said += 1;
    };
    while logger.lost_ever.load(Ordering::Relaxed) < 3 {
        count_and_say("too much");
    }
    // One place at a time becomes free.
    for _ in 0..8 {
        heard.extend(receive());
        count_and_say("one place");
    }
    heard.extend(std::iter::from_fn(receive));
    count_and_say("room");
    heard.extend(std::iter::from_fn(receive));
    let told = |line: &String| {
        let (number, _) = line.split_once(LOST)?;
        number.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let told: u64 = heard.iter().filter_map(told).sum();
    let lines = heard.iter().filter(|line| !line.contains(LOST)).count() as u64;
    assert_eq!(told, logger.lost_ever.load(Ordering::Relaxed), "{heard:#?}");
    assert_eq!(told + lines, said, "{heard:#?}");
    assert!(heard.last().unwrap().ends_with("room"), "{heard:#?}");
}

#[test]
fn what_was_lost_is_told_at_the_end_if_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let logger = logger(&Options {
        destination: Destination::File(path.clone()),
        ..Options::default()
    });
    logger.flush();
    logger.lost_lines.lose(4);
    logger.flush();
    logger.flush();
    assert_eq!(std::fs::read_to_string(path).unwrap(), format!("WARN: 4{LOST}\n"));
    assert_eq!(logger.lost_ever.load(Ordering::Relaxed), 0, "a notice is no line");
}

#[test]
fn standard_error_has_the_lines_of_a_daemon_that_has_gone() {
    let (_folder, daemon, logger) = to_syslog();
    let (mut reader, writer) = io::pipe().unwrap();
    let stderr = NonBlockingFile::inherit(File::from(std::os::fd::OwnedFd::from(writer)));
    logger.stderr.set(stderr).unwrap();
    logger.lost_lines.lose(2);
    drop(daemon);
    say(&logger, "first");
    say(&logger, "second");
    drop(logger);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    let [lost, news, "WARN: first", "WARN: second"] = lines[..] else {
        panic!("{said}")
    };
    assert_eq!(lost, format!("WARN: 2{LOST}"));
    assert!(
        news.starts_with("WARN: the system's log at ") && news.contains("takes no lines any more"),
        "{news}"
    );
}

#[test]
fn lost_lines_are_counted_on_the_next_one_in_either_form() {
    for (format, expected) in [
        (
            Format::Text,
            "WARN: 2 log lines were dropped: nobody read them, or there was no room for them\nWARN: here\n",
        ),
        (
            Format::Json,
            "2 log lines were dropped: nobody read them, or there was no room for them\"}\n{\"time",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let logger = logger(&Options {
            destination: Destination::File(path.clone()),
            format,
            tag: None,
        });
        logger.lost_lines.lose(2);
        say(&logger, "here");
        let said = std::fs::read_to_string(path).unwrap();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_file_may_be_a_pipe_that_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let logger = logger(&Options {
        destination: Destination::File(path),
        ..Options::default()
    });
    while logger.lost_ever.load(Ordering::Relaxed) == 0 {
        say(&logger, "nobody reads");
    }
}

#[test]
fn a_line_that_a_full_disk_refuses_is_lost_and_one_in_part_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let options = |path: &Path| Options {
        destination: Destination::File(path.into()),
        ..Options::default()
    };
    let full = logger(&options(Path::new("/dev/full")));
    say(&full, "no room");
    say(&full, "no room");
    assert_eq!(full.lost_ever.load(Ordering::Relaxed), 2);
    assert!(!full.lost_lines.is_torn(), "nothing of it got through");
    let path = folder.path().join("log");
    let logger = logger(&options(&path));
    let Target::File(file) = &logger.setup.get().unwrap().target else {
        panic!("it is a file")
    };
    assert_eq!(file.write(b"WARN: to").unwrap(), 8);
    logger.lost_lines.add(LossReport { lost: 1, torn: true });
    say(&logger, "here");
    say(&logger, "again");
    let said = std::fs::read_to_string(&path).unwrap();
    assert_eq!(said, format!("WARN: to\nWARN: 1{LOST}\nWARN: here\nWARN: again\n"));
}

#[test]
fn a_line_longer_than_one_write_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let file = NonBlockingFile::append(&path, 0o600).unwrap();
    let line = vec![b'x'; 10_000];
    let mut lines = PendingLines::default();
    lines.push(&line, 0);
    lines.write_to(&file).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), line);
}

#[test]
fn who_says_too_much_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let logger = logger(&Options {
        destination: Destination::File(path.clone()),
        ..Options::default()
    });
    // The level is that of all tests of this process, which look at no line's being left out by it.
    log::set_max_level(LevelFilter::Warn);
    for number in 0..50 {
        let arguments = format_args!("number {number}");
        let mut builder = Record::builder();
        let record = builder
            .level(Level::Error)
            .module_path_static(Some("husk::x"))
            .line(Some(9));
        logger.log(&record.args(arguments).build());
    }
    logger.flush();
    let said = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 21, "{said}");
    assert_eq!(lines[18], "ERRO: number 18");
    assert_eq!(lines[19], format!("ERRO: number 19{ENOUGH}"));
    assert_eq!(lines[20], "ERRO: ... 30 more like this (husk::x:9)");
}

#[test]
fn the_last_line_reaches_whoever_has_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let logger = logger(&Options {
        destination: Destination::Journal(path),
        ..Options::default()
    });
    logger.die(&own_entry(format_args!("SIGSEGV; husk ends here")));
    assert_eq!(field(&receive(&daemon), "MESSAGE"), "SIGSEGV; husk ends here");
}
