//! Memory that the balloon takes and gives back, asked for or not.

use husk_tests::agent::Agent;
use husk_tests::found;
use serde_json::{Value, json};

use crate::{BOOT, Lab, MIB, RAM, a_balloon, empty, fill};

/// A pod of these devices whose memory is in pages of 4 KiB on the host, too: husk advises none of 2 MiB.
fn in_small_pages(mut devices: Value) -> Value {
    devices["memory"] = json!({"size": BOOT, "hotplug_size": 1024 * MIB, "shared": true, "thp": false});
    devices
}

fn a_balloon_takes_memory_and_gives_it_back(kernel: &str, devices: &Value) {
    let (mut lab, mut agent) = Lab::start(kernel, "", devices);
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
    a_balloon_takes_memory_and_gives_it_back("6.12", &a_balloon(false));
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back_on_the_older_kernel() {
    a_balloon_takes_memory_and_gives_it_back("6.1", &in_small_pages(a_balloon(false)));
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

fn what_the_guest_frees_goes_back_without_being_asked_for(kernel: &str, devices: &Value) {
    let (lab, mut agent) = Lab::start(kernel, "", devices);
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
    what_the_guest_frees_goes_back_without_being_asked_for("6.12", &a_balloon(true));
}

#[test]
fn what_the_older_kernel_frees_goes_back_without_being_asked_for() {
    what_the_guest_frees_goes_back_without_being_asked_for("6.1", &in_small_pages(a_balloon(true)));
}

/// Nobody asks for less, and the guest does not report what is free.
#[test]
fn an_idle_guest_gives_back_what_it_does_not_use_and_has_it_again() {
    let balloon = json!({"size": 0, "deflate_on_oom": true, "reclaim_idle": 2, "reclaim_keep": 64 * MIB});
    // What goes into the balloon is written first: of pages that the guest never had the host gets nothing back.
    let params = "init_on_alloc=1";
    let (mut lab, mut agent) = Lab::start("6.12", params, &in_small_pages(json!({"balloon": balloon})));
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
