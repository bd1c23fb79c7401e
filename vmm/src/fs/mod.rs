//! `husk fs`: a directory for a VMM in another process, by vhost-user, in virtiofsd's place.
//!
//! | file | its part |
//! |---|---|
//! | here | what is asked for |
//! | `daemon.rs` | the process from its start to its end: socket, confinement, one front-end |
//! | `socket.rs` | where the front-end connects: the socket, its group, the file with the process's number |
//! | `ending.rs` | what goes from the host's file system when the process ends, and the signals that end it |
//! | `sandbox.rs`, `capabilities.rs` | what the process sees and may do |
//! | `backend.rs` | what the front-end asks by vhost-user |
//! | `vring.rs` | a virtqueue as the front-end sets it up |
//! | `queue.rs` | a virtqueue in service, and the requests in it that wait |
//! | `worker_pool.rs` | the threads that serve |
//!
//! What a request means is known to `husk_virtio::fs`, which serves shares in this process and in that of a VM alike.

mod backend;
mod capabilities;
mod daemon;
mod ending;
mod queue;
mod sandbox;
mod socket;
mod vring;
mod worker_pool;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use husk_virtio::fs::share::ShareConfig;
use log::LevelFilter;

use crate::seccomp::Mode;

pub use capabilities::{BadCapabilities, Capabilities};
pub use daemon::serve;

/// What the process is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the front-end comes from.
    pub listen: Listen,
    /// What is shared.
    pub share: ShareConfig,
    /// The name to mount it by, if the front-end may ask for it.
    pub tag: Option<String>,
    /// What the process sees of the host.
    pub sandbox: Sandbox,
    /// What becomes of system calls that it has no need of.
    pub seccomp: Mode,
    /// Capabilities beyond or without the usual ones.
    pub capabilities: Capabilities,
    /// Users in the user namespace of an ordinary user.
    pub users: Vec<IdRange>,
    /// Groups there.
    pub groups: Vec<IdRange>,
    /// Limit on descriptors; 0 leaves it.
    pub descriptors: Option<u64>,
    /// Threads that may serve at the same time, if that is more than usual.
    pub threads: usize,
    /// What is logged.
    pub log_level: LevelFilter,
    /// To the system's log.
    pub syslog: bool,
    /// Options that were given and do nothing, and why.
    pub ignored: Vec<(&'static str, &'static str)>,
}

/// Where the front-end comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket is made.
    Path {
        /// The path of the socket.
        path: PathBuf,
        /// Who else may connect.
        group: Option<String>,
    },
    /// A listening socket that the process was started with.
    Descriptor(RawFd),
}

/// What the process sees of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Namespaces of its own, with the directory as root.
    Namespace,
    /// The directory as root.
    Chroot,
    /// Everything.
    None,
}

/// Users or groups of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First number inside.
    pub inside: u32,
    /// First number outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("allowed: :INSIDE:OUTSIDE:COUNT: with numbers of 32 bits, and any character in place of the colon")]
pub struct BadIdRange;

impl FromStr for IdRange {
    type Err = BadIdRange;

    /// The first character is the one that separates.
    fn from_str(text: &str) -> Result<Self, BadIdRange> {
        let separator = text.chars().next().filter(|first| !first.is_ascii_digit());
        let separator = separator.ok_or(BadIdRange)?;
        let body = text.strip_prefix(separator).unwrap_or_default();
        let body = body.strip_suffix(separator).unwrap_or(body);
        let numbers: Result<Vec<u32>, _> = body.split(separator).map(str::parse).collect();
        match numbers.map_err(|_| BadIdRange)?[..] {
            [inside, outside, count] => Ok(Self { inside, outside, count }),
            _ => Err(BadIdRange),
        }
    }
}
