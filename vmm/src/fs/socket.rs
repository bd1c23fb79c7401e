//! Where the front-end connects: a socket of this process's own or one that it was started with.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use husk_virtio::unix::{BindError, PATH_MAX, SocketFile, bind};

use super::Listen;
use super::ending::OwnFiles;
use crate::process;

/// Front-ends that may wait while one is served.
const BACKLOG: libc::c_int = 8;

/// A socket that listens, and the files that go with it.
#[derive(Debug)]
pub(super) struct Socket {
    pub listener: UnixListener,
    /// What was made for it, if it was made here.
    pub files: Option<SocketFiles>,
}

/// The files of a socket. They are removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFiles {
    /// From wherever the process has gone.
    pub own: OwnFiles,
    /// Where they still have their paths, should there be no more.
    _file: SocketFile,
    /// Locked to the last.
    _pid: PidFile,
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub(super) enum SocketError {
    /// No socket could be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Another process is here.
    #[error("another process serves at {}: it holds {}", socket.display(), file.display())]
    Taken {
        /// The socket.
        socket: PathBuf,
        /// The lock.
        file: PathBuf,
    },
    /// The file with the process's number.
    #[error("cannot write {}", file.display())]
    PidFile {
        /// The file.
        file: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// They cannot be found again.
    #[error("cannot find what was made in {}", folder.display())]
    Folder {
        /// Where the socket is.
        folder: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// It does not let anybody wait.
    #[error("cannot wait at the socket")]
    Blocking(#[source] io::Error),
    /// Not a socket that listens.
    #[error("--fd {fd} is {found}, allowed: a Unix stream socket that listens")]
    Descriptor {
        /// The descriptor, as `--fd` names it.
        fd: RawFd,
        /// What is open under that number, in words.
        found: &'static str,
    },
    /// No such group, or none of ours.
    #[error("--socket-group {group}: {what}")]
    Group {
        /// As it was given.
        group: String,
        /// What is wrong.
        what: String,
    },
}

impl Socket {
    /// Listens. Whoever accepts waits.
    ///
    /// # Errors
    /// See [`SocketError`]. Nothing is left behind.
    pub fn open(listen: &Listen) -> Result<Self, SocketError> {
        let socket = Self::find(listen)?;
        socket.listener.set_nonblocking(false).map_err(SocketError::Blocking)?;
        Ok(socket)
    }

    fn find(listen: &Listen) -> Result<Self, SocketError> {
        match listen {
            Listen::Descriptor(fd) => Ok(Self {
                listener: inherited(*fd)?,
                files: None,
            }),
            Listen::Path { path, group } => {
                let group = group.as_deref().map(group_id).transpose()?;
                let path = &lasting(path);
                let pid = PidFile::write(path)?;
                let (listener, file) = bind(path, BACKLOG)?;
                if let Some((gid, name)) = group {
                    let given = std::os::unix::fs::chown(path, None, Some(gid))
                        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o660)));
                    given.map_err(|error| SocketError::Group {
                        group: name.into(),
                        what: error.to_string(),
                    })?;
                }
                let files = SocketFiles {
                    own: own_files(path, &pid.path)?,
                    _file: file,
                    _pid: pid,
                };
                Ok(Self {
                    listener,
                    files: Some(files),
                })
            }
        }
    }
}

/// The files at `socket` and `pid`, which are in one folder, to be removed in the end.
fn own_files(socket: &Path, pid: &Path) -> Result<OwnFiles, SocketError> {
    let parent = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    let fault = |source| {
        let folder = folder.to_owned();
        SocketError::Folder { folder, source }
    };
    let folder = std::path::absolute(folder).map_err(fault)?;
    let names = [socket, pid].into_iter().filter_map(Path::file_name);
    OwnFiles::new(&folder, names.map(OsString::from)).map_err(fault)
}

/// `path` from the root on, so that it names the same file when the working directory has become
/// another; as it is where that is too long for a socket's address.
fn lasting(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).ok();
    let short = absolute.filter(|path| path.as_os_str().len() <= PATH_MAX);
    short.unwrap_or_else(|| path.to_owned())
}

/// Descriptor `fd`, which becomes this process's own.
fn inherited(fd: RawFd) -> Result<UnixListener, SocketError> {
    let bad = |found| SocketError::Descriptor { fd, found };
    let owned = process::inherited(fd).map_err(|_| bad("not open"))?;
    let domain = rustix::net::sockopt::socket_domain(&owned).map_err(|_| bad("not a socket"))?;
    if domain != rustix::net::AddressFamily::UNIX {
        return Err(bad("a socket of another kind"));
    }
    if !rustix::net::sockopt::socket_acceptconn(owned.as_fd()).unwrap_or(false) {
        return Err(bad("a socket that does not listen"));
    }
    Ok(UnixListener::from(owned))
}

/// The number of a group of `/etc/group`, or a number as it is.
fn group_id(group: &str) -> Result<(u32, &str), SocketError> {
    let fault = |what: String| SocketError::Group {
        group: group.into(),
        what,
    };
    if let Ok(number) = group.parse() {
        return Ok((number, group));
    }
    let groups = fs::read_to_string("/etc/group").map_err(|error| fault(format!("cannot read /etc/group: {error}")))?;
    let found = groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(group)).then(|| parts.nth(1)?.parse().ok())?
    });
    found
        .map(|number| (number, group))
        .ok_or_else(|| fault("there is no such group in /etc/group".into()))
}

/// The process's number in a file beside the socket, which is locked as long as the process lives:
/// of two that are started with one socket, one is told.
#[derive(Debug)]
struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    fn write(socket: &Path) -> Result<Self, SocketError> {
        let mut path = OsString::from(socket);
        path.push(".pid");
        let path = PathBuf::from(path);
        let fault = |source| SocketError::PidFile {
            file: path.clone(),
            source,
        };
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let mut file = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(fault)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let socket = socket.into();
                    return Err(SocketError::Taken { socket, file: path });
                }
                Err(TryLockError::Error(error)) => return Err(fault(error)),
            }
            // One that went away meanwhile would lock nobody out.
            if is_at(&file, &path) {
                let written = file.set_len(0);
                let line = format!("{}\n", std::process::id());
                written.and_then(|()| file.write_all(line.as_bytes())).map_err(fault)?;
                return Ok(Self { path, file });
            }
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            // What cannot be removed stays, and is taken over by the next one that starts here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `file` is the one that has the name `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let held = file.metadata().map(|found| (found.dev(), found.ino()));
    let named = fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    held.is_ok_and(|held| named.is_ok_and(|named| named == held))
}
