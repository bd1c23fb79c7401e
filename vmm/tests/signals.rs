//! The API process and signals: what it dies of, what it says, and what does not kill it. No guest runs here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use husk_devices::testing::until;
use process::{Husk, Signal, make_fifo};
use tempfile::TempDir;

fn started(first: &str) -> Husk {
    started_in(tempfile::tempdir().unwrap(), first)
}

/// A process whose events and log are files in its folder.
fn started_in(folder: TempDir, first: &str) -> Husk {
    Husk::start_by(folder, first, "--event-monitor path=events --log-file log -vv")
}

#[test]
#[should_panic(
    expected = "it ended before it listened, code Some(2), signal None: error: unexpected argument '--none'"
)]
fn whoever_waits_for_a_process_that_has_ended_is_told_why_it_did() {
    Husk::start(&["--none"]);
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
        let husk = started("");
        kill(&husk, number);
        UnixStream::connect(husk.socket()).unwrap();
        husk.signal(Signal::TERM);
        let (status, said) = husk.end();
        assert_eq!((status.code(), said.as_str()), (Some(5), ""), "{number}: {status:?}");
    }
}

/// What tells systemd to halt, sent to what is not systemd.
#[test]
fn a_real_time_signal_kills_with_a_line() {
    let husk = started("");
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
        let husk = started("");
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
    let husk = started("ulimit -f 0;");
    // It listens before it opens that.
    let events = husk.folder.path().join("events");
    until(|| events.exists());
    let events = File::open(events).unwrap();
    UnixStream::connect(husk.folder.path().join("api.sock")).unwrap();
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
    let husk = started_in(folder, "");
    husk.signal(Signal::TERM);
    let (status, said) = husk.end();
    assert_eq!((status.code(), said.as_str()), (Some(5), ""));
}

#[test]
fn what_the_parent_ignores_stays_ignored() {
    let husk = started("trap '' USR1;");
    husk.signal(Signal::USR1);
    husk.signal(Signal::TERM);
    assert_eq!(husk.end().0.code(), Some(5));
}
