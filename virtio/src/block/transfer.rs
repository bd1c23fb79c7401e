//! Moving data between a chain's buffers and the image, in as many host operations as it takes.

use std::io;
use std::iter;

use super::engine::{OP_BYTES, Op};
use super::image::{Image, Route};
use super::job::Step;
use super::request::{Extent, HEADER_BYTES, Status};
use super::scratch::{BOUNCE_BYTES, Bounce, Scratch};
use crate::iovecs::{Iovecs, pieces};
use crate::ring::Chain;

/// Which way data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the image into the chain.
    Read,
    /// From the chain into the image.
    Write,
}

/// A transfer under way. What an operation has moved is never moved again.
pub(super) struct Transfer {
    direction: Direction,
    /// The next byte in the image.
    offset: u64,
    /// The next byte in the chain's data.
    at: usize,
    /// Bytes to go.
    left: usize,
    /// When they are gone, all must be brought to stable storage.
    sync: bool,
    /// Lent once for the whole transfer.
    bounce: Option<Bounce>,
    /// The operation under way uses the bounce buffer.
    bouncing: bool,
}

impl Transfer {
    /// With `sync`, the data must be on stable storage in the end.
    pub fn new(direction: Direction, extent: Extent, sync: bool) -> Self {
        Self {
            direction,
            offset: extent.offset,
            at: 0,
            left: usize::try_from(extent.len).expect("usize has 64 bits"),
            sync,
            bounce: None,
            bouncing: false,
        }
    }

    /// Bytes moved.
    pub fn done(&self) -> usize {
        self.at
    }

    /// Whether data moves into the chain.
    pub fn is_read(&self) -> bool {
        self.direction == Direction::Read
    }

    /// Gives up the bounce buffer, if there is one.
    pub fn take_bounce(&mut self) -> Option<Bounce> {
        self.bounce.take()
    }

    /// What to do next.
    pub fn step<'a>(
        &mut self,
        chain: &Chain,
        image: &'a Image,
        scratch: &mut Scratch,
        buffers: &'a mut Iovecs,
    ) -> Step<'a> {
        if self.left == 0 {
            return match self.sync {
                true => Step::Run(Op::Sync { file: image.file() }),
                false => Step::Done(Status::Ok),
            };
        }
        let len = self.left.min(OP_BYTES);
        match self.direction {
            Direction::Read => buffers.fill(pieces(chain.writable(), self.at, len)),
            Direction::Write => buffers.fill(self.readable(chain, len)),
        };
        self.bouncing = false;
        let file = match image.route(self.offset, self.left) {
            Route::Cached(file) => file,
            Route::Direct(file, alignment) => {
                if !buffers.is_aligned(alignment.memory, alignment.offset) {
                    match self.bounce(chain, scratch, buffers) {
                        Ok(true) => {}
                        Ok(false) => return Step::Wait,
                        Err(_) => return Step::Done(Status::IoError),
                    }
                }
                file
            }
        };
        let (buffers, offset) = (&*buffers, self.offset);
        Step::Run(match self.direction {
            Direction::Read => Op::Read { file, buffers, offset },
            Direction::Write => Op::Write { file, buffers, offset },
        })
    }

    /// Takes the result of the operation that [`Transfer::step`] asked for.
    ///
    /// # Errors
    /// The status to answer the request with.
    pub fn complete(&mut self, chain: &Chain, image: &Image, result: io::Result<usize>) -> Result<(), Status> {
        let result = result.map_err(|_| Status::IoError)?;
        if self.left == 0 {
            self.sync = false;
            return Ok(());
        }
        let moved = result.min(self.left);
        if moved == 0 {
            return self.end_of_file(chain, image);
        }
        if self.bouncing && self.is_read() {
            self.copy_out(chain, moved);
        }
        self.advance(moved);
        Ok(())
    }

    fn advance(&mut self, moved: usize) {
        // Neither sum can be too large: the extent is inside the disk and the chain.
        self.offset = self.offset.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        self.at = self.at.saturating_add(moved);
        self.left = self.left.saturating_sub(moved);
    }

    /// Nothing was moved. Right only where the last sector is not all in the file: what is missing reads as zeros. A
    /// file that has become shorter is an error, not data.
    fn end_of_file(&mut self, chain: &Chain, image: &Image) -> Result<(), Status> {
        if !self.is_read() || self.offset < image.bytes() {
            return Err(Status::IoError);
        }
        let zeros = [0u8; 512];
        for piece in pieces(chain.writable(), self.at, self.left) {
            let mut rest = piece;
            while !rest.is_empty() {
                rest.copy_from(&zeros);
                rest = rest.offset(rest.len().min(zeros.len())).map_err(|_| Status::IoError)?;
            }
        }
        self.advance(self.left);
        Ok(())
    }

    /// Puts a bounce buffer in place of the chain's; `false` when all are lent. The copy of data to be written is taken
    /// here.
    fn bounce(&mut self, chain: &Chain, scratch: &mut Scratch, buffers: &mut Iovecs) -> io::Result<bool> {
        if self.bounce.is_none() {
            self.bounce = scratch.lend()?;
        }
        let Some(bounce) = &self.bounce else {
            return Ok(false);
        };
        let len = self.left.min(BOUNCE_BYTES);
        if !self.is_read() {
            let mut to = bounce.slice();
            for piece in self.readable(chain, len) {
                piece.copy_to_volatile_slice(to);
                to = to.offset(piece.len()).map_err(io::Error::other)?;
            }
        }
        buffers.fill(pieces(iter::once(bounce.slice()), 0, len));
        self.bouncing = true;
        Ok(true)
    }

    /// Copies what was read into the bounce buffer to where it belongs.
    fn copy_out(&self, chain: &Chain, moved: usize) {
        let Some(bounce) = &self.bounce else { return };
        let mut from = bounce.slice();
        for piece in pieces(chain.writable(), self.at, moved) {
            from.copy_to_volatile_slice(piece);
            let Ok(rest) = from.offset(piece.len()) else { return };
            from = rest;
        }
    }

    /// The next `len` bytes to be written.
    fn readable<'c>(
        &self,
        chain: &'c Chain,
        len: usize,
    ) -> impl Iterator<Item = vm_memory::VolatileSlice<'c>> + use<'c> {
        pieces(chain.readable(), self.at.saturating_add(HEADER_BYTES), len)
    }
}
