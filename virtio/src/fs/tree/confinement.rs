//! What holds a thread that serves should the server's own rules have a fault: few capabilities, and Landlock.
//!
//! Landlock is a rule of the host's kernel about what a thread may open, by the hierarchy that a
//! file is in (landlock(7)): whatever way leads to a descriptor, `/proc/self/fd` and file handles
//! among them, the file has to be below the share. Mounts there are below it, also those that come
//! later.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use husk_devices::lock;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};

use super::host::FileHandle;
use super::{Tree, credentials};

/// The newest version of Landlock that the rules here were tried with. What later ones can forbid
/// besides is left as it is.
const TRIED: ABI = ABI::V7;
/// The first one that lets names go from one directory to another (`LANDLOCK_ACCESS_FS_REFER`);
/// those before it forbid that to everybody whom they forbid anything.
const WITH_REFER: u32 = 2;

/// That of the host, and the first that will do.
pub fn landlock_versions() -> (u32, u32) {
    (super::host::landlock_abi(), WITH_REFER)
}

/// Rules for threads: nothing but a share.
pub(super) struct Rules {
    /// Not changed any more. Taken by one thread at a time, to make a copy for itself.
    ruleset: Mutex<RulesetCreated>,
    abi: u32,
}

impl Rules {
    /// For the share that `root` holds. `None` if the host has no Landlock that is good for it.
    pub fn new(root: impl AsFd, readonly: bool) -> io::Result<Option<Self>> {
        let abi = super::host::landlock_abi();
        if abi < WITH_REFER {
            return Ok(None);
        }
        let ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(TRIED))
            .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(TRIED)))
            .and_then(|ruleset| ruleset.scope(Scope::from_all(TRIED)))
            .and_then(Ruleset::create)
            .and_then(|ruleset| ruleset.add_rule(PathBeneath::new(root, rights(readonly))))
            .map_err(host_error)?;
        Ok(Some(Self {
            ruleset: Mutex::new(ruleset),
            abi,
        }))
    }

    /// Lets files in `dir` be removed, in whatever is restricted from now on.
    fn let_remove(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let rule = PathBeneath::new(dir, AccessFs::RemoveFile);
        let mut ruleset = lock(&self.ruleset);
        (&mut *ruleset).add_rule(rule).map(|_| ()).map_err(host_error)
    }

    /// Restricts the calling thread, and those that it starts from now on. For good; a thread can
    /// be restricted sixteen times.
    pub fn restrict(&self) -> io::Result<()> {
        let ruleset = lock(&self.ruleset).try_clone()?;
        let ruleset = ruleset.set_compatibility(CompatLevel::HardRequirement);
        let status = ruleset.restrict_self().map_err(host_error)?;
        if status.ruleset == RulesetStatus::NotEnforced {
            return Err(io::Error::other("Landlock is not in force after all"));
        }
        Ok(())
    }
}

/// What is done with a share. Nothing in it is executed here, nor is a device opened, let alone
/// asked for what it can do.
fn rights(readonly: bool) -> BitFlags<AccessFs> {
    if readonly {
        AccessFs::ReadFile | AccessFs::ReadDir
    } else {
        AccessFs::from_all(TRIED) & !(AccessFs::Execute | AccessFs::IoctlDev)
    }
}

fn host_error(error: RulesetError) -> io::Error {
    io::Error::other(error)
}

/// What is in force for each thread that serves a share. It is said in one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// How many capabilities it keeps.
    pub capabilities: u32,
    /// Version of Landlock's rules (`LANDLOCK_CREATE_RULESET_VERSION`), if those are in force.
    pub landlock: Option<u32>,
    /// Nodes without a descriptor may be opened by file handle, if the host does that; else by name alone.
    pub handles: bool,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "mount namespace and root: the process's; umask: own; capabilities: {}; Landlock: ",
            self.capabilities
        )?;
        match self.landlock {
            Some(abi) => write!(f, "version {abi}")?,
            None => f.write_str("none")?,
        }
        write!(f, "; nodes are opened again by {}", self.way_back())
    }
}

impl Confinement {
    /// How nodes whose descriptor was closed are opened again.
    pub fn way_back(&self) -> &'static str {
        if self.handles { "file handle or name" } else { "name" }
    }
}

impl Tree {
    /// Has the host's kernel hold the calling thread to the share, if that is planned.
    pub(super) fn restrict(&self) -> io::Result<()> {
        match &self.rules {
            Some(rules) => rules.restrict(),
            None => Ok(()),
        }
    }

    /// Has the host's kernel hold the whole process to the share, called by its only thread: for
    /// good. In the directory `leave` files may still be removed. The version of Landlock's rules,
    /// if this host has any that will do.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn restrict_process(&self, leave: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
        let root = self.nodes.descriptor(&self.nodes.root())?;
        let Some(rules) = Rules::new(&*root, self.policy.readonly)? else {
            return Ok(None);
        };
        leave.map(|dir| rules.let_remove(dir)).transpose()?;
        rules.restrict()?;
        self.nodes.note_restricted();
        Ok(Some(rules.abi))
    }

    /// Version of Landlock's rules that hold each thread; 0 for none.
    pub(super) fn landlock(&self) -> u32 {
        self.rules.as_ref().map_or(0, |rules| rules.abi)
    }

    /// What will be in force for the threads that serve.
    pub(crate) fn confinement(&self) -> Result<Confinement, Errno> {
        let kept = credentials::kept(self.policy.xattr) & capabilities(None)?.permitted;
        // Whether one opens anything is tried when a descriptor is closed: a thread that opens shares may not.
        let may_open = kept.contains(CapabilitySet::DAC_READ_SEARCH);
        let root = self.nodes.descriptor(&self.nodes.root())?;
        Ok(Confinement {
            capabilities: kept.bits().count_ones(),
            landlock: Some(self.landlock()).filter(|version| *version > 0),
            handles: may_open && FileHandle::of(&*root).is_ok(),
        })
    }
}
