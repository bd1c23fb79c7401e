//! `husk overhead` on VMs of a few instructions.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use process::HUSK;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// `husk overhead OPTIONS` with its scratch below `folder`.
fn overhead(folder: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(HUSK);
    command
        .args(["overhead", "--rest", "1", "--memory", "64M"])
        .args(options);
    command.env("TMPDIR", folder).stdin(Stdio::null()).output().unwrap()
}

fn kernel(folder: &Path, then: husk_benches::Then) -> String {
    let path = folder.join("vmlinux");
    fs::write(&path, husk_benches::elf_of(&husk_benches::code(then))).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_vms_cost_is_measured_and_installed() {
    if !process::has_kvm() {
        return;
    }
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kernel = kernel(files.path(), husk_benches::Then::Halt);
    let told = overhead(scratch.path(), &["--kernel", &kernel, "--pods", "3"]);
    assert!(told.status.success(), "{told:?}");
    let table = String::from_utf8(told.stdout).unwrap();
    let kibibytes = |name: &str| -> Vec<u64> {
        let row = table
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}: {table}"));
        row.split_whitespace().map(|value| value.parse().unwrap()).collect()
    };
    // The guest's 64 MiB are no part of it, and neither of the processes costs nothing.
    for row in [
        "VMM, private",
        "VMM, page tables",
        "file server, private",
        "file server, page tables",
    ] {
        let values = kibibytes(row);
        assert!(
            values.is_sorted() && values[0] > 0 && values[2] < 32 << 10,
            "{row}: {table}"
        );
    }
    let all = kibibytes("all of these")[1];
    let told = overhead(
        scratch.path(),
        &["--kernel", &kernel, "--pods", "2", "--shim", "1000", "--json"],
    );
    let found: Value = serde_json::from_slice(&told.stdout).unwrap();
    let memory_mib = found["memory_mib"].as_u64().unwrap();
    assert!(
        (1000 + all / 2048..1064 + all / 512).contains(&memory_mib),
        "{found}: {table}"
    );
    assert!(
        found["method"]
            .as_str()
            .unwrap()
            .starts_with("p99 of 2 pods at rest, 1 vCPUs and 64 MiB each: ")
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left");
    // husk install reads what it prints.
    let measured = files.path().join("overhead.json");
    fs::write(&measured, told.stdout).unwrap();
    assert_eq!(husk::install::Overhead::read(&measured).unwrap().memory_mib, memory_mib);
}

/// Processes whose command line has `word` in it, but for this one and `parent`.
fn running(word: &str, parent: u32) -> Vec<String> {
    let own = [std::process::id(), parent].map(|pid| pid.to_string());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_one = |name: &String| {
        let words = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        !own.contains(name) && String::from_utf8_lossy(&words).contains(word)
    };
    names.filter(is_one).collect()
}

#[test]
fn whoever_is_asked_to_end_or_killed_takes_its_vms_along() {
    if !process::has_kvm() {
        return;
    }
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kernel = kernel(files.path(), husk_benches::Then::Halt);
    let word = scratch.path().to_str().unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        // A signal that the tests' own parent ignores would stay ignored.
        let mut command = Command::new("env");
        command.args(["--default-signal", HUSK]);
        command.args([
            "overhead", "--pods", "2", "--rest", "600", "--memory", "64M", "--kernel", &kernel,
        ]);
        command
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let measuring = command.spawn().unwrap();
        let pid = measuring.id();
        while running(word, pid).len() < 4 {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&measuring), signal).unwrap();
        let ended = measuring.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        if signal == Signal::KILL {
            // They are told as it ends, and nobody waits for them.
            while !running(word, pid).is_empty() {
                std::thread::yield_now();
            }
        } else {
            assert_eq!(ended.status.code(), Some(5), "{said}");
            assert_eq!(said, "error: the measurement was ended by a signal\n");
            assert_eq!(running(word, pid), [""; 0]);
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_vm_that_cannot_be_measured_is_named() {
    let (files, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let told = overhead(scratch.path(), &["--kernel", "/nowhere", "--pods", "2"]);
    let line = String::from_utf8(told.stderr).unwrap();
    assert_eq!((told.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(
        line.starts_with("error: VM 1 of 2 did not start: ") && line.contains(process::refusal("/nowhere")),
        "{line}"
    );
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    if process::has_kvm() {
        let kernel = kernel(files.path(), husk_benches::Then::PowerOff);
        let told = overhead(scratch.path(), &["--kernel", &kernel, "--pods", "1"]);
        let line = String::from_utf8(told.stderr).unwrap();
        assert!(
            told.status.code() == Some(1) && line.starts_with("error: VM 1 of 1 "),
            "{line}"
        );
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
    for (option, value) in [("--pods", "0"), ("--rest", "0"), ("--memory", "x"), ("--shim", "-1")] {
        let told = overhead(scratch.path(), &["--kernel", "/k", option, value]);
        assert_eq!(told.status.code(), Some(2), "{option} {value}");
    }
}
