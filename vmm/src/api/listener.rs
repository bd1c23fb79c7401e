//! The socket that clients connect to.
//!
//! It is its owner's alone from its first moment: Linux gives a socket's file the mode of the socket itself (`unix_bind`), which is set
//! before the name exists. A socket that a killed process left behind is replaced, one that somebody listens on is not; the folder
//! is locked (flock(2)) between looking and binding, so that of two processes that start at once one is told.

#![expect(
    unsafe_code,
    reason = "socket, bind and listen, because the standard library does all three in one step"
)]

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Connections that wait to be accepted.
const BACKLOG: libc::c_int = 128;
/// The most bytes of a socket's path: `sun_path` with its final NUL.
const PATH_BYTES: usize = 107;
/// How long a lock on the folder is waited for. It guards against an accident; nobody may hold up the start with it.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Too long a path.
    #[error("api socket {path}: {bytes} bytes of path, at most {PATH_BYTES} allowed")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Somebody listens there.
    #[error("api socket {0}: already in use, another process listens on it")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("api socket {0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// A descriptor that is no listening Unix socket.
    #[error("api socket fd {0}: not a listening Unix stream socket")]
    NotListening(RawFd),
    /// The host refused.
    #[error("api socket {what}: cannot {action}")]
    Host {
        /// Path or descriptor.
        what: String,
        /// What was being done.
        action: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// A listening socket, and its file if it is husk's to remove.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    pub(super) file: Option<SocketFile>,
}

/// The file of a socket, by name and by identity. Dropping this removes it, unless it has become somebody else's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Listener {
    /// Listens on a new socket at `path`.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        let bytes = path.as_os_str().len();
        if bytes > PATH_BYTES {
            return Err(ListenError::TooLong {
                path: path.into(),
                bytes,
            });
        }
        let _lock = lock_folder(path);
        remove_stale(path)?;
        let fail = |action| {
            move |source| ListenError::Host {
                what: path.display().to_string(),
                action,
                source,
            }
        };
        let socket = new_socket().map_err(fail("be made"))?;
        bind(&socket, path).map_err(fail("be bound"))?;
        let file = SocketFile::of(path).map_err(fail("be found again"))?;
        // From here on it is removed should anything fail.
        let listener = Self {
            socket: UnixListener::from(socket),
            file: Some(file),
        };
        listen(&listener.socket).map_err(fail("be listened on"))?;
        Ok(listener)
    }

    /// Takes a socket that listens already. Its file, if it has one, is somebody else's.
    pub(super) fn adopt(fd: OwnedFd) -> Result<Self, ListenError> {
        let number = fd.as_raw_fd();
        let socket = UnixListener::from(fd);
        // A family other than Unix has no address that reads as one.
        let is_unix = socket.local_addr().is_ok();
        if !is_unix
            || option(&socket, libc::SO_ACCEPTCONN) != Some(1)
            || option(&socket, libc::SO_TYPE) != Some(libc::SOCK_STREAM)
        {
            return Err(ListenError::NotListening(number));
        }
        socket.set_nonblocking(true).map_err(|source| ListenError::Host {
            what: format!("fd {number}"),
            action: "be made non-blocking",
            source,
        })?;
        Ok(Self { socket, file: None })
    }
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let (device, inode) = identity(path)?;
        Ok(Self {
            path: path.into(),
            device,
            inode,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == (self.device, self.inode)) {
            // What cannot be removed stays, and is replaced by the next one that starts here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Locks the folder of `path` until dropped. Without a lock when that is impossible or takes too long.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new("."))).ok()?;
    let begin = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return None,
        }
    }
}

/// Makes room at `path`, if what is there was left behind.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.into()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ListenError::Host {
                what: path.display().to_string(),
                action: "be removed, although nobody listens on it",
                source,
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Connected, or refused for a reason that only a living socket has.
        _ => Err(ListenError::InUse(path.into())),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe {
        libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else owns yet.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = File::from(socket);
    socket.set_permissions(Permissions::from_mode(0o600))?;
    Ok(socket.into())
}

fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::sa_family_t::try_from(libc::AF_UNIX).expect("AF_UNIX is 1"),
        sun_path: [0; PATH_BYTES + 1],
    };
    let path = path.as_os_str().as_bytes();
    for (to, from) in address.sun_path.iter_mut().take(PATH_BYTES).zip(path) {
        *to = from.cast_signed();
    }
    let bytes = offset_of!(libc::sockaddr_un, sun_path) + path.len() + 1;
    let bytes = libc::socklen_t::try_from(bytes).expect("a path is at most 107 bytes");
    // SAFETY: the address is a sockaddr_un of which `bytes` are within it, because the path's length has been checked.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn listen(socket: &UnixListener) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let done = unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// An option of the level `SOL_SOCKET`.
fn option(socket: &UnixListener, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut bytes = libc::socklen_t::try_from(size_of_val(&value)).expect("four bytes");
    // SAFETY: writes at most `bytes` bytes to an integer of that size.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut bytes,
        )
    };
    (done == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        drop(living);
    }

    #[test]
    fn of_many_that_start_at_once_one_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(listeners.iter().filter(|listener| listener.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "text").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"text");
        let long = folder.path().join("x".repeat(PATH_BYTES));
        assert!(matches!(Listener::bind(&long), Err(ListenError::TooLong { .. })));
        let nowhere = Listener::bind(&folder.path().join("no/api.sock")).unwrap_err();
        assert!(nowhere.to_string().contains("cannot be bound"), "{nowhere}");
    }

    #[test]
    fn a_file_that_somebody_else_has_put_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_descriptor_must_be_a_listening_socket() {
        let folder = tempfile::tempdir().unwrap();
        let listening = UnixListener::bind(folder.path().join("a")).unwrap();
        assert!(Listener::adopt(listening.into()).is_ok());
        let connected = UnixStream::pair().unwrap().0;
        assert!(matches!(
            Listener::adopt(connected.into()),
            Err(ListenError::NotListening(_))
        ));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(
            Listener::adopt(file.into()),
            Err(ListenError::NotListening(_))
        ));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(Listener::adopt(tcp.into()), Err(ListenError::NotListening(_))));
    }
}
