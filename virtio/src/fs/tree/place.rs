//! Where a node is to be found on the host, and by what it is known again.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::StatxFlags;

use super::attributes;
use super::descriptors::CountedFd;
use super::host::FileHandle;
use crate::fs::filesystem::{Name, Node};

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// A name that leads to a node, in the directory that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameInDir<'a> {
    pub parent: Node,
    pub name: Name<'a>,
}

/// What tells a node from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeIdentity {
    /// It can be opened by this handle, which holds its mount (see [`super::mounts::Mounts`]).
    Handle(FileHandle),
    /// It has this handle, by which it cannot be opened.
    Telling(FileHandle),
    /// It was made then: nanoseconds since 1970.
    Born(i64),
}

impl NodeIdentity {
    /// One of what `fd` holds, that is no way to open it. None if the file system tells nothing.
    pub fn of(fd: impl AsFd) -> Option<Self> {
        match FileHandle::telling(&fd) {
            Ok(handle) => Some(Self::Telling(handle)),
            Err(_) => born(fd).map(Self::Born),
        }
    }

    /// Whether it is that of what `fd` holds.
    pub fn is_of(&self, fd: impl AsFd) -> bool {
        match self {
            Self::Handle(handle) => FileHandle::of(fd).is_ok_and(|found| found == *handle),
            Self::Telling(handle) => FileHandle::telling(fd).is_ok_and(|found| found == *handle),
            Self::Born(time) => born(fd) == Some(*time),
        }
    }
}

fn born(fd: impl AsFd) -> Option<i64> {
    let stat = attributes::of(fd).ok()?;
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let whole = stat.stx_btime.tv_sec.checked_mul(SECOND).filter(|_| told)?;
    whole.checked_add(stat.stx_btime.tv_nsec.into())
}

/// Where a node is to be found.
pub(super) struct Place {
    /// A descriptor, unless it was closed.
    pub fd: Option<Arc<CountedFd>>,
    /// What it is known by if it was.
    pub mark: Option<NodeIdentity>,
    /// The directory that it was last seen in.
    parent: Option<Node>,
    /// Under which name. Empty for none.
    name: Box<[u8]>,
}

impl Place {
    /// Of what `fd` holds.
    pub fn of(fd: CountedFd, seen: Option<NameInDir<'_>>) -> Self {
        let mut place = Self {
            fd: Some(Arc::new(fd)),
            mark: None,
            parent: None,
            name: Box::default(),
        };
        seen.into_iter().for_each(|seen| place.see(seen));
        place
    }

    /// It was seen under that name.
    pub fn see(&mut self, seen: NameInDir<'_>) {
        self.parent = Some(seen.parent);
        let name = seen.name.as_c_str().to_bytes();
        if *self.name != *name {
            self.name = name.into();
        }
    }

    /// The directory that it was last seen in.
    pub fn parent(&self) -> Option<Node> {
        self.parent
    }

    /// Whether it was seen under a name.
    pub fn has_name(&self) -> bool {
        self.parent.is_some()
    }

    /// The name that it was last seen under.
    pub fn name(&self) -> Option<CString> {
        CString::new(&*self.name).ok().filter(|name| !name.is_empty())
    }

    /// The handle to open it by, if there is one.
    pub fn handle(&self) -> Option<&FileHandle> {
        match &self.mark {
            Some(NodeIdentity::Handle(handle)) => Some(handle),
            _ => None,
        }
    }

    /// It is to be found no more. Whether it held its mount.
    pub fn leave(&mut self) -> bool {
        self.parent = None;
        self.name = Box::default();
        matches!(self.mark.take(), Some(NodeIdentity::Handle(_)))
    }
}
