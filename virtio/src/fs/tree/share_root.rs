//! A share is opened: what it is, what the host can do for it, and what is wrong with it.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::attributes;
use super::confinement::Rules;
use super::credentials::Identity;
use super::descriptors::{FdBudget, Use};
use super::handles::Handles;
use super::locks::Locks;
use super::mounts::Mounts;
use super::nodes::Nodes;
use super::proc::ProcFds;
use super::wait_graph::WaitGraph;
use super::{Policy, Tree, ids, remote, thread, xattrs};
use crate::fs::share::{IdMap, IdMapKind, ShareConfig};

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// There is none, or it may not be opened.
    #[error("cannot open the directory {}", path.display())]
    Open {
        /// As configured.
        path: PathBuf,
        /// What the host says.
        source: std::io::Error,
    },
    /// The host lacks what it takes.
    #[error("cannot share {}: {needed} is needed", path.display())]
    Host {
        /// As configured.
        path: PathBuf,
        /// What is missing.
        needed: &'static str,
        /// What the host says.
        source: std::io::Error,
    },
    /// The threads cannot be given the label.
    #[error("cannot share {} with the label {}: it takes a host with SELinux that knows it", path.display(), label.to_string_lossy())]
    Label {
        /// As configured.
        path: PathBuf,
        /// As configured.
        label: CString,
        /// What the host says.
        source: std::io::Error,
    },
    /// Access control lists are attributes.
    #[error("cannot share {} with posix_acl: it needs xattr", path.display())]
    AclWithoutXattr {
        /// As configured.
        path: PathBuf,
    },
    /// The host goes by lists under their own names only.
    #[error("cannot share {} with posix_acl: the map of attributes gives access control lists other names", path.display())]
    AclRenamed {
        /// As configured.
        path: PathBuf,
    },
    /// Access control lists would not come back as they went.
    #[error("cannot share {} with posix_acl: the {whose} numbers may be mapped in both directions only", path.display())]
    AclOneWay {
        /// As configured.
        path: PathBuf,
        /// `user` or `group`.
        whose: &'static str,
    },
    /// Two users would be one.
    #[error(
        "cannot share {}: the {whose} numbers {} to {} are mapped twice, or go beyond 4294967294",
        path.display(), map.first(), u64::from(map.first()).saturating_add(map.count.saturating_sub(1).into())
    )]
    Map {
        /// As configured.
        path: PathBuf,
        /// `user` or `group`.
        whose: &'static str,
        /// The map.
        map: IdMap,
    },
}

impl Tree {
    /// Opens the directory. The process must not fork afterwards: it keeps `/proc/self/fd` open.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub(crate) fn open(config: &ShareConfig) -> Result<Self, ShareError> {
        Self::open_within(config, FdBudget::of_process())
    }

    /// The same of the directory that `dir` holds.
    pub(crate) fn open_at(config: &ShareConfig, dir: BorrowedFd<'_>) -> Result<Self, ShareError> {
        Self::open_from(config, dir, Path::new("."), FdBudget::of_process())
    }

    /// That of its path, with descriptors of `budget`.
    pub(super) fn open_within(config: &ShareConfig, budget: Arc<FdBudget>) -> Result<Self, ShareError> {
        Self::open_from(config, CWD, &config.dir, budget)
    }

    /// The directory `name` in `from`.
    fn open_from(
        config: &ShareConfig,
        from: BorrowedFd<'_>,
        name: &Path,
        budget: Arc<FdBudget>,
    ) -> Result<Self, ShareError> {
        let path = config.dir.as_path();
        check(config)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = budget.take(Use::Node, || openat(from, name, flags, Mode::empty()));
        let root = root.map_err(|error| ShareError::Open {
            path: path.into(),
            source: error.into(),
        })?;
        let needs = |needed| {
            move |error: Errno| ShareError::Host {
                path: path.into(),
                needed,
                source: error.into(),
            }
        };
        openat2(&root, c".", flags, Mode::empty(), ResolveFlags::BENEATH).map_err(needs("openat2 (Linux 5.6)"))?;
        let key = attributes::key_of(&root).map_err(needs("statx (Linux 4.11)"))?;
        let proc = ProcFds::open().map_err(needs("/proc/self/fd"))?;
        let who = Identity::of_thread(&config.uid_map, &config.gid_map).map_err(needs("capget"))?;
        if let Some(label) = &config.label {
            try_label(path, label)?;
        }
        let rules = match config.confine {
            true => Rules::new(&root, config.readonly).map_err(|source| ShareError::Host {
                path: path.into(),
                needed: "Landlock",
                source,
            })?,
            false => None,
        };
        let mounts = Mounts::new(proc.clone(), budget.clone());
        let (most, most_open) = (config.max_nodes, config.max_node_descriptors);
        let mut policy = Policy::new(config);
        policy.offered.killpriv &= !remote::is_remote(&root);
        let nodes = Nodes::new(root, key, mounts, budget.clone(), most, most_open);
        if rules.is_some() {
            nodes.note_restricted();
        }
        Ok(Self {
            rules,
            policy,
            remote: remote::Remote::default(),
            who,
            trusted: xattrs::has_trusted(),
            proc,
            nodes,
            budget,
            handles: Handles::new(config.max_handles),
            locks: Locks::new(config.max_locks),
            waits: WaitGraph::new(config.max_locks),
        })
    }
}

/// What can be said of a configuration without the host.
fn check(config: &ShareConfig) -> Result<(), ShareError> {
    if config.posix_acl && !config.xattr {
        return Err(ShareError::AclWithoutXattr {
            path: config.dir.clone(),
        });
    }
    if config.posix_acl && config.xattr_map.as_ref().is_some_and(|map| !map.keeps_acl()) {
        return Err(ShareError::AclRenamed {
            path: config.dir.clone(),
        });
    }
    for (whose, maps) in [("user", &config.uid_map), ("group", &config.gid_map)] {
        if let Some(map) = ids::fault(maps) {
            return Err(ShareError::Map {
                path: config.dir.clone(),
                whose,
                map: *map,
            });
        }
        if config.posix_acl && maps.iter().any(|map| map.kind != IdMapKind::Map) {
            return Err(ShareError::AclOneWay {
                path: config.dir.clone(),
                whose,
            });
        }
    }
    Ok(())
}

/// Has the calling thread take the label for a moment, so that a share never serves without.
fn try_label(path: &Path, label: &CString) -> Result<(), ShareError> {
    let tried = thread::set_label(Some(label)).and_then(|()| thread::set_label(None));
    tried.map_err(|source| ShareError::Label {
        path: path.into(),
        label: label.clone(),
        source,
    })
}
