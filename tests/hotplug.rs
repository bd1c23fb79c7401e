//! Devices that come and go while the guest runs, and the life of a VM by command: asserted through
//! the API and inside the guest.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::{PciDevice, State};
use husk_tests::pod::{PATIENCE, Pod};
use husk_tests::tap::{Tap, own_network};
use husk_tests::{kernel_file, until};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Lab {
    folder: TempDir,
    pod: Pod,
}

impl Lab {
    fn launch(kernel: &str) -> Self {
        Self::launch_with(kernel, "initramfs.cpio")
    }

    fn launch_with(kernel: &str, initramfs: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (kernel_file(kernel, "vmlinux"), kernel_file(kernel, initramfs));
        let pod = Pod::launch(Shape::new(Shim::Rust, kernel, initramfs), folder.path()).unwrap();
        Self { folder, pod }
    }

    fn start(kernel: &str) -> (Self, Agent) {
        let mut lab = Self::launch(kernel);
        let agent = lab.pod.start().unwrap();
        (lab, agent)
    }

    /// A disk's image, empty.
    fn image(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        File::create(&path).unwrap().set_len(4 * MIB).unwrap();
        path
    }

    fn put(&mut self, name: &str, body: Option<&Value>) {
        self.pod.api().put(name, body).unwrap().done().unwrap();
    }

    /// The status and body of a request that is refused.
    fn refused(&mut self, name: &str, body: Option<&Value>, status: u16) -> Vec<String> {
        self.pod.api().put(name, body).unwrap().failure(status).unwrap()
    }

    /// The names of all devices in `vm.info`.
    fn disks(&mut self) -> Vec<Value> {
        let info: Value = self.pod.api().get("vm.info").unwrap().json().unwrap();
        info["config"]["disks"].as_array().cloned().unwrap_or_default()
    }
}

/// The guest's name of the disk at the place that the API has named.
fn find(agent: &mut Agent, device: &PciDevice) -> String {
    match agent
        .must(&Call::DiskAt {
            bdf: device.bdf.clone(),
        })
        .unwrap()
    {
        Reply::Device { name, path } => {
            assert!(
                path.starts_with(&format!("/pci0000:00/{}/virtio", device.bdf)),
                "{path}"
            );
            name
        }
        other => panic!("{other:?}"),
    }
}

fn gone(agent: &mut Agent, device: &PciDevice) {
    let call = Call::Gone {
        bdf: device.bdf.clone(),
    };
    assert_eq!(agent.must(&call).unwrap(), Reply::Done);
}

fn step(agent: &mut Agent, step: &Step) -> Answer {
    match agent.must(&Call::Step { step: step.to_string() }).unwrap() {
        Reply::Answer { answer } => answer,
        other => panic!("{other:?}"),
    }
}

/// Writes through the guest and finds it in the file.
fn writes_through(agent: &mut Agent, disk: &str, image: &Path, seed: u64) {
    let length = 64 << 10;
    let expected = pattern::bytes(seed, length);
    let written = step(agent, &Step::write(disk, MIB, length as u64, seed));
    assert!(
        matches!(written, Answer::Data { bytes, checksum } if bytes == length as u64 && checksum == pattern::checksum(&expected))
    );
    let mut found = vec![0; length];
    File::open(image).unwrap().read_exact_at(&mut found, MIB).unwrap();
    assert!(found == expected, "what the guest wrote is not in {}", image.display());
}

fn a_disk_comes_and_goes(kernel: &str) {
    let (mut lab, mut agent) = Lab::start(kernel);
    let image = lab.image("disk");
    let device = lab.pod.add_disk(&image).unwrap();
    let disk = find(&mut agent, &device);
    writes_through(&mut agent, &disk, &image, 3);
    assert_eq!(lab.disks().len(), 1);
    lab.pod.remove(&device).unwrap();
    gone(&mut agent, &device);
    until(|| lab.disks().is_empty());
    lab.pod.stop().unwrap();
}

#[test]
fn a_disk_comes_and_goes_on_the_newer_kernel() {
    a_disk_comes_and_goes("6.12");
}

#[test]
fn a_disk_comes_and_goes_on_the_older_kernel() {
    a_disk_comes_and_goes("6.1");
}

#[test]
fn every_slot_is_used_and_used_again() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let mut there: Vec<(PciDevice, PathBuf)> = Vec::new();
    // Slots 1 to 31, less those of the entropy source, the vsock and the memory blocks.
    for number in 0..28 {
        let image = lab.image(&format!("disk{number}"));
        let device = lab.pod.add_disk(&image).unwrap();
        there.push((device, image));
    }
    let bdfs: BTreeSet<&str> = there.iter().map(|(device, _)| device.bdf.as_str()).collect();
    assert_eq!(bdfs.len(), 28);
    let one_more = lab.image("one-more");
    let body = lab.pod.shape().add_disk(&one_more);
    let refusal = lab.refused("vm.add-disk", Some(&body), 409);
    assert!(refusal.iter().any(|line| line.contains("slots")), "{refusal:?}");
    let (last, image) = there.last().unwrap();
    let disk = find(&mut agent, last);
    writes_through(&mut agent, &disk, image, 7);
    for (device, _) in &there {
        find(&mut agent, device);
        lab.pod.remove(device).unwrap();
        gone(&mut agent, device);
    }
    until(|| lab.disks().is_empty());
    // The first slot again and again, with something else in it each time.
    for seed in 0..12 {
        let image = lab.image(&format!("again{seed}"));
        let device = lab.pod.add_disk(&image).unwrap();
        assert_eq!(
            Some(device.bdf.as_str()),
            there.first().map(|(device, _)| device.bdf.as_str())
        );
        let disk = find(&mut agent, &device);
        writes_through(&mut agent, &disk, &image, 100 + seed);
        lab.pod.remove(&device).unwrap();
        gone(&mut agent, &device);
        until(|| lab.disks().is_empty());
    }
    lab.pod.stop().unwrap();
}

#[test]
fn what_was_acknowledged_before_a_removal_is_on_the_disk() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let image = lab.image("disk");
    let device = lab.pod.add_disk(&image).unwrap();
    let disk = find(&mut agent, &device);
    // One connection writes and syncs, block after block, while another one asks for the removal.
    let mut writer = lab.pod.one_more().unwrap();
    let (begun, first) = channel();
    let writing = thread::spawn(move || {
        let mut acknowledged = BTreeSet::new();
        // Only the removal ends it.
        for number in (0..64).cycle() {
            let write = Step::write(&disk, number * 32768, 32768, 1000 + number);
            match writer.ask(&Call::Step {
                step: write.to_string(),
            }) {
                Ok(Reply::Answer { .. }) => {
                    acknowledged.insert(number);
                    let _ = begun.send(());
                }
                _ => break,
            }
        }
        acknowledged
    });
    first.recv_timeout(PATIENCE).unwrap();
    lab.pod.remove(&device).unwrap();
    gone(&mut agent, &device);
    let acknowledged = writing.join().unwrap();
    let file = File::open(&image).unwrap();
    for number in &acknowledged {
        let mut found = vec![0; 32768];
        file.read_exact_at(&mut found, number * 32768).unwrap();
        assert!(
            found == pattern::bytes(1000 + number, 32768),
            "block {number} was acknowledged and is lost"
        );
    }
    lab.pod.stop().unwrap();
}

#[test]
fn persistent_memory_comes_while_the_guest_runs() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let image = lab.image("pmem");
    let body = json!({"file": image, "id": "store"});
    let device: PciDevice = lab.pod.api().put("vm.add-pmem", Some(&body)).unwrap().json().unwrap();
    assert_eq!(device.id, "store");
    until(|| {
        matches!(
            agent.ask(&Call::Text {
                path: "/sys/block/pmem0/size".into()
            }),
            Ok(Reply::Text { .. })
        )
    });
    writes_through(&mut agent, "pmem0", &image, 5);
    lab.pod.stop().unwrap();
}

#[test]
fn persistent_memory_goes_though_a_network_has_had_it_in_view() {
    if own_network().is_err() {
        println!("skipped: needs root");
        return;
    }
    let tap = Tap::new("hotplug", false, "10.0.0.1/24");
    let mut lab = Lab::launch_with("6.12", "pod.cpio");
    lab.pod.create().unwrap();
    lab.pod.add_net(&File::from(tap.open())).unwrap();
    lab.pod.boot().unwrap();
    let (mut agent, _) = lab.pod.agent().unwrap();
    let image = lab.image("pmem");
    let device: PciDevice = {
        let body = json!({"file": image});
        lab.pod.api().put("vm.add-pmem", Some(&body)).unwrap().json().unwrap()
    };
    let maps = format!("/proc/{}/maps", lab.pod.pid());
    let is_mapped = || fs::read_to_string(&maps).unwrap().contains(image.to_str().unwrap());
    agent
        .run(&["sh", "-c", "until [ -e /sys/block/pmem0 ]; do sleep 0.1; done"])
        .unwrap();
    let ping = "ip link set eth0 up && ip addr add 10.0.0.2/24 dev eth0 && ping -c 1 10.0.0.1";
    agent.run(&["sh", "-c", ping]).unwrap();
    assert!(is_mapped());

    lab.pod.remove(&device).unwrap();
    gone(&mut agent, &device);

    until(|| !is_mapped());
    agent.run(&["sh", "-c", "ping -c 1 10.0.0.1"]).unwrap();
    lab.pod.stop().unwrap();
}

#[test]
fn a_device_is_known_by_its_name_and_by_nothing_else() {
    let mut lab = Lab::launch("6.12");
    lab.pod.create().unwrap();
    let image = lab.image("disk");
    let named = json!({"path": image, "id": "mine"});
    lab.put("vm.add-disk", Some(&named));
    lab.refused("vm.add-disk", Some(&named), 409);
    lab.refused("vm.remove-device", Some(&json!({"id": "other"})), 404);
    lab.pod.boot().unwrap();
    let (mut agent, _) = lab.pod.agent().unwrap();
    assert_eq!(lab.disks()[0]["id"], "mine");
    lab.refused("vm.add-disk", Some(&named), 409);
    lab.refused("vm.remove-device", Some(&json!({"id": "other"})), 404);
    let missing = lab.refused("vm.add-disk", Some(&json!({"path": "/nowhere/disk"})), 400);
    assert!(missing.iter().any(|line| line.contains("/nowhere/disk")), "{missing:?}");
    let there = fs::read_dir(format!("/proc/{}/fd", lab.pod.pid())).unwrap().count();
    for _ in 0..5 {
        lab.refused("vm.add-disk", Some(&json!({"path": "/nowhere/disk"})), 400);
    }
    assert_eq!(
        fs::read_dir(format!("/proc/{}/fd", lab.pod.pid())).unwrap().count(),
        there
    );
    // A writable image is one disk's, and the answer says whose.
    let taken = lab.refused("vm.add-disk", Some(&json!({"path": image})), 409);
    assert_eq!(taken[0], "cannot add _disk0: its image is mine's");
    // A device that was there at boot goes as well as one that came later.
    let functions = |agent: &mut Agent| match step(agent, &Step::Pci) {
        Answer::Pci { functions } => functions.len(),
        other => panic!("{other:?}"),
    };
    let before = functions(&mut agent);
    lab.put("vm.remove-device", Some(&json!({"id": "mine"})));
    until(|| lab.disks().is_empty());
    assert_eq!(functions(&mut agent), before - 1);
    // Its image is free again.
    lab.pod.add_disk(&image).unwrap();
    lab.pod.stop().unwrap();
}

#[test]
fn a_vm_is_paused_and_goes_on() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let uptime = |agent: &mut Agent| match step(agent, &Step::Report) {
        Answer::Report(report) => report.uptime,
        other => panic!("{other:?}"),
    };
    let before = uptime(&mut agent);
    lab.put("vm.pause", None);
    let paused = Instant::now();
    lab.pod.expect_state(State::Paused).unwrap();
    lab.refused("vm.pause", None, 409);
    // More than the guest is awake for between the two looks at its clock.
    thread::sleep(Duration::from_secs(5));
    let rested = paused.elapsed().as_secs_f64();
    lab.put("vm.resume", None);
    lab.pod.expect_state(State::Running).unwrap();
    lab.refused("vm.resume", None, 409);
    // The connection and the guest are as they were, and its clock has gone on, as fast as it thinks its own runs.
    let passed = uptime(&mut agent) - before;
    assert!(
        passed >= 0.9 * rested,
        "{passed} s have passed in the guest, which was at rest for {rested} s"
    );
    lab.pod.stop().unwrap();
}

#[test]
fn a_device_that_the_guest_never_heard_of_goes_at_once() {
    let (mut lab, mut agent) = Lab::start("6.12");
    lab.put("vm.pause", None);
    let image = lab.image("disk");
    let named = json!({"path": image, "id": "mine"});
    for _ in 0..2 {
        let device: PciDevice = lab.pod.api().put("vm.add-disk", Some(&named)).unwrap().json().unwrap();
        lab.pod.remove(&device).unwrap();
        // Its file is closed by a thread: then it is gone, and its name is free.
        until(|| lab.disks().is_empty());
    }
    lab.refused("vm.remove-device", Some(&json!({"id": "mine"})), 404);
    lab.put("vm.resume", None);
    // The slot is as good as new.
    let device = lab.pod.add_disk(&image).unwrap();
    let disk = find(&mut agent, &device);
    writes_through(&mut agent, &disk, &image, 21);
    lab.pod.stop().unwrap();
}

#[test]
fn a_vm_is_shut_down_booted_again_rebooted_and_deleted() {
    let mut lab = Lab::launch("6.12");
    lab.refused("vm.boot", None, 404);
    lab.pod.create().unwrap();
    lab.refused("vm.shutdown", None, 409);
    lab.pod.boot().unwrap();
    lab.refused("vm.boot", None, 409);
    lab.pod.agent().unwrap();
    lab.put("vm.shutdown", None);
    lab.pod.expect_state(State::Shutdown).unwrap();
    lab.pod.boot().unwrap();
    lab.pod.agent().unwrap();
    lab.put("vm.reboot", None);
    lab.pod.expect_state(State::Running).unwrap();
    let (mut agent, _) = lab.pod.agent().unwrap();
    assert!(matches!(step(&mut agent, &Step::Report), Answer::Report(_)));
    lab.put("vm.delete", None);
    assert_eq!(lab.pod.api().get("vm.info").unwrap().failure(404).unwrap().len(), 1);
    lab.pod.create().unwrap();
    lab.pod.boot().unwrap();
    lab.pod.agent().unwrap();
    lab.pod.stop().unwrap();
}

#[test]
fn what_the_devices_count_is_shown() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let image = lab.image("disk");
    let device = lab.pod.add_disk(&image).unwrap();
    let disk = find(&mut agent, &device);
    let before: Value = lab.pod.api().get("vm.counters").unwrap().json().unwrap();
    writes_through(&mut agent, &disk, &image, 9);
    let after: Value = lab.pod.api().get("vm.counters").unwrap().json().unwrap();
    let written = |counters: &Value| {
        let of_disk = counters[&device.id].as_object().unwrap_or_else(|| panic!("{counters}"));
        of_disk
            .iter()
            .filter(|(name, _)| name.contains("write"))
            .filter_map(|(_, value)| value.as_u64())
            .sum::<u64>()
    };
    assert!(written(&after) > written(&before), "{before} {after}");
    lab.pod.stop().unwrap();
}

#[test]
fn the_power_button_is_heard() {
    let (mut lab, mut agent) = Lab::start("6.12");
    let interrupts = |agent: &mut Agent| match step(agent, &Step::Interrupts) {
        Answer::Interrupts { rows } => rows
            .iter()
            .filter(|row| row.name.contains("ACPI:Ged"))
            .map(|row| row.counts.iter().sum::<u64>())
            .sum::<u64>(),
        other => panic!("{other:?}"),
    };
    let before = interrupts(&mut agent);
    lab.put("vm.power-button", None);
    until(|| interrupts(&mut agent) > before);
    lab.pod.stop().unwrap();
}
