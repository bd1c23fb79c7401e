//! Attributes of nodes, rights, and the space of the file system.

use rustix::fs::Access;
use rustix::io::Errno;

use super::files::position;
use super::names::{PERMISSIONS, nothing_left};
use super::reply::Reply;
use super::request_parser::RequestParser;
use super::{Done, Server};
use crate::fs::filesystem::{Change, Handle, Stamp, Time};
use crate::fs::protocol::flags::{GETATTR_FH, setattr};
use crate::fs::protocol::{Failure, MALFORMED, replies, requests};

/// Nobody, for user and group numbers.
const NOBODY: u32 = u32::MAX;
/// What may be asked for.
const RIGHTS: Access = Access::READ_OK.union(Access::WRITE_OK).union(Access::EXEC_OK);
const NSEC_PER_SEC: u32 = 1_000_000_000;

impl Server {
    pub(super) fn getattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Getattr = request.last()?;
        let handle = handle(wanted.getattr_flags.get(), wanted.fh.get());
        let (attr, ttl) = self.fs.getattr(request.node, handle)?;
        reply.send(&replies::AttrOut::new(&attr, ttl))
    }

    /// All that there is, whatever was asked for.
    pub(super) fn statx(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Statx = request.last()?;
        let handle = handle(wanted.getattr_flags.get(), wanted.fh.get());
        let (attr, ttl) = self.fs.getattr(request.node, handle)?;
        reply.send(&replies::StatxOut::new(&attr, ttl))
    }

    pub(super) fn setattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Setattr = request.last()?;
        let handle = Some(Handle(wanted.fh.get())).filter(|_| wanted.valid.get() & setattr::FH != 0);
        let change = change(&wanted)?;
        let (attr, ttl) = self.fs.setattr(&request.caller, request.node, handle, &change)?;
        reply.send(&replies::AttrOut::new(&attr, ttl))
    }

    pub(super) fn access(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Access = request.last()?;
        let mask = wanted.mask.get();
        let rights = Access::from_bits_retain(mask);
        if !RIGHTS.contains(rights) {
            return Err(Errno::INVAL.into());
        }
        if request.features.readonly() && rights.contains(Access::WRITE_OK) {
            return Err(Errno::ROFS.into());
        }
        self.fs.access(&request.caller, request.node, mask)?;
        reply.empty()
    }

    pub(super) fn statfs(&self, request: &RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        nothing_left(request)?;
        let space = self.fs.statfs(request.node)?;
        reply.send(&replies::Statfs::from(&space))
    }

    pub(super) fn syncfs(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let _: requests::Syncfs = request.last()?;
        self.fs.syncfs(request.node)?;
        reply.empty()
    }
}

/// The handle that a look at attributes is made by, if it is.
fn handle(flags: u32, handle: u64) -> Option<Handle> {
    Some(Handle(handle)).filter(|_| flags & GETATTR_FH != 0)
}

fn change(wanted: &requests::Setattr) -> Result<Change, Failure> {
    let valid = wanted.valid.get();
    let has = |flag| valid & flag != 0;
    let owner = |flag, number| match number {
        _ if !has(flag) => Ok(None),
        NOBODY => Err(Failure::from(Errno::INVAL)),
        number => Ok(Some(number)),
    };
    let stamp = |flag, now, sec: u64, nsec: u32| match (has(flag), has(now)) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(Stamp::Now)),
        (true, false) if nsec < NSEC_PER_SEC => {
            // Seconds before 1970 are negative.
            let sec = sec.cast_signed();
            Ok(Some(Stamp::At(Time { sec, nsec })))
        }
        (true, false) => Err(MALFORMED),
    };
    let size = Some(wanted.size.get()).filter(|_| has(setattr::SIZE));
    Ok(Change {
        mode: Some(wanted.mode.get() & PERMISSIONS).filter(|_| has(setattr::MODE)),
        uid: owner(setattr::UID, wanted.uid.get())?,
        gid: owner(setattr::GID, wanted.gid.get())?,
        size: size.map(position).transpose()?,
        atime: stamp(
            setattr::ATIME,
            setattr::ATIME_NOW,
            wanted.atime.get(),
            wanted.atimensec.get(),
        )?,
        mtime: stamp(
            setattr::MTIME,
            setattr::MTIME_NOW,
            wanted.mtime.get(),
            wanted.mtimensec.get(),
        )?,
        kill_priv: has(setattr::KILL_SUIDGID),
    })
}
