//! The registers of hot-plug slots, written at random and in answer, and memory that has gone.

use std::thread;

use husk_guest::{Call, Step, pattern};
use husk_tests::{found, pod};
use serde_json::{Value, json};

use crate::{Lab, MIB, read};

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
    // Without its hot-plug driver the guest has nobody who would answer, but root, whom page
    // attributes would keep from the registers.
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

/// One access of a guest to the banks that nobody has asked for: an event that is stolen, a report
/// about anything, a slot that is let go of.
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
