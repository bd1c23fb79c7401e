//! On whose behalf the host is asked: numbers of users in the guest and on the host, and threads
//! that take a caller's for a moment.
//!
//! The guest's kernel has checked a caller's permissions; it alone knows all of his groups. So the
//! host is asked as whoever runs the server, except where something is made: that is his who asks,
//! with the host's own rules for set-group-ID directories and quotas.

use std::marker::PhantomData;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::ids::Ids;
use crate::fs::filesystem::Caller;
use crate::fs::share::{IdMap, SERVING};

/// What a thread keeps of root's capabilities. Quotas hold, which `CAP_SYS_RESOURCE` passes over.
/// With attributes it keeps `CAP_SYS_ADMIN`, without which the host has no `trusted.*`, nor
/// `security.*` where no security module is.
pub(super) fn kept(xattr: bool) -> CapabilitySet {
    let mut kept = SERVING;
    kept.set(CapabilitySet::SYS_ADMIN, xattr);
    kept
}

/// Takes the rest from the calling thread.
pub(super) fn drop_capabilities(xattr: bool) -> Result<(), Errno> {
    let kept = kept(xattr);
    let sets = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: sets.effective & kept,
            permitted: sets.permitted & kept,
            inheritable: sets.inheritable & kept,
        },
    )
}

/// Who the server is, and who others are to it.
pub(super) struct Identity {
    uid: u32,
    gid: u32,
    /// It may act as others.
    switches: bool,
    users: Ids,
    groups: Ids,
}

impl Identity {
    /// That of the calling thread.
    pub fn of_thread(users: &[IdMap], groups: &[IdMap]) -> Result<Self, Errno> {
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        Ok(Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            switches: capabilities(None)?.effective.contains(needed),
            users: Ids::new(users),
            groups: Ids::new(groups),
        })
    }

    /// Whether it may act as others.
    pub fn switches(&self) -> bool {
        self.switches
    }

    /// Whether users or groups have other numbers in the guest.
    pub fn maps(&self) -> bool {
        self.users.maps() || self.groups.maps()
    }

    /// A user of the host, for the guest.
    pub fn guest_uid(&self, host: u32) -> u32 {
        self.users.to_guest(host)
    }

    /// A group of the host, for the guest.
    pub fn guest_gid(&self, host: u32) -> u32 {
        self.groups.to_guest(host)
    }

    /// A user of the guest, for the host.
    ///
    /// # Errors
    /// `EPERM` if he has no number there or is forbidden, `EINVAL` for that which means nobody.
    pub fn host_uid(&self, guest: u32) -> Result<u32, Errno> {
        self.users.to_host(guest)
    }

    /// A group of the guest, for the host.
    ///
    /// # Errors
    /// As for [`Identity::host_uid`].
    pub fn host_gid(&self, guest: u32) -> Result<u32, Errno> {
        self.groups.to_host(guest)
    }

    /// Has the thread act as `caller` until the result is dropped. Its real user stays, so that
    /// nobody of the host can signal or trace it. A server that is an ordinary user acts as himself
    /// for everybody; with maps, for the one who is himself.
    ///
    /// # Errors
    /// `EPERM` if the caller cannot be acted for.
    pub fn impersonate(&self, caller: &Caller) -> Result<Impersonation, Errno> {
        let (uid, gid) = (self.host_uid(caller.uid)?, self.host_gid(caller.gid)?);
        let group = caller.group.and_then(|group| self.host_gid(group).ok());
        if !self.switches {
            let other = |ids: &Ids, id, own| ids.maps_guest() && id != own;
            return if other(&self.users, uid, self.uid) || other(&self.groups, gid, self.gid) {
                Err(Errno::PERM)
            } else {
                Ok(Impersonation::none())
            };
        }
        let mut acting = Impersonation::none();
        if let Some(group) = group.filter(|group| *group != gid) {
            acting.groups = set_groups(&[Gid::from_raw(group)])?;
        }
        if gid != self.gid {
            set_thread_res_gid(None, Gid::from_raw(gid), None).map_err(unknown)?;
            acting.gid = Some(self.gid);
        }
        if uid != self.uid {
            let sets = capabilities(None)?;
            set_thread_res_uid(None, Uid::from_raw(uid), None).map_err(unknown)?;
            acting.uid = Some((self.uid, sets));
            // Whether he may was for the guest to say.
            let effective =
                sets.permitted & (CapabilitySet::DAC_OVERRIDE | CapabilitySet::SETUID | CapabilitySet::SETGID);
            set_capabilities(None, CapabilitySets { effective, ..sets })?;
        }
        Ok(acting)
    }
}

/// What the host says of a number of a user or group: a user namespace says `EINVAL` of one that it does not have.
pub(super) fn unknown(error: Errno) -> Errno {
    if error == Errno::INVAL { Errno::PERM } else { error }
}

/// Gives the calling thread these groups, and no others. Some user namespaces let nobody do that (`setgroups` of
/// user_namespaces(7)); then it says so, and the thread has those of the process.
pub(super) fn set_groups(groups: &[Gid]) -> Result<bool, Errno> {
    match set_thread_groups(groups) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A thread that acts for somebody else, until this is dropped.
#[must_use]
pub(super) struct Impersonation {
    uid: Option<(u32, CapabilitySets)>,
    gid: Option<u32>,
    groups: bool,
    /// Of one thread.
    here: PhantomData<*const ()>,
}

impl Impersonation {
    fn none() -> Self {
        Self {
            uid: None,
            gid: None,
            groups: false,
            here: PhantomData,
        }
    }
}

impl Drop for Impersonation {
    fn drop(&mut self) {
        // A thread that stayed somebody else would do the next caller's work as him.
        const BACK: &str = "the real user is still who he was, and may take his own number back";
        if let Some((uid, sets)) = self.uid {
            set_thread_res_uid(None, Uid::from_raw(uid), None).expect(BACK);
            set_capabilities(None, sets).expect(BACK);
        }
        if let Some(gid) = self.gid {
            set_thread_res_gid(None, Gid::from_raw(gid), None).expect(BACK);
        }
        if self.groups {
            set_thread_groups(&[]).expect(BACK);
        }
    }
}

/// A thread without `CAP_FSETID`, until this is dropped: the host clears set-user-ID and
/// set-group-ID of what it changes.
#[must_use]
pub(super) struct WithoutFsetid {
    sets: Option<CapabilitySets>,
    here: PhantomData<*const ()>,
}

/// See [`WithoutFsetid`].
pub(super) fn without_fsetid() -> Result<WithoutFsetid, Errno> {
    let mut less = WithoutFsetid {
        sets: None,
        here: PhantomData,
    };
    let sets = capabilities(None)?;
    if sets.effective.contains(CapabilitySet::FSETID) {
        let effective = sets.effective.difference(CapabilitySet::FSETID);
        set_capabilities(None, CapabilitySets { effective, ..sets })?;
        less.sets = Some(sets);
    }
    Ok(less)
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if let Some(sets) = self.sets {
            set_capabilities(None, sets).expect("it was permitted, and still is");
        }
    }
}

/// A thread whose umask is the caller's, until this is dropped. The host leaves it aside where a
/// directory has a default list of access rights, which is why the mode is not masked here.
#[must_use]
pub(super) struct UmaskGuard {
    before: Option<Mode>,
    here: PhantomData<*const ()>,
}

/// See [`UmaskGuard`].
pub(super) fn mask(umask: u32) -> UmaskGuard {
    let mode = Mode::from_raw_mode(umask & 0o777);
    UmaskGuard {
        before: (!mode.is_empty()).then(|| rustix::process::umask(mode)),
        here: PhantomData,
    }
}

impl Drop for UmaskGuard {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            rustix::process::umask(before);
        }
    }
}
