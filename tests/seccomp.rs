//! System call filters as the host sees them, on every thread of a VM that works.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Instant;

use husk_guest::{Answer, Step};
use husk_tests::{Boot, Guest, PATIENCE};

const MIB: u64 = 1 << 20;

/// What Linux tells of a thread (proc_pid_status(5)).
struct Confinement {
    /// 0 without a filter, 2 with one.
    mode: u32,
    /// Filters, each on top of the ones before.
    filters: u32,
    no_new_privs: u32,
}

/// The threads of the VMM by name, once those are seen that a working one has: the kernel may end a
/// list early at a thread that goes.
fn threads(guest: &Guest) -> BTreeMap<String, Confinement> {
    let start = Instant::now();
    loop {
        let threads = seen(guest);
        let mut working = ["husk", "spawner", "vcpu0", "vcpu1", "io-disk0", "io-rng"].into_iter();
        let Some(name) = working.find(|name| !threads.contains_key(*name)) else {
            return threads;
        };
        assert!(start.elapsed() < PATIENCE, "no {name} among {:?}", threads.keys());
    }
}

fn seen(guest: &Guest) -> BTreeMap<String, Confinement> {
    let statuses = husk_tests::threads::each(guest.pid(), "status");
    statuses
        .iter()
        .map(|status| {
            let field = |name: &str| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.unwrap_or_else(|| panic!("no {name} in {status}"))
                    .trim()
                    .to_owned()
            };
            let number = |name| field(name).parse().unwrap();
            let confinement = Confinement {
                mode: number("Seccomp"),
                filters: number("Seccomp_filters"),
                no_new_privs: number("NoNewPrivs"),
            };
            (field("Name"), confinement)
        })
        .collect()
}

/// A guest with two processors, a disk that it has used, entropy, and nothing more to do.
fn working(arguments: &[&str]) -> Guest {
    let boot = Boot::new([Step::Random(64), Step::write("vda", 0, MIB, 1), Step::Idle])
        .cpus(2)
        .arguments(arguments);
    let disk = boot.folder().join("disk");
    File::create(&disk).unwrap().set_len(4 * MIB).unwrap();
    let mut guest = boot.disk(&disk, "").start();
    assert!(matches!(guest.answer(), Answer::Random { .. }));
    guest.answer();
    assert!(matches!(guest.answer(), Answer::Bye { .. }));
    guest
}

#[test]
fn every_thread_of_a_working_vm_is_confined() {
    let guest = working(&[]);
    for (name, confinement) in &threads(&guest) {
        assert_eq!(confinement.mode, 2, "{name}");
        assert_eq!(confinement.no_new_privs, 1, "{name}");
        // The parent's, and on top of it that of a role; the first thread has narrowed its own.
        // Threads of the kernel's, of KVM and io_uring, inherit from the thread that made them
        // necessary.
        let is = |kinds: &[&str]| kinds.iter().any(|kind| name.starts_with(kind));
        let expected = match () {
            () if is(&["vcpu", "io-", "husk"]) => 2..=2,
            () if is(&["spawner"]) => 1..=1,
            () => 1..=2,
        };
        assert!(
            expected.contains(&confinement.filters),
            "{name}: {}",
            confinement.filters
        );
    }
}

#[test]
fn seccomp_false_confines_nothing() {
    let guest = working(&["--seccomp", "false"]);
    for (name, confinement) in threads(&guest) {
        assert_eq!((confinement.mode, confinement.filters), (0, 0), "{name}");
    }
}

#[test]
fn seccomp_log_filters_and_lets_the_vm_work() {
    let guest = working(&["--seccomp", "log"]);
    for (name, confinement) in threads(&guest) {
        assert_eq!(confinement.mode, 2, "{name}");
    }
}
