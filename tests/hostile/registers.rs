//! The registers of a virtio device, written while its driver works.

use husk_tests::until;

use crate::Lab;

/// Registers of the common configuration, with their widths in bits (virtio 1.2 §4.1.4.3). The
/// structure is at the beginning of BAR 0.
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
