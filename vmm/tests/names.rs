//! Devices of `husk run` that the command line gives no name: they have one each, by which a client
//! finds them. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use process::{Client, HUSK, Husk, Signal, has_kvm};
use serde_json::{Value, json};

/// `husk run` of a guest of a few instructions with empty disks, each described by the keys after
/// its path, once it runs.
fn running(disks: &[&str]) -> Husk {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let code = husk_benches::code(husk_benches::GuestAction::Halt);
    fs::write(path("vmlinux"), husk_benches::elf_of(&code)).unwrap();
    let mut command = Command::new("env");
    command.args(["--default-signal", HUSK, "run", "--memory", "64M", "--serial", "null"]);
    command.arg("--kernel").arg(path("vmlinux"));
    command.arg("--api-socket").arg(path("api.sock"));
    for (number, keys) in disks.iter().enumerate() {
        let disk = path(&format!("disk{number}"));
        fs::write(&disk, [0; 4096]).unwrap();
        command.arg("--disk").arg(format!("path={}{keys}", disk.display()));
    }
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let husk = Husk { folder, child };
    husk.ready();
    let mut client = husk.client();
    // Its devices may be opened yet.
    while client.get("vm.info").1["state"] != "Running" {}
    husk
}

/// The devices that count something, but the machine's own.
fn counting(client: &mut Client) -> BTreeSet<String> {
    let (status, counters) = client.get("vm.counters");
    assert_eq!(status, 200, "{counters}");
    let names = counters.as_object().unwrap().keys();
    names.filter(|name| !name.starts_with("__")).cloned().collect()
}

fn ends(mut husk: Husk) {
    husk.signal(Signal::TERM);
    assert_eq!(husk.child.wait().unwrap().code(), Some(5));
}

#[test]
fn every_device_counts_under_the_id_that_info_has() {
    if !has_kvm() {
        return;
    }
    let husk = running(&["", ",id=disk0", ",id=_disk0", ""]);
    let mut client = husk.client();
    let (_, info) = client.get("vm.info");
    let disks = info["config"]["disks"].as_array().unwrap();
    let ids: Vec<&str> = disks.iter().map(|disk| disk["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["_disk1", "disk0", "_disk0", "_disk2"]);
    assert_eq!(counting(&mut client), ids.iter().map(|id| (*id).to_owned()).collect());
    ends(husk);
}

#[test]
fn a_device_of_the_command_line_can_be_removed_and_keeps_its_name_until_then() {
    if !has_kvm() {
        return;
    }
    let husk = running(&[""]);
    let mut client = husk.client();
    let other = husk.folder.path().join("other");
    fs::write(&other, [0; 4096]).unwrap();
    let (status, refusal) = client.put("vm.add-disk", Some(json!({"path": other, "id": "_disk0"})));
    assert_eq!(
        (status, refusal),
        (409, json!(["id '_disk0' is taken by another device"]))
    );
    let (status, added) = client.put("vm.add-disk", Some(json!({"path": other})));
    assert_eq!((status, &added["id"]), (200, &json!("_disk1")), "{added}");
    assert_eq!(counting(&mut client).len(), 2);
    let removed = client.put("vm.remove-device", Some(json!({"id": "_disk0"})));
    assert_eq!(removed, (204, Value::Null), "the guest is asked");
    ends(husk);
}
