//! Persistent memory: what the guest stores is in the file after its flush, unless it is not to be kept.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use husk_guest::{Answer, Step, pattern};
use husk_tests::{Boot, Ended, Image};

const MIB: u64 = 1 << 20;
const AT: u64 = 3 * MIB;
const LENGTH: u64 = 64 << 10;
const SEED: u64 = 5;

fn steps() -> [Step; 3] {
    [
        Step::write("pmem0", AT, LENGTH, SEED),
        Step::read("pmem0", AT, LENGTH),
        Step::PowerOff,
    ]
}

/// Boots with a file of 4 MiB as persistent memory; returns how it ended and what is in the file where the guest wrote.
fn stores(boot: Boot, options: &str) -> (Ended, Vec<u8>) {
    let path = boot.folder().join("pmem");
    let file = File::create_new(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    let pmem = format!("file={}{options}", path.display());
    let ended = boot.arguments(["--pmem", &pmem]).run();
    ended.assert_code(0).assert_nothing_refused();
    let mut stored = vec![0; usize::try_from(LENGTH).unwrap()];
    File::open(&path).unwrap().read_exact_at(&mut stored, AT).unwrap();
    (ended, stored)
}

fn written() -> Vec<u8> {
    pattern::bytes(SEED, usize::try_from(LENGTH).unwrap())
}

/// The guest read back what it wrote.
fn assert_read_back(ended: &Ended) {
    let expected = pattern::checksum(&written());
    let sums = ended.answers.iter().filter_map(|answer| match answer {
        Answer::Data { checksum, .. } => Some(*checksum),
        _ => None,
    });
    assert_eq!(sums.collect::<Vec<_>>(), [expected, expected]);
}

#[test]
fn what_the_guest_stores_is_in_the_file() {
    let (ended, stored) = stores(Boot::new(steps()), "");
    assert_read_back(&ended);
    assert!(stored == written());
}

#[test]
fn the_older_kernel_stores_too() {
    let (ended, stored) = stores(Boot::new(steps()).kernel("6.1", Image::BzImage), ",size=4M");
    assert_read_back(&ended);
    assert!(stored == written());
}

#[test]
fn discarded_writes_are_the_guests_alone() {
    let (ended, stored) = stores(Boot::new(steps()), ",discard_writes=on");
    assert_read_back(&ended);
    assert!(stored.iter().all(|byte| *byte == 0));
}

/// The file is shortened under a guest that then touches what is gone: in the kernel, with interrupts on.
fn touches_what_is_gone(touch: Step) {
    let near = Step::read("pmem0", 0, LENGTH);
    let boot = Boot::new([near, Step::Echo, touch, Step::PowerOff]);
    let path = boot.folder().join("pmem");
    let file = File::create_new(&path).unwrap();
    file.set_len(4 * MIB).unwrap();
    let pmem = format!("file={}", path.display());
    let mut guest = boot.arguments(["--pmem", &pmem]).start();
    assert!(matches!(guest.answer(), Answer::Data { .. }));
    file.set_len(MIB).unwrap();
    guest.type_text("end\n");
    let ended = guest.wait();
    ended.assert_code(1);
    let said = &ended.errors;
    for word in [path.to_str().unwrap(), "has nothing behind it", "guest address 0x"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
fn a_guest_that_writes_where_the_file_has_ended_is_told_of_and_ends() {
    touches_what_is_gone(Step::write("pmem0", AT, LENGTH, SEED));
}

#[test]
fn a_guest_that_reads_where_the_file_has_ended_is_told_of_and_ends() {
    touches_what_is_gone(Step::read("pmem0", AT, LENGTH));
}
