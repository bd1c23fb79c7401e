//! Locks, and the interruption of those who wait for one.
//!
//! A request for a lock that somebody else holds is not answered: whoever hands requests in does it
//! again later ([`Outcome::Wait`]). An `INTERRUPT` names such a request; it may also come before
//! it, or after it was answered. So the names are kept, the newest of them, until the request comes
//! by.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use husk_devices::lock;
use rustix::io::Errno;

use super::reply::Reply;
use super::request_parser::RequestParser;
use super::{Done, Server};
use crate::fs::filesystem::{Handle, Lock, LockKind, Locked, Waiter};
use crate::fs::protocol::flags::LK_FLOCK;
use crate::fs::protocol::{Failure, MALFORMED, Opcode, replies, requests};
use crate::fs::serve::Outcome;

/// `F_RDLCK`, `F_WRLCK` and `F_UNLCK` of fcntl(2).
const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
const F_UNLCK: u32 = 2;
/// The last byte of every file (`OFFSET_MAX`).
pub(super) const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

impl Server {
    pub(super) fn getlk(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Lk = request.last()?;
        let lock = lock_of(&request, &wanted)?;
        // flock(2) has no such question, and nothing is in the way of letting go.
        if lock.whole_file || lock.kind == LockKind::Unlock {
            return Err(MALFORMED);
        }
        let found = self.fs.getlk(request.node, Handle(wanted.fh.get()), &lock)?;
        let found = found.unwrap_or(Lock {
            kind: LockKind::Unlock,
            pid: 0,
            ..lock
        });
        reply.send(&replies::Lk {
            start: found.start.into(),
            end: found.end.min(OFFSET_MAX).into(),
            kind: number(found.kind).into(),
            pid: found.pid.into(),
        })
    }

    pub(super) fn setlk(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>, wait: bool) -> Done {
        let wanted: requests::Lk = request.last()?;
        let lock = lock_of(&request, &wanted)?;
        let waiter = Waiter {
            owner: lock.owner,
            request: request.unique,
        };
        let waiter = Some(waiter).filter(|_| wait);
        let locked = self.fs.setlk(request.node, Handle(wanted.fh.get()), &lock, waiter)?;
        match (locked, waiter) {
            (Locked::Yes, _) => reply.empty(),
            (Locked::Later, None) => Err(Errno::AGAIN.into()),
            (Locked::Later, Some(waiter)) if self.interrupted.take(request.unique) => {
                self.fs.give_up(waiter);
                Err(Errno::INTR.into())
            }
            (Locked::Later, Some(_)) => Ok(Outcome::Wait),
        }
    }

    /// A request that was to wait does not, and will not come again.
    pub(super) fn give_up(&self, mut request: RequestParser<'_>) {
        if request.opcode() == Some(Opcode::Setlkw)
            && let Ok(wanted) = request.take::<requests::Lk>()
        {
            self.fs.give_up(Waiter {
                owner: wanted.owner.get(),
                request: request.unique,
            });
        }
    }

    /// No reply.
    pub(super) fn interrupt(&self, mut request: RequestParser<'_>) -> Done {
        let wanted: requests::Interrupt = request.last()?;
        self.counters.interrupts.inc();
        self.interrupted.add(wanted.unique.get());
        Ok(Outcome::Done(0))
    }
}

/// What is to be locked.
fn lock_of(request: &RequestParser<'_>, wanted: &requests::Lk) -> Result<Lock, Failure> {
    if !request.features.locks() {
        return Err(Errno::NOSYS.into());
    }
    let (start, end) = (wanted.start.get(), wanted.end.get());
    if start > end || start > OFFSET_MAX {
        return Err(MALFORMED);
    }
    Ok(Lock {
        owner: wanted.owner.get(),
        pid: wanted.pid.get(),
        kind: match wanted.kind.get() {
            F_RDLCK => LockKind::Read,
            F_WRLCK => LockKind::Write,
            F_UNLCK => LockKind::Unlock,
            _ => return Err(MALFORMED),
        },
        start,
        end: if end >= OFFSET_MAX { u64::MAX } else { end },
        whole_file: wanted.lk_flags.get() & LK_FLOCK != 0,
    })
}

fn number(kind: LockKind) -> u32 {
    match kind {
        LockKind::Read => F_RDLCK,
        LockKind::Write => F_WRLCK,
        LockKind::Unlock => F_UNLCK,
    }
}

/// The requests that were given up last and did not come by since.
#[derive(Default)]
pub(super) struct Interrupted {
    requests: Mutex<VecDeque<u64>>,
    /// How many those are, to be looked at without the lock.
    count: AtomicUsize,
    generation: AtomicU64,
}

impl Interrupted {
    /// Most that are kept: more wait for locks in no guest that is well, and who falls out can be interrupted again.
    const MAX: usize = 256;

    /// Changes with each one that is added.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn add(&self, unique: u64) {
        self.with(|requests| {
            if !requests.contains(&unique) {
                if requests.len() >= Self::MAX {
                    requests.pop_front();
                }
                requests.push_back(unique);
            }
        });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether `unique` was given up; it is forgotten then.
    fn take(&self, unique: u64) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.with(|requests| {
            let found = requests.iter().position(|known| *known == unique);
            found.and_then(|at| requests.remove(at)).is_some()
        })
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.with(VecDeque::clear);
    }

    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<u64>) -> T) -> T {
        let mut requests = lock(&self.requests);
        let result = change(&mut requests);
        self.count.store(requests.len(), Ordering::Release);
        result
    }
}
