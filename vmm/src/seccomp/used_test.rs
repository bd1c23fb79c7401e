//! Every rule is there for somebody: for a thread that was seen to make the call, or for a reason that is given here.
//!
//! `used.txt` is what the host's kernel has counted while guest-driven tests ran (`tests/lab/src/calls.rs`):
//!
//! ```sh
//! HUSK_TEST_CALLS=1 cargo lab test --guests-only kinds | sed -n 's/^call: //p' | sort -u - vmm/src/seccomp/used.txt
//! ```
//!
//! What a share's threads make (`files`), and the first thread when it opens a folder, was seen
//! under strace in `machine/fs_test.rs`, which asks for everything that FUSE has.

use std::collections::BTreeSet;

use super::policy::{Policy, Rule, Test, Values};
use super::requests as r;
use super::tables::{self, GROUPS};

const RECORD: &str = include_str!("used.txt");

/// Devices with an I/O thread, as the record names their threads.
const IO: [&str; 10] = [
    "disk", "net", "fs", "files", "vsock", "pmem", "mem", "balloon", "rng", "console",
];

/// Whose rules a group's are.
fn threads(group: &str) -> &'static [&'static str] {
    match group {
        "EVERY" => &[
            "husk", "spawner", "vcpu", "loader", "api", "disk", "net", "fs", "files", "vsock", "pmem", "mem",
            "balloon", "rng", "console", "writer",
        ],
        "THREADS" => &["husk", "spawner"],
        "SETUP" | "IO" => &IO,
        "BLOCK" => &["disk"],
        "NET" => &["net"],
        "PMEM" => &["pmem"],
        "VSOCK" => &["vsock"],
        "VHOST" => &["net", "vsock"],
        "FS" => &["fs"],
        // A process that the record does not look at.
        "FILE_SERVER" => &[],
        "FILES" | "FILES_SETUP" | "FILES_WALLS" => &["files"],
        "MEM" => &["mem"],
        "BALLOON" => &["balloon"],
        "VCPU" | "VCPU_SETUP" => &["vcpu"],
        "LOADER" => &["loader"],
        "API" => &["api"],
        "WRITER" => &["writer"],
        "CONTROL" | "EVENT_LOOP" => &["husk"],
        _ => panic!("whose are the rules of {group}?"),
    }
}

/// A call of a group, and the argument that its rule looks at: one for each value.
type Use = (&'static str, u32, Option<u32>);

fn uses(group: &'static str, rule: &Rule) -> Vec<Use> {
    let call = u32::try_from(rule.call).unwrap();
    match rule.checks {
        [check] if check.mask == u32::MAX => match check.values {
            Values::Of(values) => values.iter().map(|value| (group, call, Some(*value))).collect(),
            Values::OwnPid => vec![(group, call, None)],
        },
        _ => vec![(group, call, None)],
    }
}

fn all_uses() -> BTreeSet<Use> {
    let rules = GROUPS
        .into_iter()
        .flat_map(|(group, rules)| rules.iter().map(move |rule| (group, rule)));
    rules.flat_map(|(group, rule)| uses(group, rule)).collect()
}

/// Lines of the record as thread, call, argument.
fn record() -> BTreeSet<(&'static str, u32, Option<u32>)> {
    let parse = |line: &'static str| {
        let mut words = line.split(' ');
        let thread = words.next()?;
        let mut numbers = words.map(|word| word.parse().unwrap());
        Some((thread, numbers.next()?, numbers.next()))
    };
    RECORD.lines().map(|line| parse(line).unwrap()).collect()
}

fn is_seen(record: &BTreeSet<(&'static str, u32, Option<u32>)>, of: Use) -> bool {
    let (group, call, value) = of;
    threads(group).iter().any(|thread| {
        let mut lines = record.iter().filter(|(by, made, _)| by == thread && *made == call);
        lines.any(|(_, _, with)| value.is_none() || *with == value || with.is_none())
    })
}

#[test]
fn every_rule_is_used_or_has_a_reason() {
    let record = record();
    let excused: BTreeSet<Use> = UNSEEN.iter().map(|(of, _)| *of).collect();
    let without: Vec<Use> = all_uses()
        .into_iter()
        .filter(|of| !is_seen(&record, *of) && !excused.contains(of))
        .collect();
    assert!(
        without.is_empty(),
        "nobody was seen to need these, and no reason is given: {without:?}"
    );
}

#[test]
fn reasons_are_given_for_rules_that_exist_and_are_not_seen() {
    let (record, all) = (record(), all_uses());
    let stale = UNSEEN
        .iter()
        .filter(|(of, _)| !all.contains(of) || is_seen(&record, *of));
    let stale: Vec<_> = stale.collect();
    assert!(stale.is_empty(), "no such rule, or it is seen: {stale:?}");
}

#[test]
fn the_rules_of_every_role_are_those_of_the_groups() {
    let rules: Vec<&[Rule]> = GROUPS.iter().map(|(_, rules)| *rules).collect();
    let whole = Policy::new(&rules, &[], 1);
    let mut all = BTreeSet::new();
    for role in tables::ROLES {
        for (call, ways) in tables::policy(role, 1).allowed() {
            let known = whole
                .allowed()
                .get(call)
                .unwrap_or_else(|| panic!("{role:?}: {call} is of no group"));
            let is_known = |way: &Vec<Test>| known.iter().any(|known| covers(known, way));
            assert!(ways.iter().all(is_known), "{role:?}: {call} {ways:?}");
            all.insert(*call);
        }
    }
    assert!(whole.allowed().keys().eq(all.iter()), "a group is of no role");
}

/// Whether `way` allows no more than `known`.
fn covers(known: &[Test], way: &[Test]) -> bool {
    known.iter().all(|known| {
        let mut same = way
            .iter()
            .filter(|test| (test.arg, test.mask) == (known.arg, known.mask));
        same.any(|test| test.values.iter().all(|value| known.values.contains(value)))
    })
}

#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "numbers of calls and signals are small"
)]
const fn n(number: libc::c_long) -> u32 {
    number as u32
}

/// An argument that is a signal, an option or advice.
const fn with(number: libc::c_int) -> Option<u32> {
    Some(n(number as libc::c_long))
}

const KERNEL: &str = "a device with backend=vhost (tests/net/by_kernel.rs, tests/vsock/vsock_by_kernel.rs)";
const RING_GOES: &str = "a guest with a ring of a device with backend=vhost in persistent memory that goes";
const STANDARD_LIBRARY: &str = "the standard library and malloc, when a lock is contended or a buffer grows";
const LEFT_BEHIND: &str = "a disk whose thread was left behind and is the last to have the image";
const MANY_NODES: &str = "a guest that knows more nodes than there are descriptors for";
const BLOCK_DEVICE: &str = "a disk that is a block device";
const NO_RING: &str = "a host without io_uring";
const VCPU_COMES: &str = "a vCPU that is added while the guest runs, as seen under strace: the record's tests add none";
const MEMORY_COMES: &str = "virtio-mem whose guest plugs memory";
const FILE_SERVER: &str = "husk fs, whose whole process is confined in vmm/tests/fs.rs";
const ATTACHED: &str = "a port that others attach to, confined in vmm/tests/lines.rs";
const FILE_FULL: &str = "a port with a file of limited size that is full (vmm/tests/log.rs)";
const TO_FILE: &str = "a log, events or a port in a file (vmm/tests/writers.rs)";
const MEMORY_GOES: &str = "memory that the guest has given back";

/// What is needed although no test has shown it, and why.
const UNSEEN: &[(Use, &str)] = &[
    (
        ("EVERY", n(libc::SYS_ioctl), Some(r::TCGETS2)),
        "as TCGETS, by newer C libraries",
    ),
    (
        ("EVERY", n(libc::SYS_ioctl), Some(r::TCSETS2)),
        "as TCSETS, by newer C libraries",
    ),
    (
        ("EVERY", n(libc::SYS_writev), None),
        "the C library, before it aborts the process",
    ),
    (("EVERY", n(libc::SYS_sched_yield), None), STANDARD_LIBRARY),
    (("EVERY", n(libc::SYS_mremap), None), STANDARD_LIBRARY),
    (
        ("EVERY", n(libc::SYS_clock_nanosleep), None),
        "waiting for room in a ring of the kernel, for a lock on a folder",
    ),
    (
        ("EVERY", n(libc::SYS_restart_syscall), None),
        "the kernel's own, after a stop by a signal",
    ),
    (("EVERY", n(libc::SYS_fcntl), with(libc::F_GETFD)), "debug assertions"),
    (("WRITER", n(libc::SYS_ftruncate), None), FILE_FULL),
    (("CONTROL", n(libc::SYS_pipe2), None), TO_FILE),
    (("API", n(libc::SYS_shutdown), None), "a client that is turned away"),
    (
        ("API", n(libc::SYS_epoll_create1), None),
        "answers that clients have not read when the process ends",
    ),
    (
        ("EVENT_LOOP", n(libc::SYS_fstat), None),
        "as newfstatat, by newer C libraries",
    ),
    (("EVENT_LOOP", n(libc::SYS_preadv2), None), "keys, or bytes from a pipe"),
    (("EVENT_LOOP", n(libc::SYS_accept4), None), ATTACHED),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::TIOCSPTLCK)), ATTACHED),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::TIOCGPTN)), ATTACHED),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::TIOCGPTPEER)), ATTACHED),
    (("BLOCK", n(libc::SYS_fcntl), with(libc::F_OFD_SETLK)), LEFT_BEHIND),
    (("BLOCK", n(libc::SYS_preadv), None), NO_RING),
    (("BLOCK", n(libc::SYS_pwritev), None), NO_RING),
    (("BLOCK", n(libc::SYS_fdatasync), None), NO_RING),
    (("BLOCK", n(libc::SYS_fallocate), None), NO_RING),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKGETSIZE64)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKSSZGET)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKPBSZGET)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKIOMIN)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKIOOPT)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::TUNSETIFF)), "a tap by its name"),
    (
        ("CONTROL", n(libc::SYS_madvise), with(libc::MADV_MERGEABLE)),
        "memory.mergeable",
    ),
    (
        ("CONTROL", n(libc::SYS_madvise), with(libc::MADV_POPULATE_WRITE)),
        "memory.prefault",
    ),
    (("NET", n(libc::SYS_ioctl), Some(r::TUNSETQUEUE)), "several queue pairs"),
    (("FILES", n(libc::SYS_name_to_handle_at), None), MANY_NODES),
    (("FILES", n(libc::SYS_open_by_handle_at), None), MANY_NODES),
    (("VCPU", n(libc::SYS_epoll_ctl), None), "a console whose output is full"),
    (
        ("VSOCK", n(libc::SYS_socket), with(libc::AF_UNIX)),
        "a guest that dials",
    ),
    (("VSOCK", n(libc::SYS_connect), None), "a guest that dials"),
    (
        ("VSOCK", n(libc::SYS_shutdown), None),
        "half of a stream that is closed",
    ),
    (
        ("VSOCK", n(libc::SYS_fcntl), with(libc::F_DUPFD_CLOEXEC)),
        "dials when descriptors have run out",
    ),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::BLKROGET)), BLOCK_DEVICE),
    (("CONTROL", n(libc::SYS_fallocate), None), MEMORY_GOES),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_GET_LAPIC)), VCPU_COMES),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_GET_REGS)), VCPU_COMES),
    (
        ("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_GET_VCPU_EVENTS)),
        VCPU_COMES,
    ),
    (
        ("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_SET_VCPU_EVENTS)),
        VCPU_COMES,
    ),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_SET_MP_STATE)), VCPU_COMES),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_SET_LAPIC)), VCPU_COMES),
    (
        ("CONTROL", n(libc::SYS_ioctl), Some(r::KVM_SET_DEVICE_ATTR)),
        VCPU_COMES,
    ),
    (("BALLOON", n(libc::SYS_fallocate), None), MEMORY_GOES),
    (("MEM", n(libc::SYS_pread64), None), MEMORY_COMES),
    (("MEM", n(libc::SYS_fallocate), None), MEMORY_GOES),
    (("MEM", n(libc::SYS_prctl), with(libc::PR_SET_VMA)), MEMORY_COMES),
    (
        ("MEM", n(libc::SYS_ioctl), Some(r::KVM_SET_USER_MEMORY_REGION)),
        MEMORY_COMES,
    ),
    (("MEM", n(libc::SYS_madvise), with(libc::MADV_HUGEPAGE)), MEMORY_COMES),
    (("MEM", n(libc::SYS_madvise), with(libc::MADV_DONTDUMP)), MEMORY_COMES),
    (
        ("MEM", n(libc::SYS_madvise), with(libc::MADV_MERGEABLE)),
        "memory.mergeable",
    ),
    (
        ("MEM", n(libc::SYS_madvise), with(libc::MADV_POPULATE_WRITE)),
        "memory.prefault",
    ),
    (
        ("SETUP", n(libc::SYS_ioctl), Some(r::FIONBIO)),
        "a back-end that is connected to anew",
    ),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_NUM)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_ADDR)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_BASE)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_GET_VRING_BASE)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_KICK)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_CALL)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_SET_VRING_ERR)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_NET_SET_BACKEND)), KERNEL),
    (("VHOST", n(libc::SYS_ioctl), Some(r::VHOST_VSOCK_SET_RUNNING)), KERNEL),
    (
        ("VHOST", n(libc::SYS_ioctl), Some(r::TUNSETQUEUE)),
        "several queue pairs",
    ),
    (("SETUP", n(libc::SYS_ioctl), Some(r::VHOST_SET_FEATURES)), KERNEL),
    (("SETUP", n(libc::SYS_ioctl), Some(r::VHOST_SET_MEM_TABLE)), KERNEL),
    (("EVENT_LOOP", n(libc::SYS_ioctl), Some(r::VHOST_SET_MEM_TABLE)), KERNEL),
    (
        ("EVENT_LOOP", n(libc::SYS_ioctl), Some(r::VHOST_NET_SET_BACKEND)),
        RING_GOES,
    ),
    (
        ("EVENT_LOOP", n(libc::SYS_ioctl), Some(r::VHOST_VSOCK_SET_RUNNING)),
        RING_GOES,
    ),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::VHOST_GET_FEATURES)), KERNEL),
    (("CONTROL", n(libc::SYS_ioctl), Some(r::VHOST_SET_OWNER)), KERNEL),
    (
        ("CONTROL", n(libc::SYS_ioctl), Some(r::VHOST_VSOCK_SET_GUEST_CID)),
        KERNEL,
    ),
    (("FILE_SERVER", n(libc::SYS_accept4), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_recvmsg), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_sendmsg), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_shutdown), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_preadv2), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_fcntl), with(libc::F_GETFL)), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_epoll_create1), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_eventfd2), None), FILE_SERVER),
    (("FILE_SERVER", n(libc::SYS_rt_sigaction), with(33)), FILE_SERVER),
];
