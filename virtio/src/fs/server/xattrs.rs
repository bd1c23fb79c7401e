//! Extended attributes (xattr(7)). Where the share has none, `ENOSYS` tells the guest not to ask again.

use std::ffi::CStr;

use rustix::io::Errno;

use super::reply::Reply;
use super::request_parser::RequestParser;
use super::session::SessionFeatures;
use super::{Done, Server};
use crate::fs::protocol::flags::SETXATTR_ACL_KILL_SGID;
use crate::fs::protocol::tail::{Parts, XATTR_MAX};
use crate::fs::protocol::{Failure, MALFORMED, replies, requests};

/// `XATTR_CREATE` and `XATTR_REPLACE` of setxattr(2).
const SET_FLAGS: u32 = 0b11;
/// What the two attributes of access control lists begin with. Without an agreement on them the
/// guest would not obey what it sets.
const ACL: &[u8] = b"system.posix_acl_";

impl Server {
    pub(super) fn setxattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        served(request.features)?;
        let wanted: requests::Setxattr = request.take()?;
        let more = match request.features.setxattr_ext() {
            true => request.take::<requests::SetxattrExt>()?.setxattr_flags.get(),
            false => 0,
        };
        let size = usize::try_from(wanted.size.get()).map_err(|_| MALFORMED)?;
        let flags = wanted.flags.get();
        if size > XATTR_MAX {
            return Err(Errno::TOOBIG.into());
        }
        if flags & !SET_FLAGS != 0 {
            return Err(Errno::INVAL.into());
        }
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = permitted(&mut parts, request.features)?;
        let value = parts.bytes(size)?;
        parts.end()?;
        let clear_sgid = more & SETXATTR_ACL_KILL_SGID != 0;
        self.fs
            .setxattr(&request.caller, request.node, name, value, flags, clear_sgid)?;
        reply.empty()
    }

    pub(super) fn getxattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        served(request.features)?;
        let wanted: requests::Getxattr = request.take()?;
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = permitted(&mut parts, request.features)?;
        parts.end()?;
        if wanted.size.get() == 0 {
            let len = self.fs.getxattr_len(request.node, name)?;
            return self.size(len, reply);
        }
        let room = self.fitting(wanted.size.get(), reply)?.min(XATTR_MAX);
        let value = self.fs.getxattr(request.node, name, room)?;
        within(&value, room, reply)
    }

    pub(super) fn listxattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        served(request.features)?;
        let wanted: requests::Getxattr = request.last()?;
        if wanted.size.get() == 0 {
            let len = self.fs.listxattr_len(request.node)?;
            return self.size(len, reply);
        }
        let room = self.fitting(wanted.size.get(), reply)?.min(XATTR_MAX);
        let names = self.fs.listxattr(request.node, room)?;
        within(&names, room, reply)
    }

    pub(super) fn removexattr(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        served(request.features)?;
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = permitted(&mut parts, request.features)?;
        parts.end()?;
        self.fs.removexattr(&request.caller, request.node, name)?;
        reply.empty()
    }

    /// Answers how long something is.
    fn size(&self, len: usize, reply: &mut Reply<'_>) -> Done {
        if reply.room() < size_of::<replies::XattrSize>() {
            self.counters.short_replies.inc();
            return Err(Failure::Malformed(Errno::IO));
        }
        let size = u32::try_from(len).map_err(|_| Errno::TOOBIG)?;
        reply.send(&replies::XattrSize {
            size: size.into(),
            padding: 0.into(),
        })
    }
}

fn served(features: SessionFeatures) -> Result<(), Failure> {
    if features.xattr() {
        Ok(())
    } else {
        Err(Errno::NOSYS.into())
    }
}

/// The next name, if this session has attributes of its kind.
fn permitted<'t>(parts: &mut Parts<'t>, features: SessionFeatures) -> Result<&'t CStr, Failure> {
    let name = parts.xattr()?;
    if name.to_bytes().starts_with(ACL) && !features.posix_acl() {
        return Err(Errno::OPNOTSUPP.into());
    }
    Ok(name)
}

/// Answers `bytes`, if they are no more than there is room for.
fn within(bytes: &[u8], room: usize, reply: &mut Reply<'_>) -> Done {
    if bytes.len() > room {
        return Err(Errno::RANGE.into());
    }
    reply.bytes(bytes)
}
