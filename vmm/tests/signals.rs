//! The API process and signals: what it dies of, what it says, and what does not kill it. No guest runs here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use process::make_fifo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No step of these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Husk {
    child: Child,
    folder: TempDir,
}

impl Husk {
    /// A process that listens, started by a shell that does `first` before.
    fn start(first: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), first)
    }

    fn start_in(folder: TempDir, first: &str) -> Self {
        let script = format!(
            "{first} exec {} --api-socket api.sock --event-monitor path=events --log-file log -vv",
            env!("CARGO_BIN_EXE_husk")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).current_dir(&folder);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let husk = Self { child, folder };
        let begun = Instant::now();
        while UnixStream::connect(husk.path("api.sock")).is_err() {
            assert!(begun.elapsed() < PATIENCE, "husk does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        husk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ends, and what it has said.
    fn end(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(begun.elapsed() < PATIENCE, "husk lives on"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal that has no name in rustix.
fn kill(husk: &Husk, number: libc::c_int) {
    let kill = format!("kill -{number} {}", husk.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// What is for threads only, sent by another process.
#[test]
fn a_signal_of_the_c_library_ends_nobody() {
    for number in [32, 33] {
        let husk = Husk::start("");
        kill(&husk, number);
        UnixStream::connect(husk.path("api.sock")).unwrap();
        husk.signal(Signal::TERM);
        let (status, said) = husk.end();
        assert_eq!((status.code(), said.as_str()), (Some(5), ""), "{number}: {status:?}");
    }
}

/// What tells systemd to halt, sent to what is not systemd.
#[test]
fn a_real_time_signal_kills_with_a_line() {
    let husk = Husk::start("");
    kill(&husk, libc::SIGRTMIN() + 3);
    let (status, said) = husk.end();
    assert_eq!(status.signal(), Some(libc::SIGRTMIN() + 3), "{status:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("ERRO: SIGRTMIN+3 sent by process "), "{said}");
}

#[test]
fn one_fatal_signal_is_enough_and_is_what_the_parent_sees() {
    for (name, signal) in [
        ("SEGV", Signal::SEGV),
        ("BUS", Signal::BUS),
        ("ABRT", Signal::ABORT),
        ("SYS", Signal::SYS),
        ("XCPU", Signal::XCPU),
        ("ALRM", Signal::ALARM),
    ] {
        let husk = Husk::start("");
        husk.signal(signal);
        let (status, said) = husk.end();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{name}: {status:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let begin = format!("ERRO: SIG{name}");
        assert!(said.starts_with(&begin) && said.contains(" sent by process "), "{said}");
    }
}

#[test]
fn a_limit_of_file_sizes_costs_what_would_be_written_and_no_more() {
    let husk = Husk::start("ulimit -f 0;");
    // It listens before it opens that.
    let begun = Instant::now();
    let events = loop {
        match File::open(husk.path("events")) {
            Ok(events) => break events,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    UnixStream::connect(husk.path("api.sock")).unwrap();
    husk.signal(Signal::TERM);
    let (status, said) = husk.end();
    assert_eq!(status.code(), Some(5), "{status:?}: {said}");
    assert_eq!(events.metadata().unwrap().len(), 0, "no event fits");
}

#[test]
fn events_and_log_may_be_fifos_that_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["events", "log"] {
        make_fifo(&folder.path().join(name));
    }
    let husk = Husk::start_in(folder, "");
    husk.signal(Signal::TERM);
    let (status, said) = husk.end();
    assert_eq!((status.code(), said.as_str()), (Some(5), ""));
}

#[test]
fn what_the_parent_ignores_stays_ignored() {
    let husk = Husk::start("trap '' USR1;");
    husk.signal(Signal::USR1);
    husk.signal(Signal::TERM);
    assert_eq!(husk.end().0.code(), Some(5));
}
