//! What follows the fixed part of a request: names, each with a NUL, and then a value or
//! extensions. It is copied out of guest memory once, so that it stays what was checked.

use std::ffi::CStr;
use std::io::Read;

use super::{Failure, MALFORMED};
use crate::fs::filesystem::Name;
use crate::ring::Reader;
use rustix::io::Errno;

/// Longest value of an extended attribute (`XATTR_SIZE_MAX`), and longest list of their names (`XATTR_LIST_MAX`).
pub(in crate::fs) const XATTR_MAX: usize = 65536;
/// Longest name of one (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// Longest target of a symbolic link with its NUL (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Longest tail: a value or a label of the most that there may be, and beside it more of names than
/// Linux sends (`FUSE_NAME_MAX`, 1024).
const TAIL_MAX: usize = XATTR_MAX + 2 * PATH_MAX;
/// Tails of up to so many bytes, which are nearly all, need no allocation.
const SHORT: usize = 512;

/// The bytes.
#[expect(
    clippy::large_enum_variant,
    reason = "one lives for one request, on the stack: that is what it is for"
)]
pub(in crate::fs) enum Tail {
    Short([u8; SHORT], usize),
    Long(Vec<u8>),
}

impl Tail {
    /// All that is left of `request`.
    pub fn read(request: &mut Reader<'_>) -> Result<Self, Failure> {
        let len = request.available_bytes();
        if len > TAIL_MAX {
            return Err(Failure::Malformed(Errno::NAMETOOLONG));
        }
        let mut tail = if len <= SHORT {
            Self::Short([0; SHORT], len)
        } else {
            Self::Long(vec![0; len])
        };
        let bytes = match &mut tail {
            Self::Short(bytes, len) => bytes.get_mut(..*len).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        };
        request.read_exact(bytes).map_err(|_| MALFORMED)?;
        Ok(tail)
    }

    /// For reading from the front.
    pub fn parts(&self) -> Parts<'_> {
        Parts(match self {
            Self::Short(bytes, len) => bytes.get(..*len).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        })
    }
}

/// What is left of a tail.
#[derive(Clone, Copy)]
pub(in crate::fs) struct Parts<'t>(&'t [u8]);

impl<'t> Parts<'t> {
    /// Bytes that are already a part of a tail.
    pub(super) fn of(bytes: &'t [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes up to the next NUL.
    pub fn string(&mut self) -> Result<&'t CStr, Failure> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| MALFORMED)?;
        self.0 = self.0.get(string.count_bytes().saturating_add(1)..).unwrap_or_default();
        Ok(string)
    }

    /// The name of an entry in a directory.
    pub fn name(&mut self) -> Result<Name<'t>, Failure> {
        Name::new(self.string()?).map_err(|errno| match errno {
            // The guest's kernel leaves this one to the server.
            Errno::NAMETOOLONG => Failure::Refused(errno),
            _ => Failure::Malformed(errno),
        })
    }

    /// What a symbolic link is to lead to. Nobody looks into it.
    pub fn target(&mut self) -> Result<&'t CStr, Failure> {
        let target = self.string()?;
        match target.count_bytes() {
            0 => Err(Errno::NOENT.into()),
            PATH_MAX.. => Err(Errno::NAMETOOLONG.into()),
            _ => Ok(target),
        }
    }

    /// The name of an extended attribute (xattr(7)).
    pub fn xattr(&mut self) -> Result<&'t CStr, Failure> {
        xattr_name(self.string()?)
    }

    /// All the rest.
    pub fn rest(self) -> &'t [u8] {
        self.0
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'t [u8], Failure> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Makes sure that there is no rest.
    pub fn end(self) -> Result<(), Failure> {
        if self.0.is_empty() { Ok(()) } else { Err(MALFORMED) }
    }
}

/// `name`, if an extended attribute may have it: a namespace of Linux, and something in it.
pub(in crate::fs) fn xattr_name(name: &CStr) -> Result<&CStr, Failure> {
    const NAMESPACES: [&[u8]; 4] = [b"user.", b"security.", b"system.", b"trusted."];
    let bytes = name.to_bytes();
    if bytes.len() > XATTR_NAME_MAX {
        return Err(Errno::RANGE.into());
    }
    let within = NAMESPACES.iter().find_map(|namespace| bytes.strip_prefix(*namespace));
    match within {
        Some(b"") => Err(Errno::INVAL.into()),
        Some(_) => Ok(name),
        None if bytes.is_empty() => Err(MALFORMED),
        None => Err(Errno::OPNOTSUPP.into()),
    }
}
