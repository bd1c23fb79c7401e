//! What is done with a name in a directory: look-ups, creations, links, renames, removals; and how look-ups are taken back.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::ask::Ask;
use super::reply::Reply;
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
    pub(super) fn lookup(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        self.counters.lookups.inc();
        let tail = ask.tail()?;
        let entry = self.fs.lookup(&ask.caller, ask.node, only_name(&tail)?)?;
        reply.send(&replies::Entry::from(&entry))
    }

    /// No reply.
    pub(super) fn forget(&self, mut ask: Ask<'_>) -> Done {
        let wanted: requests::Forget = ask.last()?;
        self.fs.forget(ask.node, wanted.nlookup.get());
        Ok(Outcome::Done(0))
    }

    /// No reply. The list is read as it is worked off: it may be as long as a chain of buffers.
    pub(super) fn batch_forget(&self, mut ask: Ask<'_>) -> Done {
        let wanted: requests::BatchForget = ask.take()?;
        let count = usize::try_from(wanted.count.get()).map_err(|_| MALFORMED)?;
        if count.checked_mul(size_of::<requests::ForgetOne>()) != Some(ask.left()) {
            return Err(MALFORMED);
        }
        for _ in 0..count {
            let one: requests::ForgetOne = ask.take()?;
            self.fs.forget(Node(one.nodeid.get()), one.nlookup.get());
        }
        Ok(Outcome::Done(0))
    }

    pub(super) fn readlink(&self, ask: &Ask<'_>, reply: &mut Reply<'_>) -> Done {
        nothing_left(ask)?;
        let target = self.fs.readlink(ask.node)?;
        let room = reply.room();
        if target.len() > room {
            self.counters.short_replies.inc();
        }
        reply.bytes(target.get(..room).unwrap_or(&target))
    }

    pub(super) fn symlink(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = ask.tail()?;
        let mut parts = tail.parts();
        let (name, target) = (parts.name()?, parts.target()?);
        let mut new = Creation {
            mode: kind(FileType::Symlink) | LINK_PERMISSIONS,
            ..Creation::default()
        };
        ask.extend(parts, &mut new)?;
        let entry = self.fs.symlink(&ask.caller, ask.node, name, target, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn mknod(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Mknod = ask.take()?;
        let mode = wanted.mode.get();
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice => {}
            _ => return Err(MALFORMED),
        }
        let tail = ask.tail()?;
        let mut parts = tail.parts();
        let name = parts.name()?;
        let mut new = Creation {
            mode: kind(FileType::from_raw_mode(mode)) | mode & PERMISSIONS,
            umask: ask.umask(wanted.umask),
            rdev: wanted.rdev.get(),
            label: None,
        };
        ask.extend(parts, &mut new)?;
        let entry = self.fs.mknod(&ask.caller, ask.node, name, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn mkdir(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Mkdir = ask.take()?;
        let tail = ask.tail()?;
        let mut parts = tail.parts();
        let name = parts.name()?;
        let mut new = Creation {
            mode: kind(FileType::Directory) | wanted.mode.get() & PERMISSIONS,
            umask: ask.umask(wanted.umask),
            ..Creation::default()
        };
        ask.extend(parts, &mut new)?;
        let entry = self.fs.mkdir(&ask.caller, ask.node, name, &new)?;
        reply.send(&replies::Entry::from(&entry))
    }

    pub(super) fn unlink(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = ask.tail()?;
        self.fs.unlink(&ask.caller, ask.node, only_name(&tail)?)?;
        reply.empty()
    }

    pub(super) fn rmdir(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let tail = ask.tail()?;
        self.fs.rmdir(&ask.caller, ask.node, only_name(&tail)?)?;
        reply.empty()
    }

    pub(super) fn rename(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Rename = ask.take()?;
        self.rename_to(ask, Node(wanted.newdir.get()), 0, reply)
    }

    pub(super) fn rename2(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Rename2 = ask.take()?;
        let flags = wanted.flags.get();
        if flags & !RENAME_FLAGS != 0 {
            return Err(Errno::INVAL.into());
        }
        self.rename_to(ask, Node(wanted.newdir.get()), flags, reply)
    }

    fn rename_to(&self, mut ask: Ask<'_>, directory: Node, flags: u32, reply: &mut Reply<'_>) -> Done {
        let tail = ask.tail()?;
        let mut parts = tail.parts();
        let (from, to) = (parts.name()?, parts.name()?);
        parts.end()?;
        self.fs.rename(&ask.caller, (ask.node, from), (directory, to), flags)?;
        reply.empty()
    }

    pub(super) fn link(&self, mut ask: Ask<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Link = ask.take()?;
        let tail = ask.tail()?;
        let old = Node(wanted.oldnodeid.get());
        let entry = self.fs.link(&ask.caller, old, ask.node, only_name(&tail)?)?;
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

/// Makes sure that `ask` was taken apart to its end.
pub(super) fn nothing_left(ask: &Ask<'_>) -> Result<(), Failure> {
    if ask.left() == 0 { Ok(()) } else { Err(MALFORMED) }
}

/// The bits of a mode that say what something is.
pub(super) fn kind(kind: FileType) -> u32 {
    kind.as_raw_mode()
}
