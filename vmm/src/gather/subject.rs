//! Whom a bundle is about.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;

use crate::ctl::dial::dial;
use crate::fleet::{HuskProcess, process};

/// Where processes are.
const PROC: &str = "/proc";

/// What a user names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The husk that serves this socket.
    Socket(PathBuf),
    /// The husk with this process.
    Process(u32),
    /// Every husk.
    All,
}

/// Nobody to ask.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// No such process.
    #[error("process {0} is no husk with a VM, or not one that this user may look into")]
    Process(u32),
    /// Nobody serves the socket.
    #[error("{}: nobody serves it", .0.display())]
    Socket(PathBuf),
    /// The socket may be served, but not to this user.
    #[error("{}: cannot be connected to", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// There is no husk with a VM that this user may look into.
    #[error("there is no husk with a VM that this user may look into")]
    None,
}

/// One husk.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The name of its folder.
    pub(super) name: String,
    /// Where it is asked.
    pub(super) socket: Option<PathBuf>,
    /// Its process, if that can be looked into.
    pub(super) husk: Option<HuskProcess>,
}

/// A number is a process, anything else a socket.
impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(0) => Err("allowed: a process's number from 1 on, or the path of a socket"),
            Ok(pid) => Ok(Self::Process(pid)),
            Err(_) if text.is_empty() => Err("allowed: a process's number, or the path of a socket"),
            Err(_) => Ok(Self::Socket(text.into())),
        }
    }
}

/// Those that `target` stands for. A socket is reached within `limit`, or belongs to whoever was started with it.
pub(super) fn subjects(target: &Target, limit: Duration) -> Result<Vec<Subject>, SubjectError> {
    let proc = Path::new(PROC);
    let found = match target {
        Target::Process(pid) => {
            let named = HuskProcess::find(proc, *pid, limit).or_else(|| renamed(proc, *pid, limit));
            vec![named.ok_or(SubjectError::Process(*pid))?]
        }
        Target::All => process::all(proc, limit),
        Target::Socket(socket) => return by_socket(socket, limit).map(|subject| vec![subject]),
    };
    if found.is_empty() {
        return Err(SubjectError::None);
    }
    Ok(found.into_iter().map(Subject::of).collect())
}

/// The process `pid`, whatever the file of its program is called, if it was started as husk is.
fn renamed(proc: &Path, pid: u32, limit: Duration) -> Option<HuskProcess> {
    HuskProcess::called_anything(proc, pid, limit).filter(HuskProcess::is_started_as_husk)
}

fn by_socket(socket: &Path, limit: Duration) -> Result<Subject, SubjectError> {
    let proc = Path::new(PROC);
    let dialled = dial(socket, limit);
    // Who called listen(2): husk, or whoever passed it the socket.
    let owner = dialled.as_ref().ok().and_then(|stream| socket_peercred(stream).ok());
    let owner = owner.and_then(|owner| u32::try_from(owner.pid.as_raw_nonzero().get()).ok());
    let by_owner = owner.and_then(|pid| HuskProcess::find(proc, pid, limit).or_else(|| renamed(proc, pid, limit)));
    let husk = by_owner.or_else(|| with_socket(proc, socket, limit));
    match (husk, dialled) {
        (Some(husk), _) => Ok(Subject {
            socket: Some(socket.to_owned()),
            ..Subject::of(husk)
        }),
        (None, Ok(_)) => Ok(Subject {
            name: "husk".into(),
            socket: Some(socket.to_owned()),
            husk: None,
        }),
        (None, Err(error)) => Err(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SubjectError::Socket(socket.to_owned()),
            _ => SubjectError::Connect {
                path: socket.to_owned(),
                source: error,
            },
        }),
    }
}

/// The husk that was started with `socket`, by whatever path that leads to it.
fn with_socket(proc: &Path, socket: &Path, limit: Duration) -> Option<HuskProcess> {
    let wanted = fs::canonicalize(socket).ok()?;
    let is_it = |socket: PathBuf| fs::canonicalize(socket).is_ok_and(|path| path == wanted);
    let mut husks = process::all(proc, limit).into_iter();
    husks.find(|husk| husk.socket.clone().is_some_and(is_it))
}

impl Subject {
    fn of(husk: HuskProcess) -> Self {
        let pod = husk.pod();
        let name: String = pod
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "_-.".contains(*c))
            .collect();
        let name = match name.trim_start_matches(['.', '-']) {
            "" => husk.pid.to_string(),
            name => format!("{name}-{}", husk.pid),
        };
        Self {
            name,
            socket: husk.reachable_socket(),
            husk: Some(husk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_process_or_a_socket() {
        assert_eq!("42".parse(), Ok(Target::Process(42)));
        assert_eq!("/run/api.sock".parse(), Ok(Target::Socket("/run/api.sock".into())));
        assert_eq!("4x".parse(), Ok(Target::Socket("4x".into())));
        assert!("0".parse::<Target>().is_err() && "".parse::<Target>().is_err());
    }

    #[test]
    fn whoever_is_no_husk_is_refused_by_its_name() {
        let limit = Duration::from_secs(10);
        let error = subjects(&Target::Process(1), limit).unwrap_err();
        assert!(error.to_string().starts_with("process 1 is no husk"));
        let error = subjects(&Target::Socket("/nowhere/s".into()), limit).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/s: nobody serves it");
    }
}
