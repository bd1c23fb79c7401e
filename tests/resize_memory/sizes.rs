//! Sizes that a guest can be made, cannot be made, and keeps.

use husk_guest::resources::Resources;
use husk_tests::agent::Agent;
use husk_tests::{found, until};
use serde_json::json;

use crate::{BOOT, Lab, MIB, a_balloon, empty, fill, gained};

/// A pod with a balloon whose guest has been given `steps` of memory, by virtio-mem or as DIMMs, and keeps a file of
/// `mib` MiB in it.
fn grown_and_filled(kernel: &str, by_virtio_mem: bool, steps: &[u64], mib: u64) -> (Lab, Agent, Resources) {
    let (mut lab, mut agent) = Lab::start(kernel, "memhp_default_state=online_movable", &a_balloon(false));
    agent.load_module("virtio_balloon").unwrap();
    if by_virtio_mem {
        agent.load_module("virtio_mem").unwrap();
    }
    let before = agent.resources().unwrap();
    let mut more = 0;
    for step in steps {
        more += step;
        lab.resize(BOOT + more);
        lab.agree(&mut agent, &before, more);
    }
    fill(&mut agent, mib);
    (lab, agent, before)
}

/// What a guest cannot spare stays with it until it can, and it is alive all the time: Linux would let go of the last
/// free page.
fn a_guest_is_made_no_smaller_than_what_it_uses(kernel: &str, by_virtio_mem: bool, steps: &[u64]) {
    let all = BOOT + steps.iter().sum::<u64>();
    let (mut lab, mut agent, before) = grown_and_filled(kernel, by_virtio_mem, steps, 280);
    lab.resize(BOOT);
    let size = found(|| {
        let (status, size) = (lab.status(), lab.actual_size());
        let pending = status["memory"]["pending"].as_str().unwrap_or_default();
        let guest = BOOT + gained(&before, &agent.resources().unwrap());
        let stays = pending.starts_with("the guest to need less memory") && size == guest && size < all;
        stays.then_some(size).ok_or_else(|| format!("{size} {guest}: {status}"))
    });
    assert!(size > 280 * MIB, "{size}");
    let last = lab.status()["last"].take();
    assert_eq!(last["outcome"], "timed-out", "{last}");
    agent.run(&["sh", "-c", "cat /filled/file > /dev/null"]).unwrap();
    empty(&mut agent);
    found(|| {
        let (host, guest) = (lab.actual_size() - BOOT, gained(&before, &agent.resources().unwrap()));
        let agreed = host == guest && host <= 32 * MIB;
        agreed
            .then_some(())
            .ok_or_else(|| format!("host {host}, guest {guest}: {}", lab.status()))
    });
    lab.end();
}

#[test]
fn a_guest_of_the_newer_kernel_is_made_no_smaller_than_what_it_uses_by_virtio_mem() {
    a_guest_is_made_no_smaller_than_what_it_uses("6.12", true, &[512 * MIB]);
}

#[test]
fn a_guest_of_the_older_kernel_is_made_no_smaller_than_what_it_uses_by_dimms() {
    a_guest_is_made_no_smaller_than_what_it_uses("6.1", false, &[128 * MIB, 256 * MIB]);
}

/// The shims count on it: what is smaller than the VM is no error.
#[test]
fn less_than_the_guest_booted_with_changes_nothing() {
    let (mut lab, mut agent) = Lab::start("6.12", "", &json!({}));
    let before = agent.resources().unwrap();
    for bytes in [BOOT - 128 * MIB, MIB, 1, 0] {
        lab.resize(bytes);
        assert_eq!(lab.actual_size(), BOOT);
    }
    assert_eq!(agent.resources().unwrap().memory_kib, before.memory_kib);
    lab.end();
}

/// What had come is RAM of the start then, and as much may come as before.
#[test]
fn a_vm_that_is_rebooted_has_the_size_that_was_asked_for_last() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=online", &json!({}));
    let before = agent.resources().unwrap();
    let body = json!({"desired_vcpus": 2, "desired_ram": BOOT + 256 * MIB});
    lab.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    lab.agree(&mut agent, &before, 256 * MIB);
    lab.pod.put("vm.reboot", None).unwrap().done().unwrap();
    let (mut agent, _) = lab.pod.agent().unwrap();
    let now = agent.resources().unwrap();
    assert_eq!((now.online_cpus(), now.present_cpus()), (2, 2));
    // The kernel has tables for memory that it begins with, which it does not count.
    let (gained, tables) = (gained(&before, &now), 16 * MIB);
    assert!((256 * MIB - tables..=256 * MIB).contains(&gained), "{gained}");
    let info = lab.pod.info().unwrap();
    let size = (
        info.config.cpus.boot_vcpus,
        info.config.memory.size,
        info.memory_actual_size,
    );
    assert_eq!(size, (2, BOOT + 256 * MIB, BOOT + 256 * MIB));
    // It keeps what it began with.
    lab.resize(BOOT);
    assert_eq!(lab.actual_size(), BOOT + 256 * MIB);
    lab.resize(BOOT + 384 * MIB);
    found(|| {
        let (host, guest) = (lab.actual_size(), agent.bring_online(2).unwrap());
        let come = guest.memory_kib - now.memory_kib;
        (host == BOOT + 384 * MIB && come == 128 << 10)
            .then_some(())
            .ok_or_else(|| format!("host {host}, guest {guest:?}: {}", lab.status()))
    });
    lab.end();
}

/// The guest takes whole blocks, which are small ones by virtio-mem: nobody gets less than was asked for.
#[test]
fn what_is_no_whole_block_becomes_one() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=online", &json!({}));
    let before = agent.resources().unwrap();
    for (bytes, comes) in [(1, 128 * MIB), (128 * MIB - 1, 128 * MIB), (128 * MIB + 1, 256 * MIB)] {
        lab.resize(BOOT + bytes);
        lab.agree(&mut agent, &before, comes);
    }
    agent.load_module("virtio_mem").unwrap();
    let driver = |lab: &mut Lab| lab.status()["memory"]["virtio_mem"]["driver"] == true;
    until(|| driver(&mut lab));
    for (bytes, comes) in [(256 * MIB + 1, 258 * MIB), (387 * MIB, 388 * MIB)] {
        lab.resize(BOOT + bytes);
        lab.agree(&mut agent, &before, comes);
    }
    lab.end();
}

#[test]
fn sizes_that_cannot_be_are_refused_with_what_can_be() {
    let (mut lab, mut agent) = Lab::start("6.12", "", &json!({}));
    let before = agent.resources().unwrap();
    let reserve = lab.pod.info().unwrap().config.memory.hotplug_size.unwrap();
    let most = BOOT + reserve.next_multiple_of(before.block_bytes);
    for bytes in [most + 1, most + 128 * MIB, u64::MAX, u64::MAX - 127 * MIB] {
        let body = lab.pod.shape().resize_memory(bytes);
        let said = lab.pod.put("vm.resize", Some(&body)).unwrap().failure(400).unwrap();
        let said = said.join(": ");
        assert!(said.contains("desired_ram") && said.contains("hotplug_size"), "{said}");
    }
    for bad in [json!(-1), json!("1G"), json!(1.5), json!([])] {
        let body = json!({"desired_ram": bad});
        lab.pod.put("vm.resize", Some(&body)).unwrap().failure(400).unwrap();
    }
    assert_eq!(lab.actual_size(), BOOT);
    let after = agent.resources().unwrap();
    assert_eq!((after.memory_kib, after.blocks), (before.memory_kib, before.blocks));
    lab.end();
}
