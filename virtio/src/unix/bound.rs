//! A listening socket in the file system: whose it is, what it replaces, and how its file goes.
//!
//! It is its owner's alone from its first moment: Linux gives a socket's file the mode of the
//! socket itself (`unix_bind`), which is set before the name exists. A socket that a killed process
//! left behind is replaced, one that somebody listens on is not; the folder is locked (flock(2))
//! between looking and binding, so that of two processes that start at once one is told.

#![expect(
    unsafe_code,
    reason = "the standard library does socket, bind and listen in one step"
)]

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{PATH_MAX, address, connect, new};
use crate::syscall::check;

/// How long a lock on the folder is waited for. It guards against an accident; nobody may hold up the start with it.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
const LOCK_AGAIN: Duration = Duration::from_millis(5);

/// Why there can be no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Longer than the kernel's `sun_path`.
    #[error("socket {} has a path of {found} bytes, allowed: up to {PATH_MAX}", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// The folder that it should be in is missing.
    #[error("socket {}: there is no folder {}", path.display(), folder.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
        /// The missing part of it.
        folder: PathBuf,
    },
    /// Something else has that name.
    #[error("socket {} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Another process listens there.
    #[error("socket {} is already in use by another process", .0.display())]
    InUse(PathBuf),
    /// The host refused.
    #[error("cannot listen at socket {}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// The file of a socket, by name and by identity. Dropping this removes it, unless it has become somebody else's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made, to tell it from a later one of the same name. As
    /// long as the socket is open no other file has them.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // What cannot be removed stays, and is replaced by the next one that starts here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, for its owner's connections alone, of which `backlog` may wait until they are
/// accepted. A socket there to which nobody listens any more is replaced; of several processes that
/// try at once, one succeeds. The socket does not block.
///
/// # Errors
/// See [`BindError`]. Nothing is left behind.
pub fn bind(path: &Path, backlog: libc::c_int) -> Result<(UnixListener, SocketFile), BindError> {
    let found = path.as_os_str().len();
    if found > PATH_MAX {
        let path = path.to_owned();
        return Err(BindError::PathTooLong { path, found });
    }
    let _lock = lock_folder(path);
    remove_stale(path)?;
    listen(path, backlog).map_err(|source| match path.parent() {
        Some(folder) if source.kind() == io::ErrorKind::NotFound => BindError::NoFolder {
            path: path.to_owned(),
            folder: folder.to_owned(),
        },
        _ => host(path)(source),
    })
}

fn listen(path: &Path, backlog: libc::c_int) -> io::Result<(UnixListener, SocketFile)> {
    let (address, len) = address(path)?;
    // Before `bind` this sets the mode that the file is created with.
    let socket = File::from(new()?);
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = UnixListener::from(OwnedFd::from(socket));
    // SAFETY: the address is `len` bytes long and read during the call only.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    let identity = identity(path)?;
    let path = path.to_owned();
    // From here on it is removed should anything fail.
    let file = SocketFile { path, identity };
    // SAFETY: takes no memory.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok((socket, file))
}

/// Locks the folder of `path` until dropped: between finding a socket stale and removing it, nobody
/// else may put one of his own there. Without a lock when that is impossible or takes too long.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).ok()?;
    let begin = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_PATIENCE => thread::sleep(LOCK_AGAIN),
            Err(_) => return None,
        }
    }
}

/// Makes room at `path`, if what is there was left behind, as by a process that was killed.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(host(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or refused for a reason that only a living socket has.
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

fn host(path: &Path) -> impl FnOnce(io::Error) -> BindError + '_ {
    move |source| BindError::Host {
        path: path.to_owned(),
        source,
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// More than there are attempts to find out whether somebody listens.
    const BACKLOG: libc::c_int = 64;

    fn message(path: &Path) -> String {
        bind(path, BACKLOG).unwrap_err().to_string()
    }

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let (listener, file) = bind(&path, BACKLOG).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path, BACKLOG).unwrap();
        assert_eq!(
            message(&path),
            format!("socket {} is already in use by another process", path.display())
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_whose_backlog_is_full_is_in_use_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let (_listener, _file) = bind(&path, 0).unwrap();
        let waiting: Vec<_> = std::iter::repeat_with(|| connect(&path))
            .take_while(Result::is_ok)
            .take(10_000)
            .collect();
        assert!(waiting.len() < 10_000);
        assert!(matches!(bind(&path, 0), Err(BindError::InUse(_))));
    }

    #[test]
    fn of_many_that_start_at_once_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        let bound: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| bind(&path, BACKLOG))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(
            message(&path),
            format!("socket {} exists and is not a socket", path.display())
        );
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(message(&link).ends_with("exists and is not a socket"));
    }

    #[test]
    fn places_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert_eq!(
            message(&missing.join("v.sock")),
            format!(
                "socket {}: there is no folder {}",
                missing.join("v.sock").display(),
                missing.display()
            )
        );
        let long = folder.path().join("x".repeat(PATH_MAX));
        assert!(matches!(bind(&long, BACKLOG), Err(BindError::PathTooLong { found, .. }) if found > PATH_MAX));
        assert!(matches!(bind(Path::new(""), BACKLOG), Err(BindError::Host { .. })));
    }

    #[test]
    fn a_file_that_somebody_else_has_put_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let first = bind(&path, BACKLOG).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = bind(&path, BACKLOG).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }
}
