//! Bits of the protocol's flag words, by the names that `fuse.h` has for them.

/// `INIT`: `flags`, and above bit 31 `flags2`.
pub(in crate::fs) mod init {
    pub const ASYNC_READ: u64 = 1;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// `fuse_getattr_in.getattr_flags`: the handle is valid.
pub(in crate::fs) const GETATTR_FH: u32 = 1;

/// `fuse_setattr_in.valid`.
pub(in crate::fs) mod setattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_open_in.open_flags`: clear set-user-ID and set-group-ID.
pub(in crate::fs) const OPEN_KILL_SUIDGID: u32 = 1;

/// `fuse_open_out.open_flags`.
pub(in crate::fs) mod fopen {
    pub const DIRECT_IO: u32 = 1;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `fuse_write_in.write_flags`: from the guest's cache, by whatever open file there is.
pub(in crate::fs) const WRITE_CACHE: u32 = 1;
/// `fuse_write_in.write_flags`: clear set-user-ID and set-group-ID.
pub(in crate::fs) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_release_in.release_flags`: flush first.
pub(in crate::fs) const RELEASE_FLUSH: u32 = 1;
/// `fuse_release_in.release_flags`: `flock` locks of the owner go.
pub(in crate::fs) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `fuse_fsync_in.fsync_flags`: contents only.
pub(in crate::fs) const FSYNC_FDATASYNC: u32 = 1;
/// `fuse_lk_in.lk_flags`: a lock of `flock`.
pub(in crate::fs) const LK_FLOCK: u32 = 1;
/// `fuse_setxattr_in.setxattr_flags`: with an access control list, clear set-group-ID.
pub(in crate::fs) const SETXATTR_ACL_KILL_SGID: u32 = 1;
/// `fuse_attr.flags`: a file system is mounted here.
pub(in crate::fs) const ATTR_SUBMOUNT: u32 = 1;
