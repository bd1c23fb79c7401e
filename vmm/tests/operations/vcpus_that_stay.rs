//! vCPUs that do not come out of the guest.

use std::process::Command;

use husk_devices::testing::until;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;

use crate::guests::{DONE, booted, disk, done, running, spinning_vm, state, thread_names, thread_of, vm};
use crate::process::{HUSK, Husk, has_kvm};
use crate::stuck::Stuck;

#[test]
fn a_pause_that_comes_to_no_end_is_refused_by_name_and_all_others_go_on() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    // It is in the guest: what is not yet there is at rest.
    thread_of(husk.child.id(), "io-rng");
    let stuck = Stuck::new(&husk, "vcpu0");
    let mut other = husk.client();
    client.send("PUT", "vm.pause", None, &[]);
    while other.put("vm.boot", None).1[0] == "the VM runs already" {}
    assert_eq!(other.put("vm.pause", None).0, 409);
    assert_eq!(state(&mut other), "Running");
    let late = json!([
        "cannot pause the VM",
        "__vcpus did not come to rest within 5 s: all others go on"
    ]);
    assert_eq!(client.answer(), (500, late));
    assert_eq!(state(&mut client), "Running");

    client.send("PUT", "vm.pause", None, &[]);
    while other.put("vm.boot", None).1[0] == "the VM runs already" {}
    done(&mut other, "vm.resume");
    assert_eq!(
        client.answer(),
        (409, json!(["vm.resume has taken the place of vm.pause"]))
    );

    stuck.release();
    done(&mut client, "vm.pause");
    assert_eq!(state(&mut client), "Paused");
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// As where other processes of the user have used up the signals that may wait, and whoever started husk had blocked
/// all that it could.
#[test]
fn a_guest_that_computes_is_stopped_whatever_becomes_of_signals() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("env");
    command.args(["--default-signal", "--block-signal", HUSK, "--api-socket"]);
    let child = command.arg(folder.path().join("api.sock")).spawn().unwrap();
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    prlimit(Some(Pid::from_child(&child)), Resource::Sigpending, none).unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let vm = spinning_vm(husk.folder.path());
    let mut client = booted(&husk, vm);
    // What looks for a guest that waits for a page in vain has no timer, and comes all the same.
    until(|| {
        let counters = client.get("vm.counters").1;
        let exits = counters["__vcpu0"]["signal_exits"].as_u64();
        exits.is_none_or(|exits| exits >= 2)
    });
    done(&mut client, "vm.pause");
    assert_eq!(state(&mut client), "Paused");
    done(&mut client, "vm.resume");
    done(&mut client, "vm.delete");
    assert!(!thread_names(&husk).contains(&"vcpu0".to_owned()));
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_vm_whose_vcpu_does_not_come_has_no_devices_and_is_not_said_to_have_ended() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut spinning = spinning_vm(folder.path());
    spinning["disks"] = json!([disk(folder.path(), "a")]);
    let mut plain = vm(folder.path());
    plain["disks"] = spinning["disks"].clone();
    let mut husk = Husk::start_in(folder, &[]);
    let mut client = booted(&husk, spinning);
    let stuck = Stuck::new(&husk, "vcpu0");
    let left = json!([
        "a VM that has ended is left behind",
        "__vcpus did not leave the guest: its devices are taken away, but it may compute until husk ends"
    ]);
    assert_eq!(client.put("vm.shutdown", None), (500, left.clone()));
    assert_eq!(state(&mut client), "Shutdown");
    assert_eq!(client.put("vm.delete", None), (500, left.clone()));
    assert_eq!(client.get("vm.info").0, 404);
    assert_eq!(client.put("vm.delete", None), (500, left), "it is said again");
    // Its image is nobody's.
    assert_eq!(client.put("vm.create", Some(plain)), DONE);
    done(&mut client, "vm.boot");
    done(&mut client, "vm.shutdown");
    stuck.release();
    until(|| client.put("vm.delete", None) == DONE);
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn a_vcpu_that_does_not_come_keeps_the_process_from_nothing() {
    if !has_kvm() {
        return;
    }
    let (mut husk, mut client) = running();
    // It is in the guest: what is not yet there is at rest.
    thread_of(husk.child.id(), "io-rng");
    let stuck = Stuck::new(&husk, "vcpu0");
    assert_eq!(client.put("vmm.shutdown", None), DONE);
    stuck.wait();
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
}
