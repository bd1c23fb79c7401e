//! What a VM has and may have: vCPUs, memory, and who asked for them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread;

use husk_devices::testing::until;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::guests::{DONE, booted, done, vm};
use crate::process::{Client, HUSK, Husk, has_kvm};

/// A folder that has gone from the host, and RAM that has grown, are none of a new disk's affair;
/// and the next boot has room for what there is.
#[test]
fn a_disk_comes_whatever_has_become_of_the_rest_of_the_vm_and_the_next_guest_was_asked_for_nothing() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&["--resize-timeout", "0"]);
    let place = |name| husk.folder.path().join(name);
    let (share, disk, kernel) = (place("share"), place("disk"), place("vmlinux"));
    fs::create_dir(&share).unwrap();
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let most: u64 = 32 << 30;
    let mut client = husk.client();
    let vm = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": 36},
        "memory": {"size": 64 << 20, "hotplug_size": most - (64 << 20), "acpi_only": true},
        "payload": {"kernel": kernel},
        "fs": [{"tag": "t", "dir": share}],
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    assert_eq!(client.put("vm.create", Some(vm)), DONE);
    done(&mut client, "vm.boot");
    assert_eq!(client.put("vm.resize", Some(json!({"desired_ram": 1_u64 << 30}))), DONE);
    assert_eq!(client.get("vm.resize-status").1["last"]["outcome"], "timed-out");
    fs::remove_dir(&share).unwrap();
    let (status, added) = client.put("vm.add-disk", Some(json!({"path": disk})));
    assert_eq!(status, 200, "{added}");
    fs::create_dir(&share).unwrap();
    done(&mut client, "vm.reboot");
    let memory = client.get("vm.info").1["config"]["memory"].take();
    let bytes = |field: &str| memory[field].as_u64().unwrap();
    assert!(bytes("size") >= 1 << 30, "{memory}");
    assert_eq!(bytes("size") + bytes("hotplug_size"), most);
    assert_eq!(client.get("vm.resize-status").1["last"], Value::Null);
    husk.shut_down();
}

/// What `husk check` says, `vm.create` takes and `vm.boot` builds.
#[test]
fn as_many_vcpus_as_the_host_allows_are_possible_and_one_more_is_refused_by_name() {
    if !has_kvm() {
        return;
    }
    let said = Command::new(HUSK).arg("check").output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let (_, after) = said.split_once("every capability, up to ").unwrap();
    let most: u32 = after.split_once(" vCPUs").unwrap().0.parse().unwrap();
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let mut vm = vm(husk.folder.path());
    vm["memory"]["hotplug_size"] = json!(1 << 30);
    vm["cpus"] = json!({"boot_vcpus": 1, "max_vcpus": most + 1});
    let (status, told) = client.put("vm.create", Some(vm.clone()));
    let refusal = format!("cpus.max_vcpus: {} vCPUs asked for, 1 to {most} allowed", most + 1);
    assert_eq!((status, told.to_string().contains(&refusal)), (400, true), "{told}");
    vm["cpus"] = json!({"boot_vcpus": 1, "max_vcpus": most});
    let mut client = booted(&husk, vm);
    assert_eq!(client.get("vm.info").1["state"], "Running");
    husk.shut_down();
}

#[test]
fn a_resize_that_the_host_cannot_begin_is_the_last_one_and_told_and_counted_and_an_empty_one_is_none() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, kernel) = (folder.path().join("events"), folder.path().join("vmlinux"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let monitor = format!("path={}", events.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor]);
    let mut client = booted(
        &husk,
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
            "memory": {"size": 64 << 20},
            "payload": {"kernel": kernel},
            "serial": {"mode": "Off"},
            "console": {"mode": "Off"},
        }),
    );
    // Nothing can be mapped any more, for a vCPU or its thread.
    let pid = Pid::from_raw(husk.child.id().cast_signed());
    let limit = |current| Rlimit {
        current: Some(current),
        maximum: None,
    };
    let before = prlimit(pid, Resource::As, limit(4096)).unwrap();
    let (status, told) = client.put("vm.resize", Some(json!({"desired_vcpus": 2})));
    prlimit(pid, Resource::As, before).unwrap();
    assert_eq!(status, 500, "{told}");
    let last = |client: &mut Client| client.get("vm.resize-status").1["last"].take();
    let noted = last(&mut client);
    assert_eq!(
        (&noted["outcome"], &noted["desired_vcpus"]),
        (&json!("refused"), &json!(2))
    );
    assert!(noted["what"].as_str().unwrap().contains("add vCPU 1"), "{noted}");
    assert_eq!(client.put("vm.resize", Some(json!({}))), DONE);
    assert_eq!(last(&mut client), noted, "one that asks for nothing begins nothing");
    until(|| fs::read_to_string(&events).unwrap().contains("resize-refused"));
    let written = fs::read_to_string(&events).unwrap();
    let refused: Vec<&str> = written.lines().filter(|line| line.contains("resize-refused")).collect();
    assert!(
        matches!(refused[..], [line] if line.contains("add vCPU 1")),
        "{written}"
    );
    assert_eq!(client.put("vm.resize", Some(json!({"desired_ram": 64 << 20}))), DONE);
    assert_eq!(last(&mut client)["outcome"], "accepted");
    husk.shut_down();
}

/// How many `vm.resize` have ended without the guest.
fn unanswered_in(events: &Path) -> usize {
    let lines = fs::read_to_string(events).unwrap();
    lines.matches("\"resize-unanswered\"").count()
}

/// Of a guest that takes nothing, each client is told what became of its own request.
#[test]
fn a_resize_is_answered_for_what_it_asked_for_whatever_others_ask_for_meanwhile() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (events, kernel) = (folder.path().join("events"), folder.path().join("vmlinux"));
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let monitor = format!("path={}", events.display());
    let mut husk = Husk::start_in(folder, &["--event-monitor", &monitor, "--resize-timeout", "3000"]);
    let mut client = booted(
        &husk,
        json!({
            "cpus": {"boot_vcpus": 1, "max_vcpus": 8},
            "memory": {"size": 64 << 20},
            "balloon": {"size": 0},
            "payload": {"kernel": kernel},
            "serial": {"mode": "Off"},
            "console": {"mode": "Off"},
        }),
    );
    let asking = |vcpus: u32| {
        let (mut other, mut client) = (husk.client(), husk.client());
        let asked = thread::spawn(move || other.put("vm.resize", Some(json!({"desired_vcpus": vcpus}))));
        until(|| client.get("vm.resize-status").1["vcpus"]["desired"] == vcpus);
        asked
    };
    let unanswered = |count| unanswered_in(&events) == count;
    let last = |client: &mut Client| client.get("vm.resize-status").1["last"].take();
    // Of another kind.
    let vcpus = asking(8);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_balloon": 4096}))), DONE);
    let balloon = last(&mut client);
    assert_eq!(
        (&balloon["outcome"], &balloon["desired_balloon"]),
        (&json!("accepted"), &json!(4096))
    );
    assert_eq!(vcpus.join().unwrap(), DONE);
    until(|| unanswered(1));
    assert_eq!(last(&mut client), balloon, "the other was not the last one");
    // The same again.
    let first = asking(6);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_vcpus": 6}))), DONE);
    assert_eq!(first.join().unwrap(), DONE);
    until(|| unanswered(3));
    // Another number: the first is wanted no more.
    let first = asking(8);
    assert_eq!(client.put("vm.resize", Some(json!({"desired_vcpus": 4}))), DONE);
    assert_eq!(first.join().unwrap(), DONE);
    until(|| unanswered(4));
    assert_eq!(last(&mut client)["desired_vcpus"], 4);
    let counted = client.scrape("/api/v1/vmm.metrics", "text/plain").unwrap().1;
    assert!(
        counted.contains("husk_resize_failures_total{outcome=\"unanswered\"} 4"),
        "{counted}"
    );
    assert!(
        counted.contains("husk_resize_failures_total{outcome=\"superseded\"} 1"),
        "{counted}"
    );
    // What it comes to is what there is to see, and what the next guest begins with.
    let in_balloon = |client: &mut Client| {
        let (info, status) = (client.get("vm.info").1, client.get("vm.resize-status").1);
        let target = status["memory"]["balloon"]["target_bytes"].clone();
        [info["config"]["balloon"]["size"].clone(), target]
    };
    assert_eq!(in_balloon(&mut client), [4096, 4096]);
    done(&mut client, "vm.reboot");
    assert_eq!(in_balloon(&mut client), [4096, 4096]);
    // What became of a resize is known until the next guest.
    assert_eq!(last(&mut client), Value::Null);
    let asked = asking(7);
    until(|| last(&mut client)["outcome"] == "in-progress");
    done(&mut client, "vm.shutdown");
    assert_eq!(asked.join().unwrap().0, 409);
    let (status, told) = client.get("vm.resize-status");
    assert_eq!((status, told.as_object().unwrap().len()), (200, 1), "{told}");
    assert_eq!(
        (&told["last"]["outcome"], &told["last"]["desired_vcpus"]),
        (&json!("abandoned"), &json!(7))
    );
    done(&mut client, "vm.boot");
    assert_eq!(last(&mut client), Value::Null);
    husk.shut_down();
}
