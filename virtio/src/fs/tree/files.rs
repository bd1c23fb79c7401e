//! Files: opened, read, written, and what else an open one can do.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, seek};
use rustix::io::Errno;

use super::Tree;
use super::attributes::Kind;
use super::descriptors::{CountedFd, Use};
use super::handles::OpenFile;
use super::nodes::Inode;
use crate::fs::filesystem::{Caller, Handle, Node, Opened, Writing};
use crate::fs::share::Cache;
use crate::iovecs::Buffers;

/// What a guest's `open` can ask the host for, beside the way of access.
const PASSED_ON: OFlags = OFlags::APPEND
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME);
/// Longest copy of one call: a thread is busy with it.
const MOST_COPIED: usize = 64 << 20;
/// `SEEK_DATA` and `SEEK_HOLE` (lseek(2)). The others are the guest's own business.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Tree {
    /// The flags for the host of a guest's, of which those that are not known here are left out. A
    /// file is not opened with `O_APPEND`, where the host would take no other place for any write
    /// ([`Writing`]), unless there is no other way.
    pub(super) fn open_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let asked = OFlags::from_bits_retain(flags);
        let access = asked & OFlags::RWMODE;
        if access == OFlags::RWMODE {
            return Err(Errno::INVAL);
        }
        let mut passed = asked & PASSED_ON;
        if self.policy.readonly && (access != OFlags::RDONLY || passed.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS);
        }
        if self.policy.allow_direct_io {
            passed |= asked & OFlags::DIRECT;
        }
        if self.policy.writeback() {
            // The guest knows where the end is.
            passed.remove(OFlags::APPEND);
        }
        Ok(access | passed)
    }

    /// What a file is opened with that is to be opened with `flags`: a guest that holds writes back reads the rest of a
    /// page that it writes a part of.
    pub(super) fn widened(&self, flags: OFlags) -> OFlags {
        if self.policy.writeback() && flags & OFlags::RWMODE == OFlags::WRONLY {
            flags.difference(OFlags::RWMODE) | OFlags::RDWR
        } else {
            flags
        }
    }

    pub(super) fn open_node(&self, node: Node, flags: u32, kill_priv: bool) -> Result<Opened, Errno> {
        let inode = self.nodes.get(node)?;
        self.open_inode(&inode, self.open_flags(flags)?, kill_priv)
    }

    /// Opens a file for the guest.
    pub(super) fn open_inode(&self, inode: &Arc<Inode>, flags: OFlags, kill_priv: bool) -> Result<Opened, Errno> {
        match inode.kind() {
            Kind::Regular => {}
            Kind::Directory => return Err(Errno::ISDIR),
            Kind::Symlink => return Err(Errno::LOOP),
            // `ENXIO` is what open(2) says of a device or socket that nobody serves.
            Kind::Special => return Err(Errno::NXIO),
        }
        let fd = self.nodes.descriptor(inode)?;
        let widened = self.widened(flags);
        let kills = kill_priv && flags.contains(OFlags::TRUNC);
        let open = |flags| self.budget.take(Use::File, || self.reopen(inode, &fd, flags));
        let (handle, ()) = self.handles.add(|| {
            if flags.contains(OFlags::TRUNC) {
                self.kill_capability(inode, &*fd)?;
            }
            let _less = kills.then(|| self.kill_set_id(inode, &*fd)).transpose()?;
            // First what the host may refuse, before anything is cut off.
            let both = |flags: OFlags| {
                let direct = past_cache(flags).map(|flags| as_allowed(open, flags)).transpose()?;
                let file = as_allowed(open, flags.difference(OFlags::DIRECT))?;
                Ok(open_file(inode.clone(), file, direct, flags))
            };
            let opened = match both(widened) {
                // An ordinary user may not be allowed to read it.
                Err(Errno::ACCESS) if widened != flags => both(flags),
                opened => opened,
            };
            Ok((opened?, ()))
        })?;
        self.nodes.hold(inode, &fd);
        Ok(self.opened(handle))
    }

    /// What the guest is told of an open file.
    pub(super) fn opened(&self, handle: Handle) -> Opened {
        Opened {
            handle,
            keep_cache: self.policy.cache == Cache::Always,
            direct: matches!(self.policy.cache, Cache::Never | Cache::Metadata),
            cache_dir: false,
        }
    }

    pub(super) fn read(
        &self,
        node: Node,
        handle: Handle,
        offset: u64,
        into: Buffers<'_>,
        direct: bool,
    ) -> Result<usize, Errno> {
        super::host::read(self.file(node, handle)?.way(direct), into, offset)
    }

    pub(super) fn write(
        &self,
        node: Node,
        handle: Handle,
        offset: u64,
        from: Buffers<'_>,
        how: Writing,
    ) -> Result<usize, Errno> {
        let open = self.file(node, handle)?;
        let kill = || self.kill_set_id(&open.inode, &open.file);
        let _less = how.kill_priv.then(kill).transpose()?;
        self.kill_capability(&open.inode, &open.file)?;
        // With a cache that is written back the guest knows where the end is, and the host may not yet.
        if how.append && !self.policy.writeback() {
            super::host::append(open.way(how.direct), from, offset)
        } else {
            super::host::write(open.way(how.direct), from, offset)
        }
    }

    /// Of a directory as well.
    pub(super) fn fsync(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno> {
        let open = self.handles.get(node, handle)?;
        if data_only {
            fdatasync(&open.file)
        } else {
            fsync(&open.file)
        }
    }

    pub(super) fn fallocate(
        &self,
        node: Node,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<(), Errno> {
        let known = FallocateFlags::KEEP_SIZE
            | FallocateFlags::PUNCH_HOLE
            | FallocateFlags::COLLAPSE_RANGE
            | FallocateFlags::ZERO_RANGE
            | FallocateFlags::INSERT_RANGE
            | FallocateFlags::UNSHARE_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let open = self.file(node, handle)?;
        // The guest does not say who asks: as for somebody who is not root there.
        let _less = self.kill_set_id(&open.inode, &open.file)?;
        self.kill_capability(&open.inode, &open.file)?;
        fallocate(&open.file, mode, offset, length)
    }

    pub(super) fn lseek(&self, node: Node, handle: Handle, offset: u64, whence: u32) -> Result<u64, Errno> {
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // Reads and writes say where, so that the file's own position is free to change.
        seek(&self.file(node, handle)?.file, to)
    }

    pub(super) fn copy_file_range(
        &self,
        from: (Node, Handle, u64),
        to: (Node, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize, Errno> {
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (source, target) = (self.file(from.0, from.1)?, self.file(to.0, to.1)?);
        let (mut at, mut into) = (from.2, to.2);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(MOST_COPIED);
        let _less = self.kill_set_id(&target.inode, &target.file)?;
        self.kill_capability(&target.inode, &target.file)?;
        copy_file_range(&source.file, Some(&mut at), &target.file, Some(&mut into), length)
    }

    /// An open file that is no directory.
    fn file(&self, node: Node, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        let open = self.handles.get(node, handle)?;
        if open.position.is_some() {
            Err(Errno::ISDIR)
        } else {
            Ok(open)
        }
    }

    pub(super) fn flush(&self, node: Node, handle: Handle, owner: u64) -> Result<(), Errno> {
        let open = self.handles.get(node, handle)?;
        self.locks.drop_owner(node, owner, false);
        if open.writes {
            super::host::close_copy(open.file.as_fd())?;
        }
        Ok(())
    }

    pub(super) fn release(&self, node: Node, handle: Handle, flock_owner: Option<u64>) -> Result<(), Errno> {
        if let Some(owner) = flock_owner {
            self.locks.drop_owner(node, owner, true);
        }
        let open = self.handles.remove(node, handle)?;
        self.drop_locks_of(&open, handle);
        Ok(())
    }

    /// What the guest asks only when it does not check permissions itself: by mode alone, as it
    /// knows no more of the caller.
    pub(super) fn access(&self, caller: &Caller, node: Node, mask: u32) -> Result<(), Errno> {
        let stat = super::attributes::of(&*self.descriptor(node)?)?;
        let (mode, wanted) = (u32::from(stat.stx_mode), mask & 0o7);
        if self.policy.readonly && wanted & 0o2 != 0 {
            return Err(Errno::ROFS);
        }
        let group = self.who.guest_gid(stat.stx_gid);
        let granted = match caller.uid {
            0 if mode & 0o111 != 0 || Kind::of(stat.stx_mode) == Kind::Directory => 0o7,
            0 => 0o6,
            uid if uid == self.who.guest_uid(stat.stx_uid) => mode >> 6,
            _ if caller.gid == group || caller.group == Some(group) => mode >> 3,
            _ => mode,
        };
        if wanted & !granted == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }
}

/// The flags for a file that was opened with `flags` and is opened once more past the host's cache, if it is to be.
pub(super) fn past_cache(flags: OFlags) -> Option<OFlags> {
    Some(flags.difference(OFlags::TRUNC)).filter(|flags| flags.contains(OFlags::DIRECT))
}

/// Opens a file with the flags that the host lets it be opened with, if it is particular about them (`EPERM`): without
/// `O_APPEND`, or as was `asked` for, with it, where it may be written at its end alone (`FS_APPEND_FL` of
/// ioctl_iflags(2)); and without `O_NOATIME` if that is for its owner to ask for, who may be the guest's caller and is
/// not the server (open(2)).
fn as_allowed<T>(open: impl Fn(OFlags) -> Result<T, Errno>, asked: OFlags) -> Result<T, Errno> {
    let placed = asked.difference(OFlags::APPEND);
    let ways = [
        asked,
        placed.difference(OFlags::NOATIME),
        asked.difference(OFlags::NOATIME),
    ];
    let others = ways.into_iter().filter(|flags| *flags != placed);
    others.fold(open(placed), |opened, flags| match opened {
        Err(Errno::PERM) => open(flags),
        opened => opened,
    })
}

/// An open file that was opened with `flags`.
pub(super) fn open_file(inode: Arc<Inode>, file: CountedFd, direct: Option<CountedFd>, flags: OFlags) -> OpenFile {
    OpenFile {
        inode,
        file,
        direct,
        writes: flags & OFlags::RWMODE != OFlags::RDONLY,
        position: None,
    }
}
