//! The options of `husk fs`: those of virtiofsd 1.14, which it stands in for, in every form in which they are written.

mod virtiofsd;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use husk_virtio::fs::TAG_BYTES;
use husk_virtio::fs::share::ShareConfig;
use husk_virtio::fs::xattr_map::XattrMap;
use log::LevelFilter;

pub(super) use self::virtiofsd::{CAPABILITIES, under_alias};
use self::virtiofsd::{InodeFileHandles, MigrationMode, MigrationOnError};
use super::translation::translation;
use crate::config::{CacheMode, IdKind, IdTranslation, MAX_LABEL_BYTES, is_label};
use crate::fs::{Capabilities, IdRange, Listen, Options, Sandbox};
use crate::seccomp::Mode;

/// The options of `husk fs`.
#[derive(Args, Clone, Debug)]
#[command(args_override_self = true)]
pub struct FileServerArgs {
    /// Share this directory
    #[arg(long, value_name = "DIR", help_heading = "What to share")]
    pub shared_dir: Option<PathBuf>,
    /// Let the guest change nothing
    #[arg(long, help_heading = "What to share")]
    pub readonly: bool,
    /// The name by which the guest mounts the share, up to 36 bytes; else the VMM says it
    #[arg(long, value_name = "TAG", help_heading = "What to share")]
    pub tag: Option<String>,

    /// Listen on a Unix socket at PATH, for one VMM
    ///
    /// It is made for its owner alone. One that a killed process left there is replaced. PATH.pid is locked, and has the number of this
    /// process.
    #[arg(
        long,
        visible_alias = "socket",
        value_name = "PATH",
        help_heading = "Where the VMM is"
    )]
    pub socket_path: Option<PathBuf>,
    /// Let a group connect to the socket as well
    #[arg(long, value_name = "GROUP", conflicts_with = "fd", help_heading = "Where the VMM is")]
    pub socket_group: Option<String>,
    /// Take the listening socket that this process was started with as descriptor N
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "socket_path",
        help_heading = "Where the VMM is"
    )]
    pub fd: Option<RawFd>,

    /// How long the guest may keep what it was told
    #[arg(long, value_enum, ignore_case = true, default_value_t = CacheMode::Auto, value_name = "POLICY", help_heading = "How to share")]
    pub cache: CacheMode,
    /// Let the guest hold back writes
    #[arg(long, help_heading = "How to share")]
    pub writeback: bool,
    /// Carry O_DIRECT of the guest out on the host
    #[arg(long, help_heading = "How to share")]
    pub allow_direct_io: bool,
    /// Let the guest map files whose contents it does not keep (--cache never, metadata); it takes Linux 6.6 there
    #[arg(long, help_heading = "How to share")]
    pub allow_mmap: bool,
    /// Serve extended attributes
    #[arg(long, help_heading = "How to share")]
    pub xattr: bool,
    /// Serve extended attributes under other names on the host: rules as virtiofsd has them; with it --xattr
    ///
    /// A rule is :TYPE:SCOPE:KEY:PREPEND: with any separator in place of the colon. Of scope client it is for names of the guest that
    /// begin with KEY, of scope server for names of the host that begin with PREPEND, all is both. prefix puts PREPEND before the
    /// former, and takes it from the latter; ok leaves them; bad hides them, and unsupported as well. The first that fits counts,
    /// and for every name there has to be one. :map:KEY:PREPEND: as the last has names that begin with KEY, or all, behind PREPEND
    /// on the host, and hides what could be taken for them.
    #[arg(long, value_name = "RULES", help_heading = "How to share")]
    pub xattrmap: Option<XattrMap>,
    /// Serve access control lists; with it --xattr
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value_t = Negotiation::Never, default_missing_value = "always", value_name = "WHEN", help_heading = "How to share")]
    pub posix_acl: Negotiation,
    /// Store the security label that the guest gives a new file; with it --xattr
    #[arg(long, value_enum, require_equals = true, num_args = 0..=1, default_value_t = Negotiation::Never, default_missing_value = "always", value_name = "WHEN", help_heading = "How to share")]
    pub security_label: Negotiation,
    /// SELinux label of all that is made, user:role:type or user:role:type:level; the guest's own are not stored then
    #[arg(long, value_name = "LABEL", help_heading = "How to share")]
    pub label: Option<String>,
    /// Have the guest's locks be locks of the host, which other guests see as well
    ///
    /// Without it they are the guest's own, as with virtiofsd. A process of the guest that waits for a lock of the host cannot be
    /// interrupted, and not be killed, until it has it.
    #[arg(long, help_heading = "How to share")]
    pub locks: bool,
    /// Show mounts below the directory as mounts: the default
    #[arg(long, overrides_with = "no_announce_submounts", help_heading = "How to share")]
    pub announce_submounts: bool,
    /// Do not; of the two the last counts
    #[arg(long, help_heading = "How to share")]
    pub no_announce_submounts: bool,
    /// Give users of the host other numbers in the guest: map:GUEST:HOST:COUNT and so on; repeatable
    ///
    /// map is for both directions, and then whoever is in no range has no number on the other side.
    /// guest:GUEST:HOST:COUNT and host:HOST:GUEST:COUNT are for one; squash-guest:GUEST:HOST:COUNT makes all those of
    /// the guest the one HOST, squash-host:HOST:GUEST:COUNT all those of the host the one GUEST;
    /// forbid-guest:GUEST:COUNT refuses to make files of these, or to give them any. These leave everybody else as he
    /// is.
    #[arg(long, value_name = "MAP", value_parser = translation, help_heading = "How to share")]
    pub translate_uid: Vec<IdTranslation>,
    /// The same for groups; repeatable
    #[arg(long, value_name = "MAP", value_parser = translation, help_heading = "How to share")]
    pub translate_gid: Vec<IdTranslation>,

    /// Where the server sees nothing but the directory: in namespaces of its own, or below a changed root
    ///
    /// An ordinary user gets a user namespace of his own for it. What this host does not allow is left out, and the log says so.
    #[arg(long, value_enum, ignore_case = true, default_value_t = SandboxMode::Namespace, value_name = "MODE", help_heading = "How it is confined")]
    pub sandbox: SandboxMode,
    /// What becomes of a system call that the server has no need of
    #[arg(long, value_enum, default_value_t = Action::Kill, value_name = "ACTION", help_heading = "How it is confined")]
    pub seccomp: Action,
    /// Capabilities to keep and to drop: +NAME or -NAME, joined by colons
    #[arg(
        long,
        value_name = "LIST",
        allow_hyphen_values = true,
        help_heading = "How it is confined"
    )]
    pub modcaps: Option<Capabilities>,
    /// Users in the namespace of an ordinary user: :INSIDE:OUTSIDE:COUNT:; repeatable
    #[arg(long, value_name = "MAP", help_heading = "How it is confined")]
    pub uid_map: Vec<IdRange>,
    /// The same for groups; repeatable
    #[arg(long, value_name = "MAP", help_heading = "How it is confined")]
    pub gid_map: Vec<IdRange>,
    /// Most open descriptors; 0 leaves the limit as it is [default: 1000000, or what the host allows]
    #[arg(long, value_name = "N", help_heading = "How it is confined")]
    pub rlimit_nofile: Option<u64>,
    /// Threads that serve at the same time, at least; there are as many as the guest keeps busy, up to 64 or N
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "How it is confined")]
    pub thread_pool_size: usize,

    /// What to log
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Info, value_name = "LEVEL", help_heading = "What it says")]
    pub log_level: Level,
    /// Log to the system's log in place of standard error
    #[arg(long, help_heading = "What it says")]
    pub syslog: bool,
    /// Print what this program can do, as JSON, and end
    #[arg(long, help_heading = "What it says")]
    pub print_capabilities: bool,

    /// Options as virtiofsd's predecessor had them: cache=auto,xattr and so on; repeatable
    #[arg(
        short = 'o',
        long_help = virtiofsd::old_help(),
        value_name = "OPTIONS",
        value_delimiter = ',',
        help_heading = "Accepted for virtiofsd's sake"
    )]
    pub old: Vec<String>,
    /// The same as --log-level debug
    #[arg(short = 'd', help_heading = "Accepted for virtiofsd's sake")]
    pub debug: bool,
    /// Has no effect: the server always stays in the foreground
    #[arg(short = 'f', help_heading = "Accepted for virtiofsd's sake")]
    pub foreground: bool,
    /// Clear set-user-ID with writes here, in place of the guest's kernel: the default, but for a directory on NFS
    #[arg(long, overrides_with = "no_killpriv_v2", help_heading = "How to share")]
    pub killpriv_v2: bool,
    /// Leave that to the guest's kernel, which then has a request more to make; of the two the last counts
    #[arg(long, help_heading = "How to share")]
    pub no_killpriv_v2: bool,
    /// Do not tell the guest what the names of a directory lead to while it lists it
    #[arg(long, help_heading = "How to share")]
    pub no_readdirplus: bool,
    /// Has no effect: handles are used where the host has them, and descriptors are few in either case
    #[arg(
        long,
        value_enum,
        require_equals = true,
        value_name = "WHEN",
        help_heading = "Accepted for virtiofsd's sake"
    )]
    pub inode_file_handles: Option<InodeFileHandles>,
    /// Has no effect: O_NOATIME is always passed on, and left out where the host refuses it
    #[arg(long, help_heading = "Accepted for virtiofsd's sake")]
    pub preserve_noatime: bool,
    /// Has no effect: the state of a share is not migrated
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        help_heading = "Accepted for virtiofsd's sake"
    )]
    pub migration_mode: Option<MigrationMode>,
    /// Has no effect
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        help_heading = "Accepted for virtiofsd's sake"
    )]
    pub migration_on_error: Option<MigrationOnError>,
    /// Has no effect
    #[arg(long, help_heading = "Accepted for virtiofsd's sake")]
    pub migration_verify_handles: bool,
    /// Has no effect
    #[arg(long, help_heading = "Accepted for virtiofsd's sake")]
    pub migration_confirm_paths: bool,
}

/// When the guest gets something that it may or may not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Negotiation {
    /// Never
    Never,
    /// If the guest knows it
    Auto,
    /// The same: a guest that does not know it is served without
    Always,
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Namespaces of its own, whose root is the directory
    Namespace,
    /// The directory is the root
    Chroot,
    /// None
    None,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Nothing is filtered
    None,
    /// It ends the process, which says so
    Kill,
    /// It is noted in the kernel's log and let pass
    Log,
    /// The same as kill
    Trap,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// What failed
    #[value(alias = "err")]
    Error,
    /// What is not as it should be
    Warn,
    /// What happens
    Info,
    /// What helps to debug
    Debug,
    /// Everything
    Trace,
    /// Nothing
    Off,
}

/// What is wrong with the options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileServerUsage {
    /// No directory.
    #[error("no directory is named: --shared-dir DIR is needed")]
    NoDirectory,
    /// No socket.
    #[error("no socket is named: --socket-path PATH or --fd N is needed")]
    NoSocket,
    /// A descriptor that cannot be.
    #[error("--fd {0} is no descriptor, allowed: 0 and above")]
    Descriptor(RawFd),
    /// A tag that does not fit.
    #[error("--tag has {0} bytes, allowed: 1 to {TAG_BYTES}")]
    Tag(usize),
    /// Something of `-o`.
    #[error("-o {text} is not known, allowed: {allowed}")]
    Old {
        /// As it was given.
        text: String,
        /// All that there are.
        allowed: String,
    },
    /// A value of something of `-o`.
    #[error("-o {option}={value}: {why}")]
    OldValue {
        /// Before the `=`.
        option: String,
        /// Behind it.
        value: String,
        /// Why not, or what may be there.
        why: String,
    },
    /// Access control lists would not come back as they went.
    #[error("--posix-acl and {0} {1}, which maps one way only: with lists map:GUEST:HOST:COUNT is allowed")]
    AclOneWay(&'static str, IdTranslation),
    /// They would be nothing to the host, which goes by them.
    #[error(
        "--posix-acl and --xattrmap, which does not leave system.posix_acl_access and system.posix_acl_default as they are"
    )]
    AclRenamed,
    /// A label that no kernel could take.
    #[error(
        "--label {0} is no SELinux label, written as user:role:type or user:role:type:level, up to {MAX_LABEL_BYTES} bytes"
    )]
    Label(String),
}

impl FileServerArgs {
    /// What they ask for.
    ///
    /// # Errors
    /// See [`FileServerUsage`].
    pub fn into_options(mut self) -> Result<Options, FileServerUsage> {
        for option in std::mem::take(&mut self.old) {
            self.take_old(&option)?;
        }
        let posix_acl = self.posix_acl != Negotiation::Never;
        if posix_acl && self.xattrmap.as_ref().is_some_and(|map| !map.keeps_acl()) {
            return Err(FileServerUsage::AclRenamed);
        }
        let label = self.label.take().map(|label| {
            let taken = CString::new(&*label).ok().filter(|_| is_label(&label));
            taken.ok_or(FileServerUsage::Label(label))
        });
        let label = label.transpose()?;
        let of = |option, ranges: &[IdTranslation]| {
            let one_way = ranges.iter().find(|range| range.kind != IdKind::Map);
            one_way.map(|range| FileServerUsage::AclOneWay(option, *range))
        };
        let one_way = of("--translate-uid", &self.translate_uid);
        if let Some(fault) = one_way
            .or_else(|| of("--translate-gid", &self.translate_gid))
            .filter(|_| posix_acl)
        {
            return Err(fault);
        }
        let security_label = self.security_label != Negotiation::Never;
        if let Some(tag) = self.tag.as_ref().filter(|tag| tag.is_empty() || tag.len() > TAG_BYTES) {
            return Err(FileServerUsage::Tag(tag.len()));
        }
        let ignored = self.ignored();
        let dir = self.shared_dir.ok_or(FileServerUsage::NoDirectory)?;
        let listen = match (self.fd, self.socket_path) {
            (Some(fd), _) if fd < 0 => return Err(FileServerUsage::Descriptor(fd)),
            (Some(fd), _) => Listen::Descriptor(fd),
            (None, Some(path)) => Listen::Path {
                path,
                group: self.socket_group,
            },
            (None, None) => return Err(FileServerUsage::NoSocket),
        };
        let share = ShareConfig {
            readonly: self.readonly,
            cache: self.cache.into(),
            writeback: self.writeback,
            allow_direct_io: self.allow_direct_io,
            allow_mmap: self.allow_mmap,
            xattr: self.xattr || posix_acl || security_label || self.xattrmap.is_some(),
            xattr_map: self.xattrmap,
            label,
            // It takes --modcaps +sys_admin.
            overlay_xattr: true,
            posix_acl,
            security_label,
            announce_submounts: !self.no_announce_submounts,
            killpriv: !self.no_killpriv_v2,
            readdirplus: !self.no_readdirplus,
            locks: self.locks,
            uid_map: self.translate_uid.into_iter().map(Into::into).collect(),
            gid_map: self.translate_gid.into_iter().map(Into::into).collect(),
            ..ShareConfig::new(dir)
        };
        Ok(Options {
            listen,
            share,
            tag: self.tag,
            sandbox: self.sandbox.into(),
            seccomp: self.seccomp.into(),
            capabilities: self.modcaps.unwrap_or_default(),
            users: self.uid_map,
            groups: self.gid_map,
            descriptors: self.rlimit_nofile,
            threads: self.thread_pool_size,
            log_level: if self.debug {
                LevelFilter::Debug
            } else {
                self.log_level.into()
            },
            syslog: self.syslog,
            ignored,
        })
    }
}

impl From<SandboxMode> for Sandbox {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Namespace => Self::Namespace,
            SandboxMode::Chroot => Self::Chroot,
            SandboxMode::None => Self::None,
        }
    }
}

impl From<Action> for Mode {
    fn from(action: Action) -> Self {
        match action {
            Action::None => Self::Off,
            Action::Kill | Action::Trap => Self::On,
            Action::Log => Self::Log,
        }
    }
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
            Level::Off => Self::Off,
        }
    }
}

#[cfg(test)]
#[path = "file_server_test.rs"]
mod tests;
