//! FUSE requests and replies as far as the device itself answers them: with an error, in the place of a back-end that is gone
//! (`ENOTCONN`: what FUSE says when nobody serves a mount any more), or of a server that has no room
//! (Linux `include/uapi/linux/fuse.h`; virtio 1.2 §5.11.6.1). Numbers are little-endian.
//!
//! | request: `fuse_in_header` | bytes | field                               |
//! |---------------------------|-------|-------------------------------------|
//! | 0                         | 4     | `len`: of all that is readable      |
//! | 4                         | 4     | `opcode`                            |
//! | 8                         | 8     | `unique`: what the reply repeats    |
//! | 16                        | 24    | node, user, group, process          |
//!
//! | reply: `fuse_out_header`  | bytes | field                               |
//! |---------------------------|-------|-------------------------------------|
//! | 0                         | 4     | `len`: of the whole reply           |
//! | 4                         | 4     | `error`: 0, or negative             |
//! | 8                         | 8     | `unique`                            |
//!
//! `FUSE_FORGET` and `FUSE_BATCH_FORGET` have no room for a reply, and get none.

use std::io::{Read, Write};

use crate::ring::{Protocol, Reader, Trace, Writer};

/// Bytes of a request that has nothing but its header.
pub(super) const REQUEST_BYTES: usize = 40;
const REPLY_BYTES: usize = 16;
/// The same, as the header has it.
const LEN: u32 = 16;

/// FUSE, for [`Ring::adopt`](crate::ring::Ring::adopt).
pub(super) struct Fuse;

impl Protocol for Fuse {
    fn trace(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> Trace {
        let (readable, writable) = (request.available_bytes(), reply.available_bytes());
        let Some(asked) = Header::read::<REQUEST_BYTES>(request) else {
            return Trace::None;
        };
        let is_request = usize::try_from(asked.len) == Ok(readable) && asked.code != 0 && asked.unique != 0;
        let Some(said) = Header::read::<REPLY_BYTES>(reply).filter(|_| is_request) else {
            return Trace::None;
        };
        if said.unique != asked.unique {
            return Trace::Waiting;
        }
        let longest = u32::try_from(writable).unwrap_or(u32::MAX);
        Trace::Answered(said.len.min(longest))
    }

    fn refuse(&self, request: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32 {
        refuse(request, reply, libc::ENOTCONN)
    }
}

/// Answers `request` with `errno`, and says how long the reply is: nothing where there is no room for one.
pub(super) fn refuse(request: &mut Reader<'_>, reply: &mut Writer<'_>, errno: i32) -> u32 {
    let Some(asked) = Header::read::<REQUEST_BYTES>(request) else {
        return 0;
    };
    if reply.available_bytes() < REPLY_BYTES {
        return 0;
    }
    let mut bytes = [0; REPLY_BYTES];
    let parts = [
        &LEN.to_le_bytes()[..],
        &errno.saturating_neg().to_le_bytes(),
        &asked.unique.to_le_bytes(),
    ]
    .concat();
    bytes.copy_from_slice(&parts);
    match reply.write_all(&bytes) {
        Ok(()) => LEN,
        Err(_) => 0,
    }
}

/// What both headers begin with.
struct Header {
    len: u32,
    /// Opcode or error.
    code: u32,
    unique: u64,
}

impl Header {
    /// Reads a header of `N` bytes, of which the first 16 are of interest. `None` if there are fewer.
    fn read<const N: usize>(from: &mut Reader<'_>) -> Option<Self> {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes).ok()?;
        let (len, rest) = bytes.split_first_chunk::<4>()?;
        let (code, rest) = rest.split_first_chunk::<4>()?;
        let (unique, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            len: u32::from_le_bytes(*len),
            code: u32::from_le_bytes(*code),
            unique: u64::from_le_bytes(*unique),
        })
    }
}

#[cfg(test)]
#[path = "fuse_test.rs"]
mod tests;
