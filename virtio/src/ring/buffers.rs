//! The two halves of a descriptor chain as byte streams: what the device reads and what it writes (virtio 1.2 §2.7.4).
//!
//! Both are cursors over host slices of guest memory. The guest may change the bytes at any time,
//! so nothing read through them may be trusted twice; the slices themselves were bounds-checked
//! when the chain was taken from the ring.

use std::io;

use vm_memory::{ByteValued, ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::iovecs::{BorrowedIovecs, MAX_IOVECS, pieces};

/// A cursor over the slices of one direction of a chain.
#[derive(Clone, Default)]
struct Cursor<'a> {
    /// Slices in order; those before `at` are used up.
    slices: Vec<VolatileSlice<'a>>,
    at: usize,
    consumed: usize,
    available: usize,
}

impl<'a> Cursor<'a> {
    fn clear(&mut self) {
        self.slices.clear();
        self.at = 0;
        self.consumed = 0;
        self.available = 0;
    }

    fn push(&mut self, slice: VolatileSlice<'a>) {
        // Cannot saturate: `Chain` and `Ring` refuse chains of 2^32 bytes and more.
        self.available = self.available.saturating_add(slice.len());
        self.slices.push(slice);
    }

    /// The unused rest of the present slice, skipping empty ones.
    fn front(&mut self) -> Option<VolatileSlice<'a>> {
        loop {
            let slice = self.slices.get(self.at)?;
            if !slice.is_empty() {
                return Some(*slice);
            }
            self.at = self.at.saturating_add(1);
        }
    }

    /// Uses up `count` bytes of the slice that `front` gave.
    fn advance(&mut self, count: usize) {
        let Some(slice) = self.slices.get_mut(self.at) else {
            return;
        };
        let count = count.min(slice.len());
        if let Ok(rest) = slice.offset(count) {
            *slice = rest;
            self.consumed = self.consumed.saturating_add(count);
            self.available = self.available.saturating_sub(count);
        }
    }

    /// Calls `copy` with each slice, cut to what is left of `limit`, until it takes less than it was given.
    fn each(
        &mut self,
        limit: usize,
        mut copy: impl FnMut(VolatileSlice<'a>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut total = 0usize;
        while total < limit {
            let Some(slice) = self.front() else { break };
            let want = slice.len().min(limit.saturating_sub(total));
            let slice = slice.subslice(0, want).map_err(io::Error::other)?;
            match copy(slice) {
                Ok(done) => {
                    self.advance(done);
                    total = total.saturating_add(done);
                    if done < want {
                        break;
                    }
                }
                // What was moved before counts; the same error will come again if it persists.
                Err(_) if total > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Appends the next `limit` bytes after `skip` to `buffers`, as far as one call of the kernel
    /// takes them, and says how many bytes that is. Uses nothing up.
    fn lend(&self, skip: usize, limit: usize, buffers: &mut BorrowedIovecs<'_, 'a>) -> usize {
        let left = self.slices.get(self.at..).unwrap_or_default();
        let mut bytes = 0usize;
        for piece in pieces(left.iter().copied(), skip, limit) {
            if buffers.len() >= MAX_IOVECS {
                break;
            }
            bytes = bytes.saturating_add(piece.len());
            buffers.push(piece);
        }
        bytes
    }

    fn split_at(&mut self, offset: usize) -> Option<Cursor<'a>> {
        let mut left = offset;
        let mut tail = Cursor::default();
        let mut head = Vec::with_capacity(self.slices.len());
        for slice in self.slices.iter().skip(self.at) {
            let (front, back) = slice.split_at(left.min(slice.len())).ok()?;
            left = left.saturating_sub(front.len());
            if !front.is_empty() {
                head.push(front);
            }
            if !back.is_empty() {
                tail.push(back);
            }
        }
        if left > 0 {
            return None;
        }
        self.slices = head;
        self.at = 0;
        self.available = offset;
        Some(tail)
    }
}

/// A range beyond the end of a chain was asked for.
#[derive(Debug, thiserror::Error)]
#[error("offset {offset} is beyond the {available} bytes of the buffer")]
pub struct SplitError {
    offset: usize,
    available: usize,
}

/// The device-readable bytes of a chain.
#[derive(Clone, Default)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Bytes of the chain's device-readable part that were not read yet.
    pub fn available_bytes(&self) -> usize {
        self.0.available
    }

    /// Bytes read from the beginning of the chain so far.
    pub fn bytes_read(&self) -> usize {
        self.0.consumed
    }

    /// Reads one plain value.
    ///
    /// # Errors
    /// `UnexpectedEof` when fewer bytes are left; those are used up.
    pub fn read_obj<T: ByteValued>(&mut self) -> io::Result<T> {
        let mut value = T::zeroed();
        io::Read::read_exact(self, value.as_mut_slice())?;
        Ok(value)
    }

    /// Cuts after `offset` more bytes: `self` keeps those, the rest is returned.
    ///
    /// # Errors
    /// When fewer than `offset` bytes are left; `self` is unchanged.
    pub fn split_at(&mut self, offset: usize) -> Result<Reader<'a>, SplitError> {
        let available = self.available_bytes();
        self.0
            .split_at(offset)
            .map(Reader)
            .ok_or(SplitError { offset, available })
    }

    /// Appends the next `limit` bytes after `skip` to `buffers`, as far as one call of the kernel
    /// takes them, and says how many bytes that is. Nothing is used up.
    pub(crate) fn lend(&self, skip: usize, limit: usize, buffers: &mut BorrowedIovecs<'_, 'a>) -> usize {
        self.0.lend(skip, limit, buffers)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn push(&mut self, slice: VolatileSlice<'a>) {
        self.0.push(slice);
    }
}

impl<'a> FromIterator<VolatileSlice<'a>> for Reader<'a> {
    fn from_iter<I: IntoIterator<Item = VolatileSlice<'a>>>(slices: I) -> Self {
        let mut reader = Self::default();
        slices.into_iter().for_each(|slice| reader.push(slice));
        reader
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, mut buf: &mut [u8]) -> io::Result<usize> {
        self.0.each(buf.len(), |slice| {
            let done = slice.copy_to(buf);
            buf = std::mem::take(&mut buf).get_mut(done..).unwrap_or_default();
            Ok(done)
        })
    }
}

/// The device-writable bytes of a chain.
#[derive(Clone, Default)]
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
    /// Bytes of the chain's device-writable part that were not written yet.
    pub fn available_bytes(&self) -> usize {
        self.0.available
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> usize {
        self.0.consumed
    }

    /// Writes one plain value.
    ///
    /// # Errors
    /// `WriteZero` when it does not fit; what fits is written.
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> io::Result<()> {
        io::Write::write_all(self, value.as_slice())
    }

    /// Moves at most `limit` bytes from `source` without a copy in between, and says how many.
    ///
    /// # Errors
    /// What `source` answered, if nothing was moved before.
    pub fn write_from(&mut self, source: &mut impl ReadVolatile, limit: usize) -> io::Result<usize> {
        self.0
            .each(limit, |mut slice| retry(|| source.read_volatile(&mut slice)))
    }

    /// Cuts after `offset` more bytes: `self` keeps those, the rest is returned.
    ///
    /// # Errors
    /// When fewer than `offset` bytes are left; `self` is unchanged.
    pub fn split_at(&mut self, offset: usize) -> Result<Writer<'a>, SplitError> {
        let available = self.available_bytes();
        self.0
            .split_at(offset)
            .map(Writer)
            .ok_or(SplitError { offset, available })
    }

    /// Appends the next `limit` bytes after `skip` to `buffers`, as far as one call of the kernel
    /// takes them, and says how many bytes that is. Nothing is used up.
    pub(crate) fn lend(&self, skip: usize, limit: usize, buffers: &mut BorrowedIovecs<'_, 'a>) -> usize {
        self.0.lend(skip, limit, buffers)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn push(&mut self, slice: VolatileSlice<'a>) {
        self.0.push(slice);
    }
}

impl<'a> FromIterator<VolatileSlice<'a>> for Writer<'a> {
    fn from_iter<I: IntoIterator<Item = VolatileSlice<'a>>>(slices: I) -> Self {
        let mut writer = Self::default();
        slices.into_iter().for_each(|slice| writer.push(slice));
        writer
    }
}

impl io::Write for Writer<'_> {
    fn write(&mut self, mut buf: &[u8]) -> io::Result<usize> {
        self.0.each(buf.len(), |slice| {
            slice.copy_from(buf);
            buf = buf.get(slice.len()..).unwrap_or_default();
            Ok(slice.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls `io` again as long as a signal interrupts it.
fn retry(mut io: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match io() {
            Ok(done) => return Ok(done),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
#[path = "buffers_test.rs"]
mod tests;
