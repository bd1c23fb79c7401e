//! Guest memory as the kernel wants it: a byte range of a chain's buffers as an array of `iovec`.
#![expect(
    unsafe_code,
    reason = "an iovec holds a raw pointer, and must go where its chain goes"
)]

use vm_memory::VolatileSlice;

use super::limits::Alignment;

/// Most entries of one call (`IOV_MAX`, `UIO_MAXIOV` of the kernel). A longer list is carried out in several calls.
const MAX_ENTRIES: usize = 1024;

/// The parts of `slices` that make up `len` bytes after the first `skip`; empty ones are left out.
pub(super) fn pieces<'a>(
    slices: impl Iterator<Item = VolatileSlice<'a>>,
    mut skip: usize,
    mut len: usize,
) -> impl Iterator<Item = VolatileSlice<'a>> {
    slices.filter_map(move |slice| {
        let before = skip.min(slice.len());
        skip = skip.saturating_sub(before);
        let rest = slice.offset(before).ok()?;
        let piece = rest.subslice(0, len.min(rest.len())).ok()?;
        len = len.saturating_sub(piece.len());
        (!piece.is_empty()).then_some(piece)
    })
}

/// An array of buffers for a vectored call. Kept between calls to save the allocation.
///
/// It borrows nothing: whoever hands it to the kernel keeps the memory alive until the kernel is done.
#[derive(Default)]
pub(super) struct Iovecs(Vec<libc::iovec>);

// SAFETY: the pointers are only ever given to the kernel, on whatever thread, and never followed here; what they point
// to is guest RAM or an own mapping, neither of which is bound to a thread.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// Takes as many of `slices` as one call can, and returns how many bytes that is.
    pub fn fill<'a>(&mut self, slices: impl Iterator<Item = VolatileSlice<'a>>) -> usize {
        self.0.clear();
        self.0.extend(slices.take(MAX_ENTRIES).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        self.bytes()
    }

    /// How many bytes they hold.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|entry| entry.iov_len).fold(0, usize::saturating_add)
    }

    /// Whether direct I/O takes every buffer as it is.
    pub fn is_aligned(&self, alignment: Alignment) -> bool {
        self.0.iter().all(|entry| {
            entry.iov_base.addr().is_multiple_of(alignment.memory) && entry.iov_len.is_multiple_of(alignment.offset)
        })
    }

    /// The array for the kernel.
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }
}
