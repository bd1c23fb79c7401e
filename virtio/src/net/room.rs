//! What the driver has given to receive into: chains taken from the ring and not used yet, as one array of buffers for the kernel.
//!
//! Chains stay here from one frame to the next, so that each is looked at once, however many buffers a frame might need.
#![expect(unsafe_code, reason = "an iovec holds a raw pointer into guest memory")]

use std::collections::VecDeque;
use std::sync::Arc;

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::VolatileSlice;

use super::header::HEADER_BYTES;
use crate::ring::{Ring, RingError};

/// Most buffers of one call (`UIO_MAXIOV` of the kernel).
pub(super) const MAX_IOVECS: usize = 1024;

/// A chain and its part of the array.
struct Space {
    head: u16,
    iovecs: usize,
    bytes: usize,
}

/// Chains in the order of the ring, with their buffers.
#[derive(Default)]
pub(super) struct Room {
    /// Where the buffers lie, and what keeps them mapped.
    mem: Option<Arc<GuestMemoryMmap>>,
    /// Those before `first` are used up.
    iovecs: Vec<libc::iovec>,
    first: usize,
    chains: VecDeque<Space>,
    bytes: usize,
}

// SAFETY: the pointers go to the kernel, or to `write` under `mem`, on whatever thread; guest RAM is bound to none.
unsafe impl Send for Room {}

impl Room {
    /// Bytes that fit.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Buffers that they are in.
    pub fn pieces(&self) -> usize {
        self.iovecs.len().saturating_sub(self.first)
    }

    /// Chains that they are in.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Takes chains until there is room for `bytes` in at most `chains` of them. Chains that are of no use go back unused, and `useless`
    /// is called for each.
    ///
    /// # Errors
    /// When the driver broke the ring's rules.
    pub fn fill(
        &mut self,
        ring: &mut Ring,
        bytes: usize,
        chains: usize,
        mut useless: impl FnMut(),
    ) -> Result<(), RingError> {
        if self.bytes >= bytes || self.chains.len() >= chains {
            return Ok(());
        }
        self.follow_memory(ring);
        let mem = self.mem.get_or_insert_with(|| ring.memory().into_inner()).clone();
        // One is left for what does not fit.
        while self.bytes < bytes && self.chains.len() < chains && self.pieces() < MAX_IOVECS.saturating_sub(1) {
            let before = self.iovecs.len();
            let mut space = 0usize;
            let iovecs = &mut self.iovecs;
            let taken = ring.take(&mem, |writable, slice| {
                if writable && !slice.is_empty() {
                    space = space.saturating_add(slice.len());
                    iovecs.push(as_iovec(&slice));
                }
            })?;
            let Some(head) = taken else { break };
            let pieces = self.iovecs.len().saturating_sub(before);
            if space < HEADER_BYTES || self.pieces() >= MAX_IOVECS {
                self.iovecs.truncate(before);
                if space >= HEADER_BYTES && !self.chains.is_empty() {
                    // Too much for this call only.
                    ring.put_back(head);
                    break;
                }
                useless();
                ring.push(head, 0)?;
                continue;
            }
            self.bytes = self.bytes.saturating_add(space);
            self.chains.push_back(Space {
                head,
                iovecs: pieces,
                bytes: space,
            });
        }
        Ok(())
    }

    /// Calls `io` with all buffers, and behind them `more` if that is not empty. Nobody else may write to `more` meanwhile.
    pub fn with_buffers<T>(&mut self, more: &mut [u8], io: impl FnOnce(&[libc::iovec]) -> T) -> T {
        let extra = !more.is_empty();
        if extra {
            self.iovecs.push(libc::iovec {
                iov_base: more.as_mut_ptr().cast(),
                iov_len: more.len(),
            });
        }
        let result = io(self.iovecs.get(self.first..).unwrap_or_default());
        if extra {
            self.iovecs.pop();
        }
        result
    }

    /// Copies `data` to `offset` bytes from the beginning; what does not fit is left out.
    pub fn write(&mut self, mut offset: usize, mut data: &[u8]) {
        for iovec in self.iovecs.get(self.first..).unwrap_or_default() {
            if data.is_empty() {
                break;
            }
            let Some(len) = iovec.iov_len.checked_sub(offset).filter(|len| *len > 0) else {
                offset = offset.saturating_sub(iovec.iov_len);
                continue;
            };
            // SAFETY: pointer and length were a slice of guest memory that `self.mem` keeps mapped.
            let slice = unsafe { VolatileSlice::new(iovec.iov_base.cast(), iovec.iov_len) };
            let (now, later) = data.split_at(len.min(data.len()));
            if let Ok(place) = slice.offset(offset) {
                place.copy_from(now);
            }
            (offset, data) = (0, later);
        }
    }

    /// Moves the chains that hold the first `bytes` to `done`, head and length each.
    pub fn consume(&mut self, mut bytes: usize, done: &mut Vec<(u16, u32)>) {
        while bytes > 0
            && let Some(space) = self.chains.pop_front()
        {
            let len = bytes.min(space.bytes);
            bytes = bytes.saturating_sub(len);
            self.bytes = self.bytes.saturating_sub(space.bytes);
            self.first = self.first.saturating_add(space.iovecs);
            done.push((space.head, u32::try_from(len).unwrap_or(u32::MAX)));
        }
        // The array moves to its beginning when it is empty, or its larger half is used up: less than one move for each entry.
        if self.first > MAX_IOVECS || self.first == self.iovecs.len() {
            self.iovecs.drain(..self.first.min(self.iovecs.len()));
            self.first = 0;
        }
    }

    /// How many chains the first `bytes` take.
    pub fn chains_for(&self, bytes: usize) -> usize {
        let mut left = bytes;
        let fits = |space: &&Space| {
            let more = left > 0;
            left = left.saturating_sub(space.bytes);
            more
        };
        self.chains.iter().take_while(fits).count()
    }

    /// Puts all chains back into the ring, as if they had never been taken.
    pub fn give_back(&mut self, ring: &mut Ring) {
        while let Some(space) = self.chains.pop_back() {
            ring.put_back(space.head);
        }
        self.iovecs.clear();
        self.first = 0;
        self.bytes = 0;
        self.mem = None;
    }

    /// Whether guest memory is no longer what the chains were found in.
    pub fn is_stale(&self, ring: &Ring) -> bool {
        let now = ring.memory();
        self.mem
            .as_ref()
            .is_some_and(|mem| !std::ptr::eq(&raw const **mem, &raw const *now))
    }

    fn follow_memory(&mut self, ring: &mut Ring) {
        if self.is_stale(ring) {
            self.give_back(ring);
        }
    }
}

/// A slice of guest memory as the kernel wants it. Whoever uses it keeps the memory mapped.
pub(super) fn as_iovec(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}
