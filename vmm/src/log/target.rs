//! Where the log goes, if not to standard error: a file, journald, the system's log.
//!
//! The daemons are written to by plain write(2) on a datagram socket that was connected before
//! there was a filter: a thread needs no other call for them than for standard error, and can
//! address nobody else (docs/adr/0027-the-log-by-write-alone.md). A daemon that is full loses the
//! line; one that has gone for good has husk go on on standard error.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::terminal::{NonBlockingFile, OpenOutputError};

/// Permissions of a log file that is made.
const MODE: u32 = 0o600;
/// Where journald takes entries in its native protocol.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// Where the system's log takes messages.
const SYSLOG: &str = "/dev/log";

/// Where the user wants the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// On standard error.
    #[default]
    Stderr,
    /// In a file, at its end.
    File(PathBuf),
    /// With journald, at the socket of this path.
    Journal(PathBuf),
    /// With the system's log, at the socket of this path.
    Syslog(PathBuf),
}

impl Destination {
    /// The system's log where it usually is.
    pub fn syslog() -> Self {
        Self::Syslog(SYSLOG.into())
    }
}

/// A text that names no place for a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowed: stderr, journald, journald=SOCKET, syslog, syslog=SOCKET, file=FILE, or a path with a / in it")]
pub struct BadDestination;

impl FromStr for Destination {
    type Err = BadDestination;

    fn from_str(text: &str) -> Result<Self, BadDestination> {
        let (word, path) = text
            .split_once('=')
            .map_or((text, None), |(word, path)| (word, Some(path)));
        match (word, path) {
            (_, Some("")) => Err(BadDestination),
            ("stderr", None) => Ok(Self::Stderr),
            ("journald", path) => Ok(Self::Journal(path.unwrap_or(JOURNAL).into())),
            ("syslog", path) => Ok(Self::Syslog(path.unwrap_or(SYSLOG).into())),
            ("file", Some(path)) => Ok(Self::File(path.into())),
            _ if text.contains('/') => Ok(Self::File(text.into())),
            _ => Err(BadDestination),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => write!(f, "standard error"),
            Self::File(path) => write!(f, "log file {}", path.display()),
            Self::Journal(path) => write!(f, "journald at {}", path.display()),
            Self::Syslog(path) => write!(f, "the system's log at {}", path.display()),
        }
    }
}

/// Where the log goes.
#[derive(Debug)]
pub enum Target {
    /// Standard error.
    Stderr,
    /// A file.
    File(NonBlockingFile),
    /// journald.
    Journal(File),
    /// The system's log.
    Syslog(File),
}

impl Target {
    /// Opens what `destination` says.
    ///
    /// # Errors
    /// Nothing can be written there, or nobody listens.
    pub fn open(destination: &Destination) -> Result<Self, OpenOutputError> {
        Ok(match destination {
            Destination::Stderr => Self::Stderr,
            Destination::File(path) => Self::File(NonBlockingFile::append(path, MODE)?),
            Destination::Journal(path) => Self::Journal(connect(path)?),
            Destination::Syslog(path) => Self::Syslog(connect(path)?),
        })
    }
}

/// A socket whose every write is a datagram for whoever has `path`, and that never waits.
///
/// # Errors
/// Nobody listens there.
pub fn connect(path: &Path) -> io::Result<File> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(File::from(OwnedFd::from(socket)))
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The socket took the datagram.
    Through,
    /// There is no room for it now.
    Full,
    /// It cannot be sent.
    Lost,
    /// There is nobody to take it any more.
    Away,
}

/// Sends one datagram, by write(2).
pub fn send(mut socket: &File, bytes: &[u8]) -> Sent {
    // One write, since a datagram is never sent in part.
    match socket.write_all(bytes) {
        Ok(()) => Sent::Through,
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => Sent::Full,
            Some(libc::ECONNREFUSED | libc::ENOTCONN | libc::ECONNRESET | libc::EPIPE | libc::EBADF) => Sent::Away,
            _ => Sent::Lost,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_place_and_a_path_is_a_file() {
        for (text, expected) in [
            ("stderr", Destination::Stderr),
            ("journald", Destination::Journal(JOURNAL.into())),
            ("journald=/run/x", Destination::Journal("/run/x".into())),
            ("syslog", Destination::Syslog(SYSLOG.into())),
            ("syslog=/x", Destination::Syslog("/x".into())),
            ("file=husk.log", Destination::File("husk.log".into())),
            ("/var/log/a=b", Destination::File("/var/log/a=b".into())),
            ("./stderr", Destination::File("./stderr".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "journal", "syslogd", "file=", "journald=", "stderr=/x", "husk.log"] {
            let parsed: Result<Destination, _> = text.parse();
            match text {
                // It has a slash in it, and is a file of that name.
                "stderr=/x" => assert_eq!(parsed, Ok(Destination::File("stderr=/x".into()))),
                _ => assert_eq!(parsed, Err(BadDestination), "{text}"),
            }
        }
    }

    #[test]
    fn a_datagram_is_one_write_and_nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let socket = connect(&path).unwrap();
        assert_eq!(send(&socket, b"MESSAGE=a\n"), Sent::Through);
        assert_eq!(send(&socket, b"MESSAGE=b\n"), Sent::Through);
        let mut bytes = [0; 64];
        assert_eq!(daemon.recv(&mut bytes).unwrap(), 10, "each is one");
        while send(&socket, b"x") == Sent::Through {}
        assert_eq!(send(&socket, b"x"), Sent::Full, "it is there");
        drop(daemon);
        assert_eq!(send(&socket, b"x"), Sent::Away);
    }

    #[test]
    fn where_nobody_listens_nothing_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let nobody = Destination::Journal(folder.path().join("none"));
        assert!(Target::open(&nobody).is_err());
    }
}
