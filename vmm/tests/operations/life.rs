//! What a VM goes through when nothing is in its way.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::guests::{DONE, done, running, state, vm};
use crate::process::{Husk, has_kvm};

#[test]
fn a_life_can_be_read_from_the_log_in_about_ten_lines() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut husk = Husk::start_in(folder, &["-v", "--log-file", log.to_str().unwrap()]);
    let vm = vm(husk.folder.path());
    let disk = husk.folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    done(&mut client, "vm.boot");
    done(&mut client, "vm.pause");
    done(&mut client, "vm.resume");
    assert_eq!(client.put("vm.add-disk", Some(json!({"path": disk}))).0, 200);
    done(&mut client, "vm.shutdown");
    husk.shut_down();
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("INFO: ")).collect();
    let begins = [
        "husk ",
        "vm.create: 1 vCPUs, 64 MiB of RAM, kernel /",
        "the guest runs after ",
        "vm.pause: the VM is at rest",
        "the VM runs on",
        "_disk0 is at 0000:00:",
        "vm.shutdown: the VM has ended",
        "vmm.shutdown: the VM has ended, and husk ends",
    ];
    assert_eq!(lines.len(), begins.len(), "{log}");
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin), "{line} is no {begin}: {log}");
    }
    for phase in ["kvm open", "ram", "devices", "tables"] {
        assert!(lines[2].contains(&format!("{phase} ")), "{phase}: {}", lines[2]);
    }
}

#[test]
fn a_vm_goes_through_its_life_by_command() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    for _ in 0..3 {
        done(&mut client, "vm.pause");
        assert_eq!(state(&mut client), "Paused");
        assert_eq!(client.put("vm.pause", None).0, 409);
        done(&mut client, "vm.resume");
        assert_eq!(state(&mut client), "Running");
        assert_eq!(client.put("vm.resume", None).0, 409);
        done(&mut client, "vm.reboot");
        assert_eq!(state(&mut client), "Running");
    }
    done(&mut client, "vm.pause");
    done(&mut client, "vm.shutdown");
    assert_eq!(state(&mut client), "Shutdown");
    done(&mut client, "vm.boot");
    done(&mut client, "vm.delete");
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_socket_that_somebody_listens_at_is_a_conflict() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let (mut vm, vsock) = (vm(husk.folder.path()), husk.folder.path().join("vsock"));
    vm["vsock"] = json!({"cid": 3, "socket": vsock});
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    let other = UnixListener::bind(&vsock).unwrap();
    let (status, body) = client.put("vm.boot", None);
    assert_eq!(status, 409, "{body}");
    drop(other);
    done(&mut client, "vm.boot");
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn the_list_of_containers_ends_with_the_guest_that_they_ran_in() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    let noted = json!({"revision": 0, "containers": {"a": {}}});
    assert_eq!(client.put("vm.set-containers", Some(noted)).0, 204);
    for (command, revision) in [("vm.reboot", 2), ("vm.shutdown", 3)] {
        done(&mut client, command);
        let none = json!({"revision": revision, "containers": null});
        assert_eq!(client.get("vm.containers"), (200, none), "{command}");
    }
    assert_eq!(husk.shut_down().code(), Some(0));
}
