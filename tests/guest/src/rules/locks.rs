//! Locks of whole files and of ranges, by two who are somebody to each other.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::case::{Cases, Found, create, edit, file, name, open, said};
use crate::kernel::{self, Lock, in_the_way, lock_range, lock_range_of_file};

/// What another process would be answered.
fn elsewhere<T: Send>(act: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    let on_thread = || {
        kernel::own_descriptors()?;
        act()
    };
    thread::scope(|scope| scope.spawn(on_thread).join()).unwrap_or(Err(Errno::CANCELED))
}

fn opened() -> Result<[OwnedFd; 2], Errno> {
    file("x")?;
    Ok([edit("x")?, edit("x")?])
}

const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

type Row = (&'static str, Lock, Lock, (i64, i64), &'static str);

/// What one has of bytes 10 to 19, and what the other wants of which.
const RANGES: [Row; 10] = [
    ("shared beside shared", Lock::Shared, Lock::Shared, (10, 10), "ok"),
    (
        "exclusive beside shared",
        Lock::Shared,
        Lock::Exclusive,
        (10, 10),
        "EAGAIN",
    ),
    (
        "shared beside exclusive",
        Lock::Exclusive,
        Lock::Shared,
        (10, 10),
        "EAGAIN",
    ),
    (
        "exclusive beside exclusive",
        Lock::Exclusive,
        Lock::Exclusive,
        (10, 10),
        "EAGAIN",
    ),
    ("the bytes before", Lock::Exclusive, Lock::Exclusive, (0, 10), "ok"),
    ("the bytes behind", Lock::Exclusive, Lock::Exclusive, (20, 10), "ok"),
    ("the first byte", Lock::Exclusive, Lock::Exclusive, (5, 6), "EAGAIN"),
    ("the last byte", Lock::Exclusive, Lock::Exclusive, (19, 6), "EAGAIN"),
    (
        "all from the beginning",
        Lock::Exclusive,
        Lock::Exclusive,
        (0, 0),
        "EAGAIN",
    ),
    ("all behind", Lock::Exclusive, Lock::Exclusive, (20, 0), "ok"),
];

pub fn add(cases: &mut Cases) {
    for (name, has, wants, (start, length), rule) in RANGES {
        cases.add(format!("lock: {name}"), rule, move || {
            let [mine, theirs] = opened()?;
            lock_range(&mine, has, 10, 10)?;
            Ok(said(elsewhere(|| lock_range(&theirs, wants, start, length))))
        });
    }
    cases.add("lock: somebody asks what is in the way", "exclusive 10 10", || {
        let [mine, theirs] = opened()?;
        lock_range(&mine, Lock::Exclusive, 10, 10)?;
        told(elsewhere(|| in_the_way(&theirs, Lock::Shared, 0, 0))?)
    });
    cases.add("lock: one's own is in nobody's way of oneself", "nothing", || {
        let [mine, _] = opened()?;
        lock_range(&mine, Lock::Exclusive, 10, 10)?;
        told(in_the_way(&mine, Lock::Exclusive, 0, 0)?)
    });
    cases.add("lock: unlocked in the middle", "0 5, 10 0", || {
        let [mine, theirs] = opened()?;
        lock_range(&mine, Lock::Exclusive, 0, 0)?;
        lock_range(&mine, Lock::None, 5, 5)?;
        elsewhere(|| {
            let mut found = Vec::new();
            for start in [0, 5] {
                if let Some((_, start, length)) = in_the_way(&theirs, Lock::Shared, start, 0)? {
                    found.push(format!("{start} {length}"));
                }
            }
            Ok(found.join(", "))
        })
    });
    cases.add("lock: made weaker in the middle", "ok EAGAIN", || {
        let [mine, theirs] = opened()?;
        lock_range(&mine, Lock::Exclusive, 0, 30)?;
        lock_range(&mine, Lock::Shared, 10, 10)?;
        elsewhere(|| {
            let shared = said(lock_range(&theirs, Lock::Shared, 10, 10));
            Ok(format!("{shared} {}", said(lock_range(&theirs, Lock::Shared, 9, 1))))
        })
    });
    cases.add("lock: gone when any descriptor of the file is closed", "ok", || {
        let [mine, theirs] = opened()?;
        lock_range(&mine, Lock::Exclusive, 0, 0)?;
        drop(edit("x")?);
        Ok(said(elsewhere(|| lock_range(&theirs, Lock::Exclusive, 0, 0))))
    });
    cases.add("lock: gone with its owner", "ok", || {
        let [mine, theirs] = opened()?;
        elsewhere(|| lock_range(&theirs, Lock::Exclusive, 0, 0))?;
        // A thread is joined before its table is closed.
        Ok(said(soon(|| lock_range(&mine, Lock::Exclusive, 0, 0))))
    });
    cases.add("lock: of an open file, in the way of another", "EAGAIN", || {
        let [mine, theirs] = opened()?;
        lock_range_of_file(&mine, Lock::Exclusive, 0, 0)?;
        Ok(said(lock_range_of_file(&theirs, Lock::Exclusive, 0, 0)))
    });
    cases.add("lock: of an open file, gone when that is closed", "ok", || {
        let [mine, theirs] = opened()?;
        lock_range_of_file(&mine, Lock::Exclusive, 0, 0)?;
        drop(mine);
        // A server hears of it a moment later.
        Ok(said(soon(|| lock_range_of_file(&theirs, Lock::Exclusive, 0, 0))))
    });
    cases.add("lock: exclusive takes a right to write", "EBADF", || {
        file("x")?;
        Ok(said(lock_range(open("x", OFlags::RDONLY)?, Lock::Exclusive, 0, 0)))
    });
    cases.add("lock: shared takes a right to read", "EBADF", || {
        file("x")?;
        Ok(said(lock_range(open("x", OFlags::WRONLY)?, Lock::Shared, 0, 0)))
    });
    cases.add("lock: who waits gets it when it is free", "waited, then had it", || {
        let [mine, theirs] = opened()?;
        lock_range(&mine, Lock::Exclusive, 0, 0)?;
        waits(
            || kernel::wait_for_range(&theirs, Lock::Exclusive, 0, 0),
            || lock_range(&mine, Lock::None, 0, 0),
        )
    });
    cases.add("lock: two who wait for each other", "EDEADLK", circle);
    whole(cases);
}

fn whole(cases: &mut Cases) {
    for (what, has, wants, rule) in [
        ("shared beside shared", SHARED, SHARED, "ok"),
        ("exclusive beside shared", SHARED, EXCLUSIVE, "EAGAIN"),
        ("shared beside exclusive", EXCLUSIVE, SHARED, "EAGAIN"),
        ("exclusive beside exclusive", EXCLUSIVE, EXCLUSIVE, "EAGAIN"),
    ] {
        cases.add(format!("flock: {what}"), rule, move || {
            let [mine, theirs] = opened()?;
            flock(&mine, has)?;
            Ok(said(flock(&theirs, wants)))
        });
    }
    cases.add("flock: a copy of the descriptor is the same one", "ok", || {
        let [mine, _] = opened()?;
        flock(&mine, EXCLUSIVE)?;
        let copy = rustix::io::dup(&mine)?;
        Ok(said(flock(&copy, EXCLUSIVE)))
    });
    cases.add("flock: made weaker", "ok", || {
        let [mine, theirs] = opened()?;
        flock(&mine, EXCLUSIVE)?;
        flock(&mine, SHARED)?;
        Ok(said(flock(&theirs, SHARED)))
    });
    cases.add("flock: unlocked", "ok", || {
        let [mine, theirs] = opened()?;
        flock(&mine, EXCLUSIVE)?;
        flock(&mine, FlockOperation::Unlock)?;
        Ok(said(flock(&theirs, EXCLUSIVE)))
    });
    cases.add("flock: gone when it is closed", "ok", || {
        let [mine, theirs] = opened()?;
        flock(&mine, EXCLUSIVE)?;
        drop(mine);
        Ok(said(flock(&theirs, EXCLUSIVE)))
    });
    cases.add("flock: of a file that is open to read", "ok", || {
        file("x")?;
        Ok(said(flock(open("x", OFlags::RDONLY)?, EXCLUSIVE)))
    });
    cases.add("flock: of a folder", "ok", || {
        Ok(said(flock(open(".", OFlags::DIRECTORY)?, EXCLUSIVE)))
    });
    cases.add("flock: is nothing to locks of ranges", "ok", || {
        let [mine, theirs] = opened()?;
        flock(&mine, EXCLUSIVE)?;
        Ok(said(elsewhere(|| lock_range(&theirs, Lock::Exclusive, 0, 0))))
    });
    cases.add(
        "flock: who waits gets it when it is free",
        "waited, then had it",
        || {
            let [mine, theirs] = opened()?;
            flock(&mine, EXCLUSIVE)?;
            waits(
                || flock(&theirs, FlockOperation::LockExclusive),
                || flock(&mine, FlockOperation::Unlock),
            )
        },
    );
    cases.add("lock: of an open file that has no name any more", "EAGAIN", || {
        let mine = create("x", 0o644)?;
        let theirs = edit("x")?;
        rustix::fs::unlink("x")?;
        lock_range(mine.as_fd(), Lock::Exclusive, 0, 0)?;
        Ok(said(elsewhere(|| lock_range(theirs.as_fd(), Lock::Exclusive, 0, 0))))
    });
}

/// What is said when two have byte 0 and byte 1, and each waits for the other's.
fn circle() -> Found {
    let [mine, theirs] = opened()?;
    lock_range(&mine, Lock::Exclusive, 0, 1)?;
    let (answers, answered) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        let their_answer = answers.clone();
        scope.spawn(move || {
            let waited = kernel::own_descriptors().and_then(|()| {
                lock_range(&theirs, Lock::Exclusive, 1, 1)?;
                let _ = ready.send(());
                kernel::wait_for_range(&theirs, Lock::Exclusive, 0, 1)
            });
            let _ = their_answer.send(waited);
        });
        let _ = is_ready.recv();
        let mine = &mine;
        scope.spawn(move || answers.send(kernel::wait_for_range(mine, Lock::Exclusive, 1, 1)));
        // Whoever comes second is told, and lets the other go on.
        let told = answered.recv_timeout(std::time::Duration::from_secs(2));
        lock_range(mine, Lock::None, 0, 0)?;
        Ok(match told {
            Ok(answer) => said(answer),
            Err(_) => "nobody is told".into(),
        })
    })
}

/// Whether somebody else's `wait` ends after `release` and not before.
fn waits(wait: impl FnOnce() -> Result<(), Errno> + Send, release: impl FnOnce() -> Result<(), Errno>) -> Found {
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let waited = kernel::own_descriptors().and_then(|()| wait());
            // The owner goes with the thread, and with it what it has.
            let _ = done.send(waited);
        });
        // Too short a wait makes nothing fail.
        let early = is_done.recv_timeout(std::time::Duration::from_millis(20));
        release()?;
        Ok(match (early, is_done.recv()) {
            (Err(_), Ok(answer)) => match answer {
                Ok(()) => "waited, then had it".into(),
                Err(errno) => name(errno),
            },
            (Ok(answer), _) => format!("did not wait: {}", said(answer)),
            (Err(_), Err(_)) => "was lost".into(),
        })
    })
}

/// The answer of `lock` once it is no failure, or after two seconds.
fn soon(lock: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut answer = lock();
    for _ in 0..200 {
        if answer.is_err() {
            thread::sleep(std::time::Duration::from_millis(10));
            answer = lock();
        }
    }
    answer
}

fn told(found: Option<(Lock, i64, i64)>) -> Found {
    Ok(match found {
        Some((Lock::Exclusive, start, length)) => format!("exclusive {start} {length}"),
        Some((_, start, length)) => format!("shared {start} {length}"),
        None => "nothing".into(),
    })
}
