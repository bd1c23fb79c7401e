//! What a creation may carry behind its names: a security label (`FUSE_SECURITY_CTX`) and a group
//! (`FUSE_CREATE_SUPP_GROUP`).
//!
//! Each extension begins with its length, a multiple of 8 and this header included, and with its
//! type. A type of up to [`FUSE_MAX_NR_SECCTX`] is a number of labels instead: that many times a
//! header with the label's length, the attribute's name with a NUL, and the label, and then zeroes
//! up to the next multiple of 8. Before 7.38 labels were all there was, and
//! `fuse_in_header.total_extlen` was zero.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::tail::{Parts, XATTR_MAX, xattr_name};
use super::{Failure, MALFORMED};

/// Most labels of a request.
const FUSE_MAX_NR_SECCTX: u32 = 31;
/// Type of the extension with supplementary groups.
const FUSE_EXT_GROUPS: u32 = 32;
/// Bytes of an extension's header, and of a label's.
const HEADER: usize = 8;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fs) struct Extensions<'t> {
    /// Name of the attribute, and value.
    pub label: Option<(&'t CStr, &'t [u8])>,
    pub group: Option<u32>,
}

impl<'t> Extensions<'t> {
    /// Reads all that is left of a request, which says of itself that it has `total` bytes of
    /// extensions; zero if it is of a guest that cannot say that.
    pub fn read(parts: Parts<'t>, total: usize) -> Result<Self, Failure> {
        let mut rest = parts.rest();
        if total != 0 && total != rest.len() {
            return Err(MALFORMED);
        }
        let mut found = Self::default();
        while !rest.is_empty() {
            let size = usize::try_from(number(rest, 0)?).map_err(|_| MALFORMED)?;
            let kind = number(rest, 4)?;
            if !size.is_multiple_of(8) {
                return Err(MALFORMED);
            }
            let (extension, more) = rest.split_at_checked(size).ok_or(MALFORMED)?;
            let body = extension.get(HEADER..).ok_or(MALFORMED)?;
            match kind {
                0 => {}
                1 => found.label = Some(label(body)?),
                // No kernel sends more than one, and none could be left out.
                2..=FUSE_MAX_NR_SECCTX => return Err(Failure::Malformed(Errno::OPNOTSUPP)),
                FUSE_EXT_GROUPS => found.group = group(body)?,
                _ => return Err(MALFORMED),
            }
            rest = more;
        }
        Ok(found)
    }
}

/// A label, and zeroes.
fn label(body: &[u8]) -> Result<(&CStr, &[u8]), Failure> {
    let len = usize::try_from(number(body, 0)?).map_err(|_| MALFORMED)?;
    let mut parts = Parts::of(body.get(HEADER..).ok_or(MALFORMED)?);
    let name = xattr_name(parts.string()?)?;
    if !name.to_bytes().starts_with(b"security.") {
        return Err(MALFORMED);
    }
    let value = parts.bytes(len)?;
    if len == 0 || len > XATTR_MAX || parts.rest().len() >= 8 {
        return Err(MALFORMED);
    }
    Ok((name, value))
}

/// The group, if there is one: the guest sends no more than that of the directory.
fn group(body: &[u8]) -> Result<Option<u32>, Failure> {
    match number(body, 0)? {
        0 => Ok(None),
        1 => Ok(Some(number(body, 4)?)),
        _ => Err(MALFORMED),
    }
}

/// The number at `offset`.
fn number(bytes: &[u8], offset: usize) -> Result<u32, Failure> {
    let bytes = bytes.get(offset..).ok_or(MALFORMED)?;
    let (number, _) = U32::read_from_prefix(bytes).map_err(|_| MALFORMED)?;
    Ok(number.get())
}
