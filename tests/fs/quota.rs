//! A file system of the host's that holds a user to a quota (ext4, quotactl(2)).
#![expect(unsafe_code, reason = "quotas have no safe wrapper")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use tempfile::NamedTempFile;

use crate::{Mounted, modules};

/// Bytes of the file system, which has room for more than anybody may have.
const SIZE: u64 = 16 << 20;
/// The file in which the kernel keeps who has what: that of users (linux `fs/quota/quotaio_v2.h`),
/// in the format of 64-bit numbers.
const TABLE: &str = "aquota.user";
const MAGIC_AND_VERSION: [u32; 2] = [0xd9c0_1f11, 1];
/// Blocks of an empty one: its head, which says so at this place, and the root of a tree.
const BLOCKS: u32 = 2;
const BLOCKS_AT: usize = 20;
const BLOCK_BYTES: usize = 1024;
/// `QFMT_VFS_V1` of quotactl(2).
const FORMAT: c_int = 4;

/// What a user may have at most, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub kib: u64,
    pub files: u64,
}

/// The file system, mounted. It goes when this is dropped.
pub struct Limited {
    // What ends first comes first.
    _mounted: Mounted,
    _image: NamedTempFile,
}

impl Limited {
    /// Makes one and mounts it on a folder, which becomes that of `user`, who may have so much;
    /// none if this host has no quotas.
    pub fn new(folder: &Path, user: u32, most: Quota) -> Option<Self> {
        modules::load("quota_v2", &[]);
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(SIZE).unwrap();
        let made = Command::new("mke2fs").arg("-F").arg(image.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let path = image.path().to_str().unwrap();
        let limited = Self {
            _mounted: Mounted::new(&["-t", "ext4", "-o", "loop,usrquota", path], folder),
            _image: image,
        };
        let table = folder.join(TABLE);
        fs::write(&table, empty_table()).unwrap();
        let table = CString::new(table.to_str().unwrap()).unwrap();
        match call(folder, libc::Q_QUOTAON, FORMAT, table.as_ptr().cast_mut().cast()) {
            // No such format.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return None,
            on => on.unwrap(),
        }
        chown(folder, Some(user), Some(user)).unwrap();
        let wanted = libc::dqblk {
            dqb_bhardlimit: most.kib,
            dqb_ihardlimit: most.files,
            dqb_valid: libc::QIF_BLIMITS | libc::QIF_ILIMITS,
            ..none()
        };
        of_user(folder, libc::Q_SETQUOTA, user, wanted);
        Some(limited)
    }
}

/// How much a user has in the file system of `folder`.
pub fn used(folder: &Path, user: u32) -> Quota {
    let found = of_user(folder, libc::Q_GETQUOTA, user, none());
    Quota {
        kib: found.dqb_curspace.div_ceil(1024),
        files: found.dqb_curinodes,
    }
}

fn empty_table() -> Vec<u8> {
    let mut table = MAGIC_AND_VERSION.map(u32::to_le_bytes).concat();
    table.resize(BLOCKS as usize * BLOCK_BYTES, 0);
    table[BLOCKS_AT..][..4].copy_from_slice(&BLOCKS.to_le_bytes());
    table
}

fn none() -> libc::dqblk {
    // SAFETY: numbers only.
    unsafe { std::mem::zeroed() }
}

fn of_user(folder: &Path, command: c_int, user: u32, mut block: libc::dqblk) -> libc::dqblk {
    let user = c_int::try_from(user).unwrap();
    call(folder, command, user, (&raw mut block).cast()).unwrap();
    block
}

/// Quotas go by the device.
fn call(folder: &Path, command: c_int, id: c_int, argument: *mut c_void) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let of_folder = |line: &&str| line.split(' ').nth(1) == folder.to_str();
    let device = mounts.lines().find(of_folder).and_then(|line| line.split(' ').next());
    let device = CString::new(device.unwrap()).unwrap();
    let command = libc::QCMD(command, libc::USRQUOTA);
    // SAFETY: the device is a C string, and the argument what the command takes; both outlive the call.
    match unsafe { libc::quotactl(command, device.as_ptr(), id, argument.cast::<c_char>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
