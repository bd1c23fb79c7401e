//! Memory that comes and goes as DIMMs, by kernels and agents that bring it online.

use husk_guest::resources::Resources;
use husk_tests::found;
use husk_tests::smaps::resident_kib;
use serde_json::json;

use crate::{BOOT, Lab, MIB, RESERVE, empty, fill, gained, mount_memory};

/// Without its driver for virtio-mem a guest gets DIMMs: blocks that it has, and uses when they are online.
fn memory_comes_as_dimms(kernel: &str, state: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, &format!("memhp_default_state={state}"), &json!({}));
    let before = agent.resources().unwrap();
    assert_eq!(before.auto_online, state);
    let blocks = |resources: &Resources| resources.blocks.values().sum::<u64>();
    let mut more = 0;
    for step in [128 * MIB, 256 * MIB] {
        more += step;
        lab.resize(BOOT + more);
        let there = blocks(&before) + more / before.block_bytes;
        let came = found(|| {
            let now = agent.resources().unwrap();
            let found = blocks(&now);
            (found == there)
                .then_some(now)
                .ok_or_else(|| format!("{found} blocks: {}", lab.status()))
        });
        if state == "offline" {
            assert_eq!(came.blocks_in("offline"), step / before.block_bytes);
            assert_eq!(came.memory_kib, before.memory_kib + ((more - step) >> 10));
        }
        let now = lab.agree(&mut agent, &before, more);
        assert_eq!(now.blocks_in("offline"), 0);
    }
    fill(&mut agent, 250);
    assert!(lab.resident_kib(RESERVE) > 100 << 10);
    lab.end();
}

#[test]
fn dimms_are_onlined_by_the_newer_kernel() {
    memory_comes_as_dimms("6.12", "online");
}

#[test]
fn dimms_are_onlined_by_the_agent_of_the_newer_kernel() {
    memory_comes_as_dimms("6.12", "offline");
}

#[test]
fn dimms_are_onlined_by_the_older_kernel() {
    memory_comes_as_dimms("6.1", "online");
}

#[test]
fn dimms_are_onlined_by_the_agent_of_the_older_kernel() {
    memory_comes_as_dimms("6.1", "offline");
}

/// Memory that the kernel may keep anything in stays: what it uses it refuses to let go, and nobody loses it.
#[test]
fn a_dimm_that_the_guest_uses_stays_and_both_sides_know() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=online", &json!({}));
    let before = agent.resources().unwrap();
    lab.resize(BOOT + 256 * MIB);
    lab.agree(&mut agent, &before, 256 * MIB);
    fill(&mut agent, 200);
    let body = lab.pod.shape().resize_memory(BOOT);
    let answer = lab.pod.put("vm.resize", Some(&body)).unwrap();
    assert!(matches!(answer.status, 204 | 500), "{answer:?}");
    found(|| {
        let (host, now) = (lab.actual_size() - BOOT, agent.resources().unwrap());
        let agreed = host == gained(&before, &now) && now.blocks_in("going-offline") == 0;
        agreed
            .then_some(())
            .ok_or_else(|| format!("host {host}, guest {now:?}: {}", lab.status()))
    });
    agent.run(&["sh", "-c", "cat /filled/file > /dev/null"]).unwrap();
    lab.end();
}

#[test]
fn a_dimm_of_movable_memory_goes_back_to_the_host() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=online_movable", &json!({}));
    let before = agent.resources().unwrap();
    lab.resize(BOOT + 256 * MIB);
    lab.agree(&mut agent, &before, 256 * MIB);
    fill(&mut agent, 150);
    assert!(lab.resident_kib(RESERVE) > 50 << 10);
    empty(&mut agent);
    lab.resize(BOOT);
    lab.agree(&mut agent, &before, 0);
    // Unmapped as a whole.
    found(|| match resident_kib(lab.pod.pid(), RESERVE) {
        Ok(kib) if kib > 0 => Err(format!("{kib} KiB of {RESERVE}")),
        _ => Ok(()),
    });
    lab.end();
}

/// Each container of a pod is one step.
#[test]
fn many_small_steps_add_up() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=online", &json!({}));
    let before = agent.resources().unwrap();
    for step in 1..=12 {
        lab.resize(BOOT + step * 128 * MIB);
    }
    lab.agree(&mut agent, &before, 12 * 128 * MIB);
    lab.end();
}

/// The list of its pages alone would fill such a guest: a DIMM of this size kills it.
#[test]
fn more_than_a_small_guest_can_describe_at_once_does_not_kill_it() {
    let (mut lab, mut agent) = Lab::start("6.12", "memhp_default_state=offline", &json!({}));
    let before = agent.resources().unwrap();
    let body = lab.pod.shape().resize_memory(BOOT + 24 * 1024 * MIB);
    let answer = lab.pod.put("vm.resize", Some(&body)).unwrap();
    assert!(matches!(answer.status, 204 | 400 | 500), "{answer:?}");
    // Whatever came of it, both sides say the same, and the guest can go on.
    let more = found(|| {
        let (host, now) = (lab.actual_size() - BOOT, agent.bring_online(1).unwrap());
        let guest = gained(&before, &now);
        (host == guest)
            .then_some(host)
            .ok_or_else(|| format!("host {host}, guest {guest}: {}", lab.status()))
    });
    assert!(more == 24 * 1024 * MIB || more < 24 * 1024 * MIB && more.is_multiple_of(before.block_bytes));
    agent
        .run(&["sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=16 2>&1"])
        .unwrap();
    lab.end();
}

/// Its container is at its limit: that is why it is to grow. What describes the new memory has to
/// come out of what is left.
fn a_guest_that_is_short_of_memory_grows_by_dimms_and_lives(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, "memhp_default_state=online", &json!({}));
    let before = agent.resources().unwrap();
    // A file system in memory takes half of it: 90 % of what is available are two of them.
    for place in ["/filled", "/filled-too"] {
        mount_memory(&mut agent, place);
    }
    let script = "while read name kib unit; do case $name in MemAvailable:) free=$kib;; esac; done < /proc/meminfo; \
                  for place in /filled /filled-too; do \
                  dd if=/dev/zero of=$place/file bs=64K count=$((free * 45 / 100 / 64)) 2>&1 || exit 1; done";
    agent.run(&["sh", "-c", script]).unwrap();
    lab.resize(BOOT + 4096 * MIB);
    lab.agree(&mut agent, &before, 4096 * MIB);
    mount_memory(&mut agent, "/more");
    // There was no room for so much before.
    let script = "cat /filled/file /filled-too/file > /dev/null && dd if=/dev/zero of=/more/file bs=1M count=200 2>&1";
    agent.run(&["sh", "-c", script]).unwrap();
    assert!(lab.resident_kib(RESERVE) > 200 << 10);
    assert_eq!(lab.status()["memory"]["refusals"], json!([]));
    lab.end();
}

#[test]
fn a_guest_of_the_newer_kernel_that_is_short_of_memory_grows_by_dimms_and_lives() {
    a_guest_that_is_short_of_memory_grows_by_dimms_and_lives("6.12");
}

#[test]
fn a_guest_of_the_older_kernel_that_is_short_of_memory_grows_by_dimms_and_lives() {
    a_guest_that_is_short_of_memory_grows_by_dimms_and_lives("6.1");
}
