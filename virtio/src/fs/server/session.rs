//! `INIT` and `DESTROY`: what the guest's kernel and the share agree on, from when to when (Linux `fs/fuse/inode.c`).
//!
//! | offered | if the share has |
//! |---|---|
//! | `ASYNC_READ`, `ATOMIC_O_TRUNC`, `BIG_WRITES`, `ASYNC_DIO`, `PARALLEL_DIROPS` | |
//! | `MAX_PAGES`, `INIT_EXT`, `CREATE_SUPP_GROUP` | |
//! | `AUTO_INVAL_DATA` | other users, or may have |
//! | `EXPLICIT_INVAL_DATA`, `CACHE_SYMLINKS` | none |
//! | `DO_READDIRPLUS`, `READDIRPLUS_AUTO` | `readdirplus` |
//! | `HANDLE_KILLPRIV_V2` | `killpriv` |
//! | `WRITEBACK_CACHE` | `writeback` |
//! | `POSIX_LOCKS`, `FLOCK_LOCKS` | `locks` |
//! | `SETXATTR_EXT` | `xattr` |
//! | `POSIX_ACL`, `DONT_MASK` | `posix_acl` |
//! | `SUBMOUNTS` | `submounts` |
//! | `SECURITY_CTX` | `security_context` |
//! | `DIRECT_IO_ALLOW_MMAP` | `direct_mmap` |
//!
//! Never: `EXPORT_SUPPORT`, since there are no look-ups of `.` and `..`; `ALLOW_IDMAP`, which asks
//! for more than rights by the mode; what needs a notification queue or a DAX window.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use husk_devices::lock;
use rustix::io::Errno;
use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

use super::names::nothing_left;
use super::reply::Reply;
use super::request_parser::RequestParser;
use super::{Done, Server};
use crate::fs::filesystem::Abilities;
use crate::fs::protocol::flags::init::{
    ASYNC_DIO, ASYNC_READ, ATOMIC_O_TRUNC, AUTO_INVAL_DATA, BIG_WRITES, CACHE_SYMLINKS, CREATE_SUPP_GROUP,
    DIRECT_IO_ALLOW_MMAP, DO_READDIRPLUS, DONT_MASK, EXPLICIT_INVAL_DATA, FLOCK_LOCKS, HANDLE_KILLPRIV_V2, INIT_EXT,
    MAX_PAGES, PARALLEL_DIROPS, POSIX_ACL, POSIX_LOCKS, READDIRPLUS_AUTO, SECURITY_CTX, SETXATTR_EXT, SUBMOUNTS,
    WRITEBACK_CACHE,
};
use crate::fs::protocol::{Failure, MAJOR, MALFORMED, MINOR, OLDEST_MINOR, replies, requests};

/// Most bytes of a write, and pages of 4 KiB of any request.
const MAX_WRITE: u32 = 1 << 20;
/// Most bytes that a guest which keeps to that reads or lists at a time, and most bytes of any
/// request of its: those of a write.
pub(super) const MOST_READ: u32 = MAX_WRITE;
pub(super) const MOST_ASKED: usize = size_of::<requests::Write>() + MAX_WRITE as usize;
const MAX_PAGES_COUNT: u16 = 256;
/// Pages of a request of guests that cannot be told ([`MAX_PAGES`]).
const DEFAULT_MAX_WRITE: u32 = 32 * 4096;
/// Requests that the guest may have under way without anybody waiting for them: reading ahead,
/// writing back, asynchronous I/O. Its own choice is 12, which keeps fewer busy than there may be
/// threads here.
const MAX_BACKGROUND: u16 = 256;
/// From so many on it counts as congested.
const CONGESTED: u16 = 192;

/// What holds in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SessionFeatures(u32);

impl SessionFeatures {
    const SESSION: u32 = 1;
    const READONLY: u32 = 1 << 1;
    const XATTR: u32 = 1 << 2;
    const POSIX_ACL: u32 = 1 << 3;
    const LOCKS: u32 = 1 << 4;
    const READDIRPLUS: u32 = 1 << 5;
    const SETXATTR_EXT: u32 = 1 << 6;
    const LABELS: u32 = 1 << 7;

    fn new(abilities: &Abilities, flags: u64) -> Self {
        let bits = [
            (true, Self::SESSION),
            (abilities.readonly, Self::READONLY),
            (abilities.xattr, Self::XATTR),
            (abilities.posix_acl, Self::POSIX_ACL),
            (abilities.locks, Self::LOCKS),
            (abilities.readdirplus, Self::READDIRPLUS),
            (flags & SETXATTR_EXT != 0, Self::SETXATTR_EXT),
            (abilities.security_context, Self::LABELS),
        ];
        let set = bits.iter().filter(|(set, _)| *set);
        Self(set.fold(0, |all, (_, bit)| all | bit))
    }

    fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Nothing may be changed.
    pub fn readonly(self) -> bool {
        self.has(Self::READONLY)
    }

    /// Extended attributes are served.
    pub fn xattr(self) -> bool {
        self.has(Self::XATTR)
    }

    /// Access control lists are served.
    pub fn posix_acl(self) -> bool {
        self.has(Self::POSIX_ACL)
    }

    /// Locks are served.
    pub fn locks(self) -> bool {
        self.has(Self::LOCKS)
    }

    /// `READDIRPLUS` is served.
    pub fn readdirplus(self) -> bool {
        self.has(Self::READDIRPLUS)
    }

    /// `SETXATTR` has the longer structure.
    pub fn setxattr_ext(self) -> bool {
        self.has(Self::SETXATTR_EXT)
    }

    /// What is created may come with a label.
    pub fn labels(self) -> bool {
        self.has(Self::LABELS)
    }
}

/// The session, if there is one.
#[derive(Default)]
pub(super) struct Session {
    /// [`SessionFeatures`], or 0.
    features: AtomicU32,
    /// Held while one ends and another begins.
    change: Mutex<()>,
}

impl Session {
    /// What holds; `None` outside of a session.
    pub fn features(&self) -> Option<SessionFeatures> {
        Some(SessionFeatures(self.features.load(Ordering::Acquire)))
            .filter(|features| features.has(SessionFeatures::SESSION))
    }

    /// Ends the session.
    pub fn end(&self) {
        self.features.store(0, Ordering::Release);
    }

    fn begin(&self, features: SessionFeatures) {
        self.features.store(features.0, Ordering::Release);
    }
}

impl Server {
    /// Begins a session, and ends the one before.
    pub(super) fn init(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Init = request.take()?;
        if wanted.major.get() > MAJOR {
            // It comes again, with a version that it was told.
            return reply.send(&versions(0));
        }
        if wanted.major.get() < MAJOR || wanted.minor.get() < OLDEST_MINOR {
            return Err(Failure::Malformed(Errno::PROTO));
        }
        let mut offered = u64::from(wanted.flags.get());
        if offered & INIT_EXT != 0 {
            let more: requests::InitExt = request.take().map_err(|_| MALFORMED)?;
            offered |= u64::from(more.flags2.get()) << 32;
        }
        let (abilities, flags) = agree(&self.fs.abilities(), offered);
        let change = lock(&self.session.change);
        self.end();
        self.fs.begin(abilities);
        self.session.begin(SessionFeatures::new(&abilities, flags));
        drop(change);
        self.counters.sessions.inc();
        let mut out = versions(flags);
        out.max_readahead = wanted.max_readahead;
        reply.send(&out)
    }

    /// Ends the session.
    pub(super) fn destroy(&self, request: &RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        nothing_left(request)?;
        let change = lock(&self.session.change);
        self.end();
        drop(change);
        reply.empty()
    }
}

/// What of the share's abilities, and which flags, hold with a guest that offers `offered`.
fn agree(share: &Abilities, offered: u64) -> (Abilities, u64) {
    let both = |ability: bool, flags: u64| ability && offered & flags == flags;
    let features = Abilities {
        readonly: share.readonly,
        xattr: share.xattr,
        posix_acl: share.xattr && both(share.posix_acl, POSIX_ACL | DONT_MASK),
        locks: both(share.locks, POSIX_LOCKS | FLOCK_LOCKS),
        submounts: both(share.submounts, SUBMOUNTS),
        writeback: both(share.writeback, WRITEBACK_CACHE),
        security_context: both(share.security_context, SECURITY_CTX | INIT_EXT),
        killpriv: both(share.killpriv, HANDLE_KILLPRIV_V2),
        direct_mmap: both(share.direct_mmap, DIRECT_IO_ALLOW_MMAP | INIT_EXT),
        readdirplus: both(share.readdirplus, DO_READDIRPLUS),
        unshared: share.unshared,
    };
    let choices = [
        (
            true,
            ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS,
        ),
        (true, MAX_PAGES | INIT_EXT | CREATE_SUPP_GROUP),
        (!features.unshared, AUTO_INVAL_DATA),
        (features.unshared, EXPLICIT_INVAL_DATA | CACHE_SYMLINKS),
        (features.readdirplus, DO_READDIRPLUS | READDIRPLUS_AUTO),
        (features.killpriv, HANDLE_KILLPRIV_V2),
        (features.writeback, WRITEBACK_CACHE),
        (features.locks, POSIX_LOCKS | FLOCK_LOCKS),
        (features.xattr, SETXATTR_EXT),
        (features.posix_acl, POSIX_ACL | DONT_MASK),
        (features.submounts, SUBMOUNTS),
        (features.security_context, SECURITY_CTX),
        (features.direct_mmap, DIRECT_IO_ALLOW_MMAP),
    ];
    let chosen = choices.iter().filter(|(chosen, _)| *chosen);
    (features, chosen.fold(0, |all, (_, flags)| all | flags) & offered)
}

/// The reply with `flags`, and what follows from them.
fn versions(flags: u64) -> replies::Init {
    let mut out = replies::Init::new_zeroed();
    out.major = MAJOR.into();
    out.minor = MINOR.into();
    out.flags = half(flags);
    out.flags2 = half(flags >> 32);
    out.max_background = MAX_BACKGROUND.into();
    out.congestion_threshold = CONGESTED.into();
    out.time_gran = U32::new(1);
    let pages = flags & MAX_PAGES != 0;
    out.max_write = if pages { MAX_WRITE } else { DEFAULT_MAX_WRITE }.into();
    out.max_pages = if pages { MAX_PAGES_COUNT } else { 0 }.into();
    out
}

/// The lower half of `flags`.
fn half(flags: u64) -> U32 {
    u32::try_from(flags & u64::from(u32::MAX)).unwrap_or_default().into()
}
