//! Names in directories: looked up, made, renamed and removed.
//!
//! A name is one component and is given to the host only relative to the descriptor of its
//! directory, never to be followed if it is a link. So there is nothing to be reached from a
//! directory but what is in it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Statx, linkat, makedev, mkdirat, mknodat, openat,
    openat2, readlinkat, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::Tree;
use super::attributes::{self, Kind};
use super::credentials;
use super::descriptors::{CountedFd, Use};
use super::files::{open_file, past_cache};
use super::nodes::Inode;
use super::place::NameInDir;
use super::proc::Number;
use crate::fs::filesystem::{Caller, Creation, Entry, Name, Node, Opened, device_numbers};

/// Permissions of a mode.
const PERMISSIONS: u32 = 0o7777;
/// What `renameat2` can be asked for.
const RENAME_FLAGS: RenameFlags = RenameFlags::NOREPLACE
    .union(RenameFlags::EXCHANGE)
    .union(RenameFlags::WHITEOUT);

/// What a file that is made is not opened with: it is empty, and each request says whether it appends and goes past the
/// host's cache.
const NOT_FOR_NEW: OFlags = OFlags::TRUNC.union(OFlags::APPEND).union(OFlags::DIRECT);

/// What is thought of a name before it is looked up: it saves a call if it is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookupHint {
    /// The guest knows its node.
    Known,
    New,
}

/// Opens what `name`, one component, leads to in `dir`, if that is no link; a link itself.
pub(super) fn open(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    openat2(dir, name, flags, Mode::empty(), resolve)
}

/// Removes what was just made under `name` in `dir`, of which the guest is told that it was not.
fn take_back(dir: &CountedFd, name: Name<'_>, removal: AtFlags) {
    let _ = unlinkat(dir, name.as_c_str(), removal);
}

impl Tree {
    pub(super) fn lookup(&self, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        let dir_node = self.directory_node(parent)?;
        // A guest that walks through a directory asks for one new name after the other; one that
        // looks again, for those that it knows.
        let guess = if dir_node.gave_new() {
            LookupHint::New
        } else {
            LookupHint::Known
        };
        let dir = self.nodes.descriptor(&dir_node)?;
        let seen = NameInDir { parent, name };
        let (inode, stat) = match self.found(dir.as_fd(), seen, guess) {
            // One that is known needs no descriptor.
            Err(Errno::NFILE | Errno::MFILE) if guess == LookupHint::New => {
                self.found(dir.as_fd(), seen, LookupHint::Known)?
            }
            found => found?,
        };
        dir_node.note_new(inode.is_new());
        Ok(self.entry_of(&inode, &stat))
    }

    /// What the name `seen` leads to, in the directory that `dir` holds; given away once.
    pub(super) fn entry(&self, dir: impl AsFd, seen: NameInDir<'_>, guess: LookupHint) -> Result<Entry, Errno> {
        let (inode, stat) = self.found(dir.as_fd(), seen, guess)?;
        Ok(self.entry_of(&inode, &stat))
    }

    /// The node that `seen` leads to, given away once, and what the host says of it.
    fn found(&self, dir: BorrowedFd<'_>, seen: NameInDir<'_>, guess: LookupHint) -> Result<(Arc<Inode>, Statx), Errno> {
        if guess == LookupHint::Known {
            let stat = attributes::of_name(dir, seen.name)?;
            if let Some(inode) = self.nodes.known(&attributes::key(&stat), seen) {
                return Ok((inode, stat));
            }
        }
        let fd = self.nodes.open(|| open(dir, seen.name.as_c_str()))?;
        self.held(fd, Some(seen))
    }

    /// The node that `fd` holds, given away once, and what the host says of it.
    fn held(&self, fd: CountedFd, seen: Option<NameInDir<'_>>) -> Result<(Arc<Inode>, Statx), Errno> {
        let stat = attributes::of(&fd)?;
        self.look_for_remote(&fd, &stat);
        let inode = self
            .nodes
            .add(attributes::key(&stat), Kind::of(stat.stx_mode), fd, seen)?;
        Ok((inode, stat))
    }

    fn entry_of(&self, inode: &Inode, stat: &Statx) -> Entry {
        Entry {
            node: inode.node(),
            // No number is given twice.
            generation: 0,
            attr: self.attr(stat, inode),
            ttl: self.policy.ttl(),
        }
    }

    /// A descriptor of a directory.
    pub(super) fn directory(&self, node: Node) -> Result<Arc<CountedFd>, Errno> {
        self.nodes.descriptor(&self.directory_node(node)?)
    }

    /// A node that is a directory.
    fn directory_node(&self, node: Node) -> Result<Arc<Inode>, Errno> {
        let inode = self.nodes.get(node)?;
        if inode.kind() == Kind::Directory {
            Ok(inode)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    pub(super) fn readlink(&self, node: Node) -> Result<Vec<u8>, Errno> {
        let inode = self.nodes.get(node)?;
        if inode.kind() != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        let fd = self.nodes.descriptor(&inode)?;
        Ok(readlinkat(&*fd, c"", Vec::new())?.into_bytes())
    }

    pub(super) fn symlink(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        target: &CStr,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno> {
        let dir = self.directory(parent)?;
        self.on_behalf(caller, new, |_| symlinkat(target, &*dir, name.as_c_str()))?;
        self.made(&dir, NameInDir { parent, name }, new, AtFlags::empty())
    }

    pub(super) fn mknod(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno> {
        let kind = FileType::from_raw_mode(new.mode);
        let (major, minor) = match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => (0, 0),
            // Nobody here opens it. Whether it may be made is for the host to say.
            FileType::CharacterDevice | FileType::BlockDevice => device_numbers(new.rdev),
            FileType::Directory => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        };
        let dir = self.directory(parent)?;
        self.on_behalf(caller, new, |mode| {
            mknodat(&*dir, name.as_c_str(), kind, mode, makedev(major, minor))
        })?;
        self.made(&dir, NameInDir { parent, name }, new, AtFlags::empty())
    }

    pub(super) fn mkdir(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno> {
        let dir = self.directory(parent)?;
        self.on_behalf(caller, new, |mode| mkdirat(&*dir, name.as_c_str(), mode))?;
        self.made(&dir, NameInDir { parent, name }, new, AtFlags::REMOVEDIR)
    }

    /// Has `make` make something with the caller's name, his umask and the permissions that it is told.
    fn on_behalf<T>(
        &self,
        caller: &Caller,
        new: &Creation<'_>,
        make: impl FnOnce(Mode) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let _acting = self.who.impersonate(caller)?;
        let _masked = credentials::mask(new.umask);
        make(Mode::from_raw_mode(new.mode & PERMISSIONS))
    }

    /// The entry of what was just made, with its label; if either cannot be had, it is removed again.
    fn made(&self, dir: &CountedFd, seen: NameInDir<'_>, new: &Creation<'_>, removal: AtFlags) -> Result<Entry, Errno> {
        let made = self.entry(dir, seen, LookupHint::New).and_then(|entry| {
            let labelled = self.label(new, || self.descriptor(entry.node));
            labelled.inspect_err(|_| self.nodes.forget(entry.node, 1))?;
            Ok(entry)
        });
        made.inspect_err(|_| take_back(dir, seen.name, removal))
    }

    pub(super) fn create(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        flags: u32,
        kill_priv: bool,
        new: &Creation<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let dir = self.directory(parent)?;
        let asked = self.open_flags(flags)?;
        let passed = self.widened(asked);
        let made = self.handles.add(|| {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = self.budget.take(Use::File, || {
                self.on_behalf(caller, new, |mode| {
                    openat(&*dir, name.as_c_str(), passed.difference(NOT_FOR_NEW) | create, mode)
                })
            })?;
            self.made_file(file, passed, new, Some(NameInDir { parent, name }))
                .inspect_err(|_| take_back(&dir, name, AtFlags::empty()))
        });
        match made {
            Ok((handle, entry)) => {
                // Parked before it counted as open, it is opened once more while it has its name.
                let _ = self
                    .nodes
                    .get(entry.node)
                    .and_then(|inode| self.nodes.descriptor(&inode));
                Ok((entry, self.opened(handle)))
            }
            // It came to be between the guest's look-up and this: an ordinary open.
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                let entry = self.entry(&*dir, NameInDir { parent, name }, LookupHint::Known)?;
                let opened = self.nodes.get(entry.node);
                let opened = opened.and_then(|inode| self.open_inode(&inode, asked, kill_priv));
                let opened = opened.inspect_err(|_| self.nodes.forget(entry.node, 1))?;
                Ok((entry, opened))
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn tmpfile(
        &self,
        caller: &Caller,
        parent: Node,
        flags: u32,
        new: &Creation<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        let dir = self.directory(parent)?;
        let passed = self.widened(self.open_flags(flags)?);
        // With O_EXCL it never gets a name.
        let exclusive = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let (handle, entry) = self.handles.add(|| {
            let make = OFlags::TMPFILE | OFlags::CLOEXEC | exclusive;
            let file = self.budget.take(Use::File, || {
                self.on_behalf(caller, new, |mode| {
                    openat(&*dir, c".", passed.difference(NOT_FOR_NEW) | make, mode)
                })
            })?;
            self.made_file(file, passed, new, None)
        })?;
        Ok((entry, self.opened(handle)))
    }

    /// The node of a file that was just made and is open.
    fn made_file(
        &self,
        file: CountedFd,
        flags: OFlags,
        new: &Creation<'_>,
        seen: Option<NameInDir<'_>>,
    ) -> Result<(super::handles::OpenFile, Entry), Errno> {
        let fd = self.nodes.open(|| self.proc.reopen(&file, OFlags::PATH))?;
        let again = |flags: OFlags| {
            let flags = flags.difference(OFlags::APPEND);
            self.budget.take(Use::File, || self.proc.reopen(&file, flags))
        };
        let direct = match past_cache(flags).map(again).transpose() {
            // The mode of a new file may forbid an ordinary user to open it once more: it goes through the host's cache
            // then.
            Err(Errno::ACCESS | Errno::PERM) => None,
            opened => opened?,
        };
        let (inode, stat) = self.held(fd, seen)?;
        let labelled = self.label(new, || self.nodes.descriptor(&inode));
        labelled.inspect_err(|_| self.nodes.forget(inode.node(), 1))?;
        let entry = self.entry_of(&inode, &stat);
        Ok((open_file(inode, file, direct, flags), entry))
    }

    pub(super) fn unlink(&self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    pub(super) fn rmdir(&self, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent: Node, name: Name<'_>, removal: AtFlags) -> Result<(), Errno> {
        let dir = self.directory(parent)?;
        let losing = self.losing(&dir, name);
        unlinkat(&*dir, name.as_c_str(), removal)?;
        self.lost(losing);
        Ok(())
    }

    /// The node that `name` in `dir` leads to, which is about to lose it, with a descriptor, if the guest knows it: it
    /// may hold it without having it open, as the working directory of a process, by `O_PATH` or by a mark of
    /// inotify(7), and nothing else leads to it afterwards.
    fn losing(&self, dir: &CountedFd, name: Name<'_>) -> Option<(Arc<Inode>, Arc<CountedFd>)> {
        // Usually every node has one, and nothing need be asked.
        self.nodes.any_parked().then(|| self.moving(dir, name)).flatten()
    }

    /// What was [about to](Tree::losing) lose its name has lost it.
    fn lost(&self, losing: Option<(Arc<Inode>, Arc<CountedFd>)>) {
        if let Some((inode, fd)) = losing {
            self.nodes.give(&inode, &fd);
        }
    }

    pub(super) fn rename(&self, from: (Node, Name<'_>), to: (Node, Name<'_>), flags: u32) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits_retain(flags);
        if !RENAME_FLAGS.contains(flags) {
            return Err(Errno::INVAL);
        }
        let (source, target) = (self.directory(from.0)?, self.directory(to.0)?);
        // The guest does not look up what it has moved. Nodes without a descriptor get one: on some
        // file systems they become others.
        let moving = self.moving(&source, from.1);
        let back = flags
            .contains(RenameFlags::EXCHANGE)
            .then(|| self.moving(&target, to.1));
        let replaced = back.is_none().then(|| self.losing(&target, to.1)).flatten();
        renameat_with(&*source, from.1.as_c_str(), &*target, to.1.as_c_str(), flags)?;
        self.lost(replaced);
        for (moved, (parent, name)) in [(moving, to), (back.flatten(), from)] {
            if let Some((inode, _)) = moved {
                self.nodes.moved(&inode, NameInDir { parent, name });
            }
        }
        Ok(())
    }

    /// The node that `name` in `dir` leads to, if the guest knows it.
    fn moving(&self, dir: &CountedFd, name: Name<'_>) -> Option<(Arc<Inode>, Arc<CountedFd>)> {
        self.nodes
            .on_the_move(&attributes::key(&attributes::of_name(dir, name).ok()?))
    }

    pub(super) fn link(&self, node: Node, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        let inode = self.nodes.get(node)?;
        let (fd, dir) = (self.nodes.descriptor(&inode)?, self.directory(parent)?);
        let number = Number::of(&*fd);
        linkat(
            self.proc.dir(),
            number.as_c_str(),
            &*dir,
            name.as_c_str(),
            AtFlags::SYMLINK_FOLLOW,
        )?;
        let entry = self.entry(&*dir, NameInDir { parent, name }, LookupHint::Known);
        entry.inspect_err(|_| take_back(&dir, name, AtFlags::empty()))
    }
}
