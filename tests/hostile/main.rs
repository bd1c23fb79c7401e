//! A guest with root's rights behind the back of its own drivers: it writes to a device's registers while the driver uses it.
//! The VMM and every other device go on.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::PciDevice;
use husk_tests::pod::{self, Launch, Pod};
use husk_tests::{found, kernel_file, until};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Registers of the common configuration, with their widths in bits (virtio 1.2 §4.1.4.3). The structure is at the beginning of BAR 0.
const FEATURE_SELECT: (u64, u8) = (0x08, 32);
const FEATURE: (u64, u8) = (0x0c, 32);
const STATUS: (u64, u8) = (0x14, 8);
const QUEUE_SELECT: (u64, u8) = (0x16, 16);
const QUEUE_SIZE: (u64, u8) = (0x18, 16);
const QUEUE_VECTOR: (u64, u8) = (0x1a, 16);
const QUEUE_ENABLE: (u64, u8) = (0x1c, 16);
/// Both halves of `queue_desc`, `queue_driver` and `queue_device`.
const QUEUE_ADDRESSES: [(u64, u8); 6] = [(0x20, 32), (0x24, 32), (0x28, 32), (0x2c, 32), (0x30, 32), (0x34, 32)];
/// The first queue's doorbell.
const DOORBELL: (u64, u8) = (0x3000, 16);

/// `DRIVER_OK` and what comes before it; `DEVICE_NEEDS_RESET` (virtio 1.2 §2.1).
const ALL_SET: u64 = 0x0f;
const NEEDS_RESET: u64 = 0x40;
/// An address where no guest of this size has RAM.
const NOWHERE: u64 = 0xd000_0000;

struct Lab {
    folder: TempDir,
    pod: Pod,
    agent: Agent,
}

impl Lab {
    /// A pod whose kernel lets root write where a driver works.
    fn start() -> Self {
        Self::with_disks(&[], "")
    }

    /// The same with disks of these names from the start, and more on the kernel's command line.
    fn with_disks(names: &[&str], params: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (kernel_file("6.12", "vmlinux"), kernel_file("6.12", "pod.cpio"));
        let shape = Shape {
            kernel_params: format!("iomem=relaxed {params}"),
            ..Shape::new(Shim::Rust, kernel, initramfs)
        };
        let launch = Launch {
            with_events: true,
            ..Launch::default()
        };
        let mut pod = Pod::launch_with(shape, folder.path(), launch).unwrap();
        pod.create().unwrap();
        for name in names {
            let image = folder.path().join(name);
            File::create(&image).unwrap().set_len(4 * MIB).unwrap();
            let body = json!({"path": image, "id": name});
            pod.api().put("vm.add-disk", Some(&body)).unwrap().done().unwrap();
        }
        pod.boot().unwrap();
        let agent = pod.agent().unwrap().0;
        Self { folder, pod, agent }
    }

    fn disk(&mut self, name: &str) -> Disk {
        let image = self.folder.path().join(name);
        File::create(&image).unwrap().set_len(4 * MIB).unwrap();
        let device = self.pod.add_disk(&image).unwrap();
        let bdf = device.bdf.clone();
        let Reply::Device { name, .. } = self.agent.must(&Call::DiskAt { bdf }).unwrap() else {
            panic!("no disk at {}", device.bdf);
        };
        let text = self.sh(&format!("head -n 1 /sys/bus/pci/devices/{}/resource", device.bdf));
        let bar = text.split(' ').next().unwrap().trim_start_matches("0x");
        Disk {
            bar: u64::from_str_radix(bar, 16).unwrap(),
            name,
            image,
            device,
        }
    }

    fn sh(&mut self, script: &str) -> String {
        match self.agent.must(&Call::run(&["/bin/sh", "-c", script])).unwrap() {
            Reply::Ran { code: 0, stdout, .. } => stdout,
            other => panic!("{script}: {other:?}"),
        }
    }

    /// Writes registers of a device, in this order.
    fn poke(&mut self, disk: &Disk, writes: &[((u64, u8), u64)]) {
        let line =
            |((offset, bits), value): &((u64, u8), u64)| format!("devmem {:#x} {bits} {value:#x}", disk.bar + offset);
        let script: Vec<String> = writes.iter().map(line).collect();
        self.sh(&script.join(" && "));
    }

    fn peek(&mut self, disk: &Disk, (offset, bits): (u64, u8)) -> u64 {
        let text = self.sh(&format!("devmem {:#x} {bits}", disk.bar + offset));
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
    }

    /// Writes through the guest and finds it in the file.
    fn works(&mut self, disk: &Disk, seed: u64) {
        let step = Step::write(&disk.name, MIB, 64 << 10, seed);
        let reply = self.agent.must(&Call::step(&step)).unwrap();
        assert!(
            matches!(
                reply,
                Reply::Answer {
                    answer: Answer::Data { .. }
                }
            ),
            "{reply:?}"
        );
        assert!(
            read(&disk.image) == pattern::bytes(seed, 64 << 10),
            "{} lost a write",
            disk.name
        );
    }

    fn counter(&mut self, disk: &Disk, name: &str) -> u64 {
        let all: Value = self.pod.api().get("vm.counters").unwrap().json().unwrap();
        all[&disk.device.id][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {all}"))
    }
}

struct Disk {
    device: PciDevice,
    name: String,
    image: PathBuf,
    bar: u64,
}

fn read(image: &Path) -> Vec<u8> {
    let mut found = vec![0; 64 << 10];
    File::open(image).unwrap().read_exact_at(&mut found, MIB).unwrap();
    found
}

#[test]
fn a_hostile_guest_cannot_change_a_queue_that_runs() {
    let mut lab = Lab::start();
    let disk = lab.disk("disk");
    lab.works(&disk, 1);
    lab.poke(&disk, &[(QUEUE_SELECT, 0)]);
    let watched: Vec<(u64, u8)> = [QUEUE_SIZE, QUEUE_ENABLE, STATUS]
        .into_iter()
        .chain(QUEUE_ADDRESSES)
        .collect();
    let before: Vec<u64> = watched.iter().map(|register| lab.peek(&disk, *register)).collect();
    for value in [0, 1, 3, 0x7fff, 0xffff] {
        lab.poke(&disk, &[(QUEUE_SIZE, value), (QUEUE_ENABLE, value)]);
        lab.poke(&disk, &QUEUE_ADDRESSES.map(|register| (register, 0xffff_f000 | value)));
        // No queue of its own: nothing to be changed, and nothing to be reached.
        lab.poke(
            &disk,
            &[
                (QUEUE_SELECT, 0xffff),
                (QUEUE_SIZE, value),
                (QUEUE_ENABLE, 1),
                (QUEUE_SELECT, 0),
            ],
        );
        let after: Vec<u64> = watched.iter().map(|register| lab.peek(&disk, *register)).collect();
        assert_eq!(after, before, "after {value:#x}");
    }
    // Steps back, and bits that only the device may set.
    lab.poke(&disk, &[(STATUS, 1), (STATUS, 3), (STATUS, ALL_SET | NEEDS_RESET)]);
    assert_eq!(lab.peek(&disk, STATUS), ALL_SET);
    lab.works(&disk, 2);
    assert_eq!(lab.counter(&disk, "failures"), 0);
    lab.pod.stop().unwrap();
}

#[test]
fn a_disk_that_is_not_bus_master_waits_and_goes_on() {
    let mut lab = Lab::start();
    let disk = lab.disk("disk");
    lab.works(&disk, 1);
    let command = format!("/sys/bus/pci/devices/{}/config", disk.device.bdf);
    let set = |value: u8| format!("printf '\\{value:03o}' | dd of={command} bs=1 seek=4 conv=notrunc 2>/dev/null");
    let found = lab.sh(&format!(
        "{clear}; dd if=/dev/{name} of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null & reader=$!; \
         sleep 1; kill -0 $reader && echo waits; {set}; wait $reader && echo goes on",
        clear = set(2),
        set = set(6),
        name = disk.name,
    ));
    assert_eq!(found, "waits\ngoes on\n");
    lab.works(&disk, 2);
    assert_eq!(lab.counter(&disk, "failures"), 0);
    lab.pod.stop().unwrap();
}

#[test]
fn a_hostile_guest_ruins_one_device_and_no_other() {
    let mut lab = Lab::start();
    let (ruined, whole) = (lab.disk("ruined"), lab.disk("whole"));
    lab.works(&ruined, 1);
    // A reset while the driver reads and waits, again and again, and doorbells all the time.
    lab.sh(&format!(
        "for i in 1 2 3 4; do dd if=/dev/{} of=/dev/null bs=64k iflag=direct >/dev/null 2>&1 & done",
        ruined.name
    ));
    for _ in 0..5 {
        lab.poke(
            &ruined,
            &[
                (STATUS, 0),
                (DOORBELL, 0),
                (STATUS, 1),
                (STATUS, ALL_SET),
                (DOORBELL, 0xffff),
            ],
        );
    }
    lab.works(&whole, 2);
    // A driver that agrees on VERSION_1 and has its rings where there is no RAM.
    lab.poke(&ruined, &[(STATUS, 0)]);
    until(|| lab.peek(&ruined, STATUS) == 0);
    lab.poke(
        &ruined,
        &[
            (STATUS, 1),
            (STATUS, 3),
            (FEATURE_SELECT, 0),
            (FEATURE, 0),
            (FEATURE_SELECT, 1),
            (FEATURE, 1),
            (STATUS, 0xb),
        ],
    );
    assert_eq!(lab.peek(&ruined, STATUS), 0xb, "the features are agreed on");
    lab.poke(&ruined, &[(QUEUE_SELECT, 0), (QUEUE_SIZE, 3), (QUEUE_VECTOR, 0xfff0)]);
    assert_ne!(lab.peek(&ruined, QUEUE_SIZE), 3, "no power of two");
    let [desc, _, driver, _, device, _] = QUEUE_ADDRESSES;
    lab.poke(
        &ruined,
        &[
            (desc, NOWHERE),
            (driver, NOWHERE),
            (device, NOWHERE),
            (QUEUE_ENABLE, 1),
            (STATUS, ALL_SET),
        ],
    );
    lab.poke(&ruined, &[(DOORBELL, 0)]);
    assert_eq!(lab.peek(&ruined, STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert!(lab.counter(&ruined, "failures") > 0);
    // All ones everywhere.
    let everywhere: Vec<_> = (0..0x40).step_by(4).map(|offset| ((offset, 32), 0xffff_ffff)).collect();
    lab.poke(&ruined, &everywhere);
    lab.works(&whole, 3);
    assert_eq!(lab.counter(&whole, "failures"), 0);
    lab.pod.one_more().unwrap();
    lab.pod.stop().unwrap();
}

/// Registers of a bank of hot-plug slots (`hotplug/src/bank.rs`).
const TAKE: u64 = 0x00;
const EJCT: u64 = 0x04;
const SIGN: u64 = 0x08;
const OSTR: u64 = 0x10;
/// The banks (`firmware/src/layout.rs`).
const PCI_BANK: u64 = 0xfeb0_1000;
const CPU_BANK: u64 = 0xfeb0_2000;
const MEMORY_BANK: u64 = 0xfeb0_3000;
/// `Device in use by application` (ACPI 6.5 §6.3.5.2), an answer to an ejection request.
const DEVICE_BUSY: u64 = 0x82;
const EJECT_REQUEST: u64 = 3;

/// The PCI slot of a disk that the guest has had since its start.
fn slot_of(lab: &mut Lab, disk: &str) -> u64 {
    let path = lab.sh(&format!("readlink -f /sys/block/{disk}/device"));
    let (_, place) = path.split_once("/pci0000:00/0000:00:").expect("it is on bus 0");
    u64::from_str_radix(&place[..2], 16).unwrap()
}

/// Writes a register of the bank.
fn tell_bank(lab: &mut Lab, register: u64, bits: u32, value: u64) {
    let address = PCI_BANK + register;
    lab.sh(&format!("devmem {address:#x} {bits} {value:#x}"));
}

/// Waits until the VMM has told of something about a device; what else it says of that.
fn told(lab: &Lab, event: &str, id: &str) -> Value {
    found(|| {
        let events = pod::events(lab.folder.path()).unwrap();
        let of = |of: &&Value| of["event"] == event && of["properties"]["id"] == id;
        let found = events.iter().find(of);
        found.map_or_else(
            || Err(format!("no {event} of {id}: {events:#?}")),
            |found| Ok(found["properties"].clone()),
        )
    })
}

#[test]
fn a_removal_that_the_guest_refuses_or_ignores_is_told_and_may_still_be_answered() {
    // Without its hot-plug driver the guest has nobody who would answer, but root, whom page attributes would keep from the registers.
    let mut lab = Lab::with_disks(&["refused", "ignored"], "acpiphp.disable=1 nopat");
    let [refused, ignored] = ["vda", "vdb"].map(|disk| slot_of(&mut lab, disk));
    for id in ["refused", "ignored"] {
        let body = json!({"id": id});
        lab.pod
            .api()
            .put("vm.remove-device", Some(&body))
            .unwrap()
            .done()
            .unwrap();
    }
    tell_bank(&mut lab, OSTR, 64, DEVICE_BUSY << 32 | EJECT_REQUEST << 16 | refused);
    let properties = told(&lab, "device-refused", "refused");
    assert_eq!(properties["request"], "remove");
    assert_eq!(properties["code"], DEVICE_BUSY);
    let properties = told(&lab, "device-unanswered", "ignored");
    assert_eq!(properties["request"], "remove");
    // Both are still there, and work.
    let read = "dd if=/dev/vda of=/dev/null bs=64k iflag=direct && dd if=/dev/vdb of=/dev/null bs=64k iflag=direct";
    lab.sh(read);
    // Late, but an answer.
    tell_bank(&mut lab, EJCT, 32, ignored);
    told(&lab, "device-removed", "ignored");
    let events = pod::events(lab.folder.path()).unwrap();
    let count = |event: &str| events.iter().filter(|of| of["event"] == event).count();
    let counts = ["device-refused", "device-unanswered", "device-removed"].map(count);
    assert_eq!(counts, [1, 1, 1], "{events:#?}");
    lab.pod.stop().unwrap();
}

/// Numbers that are the same each time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.next() % of.len() as u64).unwrap()]
    }
}

/// One access of a guest to the banks that nobody has asked for: an event that is stolen, a report about anything, a slot that is let go
/// of.
fn hostile_access(numbers: &mut Numbers) -> String {
    let bank = numbers.one_of(&[PCI_BANK, CPU_BANK, CPU_BANK, MEMORY_BANK, MEMORY_BANK]);
    let slot = numbers.one_of(&[0, 1, 2, 3, 4, 7, 8, 31, 32, 63, 0xfff, 0xffff]);
    let write = |register: u64, bits: u32, value: u64| format!("devmem {:#x} {bits} {value:#x}", bank + register);
    match numbers.next() % 10 {
        0 => format!("devmem {:#x} 32 >/dev/null", bank + TAKE),
        1..=3 => {
            let register = numbers.one_of(&[EJCT, EJCT, SIGN]);
            write(register, 32, slot)
        }
        4..=7 => {
            let source = numbers.one_of(&[0, 1, EJECT_REQUEST, 0x103, 0x200, 0xffff]);
            let status = numbers.one_of(&[0, 1, 0x80, DEVICE_BUSY, 0x84, u64::from(u32::MAX)]);
            write(OSTR, 64, status << 32 | source << 16 | slot)
        }
        _ => {
            let offset = 8 * (numbers.next() % 0x20);
            let bits = numbers.one_of(&[8, 16, 32, 64]);
            write(offset, bits, numbers.next() & (u64::MAX >> (64 - bits)))
        }
    }
}

/// What it has not brought online it does not use, so nothing that it says can hurt the guest itself.
#[test]
fn a_guest_that_writes_hot_plug_registers_at_random_hurts_nobody_else() {
    let mut lab = Lab::with_disks(&["whole"], "nopat memhp_default_state=offline");
    let mut hand = lab.pod.one_more().unwrap();
    let writer = thread::spawn(move || {
        let mut numbers = Numbers(0x5eed_0f57_0a11);
        for _ in 0..8 {
            let accesses: Vec<String> = (0..40).map(|_| hostile_access(&mut numbers)).collect();
            let script = accesses.join("; ");
            hand.must(&Call::run(&["/bin/sh", "-c", &script])).unwrap();
        }
    });
    let mut numbers = Numbers(0xb16_b00b5);
    let mut resizes = 0;
    while !writer.is_finished() || resizes < 8 {
        let (vcpus, blocks) = (1 + numbers.next() % 8, numbers.next() % 8);
        let body = json!({"desired_vcpus": vcpus, "desired_ram": (256 + 128 * blocks) * MIB});
        let answer = lab.pod.put("vm.resize", Some(&body)).unwrap();
        match answer.status {
            204 => answer.done().unwrap(),
            _ => assert!(!answer.failure(500).unwrap().is_empty(), "{answer:?}"),
        }
        // Nothing that it does keeps the pod from its work.
        let step = Step::write("vda", MIB, 64 << 10, resizes);
        lab.agent.must(&Call::step(&step)).unwrap();
        let found = read(&lab.folder.path().join("whole"));
        assert!(found == pattern::bytes(resizes, 64 << 10), "the disk lost a write");
        resizes += 1;
    }
    writer.join().unwrap();
    let counters: Value = lab.pod.api().get("vm.counters").unwrap().json().unwrap();
    assert!(counters["__hotplug"]["ignored_writes"].as_u64() > Some(0), "{counters}");
    assert_eq!(counters["whole"]["failures"], 0, "{counters}");
    // Host and guest can still add up, and nobody has lost the processor that the pod began with.
    let status: Value = lab.pod.api().get("vm.resize-status").unwrap().json().unwrap();
    assert_eq!(status["vcpus"]["states"][0], "online", "{status}");
    let states = status["vcpus"]["states"].as_array().unwrap();
    assert_eq!(states.len(), 8, "{status}");
    assert!(!status["last"]["outcome"].is_null(), "{status}");
    lab.pod.info().unwrap();
    lab.pod.one_more().unwrap();
    let stopped = lab.pod.stop().unwrap();
    assert!(stopped.status.success(), "{stopped:?}");
}

/// Waits until the memory slots that are not empty are as `is` wants them, by `vm.resize-status`.
fn dimms(lab: &mut Lab, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    found(|| {
        let status: Value = lab.pod.api().get("vm.resize-status").unwrap().json().unwrap();
        let dimms = status["memory"]["dimms"].as_array().unwrap();
        if is(dimms) { Ok(dimms.clone()) } else { Err(status) }
    })
}

#[test]
fn memory_that_has_gone_reads_as_ones_and_touching_it_is_harmless() {
    // What is offline the guest's kernel does not use, and lets go of at once.
    let mut lab = Lab::with_disks(&["whole"], "nopat memhp_default_state=offline");
    let resize = |lab: &mut Lab, mib: u64| {
        let body = json!({"desired_ram": mib * MIB});
        lab.pod.put("vm.resize", Some(&body)).unwrap().done().unwrap();
    };
    resize(&mut lab, 384);
    let there = dimms(&mut lab, |dimms| dimms.len() == 1 && dimms[0]["state"] == "present");
    let [base, bytes] = ["base", "bytes"].map(|name| there[0][name].as_u64().unwrap());
    assert_eq!(bytes, 128 * MIB);
    resize(&mut lab, 256);
    dimms(&mut lab, <[Value]>::is_empty);
    let (middle, last, never) = (base + bytes / 2, base + bytes - 1, base + (16 << 30));
    let found = lab.sh(&format!(
        "devmem {base:#x} 32; devmem {middle:#x} 32 0x12345678; devmem {middle:#x} 32; devmem {last:#x} 8; devmem {never:#x} 64"
    ));
    assert_eq!(found, "0xFFFFFFFF\n0xFFFFFFFF\n0xFF\n0xFFFFFFFFFFFFFFFF\n");
    lab.agent
        .must(&Call::step(&Step::write("vda", MIB, 64 << 10, 1)))
        .unwrap();
    assert!(read(&lab.folder.path().join("whole")) == pattern::bytes(1, 64 << 10));
    resize(&mut lab, 384);
    dimms(&mut lab, |dimms| dimms.len() == 1 && dimms[0]["state"] == "present");
    assert!(lab.pod.stop().unwrap().status.success());
}
