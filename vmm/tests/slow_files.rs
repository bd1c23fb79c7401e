//! Files on a file system that does not answer: what is served meanwhile. Needs `/dev/kvm`, and a mount of a FUSE of the tests' own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use husk_devices::testing::until;
use process::fuse::{FLUSH, OPEN, SlowFiles};
use process::{Client, HUSK, Husk, Signal, has_kvm};
use serde_json::{Value, json};

const DONE: (u16, Value) = (204, Value::Null);

/// A VM whose guest halts, with what `more` adds to its configuration.
fn vm(husk: &Husk, more: &Value) -> Value {
    let mut vm = json!({
        "memory": {"size": 64 << 20},
        "payload": {"kernel": husk.folder.path().join("vmlinux")},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    vm.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vm
}

/// husk with that VM, and with a log.
fn running(more: &Value) -> (Husk, Client) {
    let folder = tempfile::tempdir().unwrap();
    let (log, kernel) = (folder.path().join("log"), folder.path().join("vmlinux"));
    let code = husk_benches::code(husk_benches::GuestAction::Halt);
    fs::write(&kernel, husk_benches::elf_of(&code)).unwrap();
    let husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm(&husk, more))), DONE);
    assert_eq!(client.put("vm.boot", None), DONE);
    (husk, client)
}

fn log_of(husk: &Husk) -> String {
    fs::read_to_string(husk.folder.path().join("log")).unwrap()
}

fn disk(on: &Path) -> Value {
    json!({"id": "slow", "path": on.join("disk")})
}

#[test]
fn an_image_that_does_not_close_is_left_behind_by_name_and_everybody_is_served() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    for command in ["vm.shutdown", "vm.delete"] {
        let disks = json!({"disks": [disk(slow.path())]});
        let (mut husk, mut client) = running(&disks);
        let hanging = slow.hang(FLUSH);
        client.send("PUT", command, None, &[]);
        slow.wait();
        let mut other = husk.client();
        // Whatever is asked of the main thread is answered, before the deadline and after it.
        assert_eq!(other.get("vm.counters").0, 200);
        assert_eq!(client.answer(), DONE);
        assert!([404, 409].contains(&other.get("vm.counters").0), "{command}");
        until(|| log_of(&husk).contains("ERRO: slow has not stopped within 2 s"));
        let log = log_of(&husk);
        assert!(
            log.contains("ERRO: slow has not stopped within 2 s"),
            "{command}: {log}"
        );
        assert!(!log.contains("__rng"), "what closes is not held up: {log}");
        // It is that machine's image still.
        if command == "vm.delete" {
            assert_eq!(client.put("vm.create", Some(vm(&husk, &disks))), DONE);
        }
        let (status, refusal) = client.put("vm.boot", None);
        let refusal = (status, refusal.to_string());
        assert!(
            refusal.0 == 409
                && refusal
                    .1
                    .contains("slow has ended with its machine, but not stopped yet"),
            "{refusal:?}"
        );
        drop(hanging);
        // Sooner or later.
        while client.put("vm.boot", None).0 == 409 {}
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_device_that_does_not_close_keeps_its_name_until_it_has() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let (mut husk, mut client) = running(&json!({}));
    assert_eq!(client.put("vm.add-disk", Some(disk(slow.path()))).0, 200);
    let hanging = slow.hang(FLUSH);
    // The guest has not heard of it, so that it goes at once.
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "slow"}))), DONE);
    slow.wait();
    let (status, refusal) = client.put("vm.add-disk", Some(disk(slow.path())));
    assert_eq!(status, 409, "{refusal}");
    while !log_of(&husk).contains("ERRO: slow has not stopped within 2 s") {
        assert_eq!(client.get("vm.counters").0, 200);
    }
    assert!(!log_of(&husk).contains("slow is gone"));
    drop(hanging);
    while !log_of(&husk).contains("slow is gone") {
        assert_eq!(client.get("vm.counters").0, 200);
    }
    assert_eq!(client.put("vm.add-disk", Some(disk(slow.path()))).0, 200);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_signal_ends_husk_run_while_its_kernel_is_opened() {
    let Some(slow) = has_kvm().then(SlowFiles::mount).flatten() else {
        return;
    };
    let hanging = slow.hang(OPEN);
    let mut command = std::process::Command::new("env");
    command.args(["--default-signal", HUSK, "run", "--console", "off", "--kernel"]);
    command.arg(slow.path().join("vmlinux")).stdin(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    slow.wait();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    // That is all that is left to do: the kernel lets no process go whose thread waits for a file system.
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "ERRO: __builder has not stopped within 2 s\n");
    drop(hanging);
    assert_eq!(child.wait().unwrap().code(), Some(5));
}
