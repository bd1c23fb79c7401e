//! What requests begin with, behind their header: structures `fuse_…_in` of `fuse.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Declares a structure of the wire: fields in order, all bytes are good values.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$about:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
            #[repr(C)]
            pub(in crate::fs) struct $name {
                $($(#[$about])* pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $bytes);
        )*
    };
}
pub(super) use wire;

wire! {
    /// `fuse_in_header`.
    Header, 40 {
        len: U32,
        opcode: U32,
        unique: U64,
        nodeid: U64,
        uid: U32,
        gid: U32,
        pid: U32,
        /// Extensions at the end of the request, in units of 8 bytes.
        total_extlen: U16,
        _padding: U16,
    }
    /// `fuse_forget_in`.
    Forget, 8 { nlookup: U64, }
    /// `fuse_forget_one`.
    ForgetOne, 16 { nodeid: U64, nlookup: U64, }
    /// `fuse_batch_forget_in`.
    BatchForget, 8 { count: U32, _dummy: U32, }
    /// `fuse_getattr_in`.
    Getattr, 16 { getattr_flags: U32, _dummy: U32, fh: U64, }
    /// `fuse_setattr_in`.
    Setattr, 88 {
        valid: U32,
        _padding: U32,
        fh: U64,
        size: U64,
        _lock_owner: U64,
        atime: U64,
        mtime: U64,
        _ctime: U64,
        atimensec: U32,
        mtimensec: U32,
        _ctimensec: U32,
        mode: U32,
        _unused4: U32,
        uid: U32,
        gid: U32,
        _unused5: U32,
    }
    /// `fuse_mknod_in`.
    Mknod, 16 { mode: U32, rdev: U32, umask: U32, _padding: U32, }
    /// `fuse_mkdir_in`.
    Mkdir, 8 { mode: U32, umask: U32, }
    /// `fuse_rename_in`.
    Rename, 8 { newdir: U64, }
    /// `fuse_rename2_in`.
    Rename2, 16 { newdir: U64, flags: U32, _padding: U32, }
    /// `fuse_link_in`.
    Link, 8 { oldnodeid: U64, }
    /// `fuse_open_in`.
    Open, 8 { flags: U32, open_flags: U32, }
    /// `fuse_create_in`.
    Create, 16 { flags: U32, mode: U32, umask: U32, open_flags: U32, }
    /// `fuse_read_in`.
    Read, 40 {
        fh: U64,
        offset: U64,
        size: U32,
        _read_flags: U32,
        _lock_owner: U64,
        flags: U32,
        _padding: U32,
    }
    /// `fuse_write_in`.
    Write, 40 {
        fh: U64,
        offset: U64,
        size: U32,
        write_flags: U32,
        _lock_owner: U64,
        flags: U32,
        _padding: U32,
    }
    /// `fuse_release_in`.
    Release, 24 { fh: U64, _flags: U32, release_flags: U32, lock_owner: U64, }
    /// `fuse_flush_in`.
    Flush, 24 { fh: U64, _unused: U32, _padding: U32, lock_owner: U64, }
    /// `fuse_fsync_in`.
    Fsync, 16 { fh: U64, fsync_flags: U32, _padding: U32, }
    /// `fuse_setxattr_in` as it was before [`super::flags::init::SETXATTR_EXT`].
    Setxattr, 8 { size: U32, flags: U32, }
    /// What [`super::flags::init::SETXATTR_EXT`] adds to it.
    SetxattrExt, 8 { setxattr_flags: U32, _padding: U32, }
    /// `fuse_getxattr_in`.
    Getxattr, 8 { size: U32, _padding: U32, }
    /// `fuse_lk_in`.
    Lk, 48 {
        fh: U64,
        owner: U64,
        start: U64,
        end: U64,
        kind: U32,
        pid: U32,
        lk_flags: U32,
        _padding: U32,
    }
    /// `fuse_access_in`.
    Access, 8 { mask: U32, _padding: U32, }
    /// `fuse_init_in` as it was before [`super::flags::init::INIT_EXT`].
    Init, 16 { major: U32, minor: U32, max_readahead: U32, flags: U32, }
    /// What [`super::flags::init::INIT_EXT`] adds to it.
    InitExt, 48 { flags2: U32, _unused: [U32; 11], }
    /// `fuse_interrupt_in`.
    Interrupt, 8 { unique: U64, }
    /// `fuse_fallocate_in`.
    Fallocate, 32 { fh: U64, offset: U64, length: U64, mode: U32, _padding: U32, }
    /// `fuse_lseek_in`.
    Lseek, 24 { fh: U64, offset: U64, whence: U32, _padding: U32, }
    /// `fuse_copy_file_range_in`.
    CopyFileRange, 56 {
        fh_in: U64,
        off_in: U64,
        nodeid_out: U64,
        fh_out: U64,
        off_out: U64,
        len: U64,
        flags: U64,
    }
    /// `fuse_syncfs_in`.
    Syncfs, 8 { _padding: U64, }
    /// `fuse_statx_in`.
    Statx, 24 { getattr_flags: U32, _reserved: U32, fh: U64, _sx_flags: U32, _sx_mask: U32, }
}
