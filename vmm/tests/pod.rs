//! `husk run --pod` on a guest of a few instructions. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use husk_benches::Then;
use process::{HUSK, Husk, complaints, has_kvm};
use serde_json::{Value, json};

/// `husk run` for a sandbox of 256 MiB whose guest does `then`.
fn run(folder: &Path, then: Then) -> Command {
    let (kernel, sandbox) = (folder.join("vmlinux"), folder.join("config.json"));
    fs::write(&kernel, husk_benches::elf_of(&husk_benches::code(then))).unwrap();
    let memory = "io.katacontainers.config.hypervisor.default_memory";
    fs::write(&sandbox, json!({"annotations": {memory: "256"}}).to_string()).unwrap();
    let mut command = Command::new(HUSK);
    command.args(["run", "--serial", "null", "--kernel"]).arg(&kernel);
    command.arg("--pod").arg(&sandbox).stdin(Stdio::null());
    command
}

/// The reserve is all that the host has: it costs nothing.
#[test]
fn a_sandbox_boots_with_its_size_and_room() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), Then::PowerOff).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(complaints(&output), [""; 0]);
}

#[test]
fn a_sandbox_that_runs_serves_the_api_and_ends_when_a_client_says_so() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = run(folder.path(), Then::Halt);
    command.arg("--api-socket").arg(folder.path().join("api.sock"));
    let child = command.spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let mut client = husk.client();
    // Until it has booted there is no VM.
    let info = loop {
        let (status, info) = client.get("vm.info");
        if status != 404 {
            break info;
        }
    };
    assert_eq!(
        (&info["state"], &info["memory_actual_size"]),
        (&json!("Running"), &json!(256 << 20)),
        "{info}"
    );
    assert_eq!(client.put("vm.pause", None), (204, Value::Null));
    assert_eq!(client.put("vm.resume", None), (204, Value::Null));
    let socket = husk.socket();
    assert_eq!(husk.shut_down().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_cannot_be_served_is_told_before_the_guest_starts() {
    let folder = tempfile::tempdir().unwrap();
    for (socket, code, says) in [
        ("", 2, "--api-socket: '' is empty"),
        ("fd=-1", 2, "--api-socket: 'fd=-1' is not a descriptor"),
        ("/nowhere/api.sock", 1, "/nowhere/api.sock"),
    ] {
        let output = run(folder.path(), Then::PowerOff)
            .args(["--api-socket", socket])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.starts_with("error: ") && said.contains(says), "{said}");
    }
}
