//! What is left of the process in the host's file system, its socket and the file with its number,
//! and how these go with it: when there is nobody left to serve, and when somebody asks it to end.
//!
//! In the end the process sees nothing but what it serves. So the folder that they are in is held
//! from before, as a mount of its own where that can be made: from there nothing leads on.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use husk_devices::lock;
use husk_virtio::fs::share::landlock_versions;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx, unlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Sandbox;
use crate::terminal::Signals;

/// Bytes of the stack of the thread that waits.
const STACK: usize = 64 << 10;

/// What tells a file from a later one of its name, as long as it is open: device and inode.
type Identity = (u32, u32, u64);

/// Files in a folder. Dropping this removes those that are still what they were.
#[derive(Debug)]
pub(super) struct OwnFiles {
    path: PathBuf,
    /// The folder; none if it cannot be held where the process has gone.
    folder: Option<OwnedFd>,
    files: Vec<(OsString, Identity)>,
}

impl OwnFiles {
    /// The files `names` in `folder`, a path that is good for any working directory.
    ///
    /// # Errors
    /// The host's, if one of them is not there.
    pub fn new(folder: &Path, names: impl IntoIterator<Item = OsString>) -> io::Result<Self> {
        let held = directory(folder)?;
        let found = names.into_iter().map(|name| {
            let identity = identity(&held, &name)?;
            Ok((name, identity))
        });
        let files = found.collect::<Result<_, Errno>>()?;
        Ok(Self {
            path: folder.into(),
            folder: Some(held),
            files,
        })
    }

    /// Holds the folder in a way that `sandbox`, whose walls are up and whose door is open, stays
    /// one. The descriptor by which files in it will be removed; none if they will stay.
    pub fn stay_at_hand(&mut self, sandbox: Sandbox) -> Option<BorrowedFd<'_>> {
        if sandbox != Sandbox::None {
            let (found, needed) = landlock_versions();
            match alone(&self.path, self.folder.as_ref()) {
                Ok(mount) => self.folder = Some(mount),
                // It leads to the rest of the host, but Landlock does not let anybody go there.
                Err(_) if found >= needed => {}
                Err(error) => {
                    log::info!(
                        "{} keeps the socket when this process ends: {error}",
                        self.path.display()
                    );
                    self.folder = None;
                }
            }
        }
        self.folder.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for OwnFiles {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        for (name, made) in &self.files {
            if identity(folder, name) == Ok(*made) {
                // What cannot be removed stays, and is taken over by the next one that starts here.
                let _ = unlinkat(folder, &**name, AtFlags::empty());
            }
        }
    }
}

/// The folder at `path`, which is `held`, as a mount of its own, and nowhere mounted.
fn alone(path: &Path, held: Option<&OwnedFd>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    // That of the mount namespace of now: those of others cannot be copied.
    let folder = directory(path)?;
    let same = held.is_some_and(|held| of_itself(held).is_ok_and(|held| of_itself(&folder) == Ok(held)));
    if same {
        open_tree(folder, "", flags)
    } else {
        Err(Errno::STALE)
    }
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn identity(folder: impl AsFd, name: &OsString) -> Result<Identity, Errno> {
    of(folder, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn of_itself(fd: impl AsFd) -> Result<Identity, Errno> {
    of(fd, &OsString::new(), AtFlags::EMPTY_PATH)
}

fn of(folder: impl AsFd, name: &OsString, flags: AtFlags) -> Result<Identity, Errno> {
    let found = statx(folder, &**name, flags, StatxFlags::INO)?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// Something that goes with the process, however it ends. Dropping this is one of the ways.
pub(super) struct Ending<T>(Arc<Mutex<Option<T>>>);

impl<T: Send + 'static> Ending<T> {
    /// Has `last` dropped when this is, or before the process ends with `code` because of one of `signals`.
    ///
    /// # Errors
    /// The host has no thread more, and `last` is dropped.
    pub fn new(last: T, mut signals: Signals, code: i32) -> io::Result<Self> {
        let last = Arc::new(Mutex::new(Some(last)));
        let ending = Self(last.clone());
        let wait = move || match signals.wait() {
            Ok(()) => {
                drop(lock(&last).take());
                std::process::exit(code);
            }
            Err(error) => log::error!("cannot wait for signals: {error}"),
        };
        thread::Builder::new()
            .name("fs-signals".into())
            .stack_size(STACK)
            .spawn(wait)?;
        Ok(ending)
    }
}

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        drop(lock(&self.0).take());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_go_with_their_owner_unless_others_have_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        for name in ["one", "two", "other"] {
            fs::write(path(name), "").unwrap();
        }
        let files = OwnFiles::new(dir.path(), ["one", "two"].map(OsString::from)).unwrap();
        fs::rename(path("other"), path("two")).unwrap();
        drop(files);
        assert!(!path("one").exists() && path("two").exists());
        OwnFiles::new(dir.path(), ["none".into()]).unwrap_err();
    }

    #[test]
    fn a_folder_that_has_become_another_is_not_taken_for_the_one_that_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("folder"), dir.path().join("away"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        let held = directory(&path).unwrap();
        fs::rename(&path, &away).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(alone(&path, Some(&held)).unwrap_err(), Errno::STALE);
    }
}
