//! One installation at a time: what a plan was made for is still so when it is carried out.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::InstallError;

/// The right to change what is installed, until it is dropped or the process ends.
///
/// It is a lock (flock(2)) on the root of the system: an engine's folder of drop-ins is common to all prefixes, and the folder of a manifest is
/// not there before the first installation.
#[derive(Debug)]
pub struct Lock {
    _root: File,
}

impl Lock {
    /// Takes the lock of the system whose root is `root`. Does not wait.
    ///
    /// # Errors
    ///
    /// Somebody has it, or there is no such folder.
    pub fn take(root: &Path) -> Result<Self, InstallError> {
        let folder = File::open(root).map_err(|error| InstallError::io("open", root, error))?;
        match folder.try_lock() {
            Ok(()) => Ok(Self { _root: folder }),
            Err(TryLockError::WouldBlock) => Err(InstallError::Busy { root: root.to_owned() }),
            Err(TryLockError::Error(error)) => Err(InstallError::io("lock", root, error)),
        }
    }
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
        assert!(Lock::take(&root.path().join("nowhere")).is_err());
    }
}
