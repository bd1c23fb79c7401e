//! A directory of the host as a tree of files for a guest.
//!
//! | file | its part |
//! |---|---|
//! | `share_root.rs` | the share is opened: what it is, what the host can do, what is wrong |
//! | `nodes.rs`, `nodes/`, `place.rs`, `mounts.rs` | the nodes that the guest knows, and where they are |
//! | `descriptors.rs` | what is open for them |
//! | `handles.rs` | what the guest has open |
//! | `names.rs`, `directories.rs`, `files.rs`, `attributes.rs`, `xattrs.rs` | what is done with them |
//! | `locks.rs`, `spans.rs`, `wait_graph.rs` | how they are locked |
//! | `credentials.rs`, `ids.rs`, `thread.rs` | on whose behalf |
//! | `remote.rs` | where the host leaves set-user-ID to a server |
//! | `confinement.rs` | what holds a thread if all of that has a fault |
//! | `proc.rs`, `host.rs` | how the host is asked |
//!
//! **Nothing but what is in the share can be reached.** Every call of the host begins at a
//! descriptor: of the directory that is shared, or of a node that was reached from it by one name
//! at a time. A [`Name`] is one component, which is never followed if it is a link, and `..` is not
//! one. Special files are never opened. What the guest was given stays reachable as long as it
//! holds it, as an open file does for a process: also when somebody on the host moves it out of the
//! share.

mod attributes;
mod confinement;
mod credentials;
mod descriptors;
mod directories;
mod files;
mod handles;
mod host;
mod ids;
mod locks;
mod mounts;
mod names;
mod nodes;
mod place;
mod proc;
mod remote;
mod share_root;
mod spans;
mod thread;
mod wait_graph;
mod xattrs;

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

pub use self::confinement::Confinement;
use self::confinement::Rules;
pub(super) use self::confinement::landlock_versions;
use self::credentials::Identity;
use self::descriptors::{CountedFd, FdBudget, Use};
use self::handles::Handles;
use self::locks::Locks;
use self::nodes::{Inode, Nodes};
use self::proc::ProcFds;
use self::remote::Remote;
pub use self::share_root::ShareError;
use self::wait_graph::WaitGraph;
use super::filesystem::{
    Abilities, Attr, Caller, Change, Creation, Entry, FileSystem, Handle, Listed, Lock, Locked, Name, Node, Opened,
    Space, Ttl, Waiter, Writing,
};
use super::share::{Cache, ShareConfig};
use super::xattr_map::XattrMap;
use crate::iovecs::Buffers;

/// A directory of the host.
pub(crate) struct Tree {
    policy: Policy,
    who: Identity,
    /// `trusted.*` is served.
    trusted: bool,
    proc: ProcFds,
    /// Devices whose server clears set-user-ID, or does not.
    remote: Remote,
    budget: Arc<FdBudget>,
    nodes: Nodes,
    handles: Handles,
    locks: Locks,
    waits: WaitGraph,
    /// What each thread has the host's kernel hold it to, if it does.
    rules: Option<Rules>,
}

/// What was asked for, and what of it a session has.
struct Policy {
    readonly: bool,
    cache: Cache,
    allow_direct_io: bool,
    xattr: bool,
    xattr_map: Option<XattrMap>,
    /// What the host calls the guest's `security.capability`, if a map has another name for it.
    capability: Option<CString>,
    overlay_xattr: bool,
    announce_submounts: bool,
    label: Option<CString>,
    /// The threads have the label from the one that started them.
    label_inherited: AtomicBool,
    offered: Abilities,
    writeback_agreed: AtomicBool,
    posix_acl_agreed: AtomicBool,
}

/// How long names and attributes are good for, unless the share says otherwise.
const A_WHILE: Duration = Duration::from_secs(1);
/// The same where nobody else changes them.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

impl Policy {
    fn new(config: &ShareConfig) -> Self {
        Self {
            readonly: config.readonly,
            cache: config.cache,
            allow_direct_io: config.allow_direct_io,
            xattr: config.xattr,
            xattr_map: config.xattr_map.clone(),
            capability: config.xattr_map.as_ref().and_then(xattrs::mapped_capability),
            overlay_xattr: config.overlay_xattr,
            announce_submounts: config.announce_submounts,
            label: config.label.clone(),
            label_inherited: AtomicBool::new(false),
            offered: Abilities {
                readonly: config.readonly,
                xattr: config.xattr,
                posix_acl: config.posix_acl,
                locks: config.locks,
                submounts: config.announce_submounts,
                writeback: config.writeback && !config.readonly,
                // With a label of the share's own, the guest has no say.
                security_context: config.security_label && config.xattr && !config.readonly && config.label.is_none(),
                direct_mmap: config.allow_mmap && matches!(config.cache, Cache::Never | Cache::Metadata),
                killpriv: config.killpriv,
                readdirplus: config.readdirplus && config.cache != Cache::Never,
                unshared: config.cache == Cache::Always,
            },
            writeback_agreed: AtomicBool::new(false),
            posix_acl_agreed: AtomicBool::new(false),
        }
    }

    fn ttl(&self) -> Ttl {
        let time = match self.cache {
            Cache::Auto => A_WHILE,
            Cache::Never => Duration::ZERO,
            Cache::Always | Cache::Metadata => LONG,
        };
        Ttl {
            entry: time,
            attr: time,
        }
    }

    fn writeback(&self) -> bool {
        self.writeback_agreed.load(Ordering::Relaxed)
    }

    fn posix_acl(&self) -> bool {
        self.posix_acl_agreed.load(Ordering::Relaxed)
    }

    fn agree(&self, agreed: Abilities) {
        let writeback = agreed.writeback && self.offered.writeback;
        self.writeback_agreed.store(writeback, Ordering::Relaxed);
        let posix_acl = agreed.posix_acl && self.offered.posix_acl;
        self.posix_acl_agreed.store(posix_acl, Ordering::Relaxed);
    }
}

impl Tree {
    /// A descriptor of a node.
    fn descriptor(&self, node: Node) -> Result<Arc<CountedFd>, Errno> {
        self.nodes.descriptor(&self.nodes.get(node)?)
    }

    /// Opens what `fd`, the descriptor of `inode`, holds.
    ///
    /// # Errors
    /// `ESTALE` in place of `EACCES` if that is Landlock's answer to a file that a handle alone led
    /// to: the guest looks its name up again then, by which it can be opened.
    fn reopen(&self, inode: &Inode, fd: &Arc<CountedFd>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let opened = self.proc.reopen(&**fd, flags);
        // Who may open handles may read any file but for that.
        let nowhere = || matches!(self.proc.reopen(&**fd, OFlags::RDONLY), Err(Errno::ACCESS));
        match opened {
            Err(Errno::ACCESS) if nowhere() && self.nodes.drop_handle_fd(inode, fd) => Err(Errno::STALE),
            opened => opened,
        }
    }

    /// # Errors
    /// `EROFS` if nothing may be changed.
    fn writable(&self) -> Result<(), Errno> {
        if self.policy.readonly { Err(Errno::ROFS) } else { Ok(()) }
    }

    fn statfs(&self, node: Node) -> Result<Space, Errno> {
        let stat = rustix::fs::fstatvfs(&*self.descriptor(node)?)?;
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(Space {
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size: size(stat.f_bsize),
            fragment_size: size(stat.f_frsize),
            name_max: size(stat.f_namemax),
        })
    }

    fn syncfs(&self, node: Node) -> Result<(), Errno> {
        let inode = self.nodes.get(node)?;
        if !inode.kind().can_be_opened() {
            return Err(Errno::INVAL);
        }
        let fd = self.nodes.descriptor(&inode)?;
        let open = || self.reopen(&inode, &fd, OFlags::RDONLY);
        rustix::fs::syncfs(self.budget.take(Use::File, open)?)
    }
}

/// Each call is told in the file of its part; here is what they have in common: nothing is changed
/// in a share that is read-only.
impl FileSystem for Tree {
    fn enter(&self) -> std::io::Result<()> {
        self.enter()
    }

    fn reserve_fds(&self) {
        self.nodes.reserve_fds();
    }

    fn confinement(&self) -> Option<Confinement> {
        self.confinement().ok()
    }

    fn label_process(&self) -> std::io::Result<()> {
        self.label_process()
    }

    fn restrict_process(&self, leave: Option<BorrowedFd<'_>>) -> std::io::Result<Option<u32>> {
        self.restrict_process(leave)
    }

    fn abilities(&self) -> Abilities {
        self.policy.offered
    }

    fn begin(&self, agreed: Abilities) {
        self.policy.agree(agreed);
    }

    fn reset(&self) {
        self.handles.reset();
        self.locks.reset();
        self.waits.clear();
        self.nodes.reset();
        self.policy.agree(Abilities::default());
    }

    fn lock_generation(&self) -> u64 {
        self.locks.generation()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.nodes.counters().to_vec();
        counters.push(("handles", self.handles.count()));
        counters.push(("locks", self.locks.count()));
        counters.push(("landlock_version", self.landlock().into()));
        counters
    }

    fn lookup(&self, _caller: &Caller, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        self.lookup(parent, name)
    }

    fn forget(&self, node: Node, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&self, node: Node, handle: Option<Handle>) -> Result<(Attr, Duration), Errno> {
        self.getattr(node, handle)
    }

    fn setattr(
        &self,
        _caller: &Caller,
        node: Node,
        handle: Option<Handle>,
        change: &Change,
    ) -> Result<(Attr, Duration), Errno> {
        self.writable()?;
        self.setattr(node, handle, change)
    }

    fn readlink(&self, node: Node) -> Result<Vec<u8>, Errno> {
        self.readlink(node)
    }

    fn symlink(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        target: &CStr,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno> {
        self.writable()?;
        self.symlink(caller, parent, name, target, new)
    }

    fn mknod(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno> {
        self.writable()?;
        self.mknod(caller, parent, name, new)
    }

    fn mkdir(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno> {
        self.writable()?;
        self.mkdir(caller, parent, name, new)
    }

    fn unlink(&self, _caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.writable()?;
        self.unlink(parent, name)
    }

    fn rmdir(&self, _caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        self.writable()?;
        self.rmdir(parent, name)
    }

    fn rename(&self, _caller: &Caller, from: (Node, Name<'_>), to: (Node, Name<'_>), flags: u32) -> Result<(), Errno> {
        self.writable()?;
        self.rename(from, to, flags)
    }

    fn link(&self, _caller: &Caller, node: Node, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        self.writable()?;
        self.link(node, parent, name)
    }

    fn open(&self, _caller: &Caller, node: Node, flags: u32, kill_priv: bool) -> Result<Opened, Errno> {
        self.open_node(node, flags, kill_priv)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        flags: u32,
        kill_priv: bool,
        new: &Creation<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        self.writable()?;
        self.create(caller, parent, name, flags, kill_priv, new)
    }

    fn tmpfile(&self, caller: &Caller, parent: Node, flags: u32, new: &Creation<'_>) -> Result<(Entry, Opened), Errno> {
        self.writable()?;
        self.tmpfile(caller, parent, flags, new)
    }

    fn read(&self, node: Node, handle: Handle, offset: u64, into: Buffers<'_>, direct: bool) -> Result<usize, Errno> {
        self.read(node, handle, offset, into, direct)
    }

    fn write(
        &self,
        _caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        from: Buffers<'_>,
        how: Writing,
    ) -> Result<usize, Errno> {
        self.writable()?;
        self.write(node, handle, offset, from, how)
    }

    fn flush(&self, node: Node, handle: Handle, owner: u64) -> Result<(), Errno> {
        self.flush(node, handle, owner)
    }

    fn release(&self, node: Node, handle: Handle, flock_owner: Option<u64>) -> Result<(), Errno> {
        self.release(node, handle, flock_owner)
    }

    fn fsync(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno> {
        self.fsync(node, handle, data_only)
    }

    fn fallocate(&self, node: Node, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<(), Errno> {
        self.writable()?;
        self.fallocate(node, handle, mode, offset, length)
    }

    fn lseek(&self, node: Node, handle: Handle, offset: u64, whence: u32) -> Result<u64, Errno> {
        self.lseek(node, handle, offset, whence)
    }

    fn copy_file_range(
        &self,
        from: (Node, Handle, u64),
        to: (Node, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize, Errno> {
        self.writable()?;
        self.copy_file_range(from, to, length, flags)
    }

    fn opendir(&self, _caller: &Caller, node: Node) -> Result<Opened, Errno> {
        self.opendir(node)
    }

    fn readdir(
        &self,
        _caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        plus: bool,
        take: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Result<(), Errno> {
        self.readdir(node, handle, offset, plus, take)
    }

    fn releasedir(&self, node: Node, handle: Handle) -> Result<(), Errno> {
        self.releasedir(node, handle)
    }

    fn fsyncdir(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno> {
        self.fsync(node, handle, data_only)
    }

    fn statfs(&self, node: Node) -> Result<Space, Errno> {
        self.statfs(node)
    }

    fn syncfs(&self, node: Node) -> Result<(), Errno> {
        self.syncfs(node)
    }

    fn access(&self, caller: &Caller, node: Node, mask: u32) -> Result<(), Errno> {
        self.access(caller, node, mask)
    }

    fn setxattr(
        &self,
        _caller: &Caller,
        node: Node,
        name: &CStr,
        value: &[u8],
        flags: u32,
        clear_sgid: bool,
    ) -> Result<(), Errno> {
        self.writable()?;
        self.setxattr(node, name, value, flags, clear_sgid)
    }

    fn getxattr(&self, node: Node, name: &CStr, room: usize) -> Result<Vec<u8>, Errno> {
        self.getxattr(node, name, room)
    }

    fn getxattr_len(&self, node: Node, name: &CStr) -> Result<usize, Errno> {
        self.getxattr_len(node, name)
    }

    fn listxattr(&self, node: Node, room: usize) -> Result<Vec<u8>, Errno> {
        self.listxattr(node, room)
    }

    fn listxattr_len(&self, node: Node) -> Result<usize, Errno> {
        self.listxattr_len(node)
    }

    fn removexattr(&self, _caller: &Caller, node: Node, name: &CStr) -> Result<(), Errno> {
        self.writable()?;
        self.removexattr(node, name)
    }

    fn getlk(&self, node: Node, handle: Handle, lock: &Lock) -> Result<Option<Lock>, Errno> {
        self.getlk(node, handle, lock)
    }

    fn setlk(&self, node: Node, handle: Handle, lock: &Lock, waiter: Option<Waiter>) -> Result<Locked, Errno> {
        self.setlk(node, handle, lock, waiter)
    }

    fn give_up(&self, waiter: Waiter) {
        self.waits.leave(waiter);
    }
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
