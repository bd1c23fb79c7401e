//! A device that takes its time to be opened.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;

use husk_devices::testing::until;
use serde_json::{Value, json};

use crate::guests::{DONE, booted, done, state, thread_names, thread_of, vm};
use crate::process::{Client, Husk, Signal, has_kvm};

/// husk whose guest runs, the client that waits for a share `a` to be added whose back-end is
/// connected to and says nothing, and one more.
fn adding(options: &[&str]) -> (Husk, Client, Client, UnixListener) {
    let husk = Husk::start(options);
    let socket = husk.folder.path().join("fs");
    let silent = UnixListener::bind(&socket).unwrap();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["shared"] = true.into();
    let mut client = booted(&husk, vm);
    // What the guest starts is there: descriptors can be counted.
    thread_of(husk.child.id(), "io-rng");
    let share = json!({"id": "a", "tag": "a", "socket": socket}).to_string();
    client.send("PUT", "vm.add-fs", Some(&share), &[]);
    let mut other = husk.client();
    let being_added = json!(["a is being added, it can be removed once it is there"]);
    while other.put("vm.remove-device", Some(json!({"id": "a"}))).1 != being_added {}
    (husk, client, other, silent)
}

#[test]
fn clients_are_served_while_a_device_is_opened_and_nothing_is_left_of_one_that_cannot_be() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, mut other, silent) = adding(&[]);
    assert_eq!(other.get("vmm.ping").0, 200);
    let (status, info) = other.get("vm.info");
    assert_eq!(
        (status, &info["state"], &info["config"]["fs"]),
        (200, &json!("Running"), &Value::Null)
    );
    assert_eq!(other.get("vm.counters").0, 200);
    assert_eq!(other.put("vm.resize", Some(json!({"desired_vcpus": 1}))), DONE);
    done(&mut other, "vm.pause");
    done(&mut other, "vm.resume");
    assert_eq!(other.put("vm.boot", None).0, 409);
    // A name is taken from the first moment on, and nothing else is.
    let disk = husk.folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let named = |id: &str| Some(json!({"id": id, "path": disk}));
    let (status, body) = other.put("vm.add-disk", named("a"));
    assert_eq!((status, body), (409, json!(["id 'a' is taken by another device"])));
    let (status, first) = other.put("vm.add-disk", named("b"));
    assert_eq!(status, 200, "{first}");
    let (status, body) = other.put("vm.add-disk", named("c"));
    assert_eq!((status, &body[0]), (409, &json!("cannot add c: its image is b's")));

    drop(silent);
    let (status, body) = client.answer();
    assert_eq!((status, &body[0]), (400, &json!("cannot add a")), "{body}");
    assert!(body[1].as_str().unwrap().starts_with("fs a: back-end at "), "{body}");
    let before = husk.descriptors();
    let missing = json!({"id": "a", "tag": "a", "socket": husk.folder.path().join("fs")});
    assert_eq!(client.put("vm.add-fs", Some(missing)).0, 400);
    assert_eq!(husk.descriptors(), before);
    let more = husk.folder.path().join("more");
    File::create(&more).unwrap().set_len(1 << 20).unwrap();
    let (status, second) = client.put("vm.add-disk", Some(json!({"id": "a", "path": more})));
    assert_eq!(status, 200, "{second}");
    let slot = |added: &Value| u32::from_str_radix(&added["bdf"].as_str().unwrap()[8..10], 16).unwrap();
    assert_eq!(slot(&second), slot(&first) + 1, "what failed has no slot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn the_end_of_the_vm_calls_off_a_device_that_is_being_opened() {
    if !has_kvm() {
        return;
    }
    for command in ["vm.shutdown", "vm.delete", "vm.reboot", "vmm.shutdown"] {
        let (mut husk, mut client, mut other, silent) = adding(&[]);
        other.send("PUT", command, None, &[]);
        let taken = json!([format!("{command} has taken the place of vm.add-fs")]);
        assert_eq!(client.answer(), (409, taken));
        // The back-end leaves: nothing holds up the end of what is half open.
        drop(silent);
        assert_eq!(other.answer(), DONE, "{command}");
        match command {
            "vm.shutdown" => assert_eq!(state(&mut other), "Shutdown"),
            "vm.delete" => assert_eq!(other.get("vm.info").0, 404),
            "vm.reboot" => {
                let (_, info) = other.get("vm.info");
                assert_eq!(
                    (&info["state"], &info["config"]["fs"]),
                    (&json!("Running"), &Value::Null)
                );
            }
            _ => {
                assert_eq!(husk.child.wait().unwrap().code(), Some(0));
                continue;
            }
        }
        assert_eq!(husk.shut_down().code(), Some(0));
    }
}

#[test]
fn a_reboot_goes_on_without_a_device_that_does_not_open() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut husk, mut client, mut other, silent) = adding(&["--log-file", log.to_str().unwrap()]);
    done(&mut other, "vm.reboot");
    let taken = json!(["vm.reboot has taken the place of vm.add-fs"]);
    assert_eq!(client.answer(), (409, taken));
    let (_, info) = other.get("vm.info");
    assert_eq!(
        (&info["state"], &info["config"]["fs"]),
        (&json!("Running"), &Value::Null)
    );
    until(|| {
        fs::read_to_string(&log)
            .unwrap()
            .contains("left behind by a VM that is built anew")
    });
    let log = fs::read_to_string(log).unwrap();
    assert!(
        log.contains("WARN: a: not open yet, left behind by a VM that is built anew"),
        "{log}"
    );
    drop(silent);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_does_not_open_is_left_behind_by_name_and_goes_when_it_can() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let (mut husk, mut client, mut other, silent) = adding(&["--log-file", log.to_str().unwrap()]);
    let before = husk.descriptors();
    done(&mut other, "vm.delete");
    let taken = json!(["vm.delete has taken the place of vm.add-fs"]);
    assert_eq!(client.answer(), (409, taken));
    until(|| {
        fs::read_to_string(&log)
            .unwrap()
            .contains("a has not stopped within 2 s")
    });
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("ERRO: a has not stopped within 2 s"), "{log}");
    assert!(!log.contains("__rng"), "what stops is not held up: {log}");
    // The connection, the memory and the VM that it was for: all go when the thread that has them is done.
    drop(silent);
    let smaps = format!("/proc/{}/smaps", husk.child.id());
    while husk.descriptors() >= before || fs::read_to_string(&smaps).unwrap().contains("guest-ram") {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    assert!(thread_names(&husk).contains(&"builder".to_owned()), "it stays");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_signal_ends_the_process_while_a_device_is_opened() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client, _other, silent) = adding(&[]);
    husk.signal(Signal::TERM);
    assert_eq!(client.answer().0, 500);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    drop(silent);
}
