//! What the process sees of the host: namespaces of its own whose root is the directory, or that
//! root alone, or everything.
//!
//! The server reaches nothing but the directory by its own rules. The sandbox stands for the case
//! that those have a fault: so what the host does not allow is left out, with a line in the log,
//! and is no reason not to serve.
//!
//! It is entered in two steps. [`Sandbox::prepare`] makes namespaces and puts the directory in
//! them; then the server opens what it needs, `/proc/self/fd` among it; [`Prepared::close`] leaves
//! the rest of the host behind. There is no process of its own in between and so no namespace of
//! processes: which of them may be signalled, and how, is for the filter of system calls to say.

#![expect(unsafe_code, reason = "unshare(2) takes descriptors from those who share them")]

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, getegid, geteuid, pivot_root};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe};

use super::{IdRange, Sandbox};

/// A sandbox whose walls are up and whose door is open.
#[derive(Debug)]
pub(super) struct Prepared {
    dir: OwnedFd,
    /// The process has namespaces of its own, for mounts, the network and IPC.
    namespaces: bool,
    /// In them `dir` is the root of a mount.
    placed: bool,
    /// It is to be the root in the end.
    confine: bool,
    /// The process may act for other users.
    pub of_others: bool,
    /// The process has a user namespace of its own.
    pub own_users: bool,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// Maps are for ordinary users.
    #[error("--uid-map and --gid-map take an ordinary user and --sandbox namespace; --translate-uid maps without")]
    Maps,
    /// The program that may map users of others.
    #[error("--uid-map and --gid-map: {0}")]
    Mapping(String),
}

impl Sandbox {
    /// Makes the namespaces in which `dir` will be all there is, as far as the host allows it.
    ///
    /// # Errors
    /// [`SandboxError`]
    pub(super) fn prepare(self, dir: OwnedFd, users: &[IdRange], groups: &[IdRange]) -> Result<Prepared, SandboxError> {
        let root = geteuid().is_root();
        let maps = !(users.is_empty() && groups.is_empty());
        if maps && (root || self != Self::Namespace) {
            return Err(SandboxError::Maps);
        }
        if root {
            // Groups of whoever started this are not the guest's. Without the right to, there are none to speak of.
            let _ = set_thread_groups(&[]);
        }
        let mut prepared = Prepared {
            dir,
            namespaces: false,
            placed: false,
            confine: self != Self::None,
            of_others: root || maps,
            own_users: false,
        };
        if self == Self::Namespace {
            match prepared.unshare(users, groups)? {
                Ok(()) => prepared.place(),
                Err(error) => log::warn!("sandbox: no namespaces of its own: {error}"),
            }
        }
        Ok(prepared)
    }
}

impl Prepared {
    /// The directory, as the process sees it now.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Has the process in namespaces of its own. The inner error is the host's, and no reason not to go on.
    fn unshare(&mut self, users: &[IdRange], groups: &[IdRange]) -> Result<Result<(), Errno>, SandboxError> {
        let own = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
        let root = geteuid().is_root();
        let maps = !(users.is_empty() && groups.is_empty());
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        // Whoever maps must be outside.
        let mapper = match maps {
            true => Some(mapper(users, groups, uid, gid)?),
            false => None,
        };
        let flags = if root { own } else { own | UnshareFlags::NEWUSER };
        // By its working directory the process finds the directory again: a descriptor stays in the mount namespace
        // that it was opened in.
        if let Err(error) = fchdir(&self.dir) {
            return Ok(Err(error));
        }
        // SAFETY: no descriptors are unshared, and there is one thread.
        if let Err(error) = unsafe { unshare_unsafe(flags) } {
            return Ok(Err(error));
        }
        self.namespaces = true;
        if !root {
            self.own_users = true;
            match mapper {
                Some(mapper) => finish(mapper)?,
                None => map_self(uid, gid).map_err(|error| SandboxError::Mapping(error.to_string()))?,
            }
        }
        if maps {
            use rustix::fs::{Gid, Uid};
            let changed = set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
                .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT));
            // Without a number 0 inside, it stays who it is.
            self.of_others = changed.is_ok();
        }
        Ok(Ok(()))
    }

    /// Has the directory in the new mount namespace, as a mount of its own if the host allows it.
    fn place(&mut self) {
        let placed = directory(".").and_then(|dir| {
            self.dir = dir;
            mounted(self.dir.as_fd())
        });
        match placed {
            Ok(mount) => {
                self.dir = mount;
                self.placed = true;
            }
            Err(error) => log::warn!("sandbox: the directory is no mount of its own: {error}"),
        }
    }

    /// Leaves behind what is not in the directory. What is in force, in words.
    ///
    /// # Errors
    /// What the host says.
    pub fn close(self) -> io::Result<&'static str> {
        if self.placed {
            match pivot(&self.dir) {
                Ok(()) if self.own_users => {
                    return Ok("user, mount, network and IPC namespaces, root in the directory");
                }
                Ok(()) => return Ok("mount, network and IPC namespaces, root in the directory"),
                // The root file system of an early boot cannot be left.
                Err(error) => log::info!("sandbox: the root is changed in place of the mount: pivot_root: {error}"),
            }
        }
        if !self.confine {
            return Ok("none");
        }
        let entered = fchdir(&self.dir).and_then(|()| chroot("."));
        let entered = entered.and_then(|()| chdir("/")).inspect_err(|error| {
            log::warn!("sandbox: the root stays the host's: chroot: {error}");
        });
        Ok(match (self.namespaces, self.own_users, entered) {
            (true, true, Ok(())) => "user, mount, network and IPC namespaces, changed root in the directory",
            (true, false, Ok(())) => "mount, network and IPC namespaces, changed root in the directory",
            (true, true, Err(_)) => "user, mount, network and IPC namespaces",
            (true, false, Err(_)) => "mount, network and IPC namespaces",
            (false, _, Ok(())) => "changed root in the directory",
            (false, _, Err(_)) => "none that this host allows",
        })
    }
}

/// A descriptor of the directory `path`.
fn directory(path: &str) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts `dir` over itself, with what is mounted below it now and later. Says what is to be seen there from now on.
fn mounted(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(dir, "", flags)?;
    let by_descriptors = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", dir, "", by_descriptors)?;
    Ok(tree)
}

/// Makes `root` the root of the mount namespace, and lets go of the old one.
fn pivot(root: &OwnedFd) -> Result<(), Errno> {
    let old = directory("/")?;
    fchdir(root)?;
    pivot_root(".", ".")?;
    fchdir(&old)?;
    // What becomes of this side is no matter of the host's.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    unmount(".", UnmountFlags::DETACH)?;
    fchdir(root)
}

/// The user that the process runs as is the only one inside (user_namespaces(7)).
fn map_self(uid: u32, gid: u32) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// A process outside of the namespace to be, which maps the users of this one once it is told to.
fn mapper(users: &[IdRange], groups: &[IdRange], uid: u32, gid: u32) -> Result<Child, SandboxError> {
    let script = "read -r go && newuidmap $0 $1 && newgidmap $0 $2";
    let ranges = |ranges: &[IdRange], own: u32| -> String {
        let own = [IdRange {
            inside: own,
            outside: own,
            count: 1,
        }];
        let ranges = if ranges.is_empty() { &own } else { ranges };
        let words = ranges
            .iter()
            .map(|range| format!("{} {} {}", range.inside, range.outside, range.count));
        words.collect::<Vec<_>>().join(" ")
    };
    Command::new("/bin/sh")
        .args(["-c", script, &std::process::id().to_string()])
        .args([ranges(users, uid), ranges(groups, gid)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| SandboxError::Mapping(format!("cannot start /bin/sh: {error}")))
}

/// Tells it, and waits for it.
fn finish(mut mapper: Child) -> Result<(), SandboxError> {
    let told = mapper.stdin.take().map(|mut stdin| stdin.write_all(b"go\n"));
    let failed = |what: String| SandboxError::Mapping(what);
    told.transpose().map_err(|error| failed(error.to_string()))?;
    let output = mapper.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(format!(
        "newuidmap and newgidmap: {}",
        said.trim().replace('\n', "; ")
    )))
}
