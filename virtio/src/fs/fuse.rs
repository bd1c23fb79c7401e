//! FUSE requests and replies as far as the device itself answers them: with an error, in the place
//! of a back-end that is gone (`ENOTCONN`: what FUSE says when nobody serves a mount any more), or
//! of a server that has no room (Linux `include/uapi/linux/fuse.h`; virtio 1.2 §5.11.6.1).
//!
//! `FUSE_FORGET` and `FUSE_BATCH_FORGET` have no room for a reply, and get none.

use std::io::Write;
use std::mem::size_of;

use zerocopy::IntoBytes;

use super::protocol::{replies, requests, take};
use crate::ring::{Protocol, Reader, ReplyState, Writer};

/// Bytes of a request that has nothing but its header.
pub(super) const REQUEST_BYTES: usize = size_of::<requests::Header>();
const REPLY_BYTES: usize = size_of::<replies::Header>();
/// The same, as the header has it.
const LEN: u32 = 16;
const _: () = assert!(LEN as usize == REPLY_BYTES);

/// FUSE, for [`Ring::recover`](crate::ring::Ring::recover).
pub(super) struct Fuse;

impl Protocol for Fuse {
    fn reply_state(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> ReplyState {
        let (readable, writable) = (request.available_bytes(), reply.available_bytes());
        let Some(asked) = take::<requests::Header>(request) else {
            return ReplyState::None;
        };
        let is_request =
            usize::try_from(asked.len.get()) == Ok(readable) && asked.opcode.get() != 0 && asked.unique.get() != 0;
        let Some(said) = take::<replies::Header>(reply).filter(|_| is_request) else {
            return ReplyState::None;
        };
        if said.unique != asked.unique {
            return ReplyState::Waiting;
        }
        let longest = u32::try_from(writable).unwrap_or(u32::MAX);
        ReplyState::Answered(said.len.get().min(longest))
    }

    fn refuse(&self, request: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32 {
        refuse(request, reply, libc::ENOTCONN)
    }
}

/// Answers `request` with `errno`, and says how long the reply is: nothing where there is no room for one.
pub(super) fn refuse(request: &mut Reader<'_>, reply: &mut Writer<'_>, errno: i32) -> u32 {
    let Some(asked) = take::<requests::Header>(request) else {
        return 0;
    };
    if reply.available_bytes() < REPLY_BYTES {
        return 0;
    }
    let header = replies::Header {
        len: LEN.into(),
        error: errno.saturating_neg().into(),
        unique: asked.unique,
    };
    match reply.write_all(header.as_bytes()) {
        Ok(()) => LEN,
        Err(_) => 0,
    }
}

#[cfg(test)]
#[path = "fuse_test.rs"]
mod tests;
