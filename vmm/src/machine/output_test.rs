use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use husk_devices::metrics::MetricsSource;
use husk_devices::serial::Serial;
use husk_devices::{BusDevice, Effect, Irq};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::seccomp::Mode;
use crate::terminal::testing::fifo;
use crate::terminal::{NonBlockingFile, OpenOutputError, ProtectedFiles};

/// More than a pipe and an output hold.
const MUCH: usize = 1 << 20;

/// Gives the threads that write to files all the time that they need.
fn written(stdout: &ProcessOutputs) {
    stdout.finish(Instant::now() + Duration::from_secs(60));
}

fn open(path: &Path, stdout: &ProcessOutputs) -> Box<dyn Write + Send> {
    open_output("serial", &ConsoleConfig::file(path), stdout)
        .unwrap()
        .unwrap()
        .output
}

/// A serial port whose output goes to `path`.
fn serial(path: &Path, stdout: &ProcessOutputs) -> Serial {
    Serial::new(Irq::new(EventFd::new(0).unwrap()), open(path, stdout))
}

fn print(serial: &mut Serial, text: &[u8]) {
    for byte in text {
        assert_eq!(serial.write(0, &[*byte]), Effect::None);
    }
}

fn counter(serial: &Serial, name: &str) -> u64 {
    serial
        .metrics()
        .metrics()
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap()
        .1
}

#[test]
fn a_port_whose_reader_never_comes_holds_up_nobody_and_counts_what_it_loses() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let stdout = ProcessOutputs::new(ProtectedFiles::default(), Mode::Off).unwrap();
    let mut serial = serial(&path, &stdout);
    print(&mut serial, &vec![b'x'; MUCH]);
    let (sent, lost) = (counter(&serial, "tx_bytes"), counter(&serial, "tx_lost_bytes"));
    assert!(sent > 0 && lost > 0);
    assert_eq!(sent + lost, MUCH as u64);
    // The reader comes, and the port goes on.
    let mut reader = File::open(&path).unwrap();
    let mut bytes = vec![0; usize::try_from(sent).unwrap()];
    let mut got = 0;
    while got < bytes.len() {
        got += reader.read(&mut bytes[got..]).unwrap();
        stdout.drain();
    }
    print(&mut serial, b"again");
    let mut bytes = [0; 5];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
    assert_eq!(counter(&serial, "tx_lost_bytes"), lost);
}

#[test]
fn two_ports_in_one_file_lose_nothing_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    fs::write(&path, "of an earlier run").unwrap();
    let stdout = ProcessOutputs::new(ProtectedFiles::default(), Mode::Off).unwrap();
    let (mut one, mut two) = (open(&path, &stdout), open(&path, &stdout));
    one.write_all(b"one ").unwrap();
    two.write_all(b"two ").unwrap();
    one.write_all(b"one again").unwrap();
    written(&stdout);
    assert_eq!(fs::read_to_string(&path).unwrap(), "one two one again");
}

#[test]
fn what_cannot_be_written_to_is_named_with_its_port_and_path() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let stdout = ProcessOutputs::new(ProtectedFiles::default(), Mode::Off).unwrap();
    for (path, kind) in [(folder.path(), "directory"), (&socket, "socket")] {
        let error = open_output("console", &ConsoleConfig::file(path), &stdout)
            .err()
            .unwrap();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(error.to_string(), format!("console {}", path.display()));
        assert!(why.starts_with(&format!("it is a {kind}, allowed:")), "{why}");
    }
}

#[test]
fn a_file_of_both_ports_has_no_limit_whatever_its_names_are() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("L"), folder.path().join("M"));
    std::os::unix::fs::symlink(&path, &other).unwrap();
    let stdout = ProcessOutputs::new(ProtectedFiles::default(), Mode::Off).unwrap();
    let limited = |path: &Path| ConsoleConfig {
        limit: Some(4096),
        keep: Some(1),
        ..ConsoleConfig::file(path)
    };
    let check = |serial: &ConsoleConfig, console: &ConsoleConfig| {
        let files = [("serial", serial), ("console", console)]
            .map(|(name, port)| open_output(name, port, &stdout).unwrap().unwrap().files);
        check_files(serial, console, [&files[0], &files[1]])
    };
    for (serial, console) in [
        (limited(&path), limited(&other)),
        (limited(&path), ConsoleConfig::file(&other)),
        (ConsoleConfig::file(&path), limited(&other)),
    ] {
        let error = check(&serial, &console).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(
            why,
            "it is the serial port's file too: with a limit only one of them can have it"
        );
        assert!(error.to_string().contains(other.to_str().unwrap()), "{error}");
    }
    check(&ConsoleConfig::file(&path), &ConsoleConfig::file(&other)).unwrap();
    check(&limited(&path), &limited(&folder.path().join("N"))).unwrap();
    check(&limited(&path), &ConsoleConfig::new(ConsoleMode::Null)).unwrap();
    // What counts is what was opened, whatever has its name by now.
    let [serial, console] = [limited(&path), limited(&other)];
    let [one, two] = [("serial", &serial), ("console", &console)]
        .map(|(name, port)| open_output(name, port, &stdout).unwrap().unwrap().files);
    fs::remove_file(&other).unwrap();
    fs::write(&other, "").unwrap();
    check_files(&serial, &console, [&one, &two]).unwrap_err();
}

/// The guest cannot be let empty what husk writes, whatever its name is.
#[test]
fn a_file_of_husks_own_is_not_emptied_for_a_port_and_has_no_limit() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other, beside] = ["log", "link", "x.1"].map(|name| folder.path().join(name));
    let log = NonBlockingFile::append(&path, 0o600).unwrap();
    log.write(b"husk ").unwrap();
    fs::hard_link(&path, &other).unwrap();
    fs::hard_link(&path, &beside).unwrap();
    let mut protected = ProtectedFiles::default();
    protected.add("a closed descriptor", None);
    protected.add("husk's log", log.file_id());
    let stdout = ProcessOutputs::new(protected, Mode::Off).unwrap();
    for name in ["log", "link", "x"] {
        let config = ConsoleConfig {
            limit: Some(4096),
            keep: Some(1),
            ..ConsoleConfig::file(folder.path().join(name))
        };
        let error = open_output("serial", &config, &stdout).err().unwrap();
        let why = std::error::Error::source(&error).unwrap();
        assert!(
            matches!(why.downcast_ref(), Some(OpenOutputError::Protected("husk's log"))),
            "{why}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "husk ");
    }
    open(&other, &stdout).write_all(b"guest ").unwrap();
    written(&stdout);
    log.write(b"husk").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "husk guest husk");
}
