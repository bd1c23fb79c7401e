//! Files: opened, read, written, brought to the disk, closed. Contents go between guest memory and
//! the file system without a copy here.

use std::cell::Cell;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::locks::OFFSET_MAX;
use super::names::{PERMISSIONS, kind};
use super::reply::Reply;
use super::request_parser::RequestParser;
use super::session::MOST_READ;
use super::{Done, Server};
use crate::fs::filesystem::{Creation, Handle, Node, Writing};
use crate::fs::protocol::flags::{
    FSYNC_FDATASYNC, OPEN_KILL_SUIDGID, RELEASE_FLOCK_UNLOCK, RELEASE_FLUSH, WRITE_CACHE, WRITE_KILL_SUIDGID,
};
use crate::fs::protocol::{Failure, MALFORMED, replies, requests};
use crate::iovecs::Iovecs;

/// What of open(2)'s flags means something to a file system. Creation and exclusion are requests of
/// their own here; unnamed files and descriptors without access are none that a guest's kernel asks
/// for.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME)
    .union(OFlags::DIRECTORY);
/// Most bytes of one copy: what a call of the kernel moves at most (`MAX_RW_COUNT`).
const COPY_MAX: u64 = 0x7fff_f000;
/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2). The guest's kernel sees to the others itself.
const SEEKS: std::ops::RangeInclusive<u32> = 3..=4;

thread_local! {
    /// Kept between requests to save the allocation.
    static IOVECS: Cell<Iovecs> = Cell::default();
}

impl Server {
    pub(super) fn open_file(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Open = request.last()?;
        let flags = open_flags(wanted.flags.get())?;
        if request.features.readonly() && changes(flags) {
            return Err(Errno::ROFS.into());
        }
        let kill_priv = wanted.open_flags.get() & OPEN_KILL_SUIDGID != 0;
        let opened = self.fs.open(&request.caller, request.node, flags.bits(), kill_priv)?;
        reply.send(&replies::Opened::from(&opened))
    }

    pub(super) fn create(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Create = request.take()?;
        let flags = creation_flags(&wanted)?;
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = parts.name()?;
        let mut new = new_file(&request, &wanted)?;
        request.extend(parts, &mut new)?;
        let kill_priv = wanted.open_flags.get() & OPEN_KILL_SUIDGID != 0;
        let (entry, opened) = self
            .fs
            .create(&request.caller, request.node, name, flags, kill_priv, &new)?;
        reply.send(&replies::Created {
            entry: (&entry).into(),
            opened: (&opened).into(),
        })
    }

    /// The name is what the guest's kernel has in its place; nobody looks at it.
    pub(super) fn tmpfile(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Create = request.take()?;
        let flags = creation_flags(&wanted)?;
        let tail = request.tail()?;
        let mut parts = tail.parts();
        parts.string()?;
        let mut new = new_file(&request, &wanted)?;
        request.extend(parts, &mut new)?;
        let (entry, opened) = self.fs.tmpfile(&request.caller, request.node, flags, &new)?;
        reply.send(&replies::Created {
            entry: (&entry).into(),
            opened: (&opened).into(),
        })
    }

    pub(super) fn read(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Read = request.last()?;
        let offset = position(wanted.offset.get())?;
        let size = self.fitting(checked_size(wanted.size.get())?, reply)?;
        // No file ends behind this.
        let size = size.min(usize::try_from(OFFSET_MAX.saturating_sub(offset)).unwrap_or(size));
        let handle = Handle(wanted.fh.get());
        let direct = OFlags::from_bits_retain(wanted.flags.get()).contains(OFlags::DIRECT);
        let done = with_iovecs(|iovecs| {
            in_pieces(size, Short::Ends, |done, left| {
                let mut live = iovecs.begin();
                let lent = reply.lend(done, left, &mut live);
                let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
                let read = self.fs.read(request.node, handle, at, live.buffers(), direct)?;
                Ok((lent, read))
            })
        });
        // What was read before a failure is of no use: the guest takes a short read for the end of the file.
        let done = done.map_err(|(_, errno)| errno)?;
        self.counters.reads.inc();
        self.counters.read_bytes.add(u64::try_from(done).unwrap_or_default());
        reply.filled(done)
    }

    pub(super) fn write(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Write = request.take()?;
        let size = usize::try_from(wanted.size.get()).map_err(|_| MALFORMED)?;
        if size != request.left() {
            return Err(MALFORMED);
        }
        let offset = range(wanted.offset.get(), u64::from(wanted.size.get()))?;
        let has = |flag| wanted.write_flags.get() & flag != 0;
        // What comes from its cache the guest has forgotten by the reply: it asks only whether that
        // failed (Linux `fuse_writepage_end`).
        let cached = has(WRITE_CACHE);
        let short = if cached { Short::GoesOn } else { Short::Ends };
        let flags = OFlags::from_bits_retain(wanted.flags.get());
        let how = Writing {
            append: flags.contains(OFlags::APPEND) && !cached,
            kill_priv: has(WRITE_KILL_SUIDGID),
            direct: flags.contains(OFlags::DIRECT) && !cached,
        };
        let handle = Handle(wanted.fh.get());
        let done = with_iovecs(|iovecs| {
            in_pieces(size, short, |done, left| {
                let mut live = iovecs.begin();
                let lent = request.body().lend(done, left, &mut live);
                let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
                let from = live.buffers();
                let written = self.fs.write(&request.caller, request.node, handle, at, from, how)?;
                Ok((lent, written))
            })
        });
        let done = match done {
            // What was written stays written.
            Err((done, _)) if done > 0 && !cached => done,
            Ok(done) if done < size && cached => return Err(Errno::IO.into()),
            other => other.map_err(|(_, errno)| errno)?,
        };
        self.counters.writes.inc();
        self.counters.write_bytes.add(u64::try_from(done).unwrap_or_default());
        reply.send(&written(done)?)
    }

    pub(super) fn flush(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Flush = request.last()?;
        let owner = wanted.lock_owner.get();
        self.fs.flush(request.node, Handle(wanted.fh.get()), owner)?;
        reply.empty()
    }

    pub(super) fn release(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Release = request.last()?;
        let (handle, owner) = (Handle(wanted.fh.get()), wanted.lock_owner.get());
        let flags = wanted.release_flags.get();
        let flushed = match flags & RELEASE_FLUSH {
            0 => Ok(()),
            _ => self.fs.flush(request.node, handle, owner),
        };
        let flock_owner = Some(owner).filter(|_| flags & RELEASE_FLOCK_UNLOCK != 0);
        self.fs.release(request.node, handle, flock_owner)?;
        flushed?;
        reply.empty()
    }

    pub(super) fn fsync(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Fsync = request.last()?;
        let data_only = wanted.fsync_flags.get() & FSYNC_FDATASYNC != 0;
        self.fs.fsync(request.node, Handle(wanted.fh.get()), data_only)?;
        reply.empty()
    }

    pub(super) fn fallocate(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Fallocate = request.last()?;
        let length = wanted.length.get();
        let offset = range(wanted.offset.get(), length)?;
        self.fs
            .fallocate(request.node, Handle(wanted.fh.get()), wanted.mode.get(), offset, length)?;
        reply.empty()
    }

    pub(super) fn lseek(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Lseek = request.last()?;
        let whence = wanted.whence.get();
        if !SEEKS.contains(&whence) {
            return Err(Errno::INVAL.into());
        }
        let offset = position(wanted.offset.get())?;
        let offset = self.fs.lseek(request.node, Handle(wanted.fh.get()), offset, whence)?;
        reply.send(&replies::Lseek { offset: offset.into() })
    }

    pub(super) fn copy_file_range(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::CopyFileRange = request.last()?;
        let length = wanted.len.get().min(COPY_MAX);
        let from = (
            request.node,
            Handle(wanted.fh_in.get()),
            range(wanted.off_in.get(), length)?,
        );
        let to = (
            Node(wanted.nodeid_out.get()),
            Handle(wanted.fh_out.get()),
            range(wanted.off_out.get(), length)?,
        );
        let copied = self.fs.copy_file_range(from, to, length, wanted.flags.get())?;
        reply.send(&written(copied)?)
    }

    /// As many of `size` bytes as the reply has room for.
    pub(super) fn fitting(&self, size: u32, reply: &Reply<'_>) -> Result<usize, Failure> {
        let size = usize::try_from(size).map_err(|_| MALFORMED)?;
        let room = reply.room();
        if size > room {
            self.counters.short_replies.inc();
        }
        Ok(size.min(room))
    }
}

/// What becomes of a transfer of which a step moves less than it might.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    Ends,
    /// Only a step that moves nothing ends it, or one that fails and so says why.
    GoesOn,
}

/// Moves `size` bytes by `step`, which is told how many are done and how many are left, and says
/// how many it had buffers for and how many it moved. Ends where it moves fewer, unless `short`
/// says otherwise, or fails: then with what was moved before.
fn in_pieces(
    size: usize,
    short: Short,
    mut step: impl FnMut(usize, usize) -> Result<(usize, usize), Errno>,
) -> Result<usize, (usize, Errno)> {
    let mut done = 0usize;
    loop {
        let (lent, moved) = step(done, size.saturating_sub(done)).map_err(|errno| (done, errno))?;
        let moved = moved.min(lent);
        done = done.saturating_add(moved);
        let ends = moved < lent && (short == Short::Ends || moved == 0);
        if ends || done >= size || lent == 0 {
            return Ok(done);
        }
    }
}

fn with_iovecs<T>(io: impl FnOnce(&mut Iovecs) -> T) -> T {
    let mut iovecs = IOVECS.take();
    let result = io(&mut iovecs);
    IOVECS.set(iovecs);
    result
}

/// What of `flags` is for the file system.
fn open_flags(flags: u32) -> Result<OFlags, Failure> {
    let flags = OFlags::from_bits_retain(flags);
    if flags.bits() & !OFlags::DIRECTORY.bits() & OFlags::TMPFILE.bits() != 0 || flags.contains(OFlags::PATH) {
        return Err(MALFORMED);
    }
    Ok(flags & OPEN_FLAGS)
}

/// The same for something new.
fn creation_flags(wanted: &requests::Create) -> Result<u32, Failure> {
    // A guest's kernel has `O_TMPFILE` in a request for an unnamed file.
    let asked = OFlags::from_bits_retain(wanted.flags.get()) & !OFlags::TMPFILE;
    let exclusive = asked & OFlags::EXCL;
    Ok((open_flags(asked.bits())? | exclusive).bits())
}

/// Whether a file that is opened so may be changed.
fn changes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

/// A regular file.
fn new_file(request: &RequestParser<'_>, wanted: &requests::Create) -> Result<Creation<'static>, Failure> {
    let mode = wanted.mode.get();
    let is_file = matches!(FileType::from_raw_mode(mode), FileType::RegularFile);
    // Some callers leave the type out.
    if !is_file && mode & !PERMISSIONS != 0 {
        return Err(MALFORMED);
    }
    Ok(Creation {
        mode: kind(FileType::RegularFile) | mode & PERMISSIONS,
        umask: request.umask(wanted.umask),
        ..Creation::default()
    })
}

/// `size`, if the guest may read or list so much at a time.
pub(super) fn checked_size(size: u32) -> Result<u32, Failure> {
    if size > MOST_READ { Err(MALFORMED) } else { Ok(size) }
}

/// `offset`, if the kernel has such a one.
pub(super) fn position(offset: u64) -> Result<u64, Failure> {
    match offset {
        0..=OFFSET_MAX => Ok(offset),
        _ => Err(Errno::INVAL.into()),
    }
}

/// `offset`, if so many bytes from there on can be in a file.
fn range(offset: u64, length: u64) -> Result<u64, Failure> {
    let end = position(offset)?.checked_add(length).ok_or(Errno::FBIG)?;
    match end {
        0..=OFFSET_MAX => Ok(offset),
        _ => Err(Errno::FBIG.into()),
    }
}

fn written(bytes: usize) -> Result<replies::Written, Failure> {
    let size = u32::try_from(bytes).map_err(|_| Errno::IO)?;
    Ok(replies::Written {
        size: size.into(),
        padding: 0.into(),
    })
}
