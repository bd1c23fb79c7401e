//! Extended attributes, and which of them the guest has.
//!
//! | names                    | served                                                                     |
//! |--------------------------|----------------------------------------------------------------------------|
//! | `user.*`, `security.*`   | yes; what of `security.*` may be set is for the host to say                |
//! | `system.posix_acl_*`     | if the share has them, with numbers of users translated                     |
//! | `trusted.*`              | if the server has `CAP_SYS_ADMIN`, without which the host serves them to nobody |
//! | `trusted.overlay.*`      | to be read; to be changed only if the share says so, else `EPERM`           |
//! | others                   | `EOPNOTSUPP`                                                               |
//!
//! These are names on the host. Where the share has an [`XattrMap`], it says what they are in the
//! guest, and which of them it has.
//!
//! The host has no call that takes a descriptor which only names a file, so the thread's working
//! directory is `/proc/self/fd` (see [`super::thread`]), and the name there is the descriptor's
//! number.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, Mode, XattrFlags, chmodat, getxattr, getxattr_query, listxattr, listxattr_query, removexattr, setxattr,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use super::Tree;
use super::attributes::Kind;
use super::descriptors::CountedFd;
use super::nodes::Inode;
use super::proc::Number;
use super::{attributes, thread};
use crate::fs::filesystem::{Creation, Node};
use crate::fs::protocol::tail::xattr_name;
use crate::fs::xattr_map::{ACL_NAMES, Refusal, XattrMap};

/// Longest value, and longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of linux/limits.h).
const MOST_BYTES: usize = 65_536;
/// Of an access control list: its head, which says version 2, and an entry (linux/posix_acl_xattr.h).
const ACL_HEAD: usize = 4;
const ACL_ENTRY: usize = 8;
/// Entries with the number of a user or of a group (linux/posix_acl.h).
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// What overlayfs keeps of its files (`OVL_XATTR_TRUSTED_PREFIX` of `fs/overlayfs/overlayfs.h`).
const OVERLAY: &[u8] = b"trusted.overlay.";
/// What a program may do beyond its user (capabilities(7)).
const CAPABILITY: &CStr = c"security.capability";
/// Set-group-ID, in a mode.
const S_ISGID: u32 = 0o2000;

/// A name of the host's that leads to a node from a thread's working directory.
struct Named {
    /// Keeps the number what it is.
    _fd: Arc<CountedFd>,
    number: Number,
}

impl Named {
    fn path(&self) -> &CStr {
        self.number.as_c_str()
    }
}

impl Tree {
    fn named(&self, node: Node) -> Result<Named, Errno> {
        thread::check()?;
        let fd = self.descriptor(node)?;
        let number = Number::of(&*fd);
        Ok(Named { _fd: fd, number })
    }

    /// The name on the host of an attribute that the guest may have read.
    ///
    /// # Errors
    /// `ENODATA` where the map says that it is not the guest's: so the guest's kernel goes on
    /// without, which looks for some by itself.
    fn readable<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>, Errno> {
        self.host_name(name, |refusal| match refusal {
            Refusal::Bad | Refusal::TooLong => Errno::NODATA,
            Refusal::Unsupported => Errno::OPNOTSUPP,
        })
    }

    /// The name on the host of an attribute that the guest may set or remove; `too_long` if the
    /// host has no names of that length.
    fn changeable<'n>(&self, name: &'n CStr, too_long: Errno) -> Result<Cow<'n, CStr>, Errno> {
        let name = self.host_name(name, |refusal| match refusal {
            Refusal::Bad => Errno::PERM,
            Refusal::Unsupported => Errno::OPNOTSUPP,
            Refusal::TooLong => too_long,
        })?;
        if name.to_bytes().starts_with(OVERLAY) && !self.policy.overlay_xattr {
            return Err(Errno::PERM);
        }
        Ok(name)
    }

    fn host_name<'n>(&self, name: &'n CStr, refused: impl FnOnce(Refusal) -> Errno) -> Result<Cow<'n, CStr>, Errno> {
        if !self.policy.xattr {
            return Err(Errno::NOSYS);
        }
        let name = match &self.policy.xattr_map {
            Some(map) => map.to_host(name).map_err(refused)?,
            None => Cow::Borrowed(name),
        };
        if self.serves(name.to_bytes()) {
            Ok(name)
        } else {
            Err(Errno::OPNOTSUPP)
        }
    }

    /// What the guest calls `name` of the host, both with a NUL at the end, if it has it.
    fn guest_name<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let name = Some(name).filter(|name| self.serves(name))?;
        let Some(map) = &self.policy.xattr_map else {
            return Some(name);
        };
        let name = map.to_guest(name)?;
        // What is left may be no name that the guest could ask for.
        let whole = CStr::from_bytes_with_nul(name).ok()?;
        let asked_for = xattr_name(whole).is_ok() && (!is_acl(name) || self.policy.posix_acl());
        asked_for.then_some(name)
    }

    fn serves(&self, name: &[u8]) -> bool {
        if is_acl(name) {
            return self.policy.posix_acl();
        }
        name.starts_with(b"user.") || name.starts_with(b"security.") || self.trusted && name.starts_with(b"trusted.")
    }

    pub(super) fn setxattr(
        &self,
        node: Node,
        name: &CStr,
        value: &[u8],
        flags: u32,
        clear_sgid: bool,
    ) -> Result<(), Errno> {
        let name = &*self.changeable(name, Errno::RANGE)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if value.len() > MOST_BYTES {
            return Err(Errno::TOOBIG);
        }
        let named = self.named(node)?;
        if !(is_acl(name.to_bytes()) && self.who.maps()) {
            setxattr(named.path(), name, value, flags)?;
        } else {
            let user = |id| self.who.host_uid(id);
            let group = |id| self.who.host_gid(id);
            setxattr(named.path(), name, &translated(value, user, group)?, flags)?;
        }
        if clear_sgid {
            let mode = u32::from(attributes::of(&*named._fd)?.stx_mode);
            if mode & S_ISGID != 0 {
                let mode = Mode::from_raw_mode(mode & 0o7777 & !S_ISGID);
                chmodat(self.proc.dir(), named.path(), mode, AtFlags::empty())?;
            }
        }
        Ok(())
    }

    pub(super) fn getxattr(&self, node: Node, name: &CStr, room: usize) -> Result<Vec<u8>, Errno> {
        let name = &*self.readable(name)?;
        let named = self.named(node)?;
        let mut value = vec![0; room.min(MOST_BYTES)];
        let len = getxattr(named.path(), name, &mut value[..])?;
        value.truncate(len);
        if is_acl(name.to_bytes()) && self.who.maps() {
            let user = |id| Ok(self.who.guest_uid(id));
            let group = |id| Ok(self.who.guest_gid(id));
            return translated(&value, user, group);
        }
        Ok(value)
    }

    pub(super) fn getxattr_len(&self, node: Node, name: &CStr) -> Result<usize, Errno> {
        let name = self.readable(name)?;
        getxattr_query(self.named(node)?.path(), &*name)
    }

    pub(super) fn listxattr(&self, node: Node, room: usize) -> Result<Vec<u8>, Errno> {
        if !self.policy.xattr {
            return Err(Errno::NOSYS);
        }
        let named = self.named(node)?;
        let len = listxattr_query(named.path())?;
        let mut all = vec![0u8; len.min(MOST_BYTES)];
        let len = listxattr(named.path(), &mut all[..])?;
        all.truncate(len);
        let mut served = Vec::with_capacity(all.len());
        for name in all.split_inclusive(|byte| *byte == 0) {
            served.extend_from_slice(self.guest_name(name).unwrap_or_default());
        }
        if served.len() > room {
            Err(Errno::RANGE)
        } else {
            Ok(served)
        }
    }

    pub(super) fn listxattr_len(&self, node: Node) -> Result<usize, Errno> {
        self.listxattr(node, MOST_BYTES).map(|names| names.len())
    }

    pub(super) fn removexattr(&self, node: Node, name: &CStr) -> Result<(), Errno> {
        let name = self.changeable(name, Errno::NODATA)?;
        removexattr(self.named(node)?.path(), &*name)
    }

    /// Gives what was just made the label that the guest wants of it.
    pub(super) fn label(
        &self,
        new: &Creation<'_>,
        fd: impl FnOnce() -> Result<Arc<CountedFd>, Errno>,
    ) -> Result<(), Errno> {
        let Some((name, value)) = new.label else { return Ok(()) };
        if !name.to_bytes().starts_with(b"security.") {
            return Err(Errno::INVAL);
        }
        let name = self.changeable(name, Errno::RANGE)?;
        thread::check()?;
        let fd = fd()?;
        setxattr(Number::of(&*fd).as_c_str(), &*name, value, XattrFlags::empty())
    }

    /// Takes the capabilities of a program from the file that `fd` holds, which is about to be
    /// changed or to get another owner. The host's kernel does so with its own, and knows nothing
    /// of those that a map has under another name.
    ///
    /// # Errors
    /// The host's, if they are there and stay.
    pub(super) fn kill_capability(&self, inode: &Inode, fd: impl AsFd) -> Result<(), Errno> {
        let Some(name) = &self.policy.capability else {
            return Ok(());
        };
        // Of nothing else they mean anything (execve(2)).
        if inode.kind() != Kind::Regular {
            return Ok(());
        }
        thread::check()?;
        let number = Number::of(fd);
        // A file seldom has any, and looking holds up nobody who writes. A file that may only be
        // written says that looking is not allowed.
        if let Err(Errno::NODATA | Errno::OPNOTSUPP) = getxattr_query(number.as_c_str(), &**name) {
            return Ok(());
        }
        match removexattr(number.as_c_str(), &**name) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            removed => removed,
        }
    }
}

/// Whether the server may have `trusted.*`.
pub(super) fn has_trusted() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What the host calls the guest's [`CAPABILITY`], if `map` has another name for it.
pub(super) fn mapped_capability(map: &XattrMap) -> Option<CString> {
    let name = map.to_host(CAPABILITY).ok()?;
    (*name != *CAPABILITY).then(|| name.into_owned())
}

fn is_acl(name: &[u8]) -> bool {
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    ACL_NAMES.iter().any(|acl| acl.to_bytes() == name)
}

/// An access control list with other numbers of users and groups.
fn translated(
    list: &[u8],
    user: impl Fn(u32) -> Result<u32, Errno>,
    group: impl Fn(u32) -> Result<u32, Errno>,
) -> Result<Vec<u8>, Errno> {
    let mut list = list.to_vec();
    let entries = list.get_mut(ACL_HEAD..).ok_or(Errno::INVAL)?;
    for entry in entries.chunks_exact_mut(ACL_ENTRY) {
        let Some((tag, [_, _, id @ ..])) = entry.split_first_chunk_mut::<2>() else {
            return Err(Errno::INVAL);
        };
        let Ok(id) = <&mut [u8; 4]>::try_from(id) else {
            return Err(Errno::INVAL);
        };
        let new = match u16::from_le_bytes(*tag) {
            ACL_USER => user(u32::from_le_bytes(*id))?,
            ACL_GROUP => group(u32::from_le_bytes(*id))?,
            _ => continue,
        };
        *id = new.to_le_bytes();
    }
    Ok(list)
}
