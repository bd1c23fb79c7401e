//! The reply to one request.

use std::io::Write;
use std::mem::size_of;

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::Done;
use crate::fs::protocol::{Failure, replies};
use crate::fs::serve::Outcome;
use crate::iovecs::BorrowedIovecs;
use crate::ring::Writer;

/// Bytes of a reply's header.
pub(super) const HEADER_BYTES: usize = size_of::<replies::Header>();
/// The first number that is no error which user space may see (Linux `include/linux/errno.h`).
const FIRST_INTERNAL_ERROR: i32 = 512;

/// The room for a reply, and later the reply.
pub(super) struct Reply<'a> {
    unique: u64,
    writer: Writer<'a>,
}

impl<'a> Reply<'a> {
    /// For the request called `unique`.
    pub fn new(unique: u64, writer: Writer<'a>) -> Self {
        Self { unique, writer }
    }

    /// Bytes that fit behind the header.
    pub fn room(&self) -> usize {
        self.writer.available_bytes().saturating_sub(HEADER_BYTES)
    }

    /// Success, and nothing to say.
    pub fn empty(&mut self) -> Done {
        self.header(0, 0)
    }

    /// Success, and `body`.
    pub fn send(&mut self, body: &(impl IntoBytes + Immutable)) -> Done {
        self.bytes(body.as_bytes())
    }

    /// Success, and `body`.
    pub fn bytes(&mut self, body: &[u8]) -> Done {
        let done = self.header(0, body.len())?;
        self.writer.write_all(body).map_err(|_| Errno::IO)?;
        Ok(done)
    }

    /// Appends the `limit` bytes of the body after `skip` to `buffers`, as far as one call of the
    /// kernel takes them, and says how many bytes that is.
    pub fn lend(&self, skip: usize, limit: usize, buffers: &mut BorrowedIovecs<'_, 'a>) -> usize {
        self.writer.lend(HEADER_BYTES.saturating_add(skip), limit, buffers)
    }

    /// Success, and a body of `len` bytes that is already where it belongs.
    pub fn filled(&mut self, len: usize) -> Done {
        self.header(0, len)
    }

    /// A writer for the body, of which [`Reply::filled`] then says how long it became.
    pub fn body(&mut self) -> Result<Writer<'a>, Failure> {
        let body = self.writer.split_at(HEADER_BYTES).map_err(|_| Errno::IO)?;
        Ok(body)
    }

    /// Failure.
    pub fn error(&mut self, errno: Errno) -> Outcome {
        let number = match errno.raw_os_error() {
            number @ 1..FIRST_INTERNAL_ERROR => number,
            _ => Errno::IO.raw_os_error(),
        };
        // Fails only where there is no room for a header, which was seen to.
        self.header(number.saturating_neg(), 0).unwrap_or(Outcome::Done(0))
    }

    fn header(&mut self, error: i32, body: usize) -> Done {
        let len = u32::try_from(HEADER_BYTES.saturating_add(body)).map_err(|_| Errno::IO)?;
        let header = replies::Header {
            len: len.into(),
            error: error.into(),
            unique: self.unique.into(),
        };
        self.writer.write_all(header.as_bytes()).map_err(|_| Errno::IO)?;
        Ok(Outcome::Done(len))
    }
}
