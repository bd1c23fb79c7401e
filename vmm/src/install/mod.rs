//! Installing husk under Kata Containers: a plan of what would change, its execution, and its exact reverse.
//!
//! | file | what |
//! |---|---|
//! | `PREFIX/lib/husk/husk-VERSION-DIGEST` | the program; running VMs keep the one that they were started with |
//! | `PREFIX/bin/husk`, `PREFIX/libexec/husk/virtiofsd` | links to it, replaced in one step |
//! | `PREFIX/share/husk/kata/HANDLER/…` | Kata's configuration as it is, and what differs for husk in `config.d` beside it |
//! | `PREFIX/share/husk/kubernetes/…` | what Kubernetes is to be told, for `kubectl apply` |
//! | `/etc/containerd/conf.d/…`, `/etc/crio/crio.conf.d/…` | the container engine's handlers |
//! | `/etc/kubernetes/node-feature-discovery/features.d/husk-CLASS` | the node's features, on a host that can run pods |
//! | `PREFIX/share/husk/manifest.json` | all of these with their digests, so that what somebody changed since is left alone |
//!
//! Nothing that husk did not write is changed.

mod apply;
mod common;
mod containerd;
mod containerd_drop_in;
mod containerd_files;
mod content;
mod crio;
mod describe;
mod desired;
mod distribution;
mod kata;
mod kubernetes;
mod lock;
mod manifest;
mod overhead;
mod plan;
mod remove;
mod request;
mod runtimes;
mod status;
#[cfg(test)]
mod testing;
mod version;

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use apply::apply;
pub(crate) use containerd::PACKAGES as CONTAINERD_PACKAGES;
pub(crate) use crio::PACKAGES as CRIO_PACKAGES;
pub(crate) use distribution::{DISTRIBUTIONS, distribution};
pub(crate) use kata::Shim;
pub use lock::Lock;
pub use overhead::Overhead;
pub use plan::{Plan, plan};
pub use remove::{Removal, removal, remove};
pub use request::Request;
pub(crate) use runtimes::runtimes;
pub use status::{Status, status};
pub(crate) use version::program_version;

/// The container engine that starts Kata's shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// containerd, configuration version 2 or 3.
    Containerd,
    /// CRI-O.
    Crio,
}

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that stands for `/`: another one for an image that is being built.
    pub root: PathBuf,
    /// Where Kata is, below `root`.
    pub kata: PathBuf,
    /// The engine; `None` for the only one that there is.
    pub engine: Option<Engine>,
    /// Name of the handler and of the runtime class.
    pub class: String,
    /// Whether that name was given, and not only kept from before: handlers of other names go then.
    pub class_is_given: bool,
    /// Where husk goes, below `root`.
    pub prefix: PathBuf,
    /// Whether `husk fs` takes virtiofsd's place.
    pub file_server: bool,
    /// The program to install.
    pub program: PathBuf,
    /// What a pod costs beside its guest, if it was measured.
    pub overhead: Option<Overhead>,
    /// What node feature discovery is told of this host; nothing for one that cannot run pods.
    pub features: String,
}

impl Options {
    fn shared(&self) -> PathBuf {
        shared(&self.prefix)
    }

    /// `path` of the installed system as it is found from here.
    fn at(&self, path: &Path) -> PathBuf {
        beneath(&self.root, path)
    }

    /// As [`at`](Self::at), for who reads what a link leads to.
    fn behind(&self, path: &Path) -> PathBuf {
        behind(&self.root, path)
    }
}

/// Why nothing was installed or removed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// An option makes no sense.
    #[error("{option} {value}: {problem}; allowed: {allowed}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What is wrong with that.
        problem: &'static str,
        /// What would be right.
        allowed: &'static str,
    },
    /// Kata is not there.
    #[error("{}: has neither of Kata's shims with its configuration for Cloud Hypervisor ({looked_for})", dir.display())]
    NoKata {
        /// Where it was looked for.
        dir: PathBuf,
        /// What was looked for there.
        looked_for: String,
    },
    /// Which engine is meant is not clear.
    #[error("{found}: say which one with --engine containerd or --engine crio")]
    Engine {
        /// What there is.
        found: &'static str,
    },
    /// The engine that starts pods is one that husk does not install into.
    #[error(
        "{name} is here, and its containerd does not read /etc/containerd: handlers go to {place}, by hand (docs/kata.md, section 3); say --engine \
         containerd or --engine crio if another engine is meant"
    )]
    Distribution {
        /// The distribution of Kubernetes.
        name: &'static str,
        /// Where its containerd has handlers from.
        place: &'static str,
    },
    /// A configuration that others wrote cannot be used.
    #[error("{}: {problem}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file stands where husk's would go.
    #[error("{}: {whose}; move it away, or install with another --runtime-class or --prefix", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// Who wrote it.
        whose: &'static str,
    },
    /// A handler's name is not free.
    #[error("{}: has a handler {name} already; install with another --runtime-class", path.display())]
    Taken {
        /// The file that has it.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Handlers would go that nobody has asked to.
    #[error(
        "the handlers {} would go, and no pod with that runtime class would start: say --runtime-class {class} if that is meant",
        names.join(", ")
    )]
    Handlers {
        /// Their names.
        names: Vec<String>,
        /// The class of the installation.
        class: String,
    },
    /// Another one is at work.
    #[error("another husk install or uninstall is at work on {}: wait for its end", root.display())]
    Busy {
        /// The system's root.
        root: PathBuf,
    },
    /// There is no manifest.
    #[error("{}: husk is not installed below this prefix", prefix.display())]
    NotInstalled {
        /// The prefix.
        prefix: PathBuf,
    },
    /// The host failed.
    #[error("cannot {doing} {}{aftermath}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What became of what had been done before.
        aftermath: String,
        /// The host's reason.
        source: io::Error,
    },
}

impl InstallError {
    /// Whether the command line is to blame.
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Option { .. } | Self::Engine { .. } | Self::Distribution { .. }
        )
    }

    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let (path, aftermath) = (path.to_owned(), String::new());
        Self::Io {
            doing,
            path,
            aftermath,
            source,
        }
    }
}

/// The folder of everything that is not a program.
fn shared(prefix: &Path) -> PathBuf {
    prefix.join("share/husk")
}

/// Where the absolute `path` of the system whose root is `root` is found. Links among its folders lead where they lead in that system; `path` itself
/// may be one.
pub(crate) fn beneath(root: &Path, path: &Path) -> PathBuf {
    walk(root, path, false)
}

/// As [`beneath`], where a link at `path` itself is followed, too: for who reads what it leads to.
pub(crate) fn behind(root: &Path, path: &Path) -> PathBuf {
    walk(root, path, true)
}

fn walk(root: &Path, path: &Path, follows_last: bool) -> PathBuf {
    /// As many as the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    if root == Path::new("/") {
        return path.to_owned();
    }
    let parts = |path: &Path| -> Vec<OsString> {
        let parts = path.components().rev();
        let named = parts.filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        named.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut at, mut rest, mut links) = (PathBuf::new(), parts(path), 0);
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        let is_followed = links < LINKS && (follows_last || !rest.is_empty());
        match std::fs::read_link(root.join(&at).join(&part)) {
            Ok(target) if is_followed => {
                links += 1;
                if target.is_absolute() {
                    at.clear();
                }
                rest.extend(parts(&target));
            }
            Ok(_) | Err(_) => at.push(part),
        }
    }
    root.join(at)
}

/// Checks that `path` is one that configuration files can name.
///
/// # Errors
///
/// It is relative, not in its shortest form, or not printable text.
pub fn plain_path(option: &'static str, path: &Path) -> Result<PathBuf, InstallError> {
    let refuse = |problem| InstallError::Option {
        option,
        value: path.to_string_lossy().into_owned(),
        problem,
        allowed: "an absolute path without . and .., of printable characters",
    };
    let text = path.to_str().ok_or_else(|| refuse("not text"))?;
    if text.chars().any(char::is_control) {
        return Err(refuse("has control characters"));
    }
    if !path.is_absolute() {
        return Err(refuse("is relative"));
    }
    if text.split('/').any(|part| part == "." || part == "..") {
        return Err(refuse("has . or .. in it"));
    }
    // Components leave out what is doubled or trails.
    Ok(path.components().collect())
}

/// Handlers that the engines have without being told.
const ORDINARY: [&str; 2] = ["runc", "crun"];

/// Checks the name of a handler: a label by RFC 1123, as Kubernetes demands, with room for what is appended to it.
///
/// # Errors
///
/// It is none.
pub fn plain_class(name: &str) -> Result<&str, InstallError> {
    let refuse = |problem, allowed| InstallError::Option {
        option: "--runtime-class",
        value: name.escape_debug().to_string(),
        problem,
        allowed,
    };
    if ORDINARY.contains(&name) {
        return Err(refuse(
            "is what engines start ordinary pods with",
            "a name that no other handler has",
        ));
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let bounded = !name.starts_with('-') && !name.ends_with('-');
    if !name.is_empty() && name.len() <= 60 && bounded && name.chars().all(fits) {
        return Ok(name);
    }
    Err(refuse(
        "is no name of a handler",
        "1 to 60 of a-z, 0-9 and -, not at either end",
    ))
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
