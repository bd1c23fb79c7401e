//! Locks among owners of the guest, with those of the host, and how many there may be.

use super::*;
use crate::fs::filesystem::LockKind::{Read, Unlock, Write};
use crate::fs::filesystem::{LockKind, Locked};
use proptest::prelude::*;

fn range(owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock {
        owner,
        pid: 100 + u32::try_from(owner).unwrap(),
        kind,
        start,
        end,
        whole_file: false,
    }
}

/// The first request of an owner, if he is to wait.
fn waiter(owner: u64, waits: bool) -> Option<Waiter> {
    waits.then_some(Waiter { owner, request: 1 })
}

fn whole(owner: u64, kind: LockKind) -> Lock {
    Lock {
        whole_file: true,
        ..range(owner, kind, 0, u64::MAX)
    }
}

fn opened(share: &Share) -> (Node, Handle) {
    let (entry, opened) = share.create(Node::ROOT, "a", O_RDWR, 0o644).unwrap();
    (entry.node, opened.handle)
}

#[test]
fn owners_exclude_each_other_and_wait() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let set = |lock: Lock, wait| share.tree.setlk(node, handle, &lock, waiter(lock.owner, wait));
    assert_eq!(set(range(1, Write, 10, 19), false), Ok(Locked::Yes));
    assert_eq!(
        set(range(1, Read, 15, 29), false),
        Ok(Locked::Yes),
        "an owner is not in his own way"
    );
    assert_eq!(set(range(2, Read, 0, 9), false), Ok(Locked::Yes));
    assert_eq!(set(range(2, Read, 14, 14), false), Err(Errno::AGAIN));
    assert_eq!(set(range(2, Read, 14, 14), true), Ok(Locked::Later));
    assert_eq!(set(range(2, Read, 15, 40), false), Ok(Locked::Yes));
    assert_eq!(set(range(2, Write, 15, 40), true), Ok(Locked::Later));
    let found = share
        .tree
        .getlk(node, handle, &range(2, Write, 0, 100))
        .unwrap()
        .unwrap();
    assert_eq!((found.owner, found.pid), (1, 101));
    assert_eq!(share.tree.getlk(node, handle, &range(3, Read, 20, u64::MAX)), Ok(None));

    let before = share.tree.lock_generation();
    share.tree.flush(node, handle, 1).unwrap();
    assert_ne!(share.tree.lock_generation(), before);
    assert_eq!(set(range(2, Write, 14, 40), true), Ok(Locked::Yes));
    assert_eq!(set(range(2, Unlock, 0, u64::MAX), false), Ok(Locked::Yes));
    assert_eq!(share.counter("locks"), 0);
    assert_eq!(set(range(9, Unlock, 0, 5), false), Ok(Locked::Yes));
    for wrong in [range(1, Read, 5, 4), range(1, Read, 1 << 63, u64::MAX)] {
        assert_eq!(set(wrong, false), Err(Errno::INVAL));
    }
}

#[test]
fn a_lock_of_the_host_is_seen_and_sees() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(share.host("a"))
        .unwrap();
    let of_host = |kind, start, len| host::Range { kind, start, len };
    host::set_lock(file.as_fd(), of_host(libc::F_WRLCK, 5, 0)).unwrap();
    let set = |lock: Lock| share.tree.setlk(node, handle, &lock, waiter(lock.owner, true));
    assert_eq!(set(range(1, Read, 5, 6)), Ok(Locked::Later));
    assert_eq!(set(range(1, Read, 0, 4)), Ok(Locked::Yes));
    let found = share.tree.getlk(node, handle, &range(1, Read, 0, 9)).unwrap().unwrap();
    assert_eq!(
        (found.owner, found.pid, found.kind, found.start, found.end),
        (0, 0, Write, 5, u64::MAX)
    );
    let theirs = host::find_lock(file.as_fd(), of_host(libc::F_WRLCK, 0, 3)).unwrap();
    assert_eq!(theirs.unwrap().len, 5);
    drop(file);
    assert_eq!(set(range(1, Read, 5, 6)), Ok(Locked::Yes));
}

#[test]
fn a_file_that_nobody_has_open_is_locked_by_nobody() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let second = share.open(node, O_RDWR).unwrap();
    let set = |handle, lock: Lock| share.tree.setlk(node, handle, &lock, None);
    assert_eq!(set(handle, range(1, Write, 0, 9)), Ok(Locked::Yes));
    assert_eq!(set(second, whole(2, Write)), Ok(Locked::Yes));
    let before = share.tree.lock_generation();
    share.tree.release(node, handle, None).unwrap();
    assert_eq!(share.counter("locks"), 1, "another has it open still");
    share.tree.release(node, second, None).unwrap();
    assert_eq!((share.counter("locks"), share.tree.budget.open()), (0, 2));
    assert_ne!(share.tree.lock_generation(), before);
}

/// An owner is a process, whose locks go when the guest says so, or an open file, of which it says
/// only that it is closed.
#[test]
fn an_owner_who_is_an_open_file_goes_with_it() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let second = share.open(node, O_RDWR).unwrap();
    let set = |handle, lock: Lock| share.tree.setlk(node, handle, &lock, None);
    assert_eq!(set(handle, range(1, Write, 0, 9)), Ok(Locked::Yes));
    assert_eq!(set(second, range(2, Write, 0, 9)), Err(Errno::AGAIN));
    // A process that goes on with another descriptor keeps what it has.
    assert_eq!(set(handle, range(3, Write, 20, 29)), Ok(Locked::Yes));
    assert_eq!(set(second, range(3, Write, 30, 39)), Ok(Locked::Yes));
    let before = share.tree.lock_generation();
    share.tree.release(node, handle, None).unwrap();
    assert_ne!(share.tree.lock_generation(), before);
    assert_eq!(set(second, range(2, Write, 0, 9)), Ok(Locked::Yes));
    assert_eq!(set(second, range(2, Write, 20, 20)), Err(Errno::AGAIN));
    assert_eq!(share.counter("locks"), 2);
    share.tree.flush(node, second, 3).unwrap();
    assert_eq!(set(second, range(2, Write, 20, 20)), Ok(Locked::Yes));
}

/// Descriptors of this process that `path` is open for writing by.
fn writers_of(path: &Path) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let writes = |fd: &std::ffi::OsStr| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd)).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("0");
        u32::from_str_radix(flags.trim(), 8).unwrap() & 3 != 0
    };
    let names = descriptors.map(|entry| entry.unwrap().file_name());
    let of_path =
        |fd: &std::ffi::OsString| fs::read_link(Path::new("/proc/self/fd").join(fd)).is_ok_and(|link| link == path);
    names.filter(of_path).filter(|fd| writes(fd)).count()
}

#[test]
fn a_file_is_open_for_writing_only_for_whom_it_is_so_in_the_guest() {
    for readonly in [false, true] {
        let share = Share::with(|config| config.readonly = readonly);
        fs::write(share.host("a"), "content").unwrap();
        let node = share.node("a");
        let handle = share.open(node, O_RDONLY).unwrap();
        let set = |lock: Lock| share.tree.setlk(node, handle, &lock, None);
        assert_eq!(set(range(1, Read, 0, 9)), Ok(Locked::Yes));
        assert_eq!(set(range(1, Write, 0, 9)), Err(Errno::BADF), "as fcntl(2) says");
        assert_eq!(set(whole(2, Write)), Ok(Locked::Yes), "flock(2) asks for nothing");
        assert_eq!(share.counter("locks"), 2);
        assert_eq!(writers_of(&share.host("a")), 0, "read-only: {readonly}");
    }
}

#[test]
fn an_owner_who_reads_first_and_writes_later_keeps_what_he_has() {
    let share = Share::new();
    fs::write(share.host("a"), "content").unwrap();
    let node = share.node("a");
    let (reads, writes) = (share.open(node, O_RDONLY).unwrap(), share.open(node, O_RDWR).unwrap());
    let set = |handle, lock: Lock| share.tree.setlk(node, handle, &lock, None);
    assert_eq!(set(reads, range(1, Read, 0, 9)), Ok(Locked::Yes));
    assert_eq!(set(reads, range(1, Read, 20, u64::MAX)), Ok(Locked::Yes));
    assert_eq!(set(reads, range(2, Read, 5, 5)), Ok(Locked::Yes));
    let before = share.tree.budget.open();
    assert_eq!(set(writes, range(1, Write, 5, 5)), Err(Errno::AGAIN));
    assert_eq!(set(writes, range(1, Write, 12, 14)), Ok(Locked::Yes));
    assert_eq!(share.tree.budget.open(), before);
    let host = fs::File::options()
        .read(true)
        .write(true)
        .open(share.host("a"))
        .unwrap();
    let found = |start| {
        let all = host::Range {
            kind: libc::F_WRLCK,
            start,
            len: 1,
        };
        let found = host::find_lock(host.as_fd(), all).unwrap();
        found.map(|found| (found.kind, found.start, found.len))
    };
    assert_eq!((found(10), found(15)), (None, None));
    assert_eq!(found(13), Some((libc::F_WRLCK, 12, 3)));
    assert_eq!(found(30), Some((libc::F_RDLCK, 20, 0)));
    assert_eq!(found(9), Some((libc::F_RDLCK, 0, 10)));
    share.tree.flush(node, reads, 1).unwrap();
    assert_eq!((found(9), found(13), found(30)), (None, None, None));
}

#[test]
fn a_lock_to_read_has_an_overlay_copy_nothing() {
    if !may_mount() {
        return;
    }
    let share = Share::new();
    for name in ["lower", "upper", "work"] {
        fs::create_dir(share.outside(name)).unwrap();
    }
    fs::write(share.outside("lower/a"), "content").unwrap();
    fs::create_dir(share.host("merged")).unwrap();
    let options = ["lower", "upper", "work"]
        .map(|name| format!("{name}dir={}", share.outside(name).display()))
        .join(",");
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "none"])
        .arg(share.host("merged"))
        .output();
    if !mounted.unwrap().status.success() {
        eprintln!("skipped: needs overlayfs");
        return;
    }
    let merged = share.node("merged");
    let node = share.lookup(merged, "a").unwrap().node;
    let copied = || fs::read_dir(share.outside("upper")).unwrap().count();
    let handle = share.open(node, O_RDONLY).unwrap();
    let set = |handle, lock: Lock| share.tree.setlk(node, handle, &lock, None);
    assert_eq!(set(handle, range(1, Read, 0, 9)), Ok(Locked::Yes));
    assert_eq!(set(handle, whole(2, Write)), Ok(Locked::Yes));
    assert_eq!(copied(), 0);
    let writes = share.open(node, O_RDWR).unwrap();
    assert_eq!(copied(), 1);
    assert_eq!(set(writes, range(3, Write, 5, 5)), Err(Errno::AGAIN));
    assert_eq!(set(writes, range(1, Write, 5, 5)), Ok(Locked::Yes));
}

/// Threads of one process are one owner: what one gives up must not take what another just got.
#[test]
fn threads_of_one_owner_keep_what_they_were_granted() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let host = fs::File::options()
        .read(true)
        .write(true)
        .open(share.host("a"))
        .unwrap();
    std::thread::scope(|scope| {
        for byte in 0..3 {
            let (share, host) = (&share, &host);
            scope.spawn(move || {
                let set = |kind| {
                    share
                        .tree
                        .setlk(node, handle, &range(1, kind, byte * 8, byte * 8), None)
                };
                let of_host = host::Range {
                    kind: libc::F_WRLCK,
                    start: i64::try_from(byte * 8).unwrap(),
                    len: 1,
                };
                for round in 0..3000 {
                    assert_eq!(set(Write), Ok(Locked::Yes));
                    assert!(
                        host::find_lock(host.as_fd(), of_host).unwrap().is_some(),
                        "round {round}"
                    );
                    assert_eq!(set(Unlock), Ok(Locked::Yes));
                }
            });
        }
    });
    assert_eq!((share.counter("locks"), share.tree.budget.open()), (0, 3));
}

#[test]
fn a_lock_on_the_whole_file_is_an_owners_and_flocks() {
    let share = Share::new();
    let (node, handle) = opened(&share);
    let set = |lock: Lock| share.tree.setlk(node, handle, &lock, waiter(lock.owner, true));
    let host = fs::File::open(share.host("a")).unwrap();
    let busy = |operation| rustix::fs::flock(&host, operation) == Err(Errno::AGAIN);
    use rustix::fs::FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared, NonBlockingUnlock};
    assert_eq!(set(whole(1, Read)), Ok(Locked::Yes));
    assert_eq!(set(whole(2, Read)), Ok(Locked::Yes));
    assert_eq!(set(whole(2, Write)), Ok(Locked::Later));
    assert!(busy(NonBlockingLockExclusive) && !busy(NonBlockingLockShared));
    rustix::fs::flock(&host, NonBlockingUnlock).unwrap();
    // Records are another matter.
    assert_eq!(set(range(3, Write, 0, u64::MAX)), Ok(Locked::Yes));
    share.tree.flush(node, handle, 1).unwrap();
    assert!(
        busy(NonBlockingLockExclusive),
        "closing a copy of a descriptor keeps flock's"
    );
    share.tree.release(node, handle, Some(1)).unwrap();
    let handle = share.open(node, O_RDWR).unwrap();
    let set = |lock: Lock| share.tree.setlk(node, handle, &lock, waiter(lock.owner, true));
    assert_eq!(set(whole(2, Write)), Ok(Locked::Yes));
    assert_eq!(set(whole(2, Unlock)), Ok(Locked::Yes));
    assert!(!busy(NonBlockingLockExclusive));
}

#[test]
fn a_directory_can_be_locked_whole() {
    let share = Share::new();
    let dir = share.mkdir(Node::ROOT, "dir", 0o755).unwrap().node;
    let handle = share.tree.opendir(dir).unwrap().handle;
    assert_eq!(share.tree.setlk(dir, handle, &whole(1, Write), None), Ok(Locked::Yes));
    assert_eq!(share.tree.setlk(dir, handle, &whole(2, Read), None), Err(Errno::AGAIN));
}

#[test]
fn locks_are_bounded_and_go_with_a_reset() {
    let share = Share::with(|config| config.max_locks = 4);
    let (node, handle) = opened(&share);
    let set = |lock: Lock| share.tree.setlk(node, handle, &lock, None);
    for owner in 0..3 {
        assert_eq!(set(range(owner, Read, 10 * owner, 10 * owner + 8)), Ok(Locked::Yes));
    }
    assert_eq!(set(range(0, Unlock, 4, 4)), Ok(Locked::Yes), "one becomes two");
    assert_eq!(share.counter("locks"), 4);
    assert_eq!(set(range(1, Unlock, 14, 14)), Err(Errno::NOLCK));
    assert_eq!(set(range(4, Read, 50, 50)), Err(Errno::NOLCK));
    assert_eq!(set(range(1, Unlock, 10, 13)), Ok(Locked::Yes));
    assert_eq!(set(range(2, Write, 0, 99)), Err(Errno::AGAIN));
    assert_eq!(share.counter("locks"), 4, "what was refused is not counted");
    let before = share.tree.lock_generation();
    share.tree.reset();
    assert_eq!(share.counter("locks"), 0);
    assert_ne!(share.tree.lock_generation(), before);
    let host = fs::File::options().write(true).open(share.host("a")).unwrap();
    let all = host::Range {
        kind: libc::F_WRLCK,
        start: 0,
        len: 0,
    };
    host::set_lock(host.as_fd(), all).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Three owners, sixteen bytes: what is granted is what a map of bytes says, and so is the number of locks.
    #[test]
    fn a_map_of_bytes_is_the_model(steps in prop::collection::vec((0u64..3, 0u8..3, 0u64..16, 0u64..16), 1..40)) {
        let share = Share::new();
        let (node, handle) = opened(&share);
        let mut model = [[0u8; 16]; 3];
        for (owner, kind, a, b) in steps {
            let (start, end) = (a.min(b), a.max(b));
            let index = usize::try_from(owner).unwrap();
            let bytes = usize::try_from(start).unwrap()..=usize::try_from(end).unwrap();
            let others = (0..3).filter(|other| *other != index);
            let busy = others.flat_map(|other| model[other][bytes.clone()].to_vec()).any(|held| {
                kind == 2 && held > 0 || kind == 1 && held == 2
            });
            let lock = range(owner, [Unlock, Read, Write][usize::from(kind)], start, end);
            let answer = share.tree.setlk(node, handle, &lock, waiter(owner, true)).unwrap();
            prop_assert_eq!(answer == Locked::Later, busy);
            share.tree.give_up(waiter(owner, true).unwrap());
            if kind > 0 {
                let found = share.tree.getlk(node, handle, &lock).unwrap();
                prop_assert_eq!(found.is_some(), busy);
            }
            if !busy {
                model[index][bytes].fill(kind);
            }
            let runs = |bytes: &[u8; 16]| {
                let parts = bytes.chunk_by(|a, b| a == b);
                parts.filter(|part| part[0] > 0).count()
            };
            let count = model.iter().map(runs).sum::<usize>();
            prop_assert_eq!(share.counter("locks"), count as u64);
        }
    }
}
