//! One installation at a time: what a plan was made for is still so when it is carried out.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{InstallError, behind};

/// The right to change what is installed, until it is dropped or the process ends.
///
/// It is a lock (flock(2)) on a file of its own that only its owner can open: whoever may read what
/// is locked can keep it locked. It stands in `/etc` of the system, or at its root where there is
/// no such folder: an engine's folder of drop-ins is common to all prefixes, and the folder of a
/// manifest is not there before the first installation. It goes with the right.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock of the system whose root is `root`. Does not wait.
    ///
    /// # Errors
    ///
    /// Somebody has it, or it cannot be made.
    pub fn take(root: &Path) -> Result<Self, InstallError> {
        let path = Self::path(root);
        loop {
            let mut options = File::options();
            options.write(true).create(true).truncate(false).mode(0o600);
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let file = options
                .open(&path)
                .map_err(|error| InstallError::io("open", &path, error))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(Self { path, _file: file }),
                // Whoever had it has removed it meanwhile.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(InstallError::Busy { root: root.to_owned() }),
                Err(TryLockError::Error(error)) => return Err(InstallError::io("lock", &path, error)),
            }
        }
    }

    /// The file of the system whose root is `root`.
    fn path(root: &Path) -> PathBuf {
        let etc = behind(root, Path::new("/etc"));
        let folder = if etc.is_dir() { etc } else { root.to_owned() };
        folder.join(".husk-install.lock")
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked: who opens it from now on makes another one.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `file` is what stands at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let found = fs::symlink_metadata(path).map(identity).ok();
    found.is_some() && found == file.metadata().map(identity).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_until_the_first_is_done() {
        let root = tempfile::tempdir().unwrap();
        let first = Lock::take(root.path()).unwrap();
        let error = Lock::take(root.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "another husk install or uninstall is at work on {}: wait for its end",
                root.path().display()
            )
        );
        drop(first);
        Lock::take(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "it goes with the right");
        assert!(Lock::take(&root.path().join("nowhere")).is_err());
    }

    #[test]
    fn whoever_may_only_read_keeps_nobody_out() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let readers = [root.path(), &root.path().join("etc")].map(|path| File::open(path).unwrap());
        for reader in &readers {
            reader.try_lock_shared().unwrap();
        }
        let lock = Lock::take(root.path()).unwrap();
        let mode = fs::metadata(&lock.path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600, "nobody else can open it");
        // What a killed one left is nobody's.
        drop(lock);
        fs::write(Lock::path(root.path()), "").unwrap();
        Lock::take(root.path()).unwrap();
    }
}
