//! Guest memory as the kernel wants it: arrays of `iovec`, for vectored calls.
//!
//! An `iovec` is an address that no lifetime covers. Here is the only place that makes them, and that follows them:
//!
//! | type | what it says |
//! |---|---|
//! | [`Iovecs`] | an array, kept between calls to save the allocation; nobody follows its addresses but the kernel |
//! | [`BorrowedIovecs`] | such an array while it is filled with memory that outlives it |
//! | [`OwnedIovecs`] | one that stays filled, with the memory that it is in |
//! | [`Buffers`] | what a call is given of the two: mapped as long as the borrow lasts, anybody's to read and write |
#![expect(
    unsafe_code,
    reason = "an iovec holds a raw pointer, and is followed where its memory is known to be mapped"
)]

use std::marker::PhantomData;
use std::sync::Arc;

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::VolatileSlice;

/// Most entries of one call (`IOV_MAX`, `UIO_MAXIOV` of the kernel). A longer list is carried out in several calls.
pub(crate) const MAX_IOVECS: usize = 1024;

/// The parts of `slices` that make up `len` bytes after the first `skip`; empty ones are left out.
pub(crate) fn pieces<'a>(
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

/// An array of buffers. It borrows nothing: whoever hands it to the kernel keeps the memory alive
/// until the kernel is done.
#[derive(Default)]
pub(crate) struct Iovecs(Vec<libc::iovec>);

// SAFETY: the addresses are given to the kernel, or followed under a borrow of the memory that they
// are in, on whatever thread; neither guest RAM nor a mapping of this process is bound to one.
unsafe impl Send for Iovecs {}

impl Iovecs {
    /// Takes as many of `slices` as one call can, and returns how many bytes that is.
    pub fn fill<'a>(&mut self, slices: impl Iterator<Item = VolatileSlice<'a>>) -> usize {
        self.0.clear();
        self.0.extend(slices.take(MAX_IOVECS).map(iovec));
        self.bytes()
    }

    /// How many bytes they hold.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|entry| entry.iov_len).fold(0, usize::saturating_add)
    }

    /// Whether every buffer begins at a multiple of `memory`, and is a multiple of `len` long.
    pub fn is_aligned(&self, memory: usize, len: usize) -> bool {
        self.0
            .iter()
            .all(|entry| entry.iov_base.addr().is_multiple_of(memory) && entry.iov_len.is_multiple_of(len))
    }

    /// The array for the kernel.
    pub fn as_slice(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Begins anew, with buffers that all live for `'m`.
    pub fn begin<'m>(&mut self) -> BorrowedIovecs<'_, 'm> {
        self.0.clear();
        BorrowedIovecs {
            array: &mut self.0,
            lives: PhantomData,
        }
    }
}

/// An array of buffers that all live for `'m`.
pub(crate) struct BorrowedIovecs<'a, 'm> {
    array: &'a mut Vec<libc::iovec>,
    /// Neither longer nor shorter than `'m`.
    lives: PhantomData<fn(&'m ()) -> &'m ()>,
}

impl<'m> BorrowedIovecs<'_, 'm> {
    /// Appends one.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        self.array.push(iovec(slice));
    }

    /// Puts one before all others.
    pub fn push_front(&mut self, slice: VolatileSlice<'m>) {
        self.array.insert(0, iovec(slice));
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.array.len()
    }

    /// Cuts off what is behind the first `count` entries.
    pub fn truncate(&mut self, count: usize) {
        self.array.truncate(count);
    }

    /// Cuts off what is behind the first `bytes` bytes.
    pub fn cut(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut used = 0usize;
        for entry in self.array.iter_mut() {
            if left == 0 {
                break;
            }
            entry.iov_len = entry.iov_len.min(left);
            left = left.saturating_sub(entry.iov_len);
            used = used.saturating_add(1);
        }
        self.array.truncate(used);
    }

    /// All of them.
    pub fn buffers(&self) -> Buffers<'_> {
        Buffers(self.array)
    }
}

/// An array of buffers in guest memory, and what keeps them mapped.
pub(crate) struct OwnedIovecs {
    mem: Arc<GuestMemoryMmap>,
    iovecs: Iovecs,
}

impl OwnedIovecs {
    /// Nothing yet of `mem`.
    pub fn new(mem: Arc<GuestMemoryMmap>) -> Self {
        let iovecs = Iovecs::default();
        Self { mem, iovecs }
    }

    /// Whether the buffers are in `mem`.
    pub fn is_in(&self, mem: &GuestMemoryMmap) -> bool {
        std::ptr::eq(&raw const *self.mem, mem)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.iovecs.0.len()
    }

    /// Has `change` append buffers of the memory that it is given, which it can get from nowhere else.
    pub fn with<R>(&mut self, change: impl for<'m> FnOnce(&'m GuestMemoryMmap, &mut BorrowedIovecs<'_, 'm>) -> R) -> R {
        let mut live = BorrowedIovecs {
            array: &mut self.iovecs.0,
            lives: PhantomData,
        };
        change(&self.mem, &mut live)
    }

    /// Forgets the first `count` entries.
    pub fn forget(&mut self, count: usize) {
        self.iovecs.0.drain(..count.min(self.len()));
    }

    /// All but the first `count`.
    pub fn buffers(&self, count: usize) -> Buffers<'_> {
        Buffers(self.iovecs.0.get(count..).unwrap_or_default())
    }

    /// Calls `io` with all but the first `count`, and behind them `more` if that is not empty.
    pub fn with_buffers<T>(&mut self, count: usize, more: &mut [u8], io: impl FnOnce(Buffers<'_>) -> T) -> T {
        let len = self.len();
        if !more.is_empty() {
            self.iovecs.0.push(iovec(VolatileSlice::from(more)));
        }
        let result = io(self.buffers(count));
        self.iovecs.0.truncate(len);
        result
    }
}

/// Buffers that are mapped as long as `'b`, and may be read and written by anybody at any time.
#[derive(Clone, Copy)]
pub(crate) struct Buffers<'b>(&'b [libc::iovec]);

impl<'b> Buffers<'b> {
    /// The array for the kernel.
    pub fn as_slice(self) -> &'b [libc::iovec] {
        self.0
    }

    /// Those from entry `first` up to `end`.
    pub fn range(self, first: usize, end: usize) -> Self {
        Self(self.0.get(first..end).unwrap_or_default())
    }

    /// Them as slices.
    pub fn slices(self) -> impl Iterator<Item = VolatileSlice<'b>> {
        self.0.iter().map(|entry| {
            // SAFETY: an entry is made of a slice and at most shortened, and what it is of lives
            // for `'b`: see the types that hand `Buffers` out.
            unsafe { VolatileSlice::new(entry.iov_base.cast(), entry.iov_len) }
        })
    }

    /// Copies `data` to `offset` bytes from the beginning; what does not fit is left out.
    pub fn write(self, offset: usize, mut data: &[u8]) {
        for piece in pieces(self.slices(), offset, data.len()) {
            piece.copy_from(data);
            data = data.get(piece.len()..).unwrap_or_default();
        }
    }

    /// Copies what is `offset` bytes from the beginning to `data`; returns how much of it there is.
    pub fn read(self, offset: usize, data: &mut [u8]) -> usize {
        let mut found = 0usize;
        for piece in pieces(self.slices(), offset, data.len()) {
            let copied = piece.copy_to(data.get_mut(found..).unwrap_or_default());
            found = found.saturating_add(copied);
        }
        found
    }
}

fn iovec(slice: VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::testing::memory;

    fn lengths(buffers: Buffers<'_>) -> Vec<usize> {
        buffers.as_slice().iter().map(|entry| entry.iov_len).collect()
    }

    #[test]
    fn buffers_are_cut_by_bytes_and_by_entries() {
        let (mut one, mut two, mut front) = ([1u8; 4], [2u8; 6], [0u8; 2]);
        let mut iovecs = Iovecs::default();
        let mut live = iovecs.begin();
        live.push(VolatileSlice::from(&mut one[..]));
        live.push(VolatileSlice::from(&mut two[..]));
        live.push_front(VolatileSlice::from(&mut front[..]));
        assert_eq!(lengths(live.buffers()), [2, 4, 6]);
        assert_eq!(lengths(live.buffers().range(1, 2)), [4]);
        assert_eq!(lengths(live.buffers().range(1, 9)), [0; 0]);
        live.cut(12);
        assert_eq!(lengths(live.buffers()), [2, 4, 6]);
        live.cut(7);
        assert_eq!((lengths(live.buffers()), live.len()), (vec![2, 4, 1], 3));
        live.cut(6);
        assert_eq!(lengths(live.buffers()), [2, 4]);
        live.truncate(1);
        assert_eq!(lengths(live.buffers()), [2]);
        live.cut(0);
        assert_eq!(live.len(), 0);
        assert_eq!(iovecs.begin().len(), 0);
    }

    #[test]
    fn data_is_written_over_the_ends_of_buffers_and_no_further() {
        let (mut one, mut two) = ([0u8; 3], [0u8; 3]);
        let mut iovecs = Iovecs::default();
        let mut live = iovecs.begin();
        live.push(VolatileSlice::from(&mut one[..]));
        live.push(VolatileSlice::from(&mut two[..]));
        live.buffers().write(2, &[7, 8]);
        live.buffers().write(5, &[9, 10, 11]);
        live.buffers().write(6, &[12]);
        let mut read = [1; 4];
        assert_eq!(live.buffers().read(2, &mut read), 4);
        assert_eq!(read, [7, 8, 0, 9]);
        assert_eq!(live.buffers().read(5, &mut read), 1);
        assert_eq!((read[0], live.buffers().read(6, &mut read)), (9, 0));
        drop(iovecs);
        assert_eq!((one, two), ([0, 0, 7], [8, 0, 9]));
    }

    #[test]
    fn a_call_takes_no_more_than_the_kernel_does() {
        let mem = memory();
        let mem = vm_memory::GuestAddressSpace::memory(&mem);
        let slices = |count: u64| {
            (0..count)
                .map(|n| mem.get_slice(GuestAddress(n * 8), 8).unwrap())
                .collect::<Vec<_>>()
        };
        let mut iovecs = Iovecs::default();
        assert_eq!(iovecs.fill(slices(3).into_iter()), 24);
        assert_eq!(iovecs.fill(slices(1025).into_iter()), 8 * MAX_IOVECS);
        assert_eq!(iovecs.as_slice().len(), MAX_IOVECS);
        assert!(iovecs.is_aligned(8, 8) && !iovecs.is_aligned(8, 16) && !iovecs.is_aligned(16, 8));
    }

    #[test]
    fn kept_buffers_stay_until_they_are_forgotten() {
        let mem = vm_memory::GuestAddressSpace::memory(&memory()).into_inner();
        let mut kept = OwnedIovecs::new(mem.clone());
        kept.with(|mem, live| {
            for n in 0..4 {
                live.push(mem.get_slice(GuestAddress(n * 8), 8).unwrap());
            }
        });
        let mut more = [0; 5];
        assert_eq!(kept.with_buffers(1, &mut more, lengths), [8, 8, 8, 5]);
        assert_eq!(kept.with_buffers(1, &mut [], lengths), [8, 8, 8]);
        kept.forget(3);
        assert_eq!((kept.len(), lengths(kept.buffers(0))), (1, vec![8]));
        kept.buffers(0).write(0, &[5; 8]);
        let mut found = [0u8; 8];
        mem.get_slice(GuestAddress(24), 8).unwrap().copy_to(&mut found);
        assert_eq!(found, [5; 8]);
        kept.forget(9);
        assert_eq!(kept.len(), 0);
        assert!(kept.is_in(&mem));
    }
}
