//! What `stat` says of a node, and how it is changed.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid, chmodat, chownat, fchmod, ftruncate, statx, utimensat,
};
use rustix::io::Errno;

use super::Tree;
use super::credentials;
use super::descriptors::CountedFd;
use super::nodes::{Inode, Key};
use super::proc::Number;
use crate::fs::filesystem::{Attr, Change, Handle, Name, Node, Stamp, Time, device_number};

/// What is asked for.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);
/// Nanoseconds of a second.
const SECOND: u32 = 1_000_000_000;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    Directory,
    Symlink,
    /// A device, FIFO or socket: the guest serves it itself.
    Special,
}

impl Kind {
    /// By the bits of `st_mode`.
    pub fn of(mode: u16) -> Self {
        match FileType::from_raw_mode(mode.into()) {
            FileType::RegularFile => Self::Regular,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            _ => Self::Special,
        }
    }

    /// Whether the server may open one for its contents: that does nothing but that.
    pub fn can_be_opened(self) -> bool {
        matches!(self, Self::Regular | Self::Directory)
    }
}

/// What the host says of the node that `fd` holds.
pub(super) fn of(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)
}

/// What the host says of `name` in `dir`.
pub(super) fn of_name(dir: impl AsFd, name: Name<'_>) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(dir, name.as_c_str(), flags, WANTED)
}

/// What tells it from other nodes.
pub(super) fn key(stat: &Statx) -> Key {
    Key {
        dev: stat.stx_dev_major << 20 | stat.stx_dev_minor,
        mount: u32::try_from(stat.stx_mnt_id).unwrap_or(u32::MAX),
        ino: stat.stx_ino,
    }
}

/// The same of what `fd` holds.
pub(super) fn key_of(fd: impl AsFd) -> Result<Key, Errno> {
    of(fd).map(|stat| key(&stat))
}

/// Whether the node has a name on the host still.
pub(super) fn has_name(fd: impl AsFd) -> bool {
    of(fd).is_ok_and(|stat| stat.stx_nlink > 0)
}

impl Tree {
    /// For the guest.
    pub(super) fn attr(&self, stat: &Statx, inode: &Inode) -> Attr {
        let begins = inode.crosses() || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        let is_below = inode.node() != Node::ROOT && inode.kind() == Kind::Directory;
        let has_btime = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(&stat.stx_atime),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: self.who.guest_uid(stat.stx_uid),
            gid: self.who.guest_gid(stat.stx_gid),
            rdev: device_number(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            submount: self.policy.announce_submounts && begins && is_below,
            btime: has_btime.then(|| time(&stat.stx_btime)),
        }
    }

    pub(super) fn getattr(&self, node: Node, handle: Option<Handle>) -> Result<(Attr, Duration), Errno> {
        // An open file has attributes even if its node has gone from the host.
        let (inode, stat) = match handle.map(|handle| self.handles.get(node, handle)) {
            Some(open) => {
                let open = open?;
                (open.inode.clone(), of(&open.file)?)
            }
            None => {
                let inode = self.nodes.get(node)?;
                let stat = of(&*self.nodes.descriptor(&inode)?)?;
                (inode, stat)
            }
        };
        Ok((self.attr(&stat, &inode), self.policy.ttl().attr))
    }

    pub(super) fn setattr(
        &self,
        node: Node,
        handle: Option<Handle>,
        change: &Change,
    ) -> Result<(Attr, Duration), Errno> {
        let inode = self.nodes.get(node)?;
        let open = handle.map(|handle| self.handles.get(node, handle)).transpose()?;
        // The open file, where there is one: it stays even if the node has gone from the host.
        let held = match open {
            Some(_) => None,
            None => Some(self.nodes.descriptor(&inode)?),
        };
        let fd = match (&open, &held) {
            (Some(open), _) => open.file.as_fd(),
            (None, Some(held)) => held.as_fd(),
            (None, None) => return Err(Errno::BADF),
        };
        if change.uid.is_some() || change.gid.is_some() {
            let uid = change.uid.map(|uid| self.who.host_uid(uid)).transpose()?;
            let gid = change.gid.map(|gid| self.who.host_gid(gid)).transpose()?;
            let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
            self.kill_capability(&inode, fd)?;
            // The host clears set-user-ID, set-group-ID and capabilities of whatever is no directory.
            chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(credentials::unknown)?;
        }
        if let Some(mode) = change.mode {
            // After the owner, whose change would take bits away.
            let mode = Mode::from_raw_mode(mode & 0o7777);
            match inode.kind() {
                Kind::Symlink => return Err(Errno::OPNOTSUPP),
                _ if open.is_some() => fchmod(fd, mode)?,
                _ => chmodat(self.proc.dir(), Number::of(fd).as_c_str(), mode, AtFlags::empty())?,
            }
        }
        if let Some(size) = change.size {
            self.truncate(
                &inode,
                fd,
                held.as_ref(),
                open.as_ref().is_some_and(|open| open.writes),
                size,
                change.kill_priv,
            )?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: stamp(change.atime)?,
                last_modification: stamp(change.mtime)?,
            };
            utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        let stat = of(fd)?;
        Ok((self.attr(&stat, &inode), self.policy.ttl().attr))
    }

    /// Makes the file `size` bytes long. `fd` is that of an open file, of which `writes` says that
    /// it is good for it, or what the node has, `held`.
    fn truncate(
        &self,
        inode: &Inode,
        fd: BorrowedFd<'_>,
        held: Option<&Arc<CountedFd>>,
        writes: bool,
        size: u64,
        kill_priv: bool,
    ) -> Result<(), Errno> {
        match inode.kind() {
            Kind::Regular => {}
            Kind::Directory => return Err(Errno::ISDIR),
            Kind::Symlink | Kind::Special => return Err(Errno::INVAL),
        }
        let _less = kill_priv.then(|| self.kill_set_id(inode, fd)).transpose()?;
        self.kill_capability(inode, fd)?;
        if writes {
            return ftruncate(fd, size);
        }
        let opened = match held {
            Some(held) => self.reopen(inode, held, OFlags::WRONLY)?,
            None => self.proc.reopen(fd, OFlags::WRONLY)?,
        };
        ftruncate(opened, size)
    }
}

fn stamp(stamp: Option<Stamp>) -> Result<Timespec, Errno> {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match stamp {
        None => Ok(special(UTIME_OMIT)),
        Some(Stamp::Now) => Ok(special(UTIME_NOW)),
        Some(Stamp::At(time)) if time.nsec >= SECOND => Err(Errno::INVAL),
        Some(Stamp::At(time)) => Ok(Timespec {
            tv_sec: time.sec,
            tv_nsec: time.nsec.into(),
        }),
    }
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time {
        sec: stamp.tv_sec,
        nsec: stamp.tv_nsec,
    }
}
