//! A connection to a socket, for as long as its listener has a full queue.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use husk_virtio::unix;

/// Between two attempts to connect to a listener whose queue is full.
const RETRY: Duration = Duration::from_millis(10);

/// Connects to `socket`; for `patience`, if its listener has a full queue.
///
/// # Errors
/// `WouldBlock` if it is full for as long; what the host says otherwise.
pub fn dial(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let begin = Instant::now();
    // A path through /proc/PID/root may be too long for an address, where the socket's own is not.
    let (_folder, short) = match shortened(socket) {
        Some((folder, short)) => (Some(folder), Some(short)),
        None => (None, None),
    };
    let socket = short.as_deref().unwrap_or(socket);
    loop {
        match unix::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < patience => {}
            connected => return connected,
        }
        thread::sleep(RETRY);
    }
}

/// The same socket by a path that fits into an address, and the open directory that this path
/// begins in. `None` where `socket` fits, or where there is no such directory.
fn shortened(socket: &Path) -> Option<(File, PathBuf)> {
    if socket.as_os_str().len() <= unix::PATH_MAX {
        return None;
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    let folder = options.open(socket.parent()?).ok()?;
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    Some((folder, Path::new(&path).join(socket.file_name()?)))
}
