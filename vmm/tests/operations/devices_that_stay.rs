//! Devices whose threads do not stop, and devices that the guest keeps.

use std::fs;
use std::io::{Read, Write};
use std::thread;

use husk_devices::testing::until;
use serde_json::{Value, json};

use crate::guests::{DONE, booted, disk, done, ejecting_kernel, running, running_in, state, told, vm, with_events};
use crate::process::{Client, Husk, Signal, has_kvm};
use crate::stuck::Stuck;

#[test]
fn clients_are_served_while_a_device_does_not_stop_and_the_vm_ends_without_it() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, log) = (folder.path().join("events"), folder.path().join("log"));
    let monitor = format!("path={}", events.display());
    let options = ["--event-monitor", &monitor, "--log-file", log.to_str().unwrap()];
    let (mut husk, mut client) = running_in(folder, &options);
    let stuck = Stuck::new(&husk, "io-rng");
    let mut other = husk.client();
    client.send("PUT", "vm.shutdown", None, &[]);
    // Whether it has begun by now or not, nothing waits for it.
    loop {
        assert_eq!(other.get("vmm.ping").0, 200);
        assert_eq!(other.get("vm.counters").0, 200);
        let (status, body) = other.put("vm.resume", None);
        assert_eq!(status, 409);
        if body[0] == "vm.shutdown is being carried out, vm.resume has to wait for its end" {
            break;
        }
    }
    assert_eq!(other.put("vm.delete", None).0, 409);
    assert_eq!(client.answer(), DONE);
    assert_eq!(state(&mut client), "Shutdown");
    until(|| fs::read_to_string(&log).unwrap().contains("WARN: __rng: left behind"));
    until(|| fs::read_to_string(&events).unwrap().contains("device-stuck"));
    let (events, log) = (fs::read_to_string(events).unwrap(), fs::read_to_string(log).unwrap());
    assert!(
        events.contains(r#""event":"device-stuck","properties":{"id":"__rng"}"#),
        "{events}"
    );
    assert!(log.contains("ERRO: __rng has not stopped within 2 s"), "{log}");
    assert!(log.contains("WARN: __rng: left behind"), "{log}");
    // What was left behind is in nobody's way, and is taken apart when it comes to its end after all.
    let before = husk.descriptors();
    stuck.release();
    while husk.descriptors() >= before {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    done(&mut client, "vm.boot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_was_asked_back_goes_with_its_machine_although_the_guest_never_answered() {
    if !has_kvm() {
        return;
    }
    let (mut husk, events) = with_events();
    let folder = husk.folder.path();
    let (mut vm, goes) = (vm(folder), disk(folder, "goes"));
    vm["disks"] = json!([goes, disk(folder, "stays")]);
    let mut client = booted(&husk, vm);
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "goes"}))), DONE);
    assert_eq!(client.get("vm.info").1["config"]["disks"][0]["id"], "goes");
    done(&mut client, "vm.reboot");
    let disks = client.get("vm.info").1["config"]["disks"].take();
    assert_eq!((disks[0]["id"].as_str(), &disks[1]), (Some("stays"), &Value::Null));
    until(|| told(&events, "device-removed", "goes") == 1);
    let (status, added) = client.put("vm.add-disk", Some(goes));
    assert_eq!(status, 200, "nobody has its image: {added}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_the_guest_let_go_of_does_not_come_back_although_its_thread_stands_still() {
    if !has_kvm() {
        return;
    }
    let (mut husk, events) = with_events();
    let folder = husk.folder.path();
    let mut vm = vm(folder);
    vm["payload"]["kernel"] = ejecting_kernel(folder);
    vm["disks"] = json!([disk(folder, "d")]);
    let mut client = booted(&husk, vm);
    let stuck = Stuck::new(&husk, "io-d");
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "d"}))), DONE);
    while told(&events, "device-stuck", "d") == 0 {
        assert_eq!(client.get("vmm.ping").0, 200);
    }
    assert_eq!(told(&events, "device-removed", "d"), 0);
    done(&mut client, "vm.shutdown");
    assert_eq!(client.get("vm.info").1["config"]["disks"], Value::Null);
    done(&mut client, "vm.boot");
    stuck.release();
    done(&mut client, "vm.reboot");
    assert_eq!(client.get("vm.info").1["config"]["disks"], Value::Null);
    until(|| told(&events, "device-removed", "d") > 0);
    let both = ["device-stuck", "device-removed"].map(|event| told(&events, event, "d"));
    assert_eq!(both, [1, 1], "each is said once");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_device_that_does_not_stop_keeps_no_other_from_the_next_boot_and_no_socket() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let folder = husk.folder.path();
    let (mut vm, vsock) = (vm(folder), folder.join("vsock"));
    vm["disks"] = json!([disk(folder, "d"), disk(folder, "good")]);
    vm["vsock"] = json!({"cid": 3, "socket": vsock});
    let mut client = booted(&husk, vm);
    let stuck = Stuck::new(&husk, "io-d");
    done(&mut client, "vm.shutdown");
    assert!(!vsock.exists());
    let (status, body) = client.put("vm.boot", None);
    assert_eq!(status, 409, "{body}");
    assert_eq!(body[1], "d has ended with its machine, but not stopped yet");
    assert_eq!(body[2], json!(format!("disk {}", folder.join("d").display())));
    assert_eq!(client.put("vm.remove-device", Some(json!({"id": "d"}))), DONE);
    done(&mut client, "vm.boot");
    assert!(vsock.exists());
    assert_eq!(client.put("vmm.shutdown", None), DONE);
    assert!(!vsock.exists());
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_shutdown_of_the_process_takes_the_place_of_one_of_the_vm() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let stuck = Stuck::new(&husk, "io-rng");
    client.send("PUT", "vm.delete", None, &[]);
    let mut other = husk.client();
    while other.put("vm.pause", None).1[0] != "vm.delete is being carried out, vm.pause has to wait for its end" {}
    other.send("PUT", "vmm.shutdown", None, &[]);
    let taken = json!(["vmm.shutdown has taken the place of vm.delete"]);
    assert_eq!(client.answer(), (409, taken));
    assert_eq!(other.answer(), DONE);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
    assert!(!husk.socket().exists());
}

#[test]
fn a_signal_ends_the_process_although_a_device_does_not_stop() {
    if !has_kvm() {
        return;
    }
    for during in [None, Some("vm.delete")] {
        let (mut husk, mut client) = running();
        let stuck = Stuck::new(&husk, "io-rng");
        if let Some(command) = during {
            client.send("PUT", command, None, &[]);
        }
        husk.signal(Signal::TERM);
        stuck.wait();
        assert_eq!(husk.child.wait().unwrap().code(), Some(5));
        if during.is_some() {
            let (status, body) = client.answer();
            assert_eq!(status, 500, "{body}");
        }
    }
}

/// A client that asks and asks, and does not care for answers, until the connection ends.
fn hammer(client: Client) {
    let mut stream = client.0.into_inner();
    let mut answers = [0; 4096];
    let requests = b"GET /api/v1/vm.counters HTTP/1.1\r\n\r\n".repeat(16);
    while stream.write_all(&requests).is_ok() && stream.read(&mut answers).is_ok_and(|bytes| bytes > 0) {}
}

#[test]
fn a_flood_of_commands_keeps_neither_timers_nor_signals_from_their_turn() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let floods: Vec<_> = (0..8)
        .map(|_| {
            let client = husk.client();
            thread::spawn(|| hammer(client))
        })
        .collect();
    let stuck = Stuck::new(&husk, "io-rng");
    // Its deadline is a timer.
    client.send("PUT", "vm.reboot", None, &[]);
    let late = json!([
        "cannot boot the VM again: it is shut down",
        "__rng did not stop within 2 s and was left behind"
    ]);
    assert_eq!(client.answer(), (500, late));
    assert_eq!(state(&mut client), "Shutdown");
    husk.signal(Signal::TERM);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
    for flood in floods {
        flood.join().unwrap();
    }
}
