//! Memory that comes and goes while the guest runs: by virtio-mem, by DIMMs and by the balloon, asserted through the API, inside the
//! guest, and in what the host has to give for it.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs;

use husk_guest::Call;
use husk_guest::resources::Resources;
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::pod::Pod;
use husk_tests::resize::{Resizing, Size};
use husk_tests::smaps::resident_kib;
use husk_tests::{found, kernel_file, until};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// What the guests boot with.
const BOOT: u64 = 256 * MIB;

/// The mapping of memory that comes later, and that of the rest.
const RESERVE: &str = "guest-ram-hotplug";
const RAM: &str = "guest-ram";

struct Lab {
    pod: Pod,
    _folder: TempDir,
}

impl Lab {
    /// A pod whose kernel has `params`, with `more` in the body of `vm.create`.
    fn start(kernel: &str, params: &str, more: &Value) -> (Self, Agent) {
        let folder = tempfile::tempdir().unwrap();
        let mut shape = Shape::new(
            Shim::Rust,
            kernel_file(kernel, "vmlinux"),
            kernel_file(kernel, "pod.cpio"),
        );
        shape.kernel_params = params.into();
        let mut pod = Pod::launch(shape, folder.path()).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        pod.put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let (agent, _) = pod.agent().unwrap();
        (Self { pod, _folder: folder }, agent)
    }

    /// `vm.resize` to `bytes` in all, as the shim sends it.
    fn resize(&mut self, bytes: u64) {
        let body = self.pod.shape().resize_memory(bytes);
        self.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    }

    fn inflate(&mut self, bytes: u64) {
        let body = json!({"desired_balloon": bytes});
        self.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    }

    /// What `vm.info` says that the guest has.
    fn actual_size(&mut self) -> u64 {
        self.pod.info().unwrap().memory_actual_size
    }

    fn status(&mut self) -> Value {
        self.pod.api().get("vm.resize-status").unwrap().json().unwrap()
    }

    fn counter(&mut self, device: &str, name: &str) -> u64 {
        let all: Value = self.pod.api().get("vm.counters").unwrap().json().unwrap();
        let value = all[device][name].as_u64();
        value.unwrap_or_else(|| panic!("no {name} of {device}: {all}"))
    }

    fn resident_kib(&self, mapping: &str) -> u64 {
        resident_kib(self.pod.pid(), mapping).unwrap()
    }

    /// Waits until host and guest agree that the guest has `bytes` more than when it booted, bringing memory online meanwhile as
    /// Kata's agent does.
    fn agree(&mut self, agent: &mut Agent, before: &Resources, bytes: u64) -> Resources {
        found(|| {
            let now = agent.bring_online(1).unwrap();
            let (host, guest) = (self.actual_size(), gained(before, &now));
            (host == BOOT + bytes && guest == bytes).then_some(now).ok_or_else(|| {
                format!(
                    "{bytes} more wanted, the host says {host} in all, the guest {guest} more: {}",
                    self.status()
                )
            })
        })
    }

    /// Waits until as much of a mapping is in the host's memory as `is_enough` wants.
    fn resident_until(&self, mapping: &str, is_enough: impl Fn(u64) -> bool) {
        found(|| {
            let kib = self.resident_kib(mapping);
            is_enough(kib)
                .then_some(())
                .ok_or_else(|| format!("{kib} KiB of {mapping}"))
        });
    }

    fn end(self) {
        assert!(self.pod.stop().unwrap().status.success());
    }
}

/// Bytes of memory that the guest has gained.
fn gained(before: &Resources, now: &Resources) -> u64 {
    now.memory_kib.saturating_sub(before.memory_kib) * 1024
}

/// A file system in the guest's memory, at `target`.
fn mount_memory(agent: &mut Agent, target: &str) {
    let (source, target, kind) = ("tmpfs".into(), target.into(), "tmpfs".into());
    agent.must(&Call::Mount { source, target, kind }).unwrap();
}

fn mount_filled(agent: &mut Agent) {
    mount_memory(agent, "/filled");
}

/// Has the guest fill `mib` MiB of a file system in its memory, and empty it again.
fn fill(agent: &mut Agent, mib: u64) {
    mount_filled(agent);
    let script = format!("dd if=/dev/zero of=/filled/file bs=1M count={mib} 2>&1");
    agent.run(&["sh", "-c", &script]).unwrap();
}

fn empty(agent: &mut Agent) {
    agent.run(&["rm", "/filled/file"]).unwrap();
}

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

fn memory_comes_and_goes_back_to_the_host_by_virtio_mem(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, "", &json!({}));
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
    memory_comes_and_goes_back_to_the_host_by_virtio_mem("6.12");
}

#[test]
fn memory_comes_and_goes_back_to_the_host_by_virtio_mem_on_the_older_kernel() {
    memory_comes_and_goes_back_to_the_host_by_virtio_mem("6.1");
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

/// What the host has not when it is asked is refused. For what it has lost by the time that the guest is about it, nobody tells the driver that
/// there is memory again, and by itself it looks after 50 seconds, and then less and less often.
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

/// Its container is at its limit: that is why it is to grow. What describes the new memory has to come out of what is left.
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

fn a_balloon(free_page_reporting: bool) -> Value {
    json!({"balloon": {"size": 0, "deflate_on_oom": false, "free_page_reporting": free_page_reporting}})
}

fn a_balloon_takes_memory_and_gives_it_back(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel, "", &a_balloon(false));
    agent.load_module("virtio_balloon").unwrap();
    fill(&mut agent, 80);
    empty(&mut agent);
    let (before, used) = (agent.resources().unwrap(), lab.resident_kib(RAM));
    lab.inflate(96 * MIB);
    let size = |lab: &mut Lab, agent: &mut Agent, less: u64| {
        found(|| {
            let (host, guest) = (lab.actual_size(), agent.resources().unwrap().memory_kib);
            let agreed = host == BOOT - less && guest == before.memory_kib - (less >> 10);
            agreed
                .then_some(())
                .ok_or_else(|| format!("host {host}, guest {guest} KiB: {}", lab.status()))
        });
    };
    size(&mut lab, &mut agent, 96 * MIB);
    lab.resident_until(RAM, |kib| kib + (48 << 10) < used);
    lab.inflate(0);
    size(&mut lab, &mut agent, 0);
    fill(&mut agent, 80);
    lab.end();
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back_on_the_newer_kernel() {
    a_balloon_takes_memory_and_gives_it_back("6.12");
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back_on_the_older_kernel() {
    a_balloon_takes_memory_and_gives_it_back("6.1");
}

#[test]
fn whoever_asks_for_statistics_has_new_ones_soon() {
    let (mut lab, mut agent) = Lab::start("6.12", "", &a_balloon(false));
    agent.load_module("virtio_balloon").unwrap();
    let free = |lab: &mut Lab| {
        let status = lab.status();
        let balloon = &status["memory"]["balloon"];
        let free = balloon["stats"]["free_bytes"].as_u64();
        let age = balloon["stats_age_ms"].as_f64();
        free.zip(age).ok_or_else(|| format!("no statistics: {balloon}"))
    };
    let (before, _) = found(|| free(&mut lab));
    fill(&mut agent, 80);
    found(|| {
        let (now, age) = free(&mut lab)?;
        let less = now < before.saturating_sub(60 * MIB);
        less.then_some(())
            .ok_or_else(|| format!("{now} bytes free {age} ms ago, {before} at first"))
    });
    empty(&mut agent);
    found(|| {
        let (now, _) = free(&mut lab)?;
        (now > before.saturating_sub(40 * MIB))
            .then_some(())
            .ok_or_else(|| format!("{now} bytes free"))
    });
    lab.end();
}

fn what_the_guest_frees_goes_back_without_being_asked_for(kernel: &str) {
    let (lab, mut agent) = Lab::start(kernel, "", &a_balloon(true));
    agent.load_module("virtio_balloon").unwrap();
    fill(&mut agent, 80);
    let used = lab.resident_kib(RAM);
    empty(&mut agent);
    lab.resident_until(RAM, |kib| kib + (48 << 10) < used);
    // It is the guest's as before.
    fill(&mut agent, 80);
    lab.end();
}

#[test]
fn what_the_newer_kernel_frees_goes_back_without_being_asked_for() {
    what_the_guest_frees_goes_back_without_being_asked_for("6.12");
}

#[test]
fn what_the_older_kernel_frees_goes_back_without_being_asked_for() {
    what_the_guest_frees_goes_back_without_being_asked_for("6.1");
}

/// Nobody asks for less, and the guest does not report what is free.
#[test]
fn an_idle_guest_gives_back_what_it_does_not_use_and_has_it_again() {
    let balloon = json!({"size": 0, "deflate_on_oom": true, "reclaim_idle": 2, "reclaim_keep": 64 * MIB});
    let (mut lab, mut agent) = Lab::start("6.12", "", &json!({"balloon": balloon}));
    agent.load_module("virtio_balloon").unwrap();
    fill(&mut agent, 80);
    empty(&mut agent);
    let used = lab.resident_kib(RAM);
    let less = found(|| {
        let (size, status) = (lab.actual_size(), lab.status());
        let free = status["memory"]["balloon"]["stats"]["free_bytes"].as_u64();
        let settled = size + 48 * MIB < BOOT && free.is_some_and(|free| free < 80 * MIB);
        settled.then_some(size).ok_or_else(|| status.to_string())
    });
    lab.resident_until(RAM, |kib| kib + (48 << 10) < used);
    // More than it has kept.
    fill(&mut agent, 90);
    found(|| {
        let size = lab.actual_size();
        (size > less + 8 * MIB)
            .then_some(())
            .ok_or_else(|| format!("{size} bytes, {less} before: {}", lab.status()))
    });
    agent.run(&["sh", "-c", "cat /filled/file > /dev/null"]).unwrap();
    lab.end();
}

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
