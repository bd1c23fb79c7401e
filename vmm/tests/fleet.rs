//! `husk ps` and `husk top` against processes that they find.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use process::{HUSK, Husk, Signal};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use serde_json::{Value, json};

fn husk(args: &[&str]) -> String {
    let output = Command::new(HUSK).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `husk ps` says of `of`; others may run beside it.
fn seen(of: &Husk, timeout: &str) -> Option<Value> {
    let all: Vec<Value> = serde_json::from_str(&husk(&["ps", "--json", "--timeout", timeout])).unwrap();
    all.into_iter().find(|seen| seen["pid"] == of.child.id())
}

#[test]
fn every_husk_is_seen_and_one_that_does_not_answer_is_shown_as_such() {
    let (mut one, mut two) = (Husk::start(&[]), Husk::start(&[]));
    let vm =
        json!({"payload": {"kernel": "/k"}, "memory": {"size": 64 << 20}, "cpus": {"boot_vcpus": 2, "max_vcpus": 4}});
    assert_eq!(one.client().put("vm.create", Some(vm)).0, 204);
    let (first, second) = (seen(&one, "10").unwrap(), seen(&two, "10").unwrap());
    assert_eq!(
        (&first["state"], &second["state"]),
        (&json!("Created"), &json!("no VM"))
    );
    let pod = one.folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!((&first["pod"], &first["socket"]), (&json!(pod), &json!(one.socket())));
    assert_eq!(first["memory"]["configured_bytes"], 64 << 20);
    assert_eq!(first["vcpus"]["present"], 2);
    assert!(first["memory"]["resident_bytes"].as_u64().unwrap() > 0);

    two.signal(Signal::STOP);
    // Until the kernel has stopped it.
    while seen(&two, "0.2").unwrap()["state"] != "stopped" {}
    let table = husk(&["ps", "--timeout", "0.2"]);
    let row = |of: &Husk| {
        let pid = of.child.id().to_string();
        let row = table.lines().find(|row| row.split_whitespace().nth(1) == Some(&pid));
        row.unwrap().to_owned()
    };
    assert!(table.starts_with("POD "), "{table}");
    assert!(row(&one).contains("  Created  "), "{table}");
    assert!(row(&two).contains("  stopped  "), "{table}");
    two.signal(Signal::CONT);
    assert_eq!(one.shut_down().code(), Some(0));
    assert_eq!(two.shut_down().code(), Some(0));
    assert_eq!(seen(&one, "1"), None);
}

#[test]
fn without_a_terminal_top_shows_all_once() {
    let of = Husk::start(&[]);
    let table = husk(&["top"]);
    assert!(table.starts_with("POD ") && table.contains("CPU"), "{table}");
    let pid = of.child.id().to_string();
    assert!(
        table.lines().any(|row| row.split_whitespace().nth(1) == Some(&pid)),
        "{table}"
    );
    assert!(!table.contains('\x1b'));
}

#[test]
fn on_a_terminal_top_goes_on_until_q_and_leaves_the_terminal_as_it_was() {
    top_leaves_the_terminal_as_it_was_after(None);
}

/// What nobody expects ends it by a handler, in which nothing else is put back.
#[test]
fn a_signal_that_kills_top_leaves_the_terminal_as_it_was() {
    for signal in [libc::SIGSEGV, libc::SIGXCPU, libc::SIGRTMIN() + 3] {
        top_leaves_the_terminal_as_it_was_after(Some(signal));
    }
}

fn top_leaves_the_terminal_as_it_was_after(signal: Option<libc::c_int>) {
    let of = Husk::start(&[]);
    let emulator = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&emulator).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(OsStr::from_bytes(ptsname(&emulator, Vec::new()).unwrap().as_bytes()))
        .unwrap();
    let before = format!("{:?}", tcgetattr(&terminal).unwrap());
    let copy = || Stdio::from(terminal.try_clone().unwrap());
    let mut top = Command::new(HUSK)
        .args(["top", "--interval", "1"])
        .stdin(copy())
        .stdout(copy())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let emulator = File::from(emulator);
    let mut shown = String::new();
    let mut show_until = |text: &str, times: usize| {
        while shown.matches(text).count() < times {
            let mut bytes = [0; 4096];
            let count = (&emulator).read(&mut bytes).unwrap();
            shown.push_str(str::from_utf8(&bytes[..count]).unwrap());
        }
        shown.clone()
    };
    let twice = show_until("POD ", 2);
    assert!(twice.contains(&of.child.id().to_string()), "{twice}");
    assert_ne!(
        format!("{:?}", tcgetattr(&terminal).unwrap()),
        before,
        "keys come one by one"
    );
    match signal {
        None => (&emulator).write_all(b"xq").unwrap(),
        Some(number) => {
            let kill = format!("kill -{number} {}", top.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
    }
    let ended = top.wait().unwrap();
    assert_eq!((ended.code(), ended.signal()), (signal.is_none().then_some(0), signal));
    (&terminal).write_all(b"the end").unwrap();
    let all = show_until("the end", 1);
    assert!(all.starts_with("\x1b[?1049h") && !all.contains("xq"), "{all}");
    assert!(all.contains("\x1b[?1049l"), "{all}");
    assert_eq!(format!("{:?}", tcgetattr(&terminal).unwrap()), before);
}

#[test]
fn a_host_without_a_thread_to_spare_shows_all_the_same() {
    let of = Husk::start(&[]);
    for command in [&["ps", "--timeout", "10"][..], &["top", "--timeout", "10"]] {
        let mut husk = Command::new(HUSK);
        // No thread can be started with such a stack, as none can at a limit of processes.
        husk.args(command)
            .env("RUST_MIN_STACK", usize::MAX.to_string())
            .stdin(Stdio::null());
        let output = husk.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let table = String::from_utf8(output.stdout).unwrap();
        let pid = of.child.id().to_string();
        let row = table.lines().find(|row| row.split_whitespace().nth(1) == Some(&pid));
        assert!(row.is_some_and(|row| row.contains("  no VM  ")), "{table}");
    }
}
