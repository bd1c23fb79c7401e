//! Memory that comes and goes by virtio-mem.

use std::fs;

use husk_guest::Call;
use husk_tests::found;
use husk_tests::resize::{Resizing, Size};
use serde_json::json;

use crate::{BOOT, Lab, MIB, RESERVE, empty, fill, gained, mount_filled};

/// A pod grows in steps as its containers come, vCPUs and memory. Then one of them keeps a file in memory, which is
/// there to the last byte.
fn what_is_written_to_new_memory_is_there(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, "memhp_default_state=online", &json!({}));
    agent.load_module("virtio_mem").unwrap();
    let resizing = Resizing::begin(&mut lab.pod, &mut agent).unwrap();
    for (vcpus, more) in [(2, 128), (3, 256), (4, 512)] {
        for size in [Size::Vcpus(vcpus), Size::Memory(BOOT + more * MIB)] {
            resizing.resize(&mut lab.pod, &mut agent, size).unwrap();
        }
    }
    mount_filled(&mut agent);
    let before = lab.resident_kib(RESERVE);
    let (path, seed, bytes) = (String::from("/filled/file"), 8, 96 * MIB);
    let stored = agent
        .must(&Call::Store {
            path: path.clone(),
            seed,
            bytes,
        })
        .unwrap();
    // Linux takes what came above 4 GiB before what it had.
    let used = lab.resident_kib(RESERVE) - before;
    assert!(used > 64 << 10, "{used} KiB of what came");
    assert_eq!(agent.must(&Call::Sum { path }).unwrap(), stored);
    lab.end();
}

#[test]
fn what_is_written_to_new_memory_of_the_newer_kernel_is_there() {
    what_is_written_to_new_memory_is_there("6.12");
}

#[test]
fn what_is_written_to_new_memory_of_the_older_kernel_is_there() {
    what_is_written_to_new_memory_is_there("6.1");
}

fn memory_comes_and_goes_back_to_the_host_by_virtio_mem(kernel: &str, params: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, params, &json!({}));
    agent.load_module("virtio_mem").unwrap();
    let before = agent.resources().unwrap();
    lab.resize(BOOT + 512 * MIB);
    lab.agree(&mut agent, &before, 512 * MIB);
    fill(&mut agent, 300);
    let used = lab.resident_kib(RESERVE);
    assert!(used > 200 << 10, "{used} KiB in use of what came");
    empty(&mut agent);
    lab.resize(BOOT);
    // A guest cannot let go of every block: where it uses one itself it keeps it.
    let left = found(|| {
        let (host, guest) = (lab.actual_size() - BOOT, gained(&before, &agent.resources().unwrap()));
        let agreed = (host == guest && host <= 32 * MIB).then_some(host);
        agreed.ok_or_else(|| format!("host {host}, guest {guest}: {}", lab.status()))
    });
    lab.resident_until(RESERVE, |kib| kib <= left >> 10);
    lab.end();
}

#[test]
fn memory_comes_and_goes_back_to_the_host_by_virtio_mem_on_the_newer_kernel() {
    memory_comes_and_goes_back_to_the_host_by_virtio_mem("6.12", "");
}

#[test]
fn memory_comes_and_goes_back_to_the_host_by_virtio_mem_on_the_older_kernel() {
    // As Debian has it: what is to go is written first.
    memory_comes_and_goes_back_to_the_host_by_virtio_mem("6.1", "init_on_alloc=1");
}

#[test]
fn a_quick_reversal_ends_at_the_size_that_was_asked_for_last() {
    let (mut lab, mut agent) = Lab::start("6.12", "", &json!({}));
    agent.load_module("virtio_mem").unwrap();
    let before = agent.resources().unwrap();
    for mib in [512, 0, 256, 0, 384] {
        lab.resize(BOOT + mib * MIB);
    }
    lab.agree(&mut agent, &before, 384 * MIB);
    lab.end();
}

/// The host's huge pages of 2 MiB.
fn set_huge_pages(count: u64) {
    fs::write(
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        count.to_string(),
    )
    .unwrap();
}

/// What the host has not when it is asked is refused. For what it has lost by the time that the
/// guest is about it, nobody tells the driver that there is memory again, and by itself it looks
/// after 50 seconds, and then less and less often.
#[test]
fn memory_that_the_host_did_not_have_comes_once_it_has_it() {
    let of = |bytes: u64| bytes / (2 * MIB);
    set_huge_pages(of(BOOT) + 16);
    let memory = json!({"memory": {"size": BOOT, "hotplug_size": 1024 * MIB, "hugepages": true}});
    let (mut lab, mut agent) = Lab::start("6.12", "", &memory);
    agent.load_module("virtio_mem").unwrap();
    let before = agent.resources().unwrap();
    let body = lab.pod.shape().resize_memory(BOOT + 128 * MIB);
    let why = lab.pod.put("vm.resize", Some(&body)).unwrap().failure(500).unwrap();
    let figures = format!("huge pages of 2 MiB: 64 needed, 16 of {} free", of(BOOT) + 16);
    assert!(why.join(": ").contains(&figures), "{why:?}");
    assert_eq!(lab.status()["memory"]["desired_bytes"], BOOT);
    // The guest hears of it when it goes on.
    set_huge_pages(of(BOOT + 128 * MIB));
    lab.pod.put("vm.pause", None).unwrap().done().unwrap();
    lab.resize(BOOT + 128 * MIB);
    set_huge_pages(of(BOOT) + 16);
    lab.pod.put("vm.resume", None).unwrap().done().unwrap();
    found(|| {
        let busy = lab.counter("__mem", "busy");
        (busy >= 4).then_some(()).ok_or_else(|| format!("put off {busy} times"))
    });
    assert_eq!(lab.actual_size(), BOOT);
    set_huge_pages(of(BOOT + 128 * MIB));
    lab.agree(&mut agent, &before, 128 * MIB);
    lab.end();
    set_huge_pages(0);
}
