//! A directory of the host that is shared: what it is to be, for whoever opens it.

use std::ffi::CString;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

pub use super::tree::Confinement;
use super::xattr_map::XattrMap;

/// What of root's capabilities it takes to serve files: to work on any of them as its owner could,
/// by handle as well, and to act for others.
pub const SERVING: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// Version of the rules of Landlock that the host's kernel has (`LANDLOCK_CREATE_RULESET_VERSION`),
/// 0 for none; and the first one that is good for a share.
pub fn landlock_versions() -> (u32, u32) {
    super::tree::landlock_versions()
}

/// How long the guest may keep what it was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Contents until a file is opened anew, names and attributes for a second.
    #[default]
    Auto,
    /// Nothing: every access asks.
    Never,
    /// All, for a day: nobody else changes the directory.
    Always,
    /// Names and attributes for a day, contents never.
    Metadata,
}

/// A range of user or group numbers that are one thing in the guest and another on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// In which direction, and whether to as many numbers.
    pub kind: IdMapKind,
    /// First number in the guest.
    pub guest: u32,
    /// First number on the host; of no meaning with [`IdMapKind::ForbidGuest`].
    pub host: u32,
    /// How many numbers the range has, from the first ones on.
    pub count: u32,
}

impl IdMap {
    /// Numbers that are mapped in both directions.
    pub const fn both_ways(guest: u32, host: u32, count: u32) -> Self {
        let kind = IdMapKind::Map;
        Self {
            kind,
            guest,
            host,
            count,
        }
    }

    /// The first number on the side that it is mapped from.
    pub(crate) const fn first(&self) -> u32 {
        match self.kind {
            IdMapKind::Host | IdMapKind::SquashHost => self.host,
            _ => self.guest,
        }
    }
}

/// What a range of numbers is for, as virtiofsd calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdMapKind {
    /// Each number of the guest is one of the host, in both directions.
    #[default]
    Map,
    /// The same, from the guest to the host only.
    Guest,
    /// The same, from the host to the guest only.
    Host,
    /// All numbers of the guest are `host` there.
    SquashGuest,
    /// All numbers of the host are `guest` there.
    SquashHost,
    /// The guest may make nothing with these numbers, and give nothing to them.
    ForbidGuest,
}

/// What is shared, and how.
#[derive(Clone, Debug)]
pub struct ShareConfig {
    /// The directory of the host that is shared.
    pub dir: PathBuf,
    /// Nothing may be changed through this share.
    pub readonly: bool,
    /// How long the guest may cache names, attributes and contents.
    pub cache: Cache,
    /// The guest may hold back writes.
    pub writeback: bool,
    /// `O_DIRECT` of the guest is carried out on the host, in place of being left out.
    pub allow_direct_io: bool,
    /// Files whose contents the guest does not keep ([`Cache::Never`], [`Cache::Metadata`]) can be
    /// mapped by several nevertheless, where its kernel knows how (Linux 6.6).
    pub allow_mmap: bool,
    /// Extended attributes are served.
    pub xattr: bool,
    /// Attributes have other names on the host, or are not the guest's; of no meaning without
    /// `xattr`. What is said of names elsewhere is said of those on the host. With `posix_acl`
    /// access control lists keep theirs.
    pub xattr_map: Option<XattrMap>,
    /// The guest may change `trusted.overlay.*`, by which overlayfs on the host finds its files once the directory is a
    /// layer of it: what it is told there it shows, also of other layers. Only where the server has `CAP_SYS_ADMIN`, as
    /// for any `trusted.*`.
    pub overlay_xattr: bool,
    /// POSIX access control lists are served; needs `xattr`.
    pub posix_acl: bool,
    /// Mounts below the directory are shown as mounts; they are part of the share in any case.
    pub announce_submounts: bool,
    /// Writes clear set-user-ID and set-group-ID on the host where the guest asks for it (`FUSE_HANDLE_KILLPRIV_V2`),
    /// in place of the guest's kernel doing so by a request of its own. Not so in any case where the directory is on
    /// NFS, whose server does not know who writes.
    pub killpriv: bool,
    /// The guest may ask what the names of a directory lead to while it lists it (`READDIRPLUS`); not so with
    /// [`Cache::Never`].
    pub readdirplus: bool,
    /// Locks are those of the host, seen by others there; else the guest keeps its own. A process
    /// that waits for one of the host's cannot be interrupted: Linux tells no virtio-fs server that
    /// it should be.
    pub locks: bool,
    /// The guest says which security label is stored with what it creates (`FUSE_SECURITY_CTX`);
    /// needs `xattr`, and nothing of it with a `label`. Where the host refuses the label of a
    /// guest, nothing is created.
    pub security_label: bool,
    /// SELinux label of what is created (`/proc/thread-self/attr/fscreate`).
    pub label: Option<CString>,
    /// User numbers. Those in no range are as they are, unless one is [`IdMapKind::Map`]: then an owner without a
    /// number in the guest is 65534 there, and a number without one on the host is refused. Of the ranges from one side
    /// no two may meet. With `posix_acl` all are [`IdMapKind::Map`].
    pub uid_map: Vec<IdMap>,
    /// Group numbers, likewise.
    pub gid_map: Vec<IdMap>,
    /// Most files and directories that the guest may have open at a time; beyond, `open` fails with `ENFILE`.
    pub max_handles: usize,
    /// Most nodes (inodes) that the guest may hold references to at a time; beyond, look-ups fail with `ENFILE`.
    pub max_nodes: usize,
    /// Each thread has the host's kernel hold it to the directory by Landlock, if that is there.
    /// Else it is for whoever starts them.
    pub confine: bool,
    /// Most descriptors kept open for nodes. Those beyond are opened again when needed: by file
    /// handle, or where the host has none, or the process may not open them, by name, if it is seen
    /// then that they are what they were.
    pub max_node_descriptors: usize,
    /// Most ranges locked by the guest at a time; beyond, a lock fails with `ENOLCK`.
    pub max_locks: usize,
}

impl ShareConfig {
    /// `dir` with the usual choices.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            readonly: false,
            cache: Cache::Auto,
            writeback: false,
            allow_direct_io: false,
            allow_mmap: false,
            xattr: false,
            xattr_map: None,
            overlay_xattr: false,
            posix_acl: false,
            announce_submounts: true,
            killpriv: true,
            readdirplus: true,
            locks: false,
            security_label: false,
            label: None,
            confine: false,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            max_handles: 65_536,
            max_nodes: 4 << 20,
            max_node_descriptors: 4096,
            max_locks: 65_536,
        }
    }
}
