//! Descriptors of the process: which of its parent's it keeps, and that it has no more of its own after a cycle than
//! before it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::path::PathBuf;

use husk_devices::testing::until;
use process::{Client, Husk, has_kvm};
use serde_json::{Value, json};

const DONE: (u16, Value) = (204, Value::Null);

/// What is open in the process. One that is closed meanwhile is left out.
fn open_files(husk: &Husk) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{}/fd", husk.child.id())).unwrap();
    fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect()
}

#[test]
fn of_the_descriptors_that_husk_was_started_with_only_those_that_options_name_stay() {
    let folder = tempfile::tempdir().unwrap();
    // Numbers on both sides of those that are named, and between them.
    let first = "exec 3>leaked3 5>log 6>leaked6 7>leaked7 8>events 9>leaked9;";
    let mut husk = Husk::start_by(folder, first, "--event-monitor fd=8 --log-file /dev/fd/5");
    let open = open_files(&husk);
    let is_open = |name: &str| open.contains(&husk.folder.path().join(name));
    assert!(is_open("events") && is_open("log"), "{open:?}");
    let leaked = ["leaked3", "leaked6", "leaked7", "leaked9"];
    assert!(!leaked.into_iter().any(is_open), "{open:?}");
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// Adds a device of each kind, has the VM paused and resumed, and takes the devices back, of which the guest has heard
/// nothing.
fn plug(husk: &Husk, client: &mut Client) {
    let folder = husk.folder.path();
    let devices = [
        ("vm.add-disk", json!({"id": "disk", "path": folder.join("disk")})),
        (
            "vm.add-vsock",
            json!({"id": "vsock", "cid": 3, "socket": folder.join("vsock")}),
        ),
        (
            "vm.add-pmem",
            json!({"id": "pmem", "file": folder.join("pmem"), "discard_writes": true}),
        ),
        (
            "vm.add-fs",
            json!({"id": "fs", "tag": "t", "dir": folder.join("shared")}),
        ),
    ];
    for (command, device) in &devices {
        let (status, added) = client.put(command, Some(device.clone()));
        assert_eq!(status, 200, "{command}: {added}");
    }
    assert_eq!(client.put("vm.pause", None), DONE);
    assert_eq!(client.put("vm.resume", None), DONE);
    for (_, device) in &devices {
        let id = json!({"id": device["id"]});
        assert_eq!(client.put("vm.remove-device", Some(id)), DONE, "{device}");
    }
    // Threads close their files: then they are gone.
    until(|| {
        let (_, info) = client.get("vm.info");
        let config = &info["config"];
        let lists = ["disks", "pmem", "fs"].map(|list| config[list].as_array().map_or(0, Vec::len));
        lists == [0; 3] && config["vsock"].is_null()
    });
}

#[test]
fn there_are_as_many_descriptors_after_plugging_and_booting_again_and_again_as_before() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("vmlinux");
    let code = husk_benches::code(husk_benches::GuestAction::Halt);
    fs::write(&kernel, husk_benches::elf_of(&code)).unwrap();
    for file in ["disk", "pmem"] {
        File::create(folder.path().join(file))
            .unwrap()
            .set_len(2 << 20)
            .unwrap();
    }
    fs::create_dir(folder.path().join("shared")).unwrap();
    let mut husk = Husk::start_in(folder, &[]);
    let mut client = husk.client();
    let vm = json!({
        "memory": {"size": 64 << 20, "shared": true},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    assert_eq!(client.put("vm.create", Some(vm.clone())), DONE);
    assert_eq!(client.put("vm.boot", None), DONE);
    // What is made once, and kept for the next time, is there after the first.
    plug(&husk, &mut client);
    let before = husk.descriptors();
    for _ in 0..20 {
        plug(&husk, &mut client);
    }
    until(|| husk.descriptors() == before);
    for _ in 0..5 {
        assert_eq!(client.put("vm.reboot", None), DONE);
        assert_eq!(client.put("vm.delete", None), DONE);
        assert_eq!(client.put("vm.create", Some(vm.clone())), DONE);
        assert_eq!(client.put("vm.boot", None), DONE);
        plug(&husk, &mut client);
    }
    until(|| husk.descriptors() == before);
    assert_eq!(husk.shut_down().code(), Some(0));
}
