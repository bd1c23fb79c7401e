//! Ranges of bytes that are locked, of one owner: what a lock or its end makes of them, as the host has it.

use rustix::io::Errno;

use super::host::Range;
use crate::fs::filesystem::{Lock, LockKind};

/// The last byte that a lock of the host can end with.
const LAST: u64 = i64::MAX as u64;

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u64,
    /// The last byte.
    end: u64,
    write: bool,
}

impl Span {
    pub fn excludes(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end && (self.write || other.write)
    }

    pub fn of_host(range: Range) -> Self {
        let start = u64::try_from(range.start).unwrap_or(0);
        let end = match u64::try_from(range.len).unwrap_or(0) {
            0 => LAST,
            len => start.saturating_add(len).saturating_sub(1),
        };
        Self {
            start,
            end,
            write: range.kind == libc::F_WRLCK,
        }
    }

    pub fn as_lock(&self, owner: u64, pid: u32) -> Lock {
        Lock {
            owner,
            pid,
            kind: if self.write { LockKind::Write } else { LockKind::Read },
            start: self.start,
            end: if self.end == LAST { u64::MAX } else { self.end },
            whole_file: false,
        }
    }
}

/// The range of a lock, for the host and for the notes here.
pub(super) fn checked(lock: &Lock) -> Result<(Range, Span), Errno> {
    let end = lock.end.min(LAST);
    if lock.start > end {
        return Err(Errno::INVAL);
    }
    let bytes = end.saturating_sub(lock.start).saturating_add(1);
    let range = Range {
        kind: match lock.kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        },
        start: i64::try_from(lock.start).map_err(|_| Errno::INVAL)?,
        len: if end == LAST {
            0
        } else {
            i64::try_from(bytes).map_err(|_| Errno::INVAL)?
        },
    };
    let span = Span {
        start: lock.start,
        end,
        write: lock.kind == LockKind::Write,
    };
    Ok((range, span))
}

/// `spans` with `span` in place of what was there, or without it.
pub(super) fn with(spans: &[Span], span: Span, keeps: bool) -> Vec<Span> {
    let mut all = Vec::with_capacity(spans.len().saturating_add(2));
    let mut span = span;
    for old in spans {
        let touches = old.start <= span.end.saturating_add(1) && span.start <= old.end.saturating_add(1);
        if keeps && touches && old.write == span.write {
            // The host has neighbours of one kind as one.
            span.start = span.start.min(old.start);
            span.end = span.end.max(old.end);
            continue;
        }
        if old.start < span.start {
            let end = old.end.min(span.start.saturating_sub(1));
            all.push(Span { end, ..*old });
        }
        if old.end > span.end {
            let start = old.start.max(span.end.saturating_add(1));
            all.push(Span { start, ..*old });
        }
    }
    if keeps {
        all.push(span);
    }
    all
}
