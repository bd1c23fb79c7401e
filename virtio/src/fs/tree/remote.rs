//! File systems where the host leaves it to a server to clear set-user-ID and set-group-ID of what is written: NFS. The
//! server sees the process that serves, which may be root and keeps them, and not the guest's caller (Linux
//! `nfs_setattr` drops `ATTR_KILL_SUID`).

use std::os::fd::AsFd;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use husk_devices::{read, write};
use rustix::fs::{AtFlags, Mode, Statx, StatxAttributes, chmodat, fstatfs};
use rustix::io::Errno;

use super::Tree;
use super::attributes;
use super::credentials::{self, WithoutFsetid};
use super::nodes::Inode;
use super::proc::Number;

/// `NFS_SUPER_MAGIC` of linux/magic.h.
const NFS: u64 = 0x6969;
/// `S_ISUID`, and `S_ISGID` of what a group may execute: else it means mandatory locks, of old.
const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2010;
/// What of a mode is not its type.
const PERMISSIONS: u32 = 0o7777;

/// Whether `fd` is on such a one.
pub(super) fn is_remote(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|found| u64::try_from(found.f_type) == Ok(NFS))
}

/// Devices of such file systems below the share. A number that another file system gets later stays one: what is done
/// there is good for all.
#[derive(Debug, Default)]
pub(super) struct Remote {
    any: AtomicBool,
    devices: RwLock<Vec<u32>>,
}

impl Remote {
    /// Notes a device.
    pub fn note(&self, device: u32) {
        let mut devices = write(&self.devices);
        if !devices.contains(&device) {
            devices.push(device);
        }
        self.any.store(true, Ordering::Release);
    }

    fn has(&self, device: u32) -> bool {
        self.any.load(Ordering::Acquire) && read(&self.devices).contains(&device)
    }
}

impl Tree {
    /// Looks what `fd` is on, of which the host says `stat`, if it is where a mount begins.
    pub(super) fn look_for_remote(&self, fd: impl AsFd, stat: &Statx) {
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) && is_remote(fd) {
            self.remote.note(attributes::key(stat).dev);
        }
    }

    /// Sees to it that what is done with `fd`, which holds `inode`, until the result is dropped clears set-user-ID and
    /// set-group-ID.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn kill_set_id(&self, inode: &Inode, fd: impl AsFd) -> Result<Option<WithoutFsetid>, Errno> {
        if !self.remote.has(inode.key().dev) {
            return credentials::without_fsetid().map(Some);
        }
        // Before, as the kernel does it: nobody executes the new contents with the old rights.
        let mode = u32::from(attributes::of(&fd)?.stx_mode) & PERMISSIONS;
        let mut left = mode & !SET_USER;
        if mode & SET_GROUP == SET_GROUP {
            left &= !(SET_GROUP & 0o7000);
        }
        if left != mode {
            let number = Number::of(&fd);
            chmodat(
                self.proc.dir(),
                number.as_c_str(),
                Mode::from_raw_mode(left),
                AtFlags::empty(),
            )?;
        }
        Ok(None)
    }
}
