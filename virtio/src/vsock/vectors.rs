//! Guest buffers as the kernel wants them: payloads go between descriptor chains and sockets without a copy on the way.

use std::io;

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::VolatileSlice;

use super::outbox::Outbox;
use super::packet::{HEADER_BYTES, Header};
use super::socket::{Received, Socket};
use crate::iovecs::{BorrowedIovecs, Iovecs, MAX_IOVECS, pieces};
use crate::ring::{Ring, RingError};

/// Arrays kept between calls.
#[derive(Default)]
pub(super) struct Vectors {
    headers: Iovecs,
    payload: Iovecs,
    chains: Vec<Piece>,
    /// Chains on their way back to the driver.
    used: Vec<(u16, u32)>,
}

/// One chain's share of the arrays.
#[derive(Clone, Copy)]
struct Piece {
    head: u16,
    /// End of its part of `headers`.
    headers: usize,
    /// Bytes of payload that fit.
    room: usize,
}

impl Vectors {
    /// Begins a transfer to the guest.
    pub fn incoming<'m>(&mut self, mem: &'m GuestMemoryMmap) -> Incoming<'_, 'm> {
        self.chains.clear();
        self.used.clear();
        Incoming {
            headers: self.headers.begin(),
            payload: self.payload.begin(),
            chains: &mut self.chains,
            used: &mut self.used,
            mem,
        }
    }

    /// Takes the next packet of the guest out of `ring`.
    pub fn outgoing<'m>(
        &mut self,
        ring: &mut Ring,
        mem: &'m GuestMemoryMmap,
    ) -> Result<Option<Outgoing<'_, 'm>>, RingError> {
        let mut payload = self.payload.begin();
        let (mut header, mut filled, mut room) = ([0; HEADER_BYTES], 0usize, 0usize);
        let taken = ring.take(mem, |writable, slice| {
            if writable {
                return;
            }
            let rest = header.get_mut(filled..).unwrap_or_default();
            let of_header = slice.copy_to(rest);
            filled = filled.saturating_add(of_header);
            if let Ok(rest) = slice.offset(of_header)
                && push(&mut payload, rest)
            {
                room = room.saturating_add(rest.len());
            }
        })?;
        Ok(taken.map(|head| Outgoing {
            header: (filled == HEADER_BYTES).then(|| Header::parse(&header)),
            head,
            room,
            payload,
        }))
    }
}

/// Appends one buffer of a payload, if it has bytes and there is a place for it.
fn push<'m>(payload: &mut BorrowedIovecs<'_, 'm>, slice: VolatileSlice<'m>) -> bool {
    let fits = !slice.is_empty() && payload.len() < MAX_IOVECS;
    if fits {
        payload.push(slice);
    }
    fits
}

/// Chains of the driver that a socket is about to be read into.
pub(super) struct Incoming<'v, 'm> {
    headers: BorrowedIovecs<'v, 'm>,
    payload: BorrowedIovecs<'v, 'm>,
    chains: &'v mut Vec<Piece>,
    used: &'v mut Vec<(u16, u32)>,
    mem: &'m GuestMemoryMmap,
}

/// What became of an attempt to take a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is part of the transfer.
    Yes,
    /// There was none.
    NoneLeft,
    /// It had no room for a header and was given back unused.
    TooSmall,
}

impl Incoming<'_, '_> {
    /// Takes one more chain out of `ring`.
    pub fn take(&mut self, ring: &mut Ring) -> Result<Taken, RingError> {
        let (mut filled, mut room) = (0usize, 0usize);
        let Self { headers, payload, .. } = self;
        let taken = ring.take(self.mem, |writable, slice| {
            if !writable {
                return;
            }
            let of_header = slice.len().min(HEADER_BYTES.saturating_sub(filled));
            let Ok((header, rest)) = slice.split_at(of_header) else {
                return;
            };
            if !header.is_empty() {
                headers.push(header);
                filled = filled.saturating_add(of_header);
            }
            if push(payload, rest) {
                room = room.saturating_add(rest.len());
            }
        })?;
        let Some(head) = taken else { return Ok(Taken::NoneLeft) };
        if filled < HEADER_BYTES {
            // Its slices were all of a header that did not become complete.
            self.headers
                .truncate(self.chains.last().map_or(0, |piece| piece.headers));
            ring.push(head, 0)?;
            return Ok(Taken::TooSmall);
        }
        self.chains.push(Piece {
            head,
            headers: self.headers.len(),
            room,
        });
        Ok(Taken::Yes)
    }

    /// Number of chains taken.
    pub fn chains(&self) -> usize {
        self.chains.len()
    }

    /// Bytes of payload that fit into them.
    pub fn room(&self) -> usize {
        let chains = self.chains.iter();
        chains.map(|piece| piece.room).fold(0, usize::saturating_add)
    }

    /// Reads at most `limit` bytes of payload from `socket`.
    pub fn receive(&mut self, socket: &Socket, limit: usize) -> io::Result<Received> {
        self.payload.cut(limit);
        socket.receive_vectored(self.payload.buffers())
    }

    /// Gives the chains that `bytes` of payload went to back to the driver, each with the header
    /// that `header` makes of its length, and puts the others back. Returns how many there were.
    /// Without payload one chain is used, for its header alone.
    pub fn finish(
        self,
        ring: &mut Ring,
        bytes: usize,
        mut header: impl FnMut(u32) -> Header,
    ) -> Result<usize, RingError> {
        let (mut left, mut first) = (bytes, 0usize);
        for piece in self.chains.iter() {
            if left == 0 && !self.used.is_empty() {
                break;
            }
            let len = u32::try_from(piece.room.min(left)).unwrap_or(u32::MAX);
            left = left.saturating_sub(piece.room);
            let place = self.headers.buffers().range(first, piece.headers);
            place.write(0, &header(len).bytes());
            first = piece.headers;
            self.used.push((piece.head, len.saturating_add(HEADER_LEN)));
        }
        ring.push_all(self.used)?;
        let count = self.used.len();
        self.put_back_from(ring, count);
        Ok(count)
    }

    /// Gives all chains back to the driver unused.
    pub fn discard(self, ring: &mut Ring) -> Result<(), RingError> {
        self.chains.iter().try_for_each(|piece| ring.push(piece.head, 0))
    }

    /// Puts all chains back.
    pub fn cancel(self, ring: &mut Ring) {
        self.put_back_from(ring, 0);
    }

    fn put_back_from(self, ring: &mut Ring, first: usize) {
        let unused = self.chains.get(first..).unwrap_or_default();
        unused.iter().rev().for_each(|piece| ring.put_back(piece.head));
    }
}

/// Bytes of a header, as they count in the used ring.
const HEADER_LEN: u32 = 44;
const _: () = assert!(HEADER_LEN as usize == HEADER_BYTES);

/// A packet of the guest, still in its chain.
pub(super) struct Outgoing<'v, 'm> {
    header: Option<Header>,
    head: u16,
    room: usize,
    payload: BorrowedIovecs<'v, 'm>,
}

impl Outgoing<'_, '_> {
    /// The header; `None` if the chain was too short for one, or for the payload that it promised.
    pub fn header(&self) -> Option<Header> {
        self.header.filter(|header| header.len as usize <= self.room)
    }

    /// The header as it is, if there is one.
    pub fn header_unchecked(&self) -> Option<Header> {
        self.header
    }

    /// The chain, to be pushed once the packet has been dealt with.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Sends as much of the payload's first `len` bytes as `socket` takes now.
    pub fn send(&mut self, socket: &Socket, len: usize) -> io::Result<usize> {
        self.payload.cut(len);
        socket.send_vectored(self.payload.buffers())
    }

    /// Copies the payload from `from` up to `to` into `outbox`.
    pub fn store(&self, outbox: &mut Outbox, from: usize, to: usize) {
        let parts = pieces(self.payload.buffers().slices(), from, to.saturating_sub(from));
        parts.for_each(|part| outbox.push(part));
    }
}
