//! Carrying out host operations: asynchronously by io_uring, or by plain system calls where that cannot be had.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by pointers that no lifetime covers"
)]

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use super::inline_write::InlineWrites;
use super::plain::{self, AtHand};
use super::uring::Uring;
use crate::iovecs::Iovecs;

/// Most bytes that one operation moves: more than any request of Linux has. Nothing can stop an
/// operation that has begun.
pub(super) const OP_BYTES: usize = 2 << 20;

/// One system call's worth of work on an image.
#[derive(Clone, Copy)]
pub(super) enum Op<'a> {
    /// Read from `offset` into the buffers. Done: bytes read.
    Read {
        /// Where from.
        file: &'a File,
        /// Where to.
        buffers: &'a Iovecs,
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// Write the buffers at `offset`. Done: bytes written.
    Write {
        /// Where to.
        file: &'a File,
        /// Where from.
        buffers: &'a Iovecs,
        /// Bytes from the start of the file.
        offset: u64,
    },
    /// Bring all that was written to stable storage (fdatasync(2)).
    Sync {
        /// What was written to.
        file: &'a File,
    },
    /// Change how a range is backed (fallocate(2)).
    Allocate {
        /// What backs it.
        file: &'a File,
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Bytes from the start of the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Op<'_> {
    /// What it costs the host at most, in bytes moved. One that moves none may take long all the same.
    pub fn cost(&self) -> usize {
        match self {
            Self::Read { buffers, .. } | Self::Write { buffers, .. } => buffers.bytes(),
            Self::Sync { .. } | Self::Allocate { .. } => OP_BYTES,
        }
    }
}

/// What became of an operation that [`Engine::run`] left running.
pub(super) struct Completion {
    /// The slot it was started for.
    pub slot: usize,
    /// Bytes moved, or 0 where none are; or the host's error.
    pub result: io::Result<usize>,
}

/// What carries operations out, for one queue.
pub(super) enum Engine {
    /// System calls: every operation is done when [`Engine::run`] returns.
    Plain,
    /// io_uring: operations run side by side.
    Uring {
        /// The ring.
        ring: Box<Uring>,
        /// Reads are tried in the host's page cache before: what is there needs no way through the ring.
        cached: bool,
        /// Writes to the page cache are made at once where nothing else is under way. `None` where
        /// there is no such cache.
        inline_writes: Option<InlineWrites>,
    },
}

impl Engine {
    /// An engine for at most `depth` operations at a time: io_uring if the host lets us have it.
    /// `cached` says that its files are read and written through the page cache.
    pub fn with_uring(depth: usize, cached: bool) -> Self {
        match Uring::new(depth) {
            Ok(ring) => Self::Uring {
                ring: Box::new(ring),
                cached,
                inline_writes: cached.then(InlineWrites::default),
            },
            Err(error) => {
                log::debug!("no io_uring, block device goes on with plain system calls: {error}");
                Self::Plain
            }
        }
    }

    /// Most cost of operations before others may begin: with plain calls of one turn, and otherwise
    /// of all that run. It is what a stop of the queue may have to wait for.
    pub fn limit(&self) -> usize {
        match self {
            Self::Plain => OP_BYTES.saturating_mul(4),
            Self::Uring { .. } => OP_BYTES.saturating_mul(16),
        }
    }

    /// What becomes readable when an operation is done.
    pub fn event(&self) -> Option<RawFd> {
        match self {
            Self::Plain => None,
            Self::Uring { ring, .. } => Some(ring.event()),
        }
    }

    /// Carries `op` out (`Some`), or starts it for `slot` (`None`): then [`Engine::reap`] tells of its end, and it may
    /// begin only with [`Engine::submit`]. `others` says of a write whether more is to be begun after it.
    ///
    /// # Safety
    /// Until the operation has ended, or this engine has been dropped, the file must stay open, the array of buffers
    /// must neither change nor move, and the memory that it points to must stay mapped.
    pub unsafe fn run(&mut self, slot: usize, op: Op<'_>, others: bool) -> Option<io::Result<usize>> {
        match self {
            // SAFETY: the buffers are valid for the duration of the call, as the caller promises.
            Self::Plain => Some(unsafe { plain::run(op) }),
            Self::Uring {
                ring,
                cached,
                inline_writes,
            } => {
                if let (Op::Write { buffers, .. }, Some(inline_writes), false) = (&op, inline_writes, ring.is_busy())
                    && inline_writes.allows(buffers.bytes(), others)
                {
                    let begun = Instant::now();
                    // SAFETY: the buffers are valid for the duration of the call, as the caller promises.
                    let result = unsafe { plain::run(op) };
                    inline_writes.took(begun.elapsed());
                    return Some(result);
                }
                if *cached {
                    // SAFETY: the buffers are valid for the duration of the call, as the caller promises.
                    match unsafe { plain::read_at_hand(op) } {
                        AtHand::Read(bytes) => return Some(Ok(bytes)),
                        AtHand::Not => {}
                        AtHand::Never => *cached = false,
                    }
                }
                // SAFETY: handed on from the caller.
                unsafe { ring.push(slot, op) }.err().map(Err)
            }
        }
    }

    /// Starts what [`Engine::run`] put up. `false`: the host has no resources for all of it now; try again.
    ///
    /// # Errors
    /// When the host refuses for good.
    pub fn submit(&mut self) -> io::Result<bool> {
        match self {
            Self::Plain => Ok(true),
            Self::Uring { ring, .. } => ring.submit(),
        }
    }

    /// Whether something is running.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::Uring { ring, .. } => ring.is_busy(),
        }
    }

    /// Resets the event of [`Engine::event`]: to be followed by [`Engine::reap`].
    pub fn take_event(&self) {
        if let Self::Uring { ring, .. } = self {
            ring.take_event();
        }
    }

    /// Whether [`Engine::reap`] has something to tell.
    pub fn has_ended(&mut self) -> bool {
        match self {
            Self::Plain => false,
            Self::Uring { ring, .. } => ring.has_completed(),
        }
    }

    /// Appends what has ended.
    pub fn reap(&mut self, ended: &mut Vec<Completion>) {
        if let Self::Uring { ring, .. } = self {
            ring.reap(ended);
        }
    }

    /// Waits until something ends.
    ///
    /// # Errors
    /// When nothing is running that could end, or the host refuses to wait.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Plain => Err(io::ErrorKind::NotConnected.into()),
            Self::Uring { ring, .. } => ring.wait(),
        }
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
