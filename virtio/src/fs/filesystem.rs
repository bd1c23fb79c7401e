//! What a FUSE server asks of a tree of files, in terms of this crate: every length, name and flag was checked before.
//!
//! One implementation serves a directory of the host; tests have another, in memory.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::share::Confinement;
use crate::iovecs::Buffers;

/// A node of the tree as the guest knows it. 1 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub u64);

impl Node {
    /// The directory that is shared.
    pub const ROOT: Self = Self(1);
}

/// An open file or directory as the guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Handle(pub u64);

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    /// The one supplementary group that a creation may need (`FUSE_EXT_GROUPS`), if the guest sent it.
    pub group: Option<u32>,
}

/// One component of a path: 1 to 1024 bytes, without `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a>(&'a std::ffi::CStr);

impl<'a> Name<'a> {
    /// Longest name that Linux sends and takes (`FUSE_NAME_MAX` of `fs/fuse/fuse_i.h`; up to 6.12, and of most guests
    /// after it). What is too long for the host it says itself: many file systems have names of 255 characters, of
    /// several bytes each.
    pub const MAX: usize = 1024;

    /// Takes `name` if it is one.
    ///
    /// # Errors
    /// `EINVAL`, or `ENAMETOOLONG`.
    pub fn new(name: &'a std::ffi::CStr) -> Result<Self, Errno> {
        match name.to_bytes() {
            bytes if bytes.len() > Self::MAX => Err(Errno::NAMETOOLONG),
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            _ => Ok(Self(name)),
        }
    }

    /// For the host.
    pub fn as_c_str(self) -> &'a std::ffi::CStr {
        self.0
    }
}

/// How long the guest may believe something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ttl {
    pub entry: std::time::Duration,
    pub attr: std::time::Duration,
}

/// What `stat` says of a node. `ino` is the host's; the guest's numbers come from `Node`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// For a device node, as Linux encodes it for user space.
    pub rdev: u32,
    pub blksize: u32,
    /// A file system begins here, with inode numbers of its own (`FUSE_ATTR_SUBMOUNT`).
    pub submount: bool,
    /// Birth, for `FUSE_STATX`.
    pub btime: Option<Time>,
}

/// The number of a device in the 32 bits that Linux makes of it for user space (`new_encode_dev`,
/// `include/linux/kdev_t.h`).
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// Major and minor number of such a one.
pub(crate) fn device_numbers(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

/// Seconds since 1970 and nanoseconds below 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time {
    pub sec: i64,
    pub nsec: u32,
}

/// What a name leads to. Each one that is given away counts as one look-up, which `forget` takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub node: Node,
    /// Tells two nodes of one number apart.
    pub generation: u64,
    pub attr: Attr,
    pub ttl: Ttl,
}

/// What is to be changed of a node's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Permissions only.
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
    /// With a change of owner or size: clear set-user-ID, set-group-ID and capabilities (`FUSE_HANDLE_KILLPRIV_V2`).
    pub kill_priv: bool,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    Now,
    At(Time),
}

/// What something new is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Creation<'a> {
    /// Type and permissions, before `umask`.
    pub mode: u32,
    pub umask: u32,
    /// For `mknod`.
    pub rdev: u32,
    /// A security label to be there from the beginning: name of the attribute, and value (`FUSE_SECURITY_CTX`).
    pub label: Option<(&'a std::ffi::CStr, &'a [u8])>,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub handle: Handle,
    /// The guest's cache of it stays valid (`FOPEN_KEEP_CACHE`).
    pub keep_cache: bool,
    /// The guest does not cache it (`FOPEN_DIRECT_IO`).
    pub direct: bool,
    /// A directory's entries may be cached (`FOPEN_CACHE_DIR`).
    pub cache_dir: bool,
}

/// What a write has beside its contents and their place. The flags that a file was opened with say
/// nothing of it: they change (`F_SETFL` of fcntl(2)), and the guest's kernel writes what was
/// mapped by any open file that can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writing {
    /// It goes to the end of the file, wherever that is by now.
    pub append: bool,
    /// Clear set-user-ID, set-group-ID and capabilities.
    pub kill_priv: bool,
    /// A process of the guest writes past the caches, of the host as well (`O_DIRECT` of open(2)).
    pub direct: bool,
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listed<'a> {
    pub ino: u64,
    /// Where the next one begins.
    pub next: u64,
    /// `DT_…`
    pub kind: u8,
    /// May be `.` or `..`.
    pub name: &'a std::ffi::CStr,
    /// With `readdirplus`; never for `.` and `..`.
    pub entry: Option<Entry>,
}

/// What `statfs` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub blocks: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}

/// A lock on a range of bytes, or on the whole file by `flock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// Who holds it, in the guest's numbers.
    pub owner: u64,
    pub pid: u32,
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Last byte; `u64::MAX` is the end of the file, wherever that will be.
    pub end: u64,
    pub whole_file: bool,
}

/// What is locked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockKind {
    Read,
    Write,
    Unlock,
}

/// A request that waits if it cannot have its lock at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiter {
    /// Who wants the lock.
    pub owner: u64,
    /// The request's number, by which it is told from others of the owner.
    pub request: u64,
}

impl Waiter {
    /// All requests of an owner.
    pub fn all_of(owner: u64) -> std::ops::RangeInclusive<Self> {
        let of = |request| Self { owner, request };
        of(0)..=of(u64::MAX)
    }
}

/// What became of a wish for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    Yes,
    /// Somebody else holds it, and the caller may wait.
    Later,
}

/// What the tree can do, said when a session begins; the server offers the guest no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub readonly: bool,
    pub xattr: bool,
    pub posix_acl: bool,
    pub locks: bool,
    pub submounts: bool,
    pub writeback: bool,
    pub security_context: bool,
    /// Set-user-ID and set-group-ID go when a request says so.
    pub killpriv: bool,
    /// Files that the guest does not cache ([`Opened::direct`]) may be mapped shared.
    pub direct_mmap: bool,
    /// `READDIRPLUS` is worth asking for.
    pub readdirplus: bool,
    /// Nobody else changes the tree: what the guest keeps stays true until it changes it.
    pub unshared: bool,
}

/// A tree of files. Calls come from any number of threads at once.
///
/// Errors are those of the system call of the same name. A node or handle that was never given is `EBADF`.
pub(crate) trait FileSystem: Send + Sync {
    /// Prepares the calling thread. See [`super::serve::Serve::enter`].
    fn enter(&self) -> std::io::Result<()>;
    /// Reserves descriptors of the process. See [`super::serve::Serve::reserve_fds`].
    fn reserve_fds(&self) {}
    /// What holds each thread that serves, if something does.
    fn confinement(&self) -> Option<Confinement> {
        None
    }
    /// Has the whole process make files with the tree's label. See [`super::server::Server::label_process`].
    fn label_process(&self) -> std::io::Result<()> {
        Ok(())
    }
    /// Has the host's kernel hold the whole process to the tree. See [`super::server::Server::restrict_process`].
    fn restrict_process(&self, _leave: Option<BorrowedFd<'_>>) -> std::io::Result<Option<u32>> {
        Ok(None)
    }
    /// What there is to be offered.
    fn abilities(&self) -> Abilities;
    /// A session begins with what of [`FileSystem::abilities`] both sides have.
    fn begin(&self, agreed: Abilities);
    /// A session is over: nodes, handles and locks go. The guest may end one while requests of it
    /// are at work, which then find nothing.
    fn reset(&self);
    /// Changes whenever a lock goes.
    fn lock_generation(&self) -> u64;
    fn counters(&self) -> Vec<(&'static str, u64)>;

    fn lookup(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<Entry, Errno>;
    /// Takes `count` look-ups back. Numbers that were never given do nothing.
    fn forget(&self, node: Node, count: u64);
    fn getattr(&self, node: Node, handle: Option<Handle>) -> Result<(Attr, std::time::Duration), Errno>;
    fn setattr(
        &self,
        caller: &Caller,
        node: Node,
        handle: Option<Handle>,
        change: &Change,
    ) -> Result<(Attr, std::time::Duration), Errno>;
    fn readlink(&self, node: Node) -> Result<Vec<u8>, Errno>;
    /// `target` is stored as it is, and never followed here.
    fn symlink(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        target: &std::ffi::CStr,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno>;
    fn mknod(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno>;
    fn mkdir(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno>;
    fn unlink(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno>;
    fn rmdir(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno>;
    /// `flags` are those of `renameat2`.
    fn rename(&self, caller: &Caller, from: (Node, Name<'_>), to: (Node, Name<'_>), flags: u32) -> Result<(), Errno>;
    fn link(&self, caller: &Caller, node: Node, parent: Node, name: Name<'_>) -> Result<Entry, Errno>;

    /// `flags` are those of `open`.
    fn open(&self, caller: &Caller, node: Node, flags: u32, kill_priv: bool) -> Result<Opened, Errno>;
    fn create(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        flags: u32,
        kill_priv: bool,
        new: &Creation<'_>,
    ) -> Result<(Entry, Opened), Errno>;
    fn tmpfile(&self, caller: &Caller, parent: Node, flags: u32, new: &Creation<'_>) -> Result<(Entry, Opened), Errno>;
    /// Bytes read; fewer than asked for only at the end of the file. `direct` as in [`Writing`].
    fn read(&self, node: Node, handle: Handle, offset: u64, into: Buffers<'_>, direct: bool) -> Result<usize, Errno>;
    /// Bytes written.
    fn write(
        &self,
        caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        from: Buffers<'_>,
        how: Writing,
    ) -> Result<usize, Errno>;
    /// A descriptor of the guest was closed; record locks of `owner` go.
    fn flush(&self, node: Node, handle: Handle, owner: u64) -> Result<(), Errno>;
    /// The last one. `flock_owner` is set when its `flock` locks go.
    fn release(&self, node: Node, handle: Handle, flock_owner: Option<u64>) -> Result<(), Errno>;
    fn fsync(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno>;
    fn fallocate(&self, node: Node, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<(), Errno>;
    fn lseek(&self, node: Node, handle: Handle, offset: u64, whence: u32) -> Result<u64, Errno>;
    fn copy_file_range(
        &self,
        from: (Node, Handle, u64),
        to: (Node, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize, Errno>;

    fn opendir(&self, caller: &Caller, node: Node) -> Result<Opened, Errno>;
    /// Calls `take` with entries from `offset` on until it says that it has room for no more: an
    /// entry that was refused was not given away. `plus` asks for what the names lead to.
    fn readdir(
        &self,
        caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        plus: bool,
        take: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Result<(), Errno>;
    fn releasedir(&self, node: Node, handle: Handle) -> Result<(), Errno>;
    fn fsyncdir(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno>;

    fn statfs(&self, node: Node) -> Result<Space, Errno>;
    fn syncfs(&self, node: Node) -> Result<(), Errno>;
    fn access(&self, caller: &Caller, node: Node, mask: u32) -> Result<(), Errno>;
    fn setxattr(
        &self,
        caller: &Caller,
        node: Node,
        name: &std::ffi::CStr,
        value: &[u8],
        flags: u32,
        clear_sgid: bool,
    ) -> Result<(), Errno>;
    /// The value, of at most `room` bytes; `ERANGE` when it is longer.
    fn getxattr(&self, node: Node, name: &std::ffi::CStr, room: usize) -> Result<Vec<u8>, Errno>;
    fn getxattr_len(&self, node: Node, name: &std::ffi::CStr) -> Result<usize, Errno>;
    fn listxattr(&self, node: Node, room: usize) -> Result<Vec<u8>, Errno>;
    fn listxattr_len(&self, node: Node) -> Result<usize, Errno>;
    fn removexattr(&self, caller: &Caller, node: Node, name: &std::ffi::CStr) -> Result<(), Errno>;

    /// The first lock that is in the way of `lock`, if any.
    fn getlk(&self, node: Node, handle: Handle, lock: &Lock) -> Result<Option<Lock>, Errno>;
    /// With a `waiter`, [`Locked::Later`] in place of `EAGAIN`: it waits from then on, until it is handed in again or
    /// [given up](FileSystem::give_up). `EDEADLK` if it would wait for those who wait for its owner.
    fn setlk(&self, node: Node, handle: Handle, lock: &Lock, waiter: Option<Waiter>) -> Result<Locked, Errno>;
    /// A request waits no more. One that does not is nothing to it.
    fn give_up(&self, waiter: Waiter);
}
