//! A VM with a device of every kind: each works, and each counts what the documentation says that it counts.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use husk_guest::{Call, Step};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::PciDevice;
use husk_tests::kernel_file;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;
use husk_tests::tap::{Tap, own_network};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Sections of docs/devices.md, and the device here that they are about, as `vm.counters` calls it.
const SECTIONS: [(&str, &str); 14] = [
    ("vCPUs", "__vcpu0"),
    ("Serial port", "__serial"),
    ("I/O APIC", "__ioapic"),
    ("Block", "_disk0"),
    ("Entropy", "__rng"),
    ("Memory blocks", "__mem"),
    ("Balloon", "__balloon"),
    ("Persistent memory", "_pmem0"),
    ("Network", "_net0"),
    ("vsock", "_vsock0"),
    ("File systems", "_fs0"),
    ("Files served by husk", "files"),
    ("Console", "__console"),
    ("Hot-plug registers", "__hotplug"),
];

/// What devices that are no virtio devices are called: these cannot fail in a driver's sense.
const OTHERS: [&str; 4] = ["__vcpu0", "__serial", "__ioapic", "__hotplug"];

/// The names after `**Counters.**` in each section of docs/devices.md.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../docs/devices.md");
    let sections = text.split("\n## ").skip(1);
    let of = |section: &str| {
        let counters = section.split_once("**Counters.**")?.1;
        let counters = counters.split("\n\n").next()?.split("\n- ").next()?;
        let names = counters.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((section.lines().next()?.to_owned(), names.collect()))
    };
    sections.filter_map(of).collect()
}

fn counters(pod: &mut Pod) -> BTreeMap<String, BTreeMap<String, u64>> {
    let counters: Value = pod.api().get("vm.counters").unwrap().json().unwrap();
    serde_json::from_value(counters).unwrap()
}

fn file(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(4 * MIB).unwrap();
    path
}

fn sh(agent: &mut Agent, line: &str) -> String {
    agent.run(&["sh", "-c", line]).unwrap()
}

fn do_step(agent: &mut Agent, step: &Step) {
    agent.must(&Call::Step { step: step.to_string() }).unwrap();
}

/// Has the guest use everything that it has.
fn use_devices(pod: &mut Pod, agent: &mut Agent, folder: &Path) {
    for disk in ["vda", "pmem0"] {
        do_step(agent, &Step::write(disk, MIB, 64 << 10, 3));
        do_step(agent, &Step::read(disk, MIB, 64 << 10));
    }
    do_step(agent, &Step::Random(64));
    agent.mount_share("/tmp/share").unwrap();
    assert_eq!(sh(agent, "cat /tmp/share/hello"), "hello");
    sh(agent, "mkdir /tmp/own && mount -t virtiofs own /tmp/own");
    use_files(agent, &folder.join("own"));
    sh(
        agent,
        "ip link set eth0 up && ip addr add 10.0.0.2/24 dev eth0 && ping -c 1 10.0.0.1",
    );
    sh(agent, "echo out > /dev/hvc0 && echo out > /dev/ttyS0");
    let late = file(folder, "late");
    let late: PciDevice = pod.add_disk(&late).unwrap();
    pod.remove(&late).unwrap();
    pod.resize_to_the_same().unwrap();
    for command in ["vm.pause", "vm.resume", "vm.power-button"] {
        pod.api().put(command, None).unwrap().done().unwrap();
    }
    sh(agent, "true");
}

/// What a shell can ask of files, in the share that husk serves; the host finds what is left.
fn use_files(agent: &mut Agent, own: &Path) {
    assert_eq!(sh(agent, "cat /tmp/own/hello"), "hello");
    sh(
        agent,
        "set -e; cd /tmp/own
         mkdir folder; echo one > folder/a; echo two >> folder/a; ln folder/a folder/b; ln -s a folder/c; mkfifo folder/p
         mv folder/b b; chmod 600 b; chown 7:8 b; touch -d @1000000000 b; truncate -s 100 b; ls -lR > /dev/null; df . > /dev/null
         cat folder/c > /dev/null; dd if=/dev/zero of=z bs=4k count=3 conv=fsync 2> /dev/null; sync -f .
         rm -r folder z; stat -c '%u %g %s %a' b > left",
    );
    assert_eq!(fs::read_to_string(own.join("left")).unwrap(), "7 8 100 600\n");
    let mut names: Vec<_> = fs::read_dir(own)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["b", "hello", "left"]);
}

#[test]
fn every_kind_of_device_works_and_counts_what_is_documented() {
    if own_network().is_err() {
        println!("skipped: needs a network namespace");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let own = folder.path().join("own");
    fs::create_dir(&own).unwrap();
    for share in [&shared, &own] {
        fs::write(share.join("hello"), "hello").unwrap();
    }
    let server = FileServer::start(&shared, &folder.path().join("virtiofsd.sock")).unwrap();
    let tap = Tap::new("kinds", false, "10.0.0.1/24");
    let shape = Shape {
        debug: true,
        share: Some(server.socket().into()),
        ..Shape::new(
            Shim::Rust,
            kernel_file("6.12", "vmlinux"),
            kernel_file("6.12", "pod.cpio"),
        )
    };
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let mut body = pod.shape().create(&pod.vsock());
    body["disks"] = json!([{"path": file(folder.path(), "disk")}]);
    body["pmem"] = json!([{"file": file(folder.path(), "pmem")}]);
    body["balloon"] = json!({"size": 0});
    let files = json!({"tag": "own", "dir": own, "id": "files", "xattr": true});
    body["fs"].as_array_mut().unwrap().push(files);
    body["console"] = json!({"mode": "File", "file": folder.path().join("console")});
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.add_net(&File::from(tap.open())).unwrap();
    pod.boot().unwrap();
    let (mut agent, _) = pod.agent().unwrap();
    use_devices(&mut pod, &mut agent, folder.path());
    let counted = counters(&mut pod);
    let documented = documented();
    let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (section, device) in SECTIONS {
        let names = documented.get(section);
        let mut names = names
            .unwrap_or_else(|| panic!("docs/devices.md: no counters in {section}"))
            .clone();
        if !OTHERS.contains(&device) {
            names.insert("failures".into());
        }
        expected.insert(device.into(), names);
    }
    let unknown: Vec<_> = documented
        .keys()
        .filter(|section| SECTIONS.iter().all(|(known, _)| known != section))
        .collect();
    assert!(
        unknown.is_empty(),
        "sections of docs/devices.md that nothing here has: {unknown:?}"
    );
    for (device, names) in &expected {
        let found = counted
            .get(device)
            .unwrap_or_else(|| panic!("nothing counted for {device}: {counted:?}"));
        assert_eq!(&found.keys().cloned().collect::<BTreeSet<_>>(), names, "{device}");
    }
    let told = pod.api().get("vmm.metrics").unwrap().body.unwrap();
    for (device, names) in expected.iter().filter(|(device, _)| *device != "__vcpu0") {
        let of_device = format!("device=\"{device}\"");
        for name in names.iter().filter(|name| *name != "failures") {
            let is_it =
                |series: &str| series.ends_with(&format!("_{name}_total")) || series.ends_with(&format!("_{name}"));
            let mut series = told.lines().filter_map(|line| line.split_once('{'));
            assert!(
                series.any(|(series, labels)| is_it(series) && labels.contains(&of_device)),
                "{name} of {device} is not told to Prometheus: {told}"
            );
        }
    }
    for device in ["_disk0", "_pmem0", "_net0", "_vsock0", "__rng", "__console"] {
        for what in ["chains", "wakeups", "interrupts"] {
            let mut series = told.lines().filter(|line| {
                line.starts_with(&format!("husk_queue_{what}_total{{device=\"{device}\",kind="))
                    && !line.ends_with(" 0")
            });
            assert!(series.next().is_some(), "no {what} of any queue of {device}: {told}");
        }
    }
    assert!(
        !told.contains("husk_queue_chains_total{device=\"_fs0\""),
        "its back-end counts for itself"
    );
    let at_work = [
        ("_disk0", "write_bytes"),
        ("_pmem0", "flushes"),
        ("_net0", "rx_frames"),
        ("_net0", "tx_frames"),
        ("_vsock0", "host_streams"),
        ("_fs0", "starts"),
        ("files", "requests"),
        ("__rng", "bytes"),
        ("__console", "tx_bytes"),
        ("__serial", "tx_bytes"),
        ("__vcpu0", "exits"),
        ("__vcpu0", "halt_exits"),
    ];
    for (device, counter) in at_work {
        assert!(counted[device][counter] > 0, "{counter} of {device}");
    }
    pod.stop().unwrap();
}
