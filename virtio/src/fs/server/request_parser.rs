//! One request while it is taken apart.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::session::SessionFeatures;
use crate::fs::filesystem::{Caller, Creation, Node};
use crate::fs::protocol::extensions::Extensions;
use crate::fs::protocol::tail::Parts;
use crate::fs::protocol::{Failure, MALFORMED, Opcode, Tail, requests, take};
use crate::ring::Reader;

/// Permission bits that a umask has.
const UMASK: u32 = 0o777;

/// A request behind its header.
pub(super) struct RequestParser<'a> {
    /// What the reply repeats.
    pub unique: u64,
    pub node: Node,
    pub caller: Caller,
    /// What holds in the session.
    pub features: SessionFeatures,
    opcode: u32,
    /// Bytes at the end that are extensions.
    extensions: usize,
    body: Reader<'a>,
}

impl<'a> RequestParser<'a> {
    /// Reads the header, and says whether it tells the length right. `None` if there is no header.
    pub fn read(mut body: Reader<'a>) -> Option<(Self, bool)> {
        let readable = body.available_bytes();
        let header: requests::Header = take(&mut body)?;
        let request = Self {
            unique: header.unique.get(),
            node: Node(header.nodeid.get()),
            caller: Caller {
                uid: header.uid.get(),
                gid: header.gid.get(),
                pid: header.pid.get(),
                group: None,
            },
            features: SessionFeatures::default(),
            opcode: header.opcode.get(),
            extensions: usize::from(header.total_extlen.get()).saturating_mul(8),
            body,
        };
        Some((request, usize::try_from(header.len.get()) == Ok(readable)))
    }

    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::of(self.opcode)
    }

    pub fn has_extensions(&self) -> bool {
        self.extensions != 0
    }

    /// Bytes that were not taken yet.
    pub fn left(&self) -> usize {
        self.body.available_bytes()
    }

    /// The next structure.
    pub fn take<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Failure> {
        take(&mut self.body).ok_or(MALFORMED)
    }

    /// The last one: nothing may follow.
    pub fn last<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Failure> {
        let value = self.take()?;
        if self.left() == 0 { Ok(value) } else { Err(MALFORMED) }
    }

    /// Names, and what follows them.
    pub fn tail(&mut self) -> Result<Tail, Failure> {
        Tail::read(&mut self.body)
    }

    /// What is left, to be read by the file system itself.
    pub fn body(&self) -> &Reader<'a> {
        &self.body
    }

    /// What of `umask` is left to be done. A guest's kernel has taken it from the mode itself,
    /// unless it leaves that to a host with lists of access rights (`FUSE_DONT_MASK`, Linux
    /// `fs/fuse/dir.c`).
    pub fn umask(&self, umask: U32) -> u32 {
        if self.features.posix_acl() {
            umask.get() & UMASK
        } else {
            0
        }
    }

    /// Adds to `new` and to the caller what `parts` has of extensions.
    pub fn extend<'t>(&mut self, parts: Parts<'t>, new: &mut Creation<'t>) -> Result<(), Failure> {
        let found = if self.extensions != 0 || self.features.labels() {
            Extensions::read(parts, self.extensions)?
        } else {
            parts.end()?;
            Extensions::default()
        };
        new.label = found.label.filter(|_| self.features.labels());
        self.caller.group = found.group;
        Ok(())
    }
}
