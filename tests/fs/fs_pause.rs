//! A share while its VM is paused: its server gives the queues back, and gets them again where they
//! were; husk's own finishes what it has begun.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::Call;
use husk_tests::pod::PATIENCE;
use serde_json::Value;

use crate::{Lab, sh};

/// Lines that the guest writes between two pauses.
const LINES: usize = 20;

#[test]
fn a_share_that_is_in_use_goes_on_after_each_pause() {
    let (mut lab, mut agent) = Lab::start();
    let mut writer = lab.pod.one_more().unwrap();
    let script =
        "i=0; while [ ! -e /share/enough ]; do i=$((i+1)); echo $i >> /share/lines; echo $i >> /own/lines; done";
    let writing = thread::spawn(move || writer.must(&Call::run(&["sh", "-euc", script])).map(drop));
    let lines = lab.host("lines");
    let written = || fs::read_to_string(&lines).unwrap_or_default().lines().count();
    for _ in 0..3 {
        let (before, start) = (written(), Instant::now());
        while written() < before + LINES {
            assert!(
                start.elapsed() < PATIENCE,
                "the guest does not write; {}",
                lab.pod.witness().doing()
            );
            thread::sleep(Duration::from_millis(10));
        }
        lab.pod.api().put("vm.pause", None).unwrap().done().unwrap();
        lab.pod.api().put("vm.resume", None).unwrap().done().unwrap();
    }
    fs::write(lab.host("enough"), "").unwrap();
    writing.join().unwrap().unwrap();
    let all: String = (1..=written()).map(|line| format!("{line}\n")).collect();
    assert_eq!(fs::read_to_string(&lines).unwrap(), all, "each line once");
    for share in lab.both() {
        assert_eq!(fs::read_to_string(share.host.join("lines")).unwrap(), all);
        assert_eq!(sh(&mut agent, &format!("cat {}/lines", share.guest)), all);
    }
    let counters: Value = lab.pod.api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["backend_failures"], 0, "{counters}");
    lab.end();
}
