//! The FUSE wire format as far as a guest's kernel speaks it with a virtio-fs device (Linux
//! `include/uapi/linux/fuse.h`, protocol 7.39; virtio 1.2 §5.11.6). Numbers are little-endian,
//! structures a multiple of 8 bytes.
//!
//! | opcode | number | after the request's header | after the reply's header |
//! |---|---|---|---|
//! | `LOOKUP` | 1 | name | entry |
//! | `FORGET` | 2 | `forget_in` | (no reply) |
//! | `GETATTR` | 3 | `getattr_in` | `attr_out` |
//! | `SETATTR` | 4 | `setattr_in` | `attr_out` |
//! | `READLINK` | 5 | | target |
//! | `SYMLINK` | 6 | name, target, extensions | entry |
//! | `MKNOD` | 8 | `mknod_in`, name, extensions | entry |
//! | `MKDIR` | 9 | `mkdir_in`, name, extensions | entry |
//! | `UNLINK`, `RMDIR` | 10, 11 | name | |
//! | `RENAME` | 12 | `rename_in`, name, name | |
//! | `LINK` | 13 | `link_in`, name | entry |
//! | `OPEN`, `OPENDIR` | 14, 27 | `open_in` | `open_out` |
//! | `READ` | 15 | `read_in` | bytes |
//! | `WRITE` | 16 | `write_in`, bytes | `write_out` |
//! | `STATFS` | 17 | | `statfs_out` |
//! | `RELEASE`, `RELEASEDIR` | 18, 29 | `release_in` | |
//! | `FSYNC`, `FSYNCDIR` | 20, 30 | `fsync_in` | |
//! | `SETXATTR` | 21 | `setxattr_in` of 8 or 16 bytes, name, value | |
//! | `GETXATTR` | 22 | `getxattr_in`, name | value or `getxattr_out` |
//! | `LISTXATTR` | 23 | `getxattr_in` | names or `getxattr_out` |
//! | `REMOVEXATTR` | 24 | name | |
//! | `FLUSH` | 25 | `flush_in` | |
//! | `INIT` | 26 | `init_in` of 16 or 64 bytes | `init_out` |
//! | `READDIR`, `READDIRPLUS` | 28, 44 | `read_in` | entries |
//! | `GETLK` | 31 | `lk_in` | `lk_out` |
//! | `SETLK`, `SETLKW` | 32, 33 | `lk_in` | |
//! | `ACCESS` | 34 | `access_in` | |
//! | `CREATE`, `TMPFILE` | 35, 51 | `create_in`, name, extensions | entry, `open_out` |
//! | `INTERRUPT` | 36 | `interrupt_in` | (no reply) |
//! | `DESTROY` | 38 | | |
//! | `IOCTL` | 39 | | (refused: `ENOTTY`) |
//! | `BATCH_FORGET` | 42 | `batch_forget_in`, `forget_one` many times | (no reply) |
//! | `FALLOCATE` | 43 | `fallocate_in` | |
//! | `RENAME2` | 45 | `rename2_in`, name, name | |
//! | `LSEEK` | 46 | `lseek_in` | `lseek_out` |
//! | `COPY_FILE_RANGE` | 47 | `copy_file_range_in` | `write_out` |
//! | `SYNCFS` | 50 | `syncfs_in` | |
//! | `STATX` | 52 | `statx_in` | `statx_out` |
//!
//! All others, such as `BMAP` (37), `POLL` (40), `SETUPMAPPING` (48) and `REMOVEMAPPING` (49), are
//! answered with `ENOSYS`, after which the guest does without.

pub(super) mod extensions;
pub(super) mod flags;
pub(super) mod opcode;
pub(super) mod replies;
pub(super) mod requests;
pub(super) mod tail;

pub(super) use opcode::Opcode;
pub(super) use tail::Tail;

use std::io::Read;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::ring::Reader;

/// Version of the protocol that is spoken (`FUSE_KERNEL_VERSION`).
pub(super) const MAJOR: u32 = 7;
/// The newest minor version of which all that is used here is known.
pub(super) const MINOR: u32 = 39;
/// The oldest one that is spoken: from then on every structure that is used here has the size that it has today.
pub(super) const OLDEST_MINOR: u32 = 27;

/// Why a request is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The file system says so, or the share does not have it.
    Refused(Errno),
    /// The request breaks the protocol.
    Malformed(Errno),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

impl Failure {
    /// What the guest is told.
    pub fn errno(self) -> Errno {
        match self {
            Self::Refused(errno) | Self::Malformed(errno) => errno,
        }
    }
}

/// The next structure of `from`. `None` if fewer bytes are left.
pub(super) fn take<T: FromBytes + IntoBytes>(from: &mut Reader<'_>) -> Option<T> {
    let mut value = T::new_zeroed();
    from.read_exact(value.as_mut_bytes()).ok()?;
    Some(value)
}

/// A request that makes no sense.
pub(super) const MALFORMED: Failure = Failure::Malformed(Errno::INVAL);
