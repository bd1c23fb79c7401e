//! What is done with a name in a directory: look-ups, creations, links, renames, removals; and how
//! look-ups are taken back.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::reply::Reply;
use super::request_parser::RequestParser;
use super::{Done, Server};
use crate::fs::filesystem::{Creation, Name, Node};
use crate::fs::protocol::{Failure, MALFORMED, replies, requests};
use crate::fs::serve::Outcome;

/// Permission bits of a mode, set-user-ID, set-group-ID and the sticky bit among them.
pub(super) const PERMISSIONS: u32 = 0o7777;
/// Those of a symbolic link.
const LINK_PERMISSIONS: u32 = 0o777;
/// `RENAME_NOREPLACE`, `RENAME_EXCHANGE` and `RENAME_WHITEOUT` of renameat2(2).
const RENAME_FLAGS: u32 = 0b111;

impl Server {
    pub(super) fn lookup(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        self.counters.lookups.inc();
        let tail = request.tail()?;
        let entry = self.fs.lookup(&request.caller, request.node, only_name(&tail)?)?;
        reply.send(&replies::Entry::from(&entry))
    }

    /// No reply.
    pub(super) fn forget(&self, mut request: RequestParser<'_>) -> Done {
        let wanted: requests::Forget = request.last()?;
        self.fs.forget(request.node, wanted.nlookup.get());
        Ok(Outcome::Done(0))
    }

    /// No reply. The list is read as it is worked off: it may be as long as a chain of buffers.
    pub(super) fn batch_forget(&self, mut request: RequestParser<'_>) -> Done {
        let wanted: requests::BatchForget = request.take()?;
        let count = usize::try_from(wanted.count.get()).map_err(|_| MALFORMED)?;
        if count.checked_mul(size_of::<requests::ForgetOne>()) != Some(request.left()) {
            return Err(MALFORMED);
        }
        for _ in 0..count {
            let one: requests::ForgetOne = request.take()?;
            self.fs.forget(Node(one.nodeid.get()), one.nlookup.get());
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn readlink(&self, request: &RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        nothing_left(request)?;
        let target = self.fs.readlink(request.node)?;
        let room = reply.room();
        if target.len() > room {
            self.counters.short_replies.inc();
        }
        reply.bytes(target.get(..room).unwrap_or(&target))
    }

    pub(super) fn symlink(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let (name, target) = (parts.name()?, parts.target()?);
        let mut new = Creation {
            mode: kind(FileType::Symlink) | LINK_PERMISSIONS,
            ..Creation::default()
        };
        request.extend(parts, &mut new)?;
        let entry = self.fs.symlink(&request.caller, request.node, name, target, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn mknod(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Mknod = request.take()?;
        let mode = wanted.mode.get();
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice => {}
            _ => return Err(MALFORMED),
        }
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = parts.name()?;
        let mut new = Creation {
            mode: kind(FileType::from_raw_mode(mode)) | mode & PERMISSIONS,
            umask: request.umask(wanted.umask),
            rdev: wanted.rdev.get(),
            label: None,
        };
        request.extend(parts, &mut new)?;
        let entry = self.fs.mknod(&request.caller, request.node, name, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn mkdir(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Mkdir = request.take()?;
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let name = parts.name()?;
        let mut new = Creation {
            mode: kind(FileType::Directory) | wanted.mode.get() & PERMISSIONS,
            umask: request.umask(wanted.umask),
            ..Creation::default()
        };
        request.extend(parts, &mut new)?;
        let entry = self.fs.mkdir(&request.caller, request.node, name, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn unlink(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = request.tail()?;
        self.fs.unlink(&request.caller, request.node, only_name(&tail)?)?;
        reply.empty()
    }

    pub(super) fn rmdir(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = request.tail()?;
        self.fs.rmdir(&request.caller, request.node, only_name(&tail)?)?;
        reply.empty()
    }

    pub(super) fn rename(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Rename = request.take()?;
        self.rename_to(request, Node(wanted.newdir.get()), 0, reply)
    }

    pub(super) fn rename2(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Rename2 = request.take()?;
        let flags = wanted.flags.get();
        if flags & !RENAME_FLAGS != 0 {
            return Err(Errno::INVAL.into());
        }
        self.rename_to(request, Node(wanted.newdir.get()), flags, reply)
    }

    fn rename_to(&self, mut request: RequestParser<'_>, directory: Node, flags: u32, reply: &mut Reply<'_>) -> Done {
        let tail = request.tail()?;
        let mut parts = tail.parts();
        let (from, to) = (parts.name()?, parts.name()?);
        parts.end()?;
        self.fs
            .rename(&request.caller, (request.node, from), (directory, to), flags)?;
        reply.empty()
    }

    pub(super) fn link(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Link = request.take()?;
        let tail = request.tail()?;
        let old = Node(wanted.oldnodeid.get());
        let entry = self.fs.link(&request.caller, old, request.node, only_name(&tail)?)?;
        reply.send(&replies::Entry::from(&entry))
    }
}

/// The name that is all of `tail`.
fn only_name(tail: &crate::fs::protocol::Tail) -> Result<Name<'_>, Failure> {
    let mut parts = tail.parts();
    let name = parts.name()?;
    parts.end()?;
    Ok(name)
}

/// Makes sure that `request` was taken apart to its end.
pub(super) fn nothing_left(request: &RequestParser<'_>) -> Result<(), Failure> {
    if request.left() == 0 { Ok(()) } else { Err(MALFORMED) }
}

/// The bits of a mode that say what something is.
pub(super) fn kind(kind: FileType) -> u32 {
    kind.as_raw_mode()
}
