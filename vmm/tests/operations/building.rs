//! A machine that takes its time to be built, or cannot be.

use std::io::BufReader;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, kill_process};
use serde_json::json;

use crate::guests::{DONE, done, kernel, state, vm};
use crate::process::{Client, HUSK, Husk, Signal, has_kvm};

/// husk that boots a VM whose back-end is connected to and says nothing, and the client that waits for that.
fn booting() -> (Husk, Client, UnixListener) {
    let husk = Husk::start(&[]);
    let socket = husk.folder.path().join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["shared"] = true.into();
    vm["fs"] = json!([{"tag": "a", "socket": socket}]);
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    client.send("PUT", "vm.boot", None, &[]);
    let mut other = husk.client();
    while other.put("vm.pause", None).1[0] != "vm.boot is being carried out, vm.pause has to wait for its end" {}
    (husk, client, silent)
}

#[test]
fn clients_are_served_while_a_machine_is_built_and_can_call_it_off() {
    if !has_kvm() {
        return;
    }
    for command in ["vm.shutdown", "vm.delete", "vm.reboot", "vmm.shutdown"] {
        let (mut husk, mut client, silent) = booting();
        let mut other = husk.client();
        assert_eq!(other.get("vmm.ping").0, 200);
        assert_eq!(state(&mut other), "Created");
        assert_eq!(other.get("vm.counters").0, 409);
        for refused in ["vm.boot", "vm.resume"] {
            assert_eq!(other.put(refused, None).0, 409, "{refused}");
        }
        other.send("PUT", command, None, &[]);
        let taken = json!([format!("{command} has taken the place of vm.boot")]);
        assert_eq!(client.answer(), (409, taken));
        // The back-end leaves: nothing holds up the end of what is half built.
        drop(silent);
        if command == "vm.reboot" {
            // And is missed by what is built anew.
            let (status, body) = other.answer();
            assert_eq!(
                (status, &body[0]),
                (400, &json!("cannot boot the VM again: it is shut down"))
            );
            assert_eq!(state(&mut other), "Shutdown");
            continue;
        }
        assert_eq!(other.answer(), DONE, "{command}");
        match command {
            "vm.shutdown" => assert_eq!(state(&mut other), "Shutdown"),
            "vm.delete" => assert_eq!(other.get("vm.info").0, 404),
            _ => {
                assert_eq!(husk.child.wait().unwrap().code(), Some(0));
                continue;
            }
        }
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_signal_ends_the_process_while_a_machine_is_built() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, silent) = booting();
    husk.signal(Signal::TERM);
    assert_eq!(client.answer().0, 500);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    drop(silent);
}

#[test]
fn a_machine_that_cannot_be_built_leaves_everything_as_it_was() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, silent) = booting();
    drop(silent);
    let (status, body) = client.answer();
    assert_eq!((status, &body[0]), (400, &json!("cannot boot the VM")), "{body}");
    assert!(body[1].as_str().unwrap().starts_with("fs a: back-end at "), "{body}");
    assert_eq!(state(&mut client), "Created");
    let before = husk.descriptors();
    assert_eq!(client.put("vm.boot", None).0, 400);
    assert_eq!(husk.descriptors(), before);
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// `husk run` of a VM whose back-end has been connected to and says nothing.
fn running_for(folder: &Path, options: &[&str]) -> (Child, UnixStream) {
    let socket = folder.join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut command = Command::new("env");
    command.args([
        "--default-signal",
        HUSK,
        "run",
        "--memory",
        "64M",
        "--serial",
        "off",
        "--console",
        "off",
    ]);
    command.arg("--kernel").arg(kernel(folder).as_str().unwrap());
    command.arg("--fs").arg(format!("tag=a,socket={}", socket.display()));
    let child = command
        .args(options)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (connection, _) = silent.accept().unwrap();
    (child, connection)
}

#[test]
fn husk_run_serves_signals_and_clients_while_its_machine_is_built() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut child, silent) = running_for(folder.path(), &[]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    drop(silent);

    let folder = tempfile::tempdir().unwrap();
    let api = folder.path().join("api");
    let (mut child, silent) = running_for(folder.path(), &["--api-socket", api.to_str().unwrap()]);
    let mut client = Client(BufReader::new(UnixStream::connect(&api).unwrap()));
    assert_eq!(state(&mut client), "Created");
    let (status, body) = client.put("vm.pause", None);
    let refusal = json!(["husk run is being carried out, vm.pause has to wait for its end"]);
    assert_eq!((status, body), (409, refusal));
    // What takes its place keeps the process: it is the client's now.
    client.send("PUT", "vm.shutdown", None, &[]);
    drop(silent);
    assert_eq!(client.answer(), DONE);
    assert_eq!(state(&mut client), "Shutdown");
    done(&mut client, "vmm.shutdown");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn husk_run_ends_with_one_line_when_its_machine_cannot_be_built() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (child, silent) = running_for(folder.path(), &[]);
    drop(silent);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: fs a: back-end at "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_limit_of_the_process_that_refuses_memory_is_named() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    kernel(folder.path());
    for (limit, memory, says) in [
        (
            "-f 100",
            "size=64M,shared=on",
            "64 MiB needed, RLIMIT_FSIZE (ulimit -f) allows ",
        ),
        (
            "-f 100",
            "size=64M,hotplug=1G",
            "2 MiB needed, RLIMIT_FSIZE (ulimit -f) allows ",
        ),
        ("-v 1000000", "size=1G", " in use, RLIMIT_AS (ulimit -v) allows "),
    ] {
        let script =
            format!("ulimit {limit}; exec \"$0\" run --kernel vmlinux --serial null --console off --memory {memory}");
        let mut command = Command::new("sh");
        command.args(["-c", &script, HUSK]).current_dir(&folder);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains(says), "{limit}: {said}");
    }
}
