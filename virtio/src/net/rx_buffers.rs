//! What the driver has given to receive into: chains taken from the ring and not used yet, as one
//! array of buffers for the kernel.
//!
//! Chains stay here from one frame to the next, so that each is looked at once, however many
//! buffers a frame might need.

use std::collections::VecDeque;

use super::header::HEADER_BYTES;
use crate::iovecs::{Buffers, MAX_IOVECS, OwnedIovecs};
use crate::ring::{Ring, RingError};

/// A chain and its part of the array.
struct RxChain {
    head: u16,
    iovecs: usize,
    bytes: usize,
}

/// Chains in the order of the ring, with their buffers.
#[derive(Default)]
pub(super) struct RxBuffers {
    /// The buffers, and what keeps them mapped. Those before `first` are used up.
    iovecs: Option<OwnedIovecs>,
    first: usize,
    chains: VecDeque<RxChain>,
    bytes: usize,
}

impl RxBuffers {
    /// Bytes that fit.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Buffers that they are in.
    pub fn pieces(&self) -> usize {
        self.iovecs
            .as_ref()
            .map_or(0, OwnedIovecs::len)
            .saturating_sub(self.first)
    }

    /// Chains that they are in.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Takes chains until there is room for `bytes` in at most `chains` of them. Chains that are of
    /// no use go back unused, and `useless` is called for each.
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
        // One is left for what does not fit.
        while self.bytes < bytes && self.chains.len() < chains && self.pieces() < MAX_IOVECS.saturating_sub(1) {
            let iovecs = self
                .iovecs
                .get_or_insert_with(|| OwnedIovecs::new(ring.memory().into_inner()));
            let before = iovecs.len();
            let mut space = 0usize;
            let taken = iovecs.with(|mem, live| {
                ring.take(mem, |writable, slice| {
                    if writable && !slice.is_empty() {
                        space = space.saturating_add(slice.len());
                        live.push(slice);
                    }
                })
            })?;
            let Some(head) = taken else { break };
            let pieces = iovecs.len().saturating_sub(before);
            let all = iovecs.len().saturating_sub(self.first);
            if space < HEADER_BYTES || all >= MAX_IOVECS {
                iovecs.with(|_, live| live.truncate(before));
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
            self.chains.push_back(RxChain {
                head,
                iovecs: pieces,
                bytes: space,
            });
        }
        Ok(())
    }

    /// Calls `io` with all buffers, and behind them `more` if that is not empty; not where nothing was ever taken.
    pub fn with_buffers<T>(&mut self, more: &mut [u8], io: impl FnOnce(Buffers<'_>) -> T) -> Option<T> {
        let iovecs = self.iovecs.as_mut()?;
        Some(iovecs.with_buffers(self.first, more, io))
    }

    /// Copies `data` to `offset` bytes from the beginning; what does not fit is left out.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if let Some(iovecs) = &self.iovecs {
            iovecs.buffers(self.first).write(offset, data);
        }
    }

    /// Copies what is `offset` bytes from the beginning to `data`; returns how much of it there is room for.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> usize {
        let Some(iovecs) = &self.iovecs else { return 0 };
        iovecs.buffers(self.first).read(offset, data)
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
        // The array moves to its beginning when it is empty, or its larger half is used up: less
        // than one move for each entry.
        if let Some(iovecs) = &mut self.iovecs
            && (self.first > MAX_IOVECS || self.first == iovecs.len())
        {
            iovecs.forget(self.first);
            self.first = 0;
        }
    }

    /// How many chains the first `bytes` take.
    pub fn chains_needed(&self, bytes: usize) -> usize {
        let mut left = bytes;
        let fits = |space: &&RxChain| {
            let more = left > 0;
            left = left.saturating_sub(space.bytes);
            more
        };
        self.chains.iter().take_while(fits).count()
    }

    /// Puts all chains back into the ring, as if they had never been taken.
    pub fn return_all(&mut self, ring: &mut Ring) {
        while let Some(space) = self.chains.pop_back() {
            ring.put_back(space.head);
        }
        self.iovecs = None;
        self.first = 0;
        self.bytes = 0;
    }

    /// Whether guest memory is no longer what the chains were found in: then they are to be given
    /// back, and found again.
    pub fn is_stale(&self, ring: &Ring) -> bool {
        let now = ring.memory();
        self.iovecs.as_ref().is_some_and(|iovecs| !iovecs.is_in(&now))
    }
}
