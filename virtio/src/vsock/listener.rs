//! The socket in the file system that programs of the host dial.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::socket::{self, PATH_MAX, Socket};

/// Why there can be no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
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
    #[error("socket {} is in use by another process", .0.display())]
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

/// A bound and listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

/// The socket's file. It goes when this goes, which is not left to an I/O thread: those may not remove files.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode of the file that was made, to tell it from a later one of the same name. As long as the socket is open no
    /// other file has them.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A socket there to which nobody listens any more is replaced.
    pub fn bind(path: &Path) -> Result<(Self, SocketFile), ListenError> {
        let found = path.as_os_str().as_bytes().len();
        let owned = || path.to_owned();
        if found > PATH_MAX {
            return Err(ListenError::PathTooLong { path: owned(), found });
        }
        let host = |source| ListenError::Host { path: owned(), source };
        let socket = match socket::listen(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                socket::listen(path)
            }
            first => first,
        };
        let socket = socket.map_err(|source| match path.parent() {
            Some(folder) if source.kind() == io::ErrorKind::NotFound => ListenError::NoFolder {
                path: owned(),
                folder: folder.to_owned(),
            },
            _ => host(source),
        })?;
        let file = SocketFile {
            path: owned(),
            identity: identity(path),
        };
        Ok((Self { socket, path: owned() }, file))
    }

    /// Takes the next dial.
    pub fn accept(&self) -> io::Result<Socket> {
        Socket::accept(&self.socket)
    }

    /// The socket of a program of the host that serves `port` to the guest.
    pub fn path_of_port(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A descriptor in reserve: given up for a moment when there are no others, so that a dial can be taken and closed. Left alone, it
/// would wait without an answer.
#[derive(Debug)]
pub(super) struct Reserve(Option<OwnedFd>);

impl Reserve {
    /// Puts one aside, if there is one.
    pub fn new(listener: &Listener) -> Self {
        Self(listener.socket.as_fd().try_clone_to_owned().ok())
    }

    /// Closes the next dial. `false` if there is no reserve.
    pub fn shed(&mut self, listener: &Listener) -> bool {
        if self.0.take().is_none() {
            return false;
        }
        drop(listener.accept());
        *self = Self::new(listener);
        true
    }
}

/// Whether a dial could not be taken because the process or the host has run out of something.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // If it cannot be removed now, the next VM replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of what is at `path`.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Removes the socket at `path` if nobody listens to it, as after a VMM that was killed.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let host = |source| ListenError::Host {
        path: path.to_owned(),
        source,
    };
    let kind = fs::symlink_metadata(path).map_err(host)?.file_type();
    if !kind.is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match Socket::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(host),
        _ => Err(ListenError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn message(path: &Path) -> String {
        Listener::bind(path).unwrap_err().to_string()
    }

    #[test]
    fn socket_is_its_owners_alone_and_goes_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let (listener, file) = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(listener.accept().is_ok());
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert!(path.exists());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, _file) = Listener::bind(&path).unwrap();
        assert_eq!(
            message(&path),
            format!("socket {} is in use by another process", path.display())
        );
        UnixStream::connect(&path).unwrap();
        drop(listener);
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
    fn errors_name_the_path_and_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none/v.sock");
        let named = missing.parent().unwrap().display().to_string();
        assert_eq!(
            message(&missing),
            format!("socket {} has no folder", missing.display())
                .replace(" has no folder", &format!(": there is no folder {named}"))
        );
        let long = PathBuf::from(format!("/{}", "x".repeat(PATH_MAX)));
        assert_eq!(
            message(&long),
            format!("socket {} has a path of 108 bytes, allowed: up to 107", long.display())
        );
    }

    #[test]
    fn successor_of_the_same_name_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.sock");
        let (_listens, first) = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let (_listens_too, second) = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn ports_of_the_host_have_paths() {
        let folder = tempfile::tempdir().unwrap();
        let (listener, _file) = Listener::bind(&folder.path().join("v.sock")).unwrap();
        assert_eq!(listener.path_of_port(1024), folder.path().join("v.sock_1024"));
    }
}
