//! Guest buffers as the kernel wants them: payloads go between descriptor chains and sockets without a copy on the way.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by address; arrays of addresses are kept to save allocations"
)]

use std::io;
use std::marker::PhantomData;

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::VolatileSlice;

use super::outbox::Outbox;
use super::packet::{HEADER_BYTES, Header};
use super::socket::Socket;
use crate::ring::{Ring, RingError};

/// Most buffers of one call (`UIO_MAXIOV` of the kernel).
const VECTORS_MAX: usize = 1024;

/// Arrays kept between calls. Between calls they are empty, and what is in them is used only while guest memory is borrowed.
#[derive(Default)]
pub(super) struct Vectors {
    headers: Vec<libc::iovec>,
    payload: Vec<libc::iovec>,
    chains: Vec<Piece>,
    /// Chains on their way back to the driver.
    used: Vec<(u16, u32)>,
}

// SAFETY: the pointers are used only by `Incoming` and `Outgoing`, which clear them first and live on one thread.
unsafe impl Send for Vectors {}

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
        self.clear();
        Incoming { vectors: self, mem }
    }

    /// Takes the next packet of the guest out of `ring`.
    pub fn outgoing<'m>(
        &mut self,
        ring: &mut Ring,
        mem: &'m GuestMemoryMmap,
    ) -> Result<Option<Outgoing<'_, 'm>>, RingError> {
        self.clear();
        let (mut header, mut filled, mut room) = ([0; HEADER_BYTES], 0usize, 0usize);
        let taken = ring.take(mem, |writable, slice| {
            if writable {
                return;
            }
            let rest = header.get_mut(filled..).unwrap_or_default();
            let of_header = slice.copy_to(rest);
            filled = filled.saturating_add(of_header);
            if let Ok(payload) = slice.offset(of_header)
                && self.push_payload(payload)
            {
                room = room.saturating_add(payload.len());
            }
        })?;
        Ok(taken.map(|head| Outgoing {
            header: (filled == HEADER_BYTES).then(|| Header::parse(&header)),
            head,
            room,
            vectors: self,
            mem: PhantomData,
        }))
    }

    fn clear(&mut self) {
        self.headers.clear();
        self.payload.clear();
        self.chains.clear();
        self.used.clear();
    }

    /// Appends one buffer, if it has bytes and there is a place for it.
    fn push_payload(&mut self, slice: VolatileSlice<'_>) -> bool {
        let fits = !slice.is_empty() && self.payload.len() < VECTORS_MAX;
        if fits {
            self.payload.push(vector(slice));
        }
        fits
    }

    /// Cuts the payload to `limit` bytes.
    fn truncate(&mut self, limit: usize) {
        let mut left = limit;
        let mut used = 0usize;
        for vector in &mut self.payload {
            if left == 0 {
                break;
            }
            vector.iov_len = vector.iov_len.min(left);
            left = left.saturating_sub(vector.iov_len);
            used = used.saturating_add(1);
        }
        self.payload.truncate(used);
    }
}

/// Chains of the driver that a socket is about to be read into.
pub(super) struct Incoming<'v, 'm> {
    vectors: &'v mut Vectors,
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
        let vectors = &mut *self.vectors;
        let taken = ring.take(self.mem, |writable, slice| {
            if !writable {
                return;
            }
            let of_header = slice.len().min(HEADER_BYTES.saturating_sub(filled));
            let Ok((header, payload)) = slice.split_at(of_header) else {
                return;
            };
            if !header.is_empty() {
                vectors.headers.push(vector(header));
                filled = filled.saturating_add(of_header);
            }
            if vectors.push_payload(payload) {
                room = room.saturating_add(payload.len());
            }
        })?;
        let Some(head) = taken else { return Ok(Taken::NoneLeft) };
        if filled < HEADER_BYTES {
            // Its slices were all of a header that did not become complete.
            vectors
                .headers
                .truncate(vectors.chains.last().map_or(0, |piece| piece.headers));
            ring.push(head, 0)?;
            return Ok(Taken::TooSmall);
        }
        vectors.chains.push(Piece {
            head,
            headers: vectors.headers.len(),
            room,
        });
        Ok(Taken::Yes)
    }

    /// Number of chains taken.
    pub fn chains(&self) -> usize {
        self.vectors.chains.len()
    }

    /// Bytes of payload that fit into them.
    pub fn room(&self) -> usize {
        let chains = self.vectors.chains.iter();
        chains.map(|piece| piece.room).fold(0, usize::saturating_add)
    }

    /// Reads at most `limit` bytes of payload from `socket`.
    pub fn receive(&mut self, socket: &Socket, limit: usize) -> io::Result<usize> {
        self.vectors.truncate(limit);
        // SAFETY: the addresses are of slices of `mem`, which is borrowed, and guest memory is written to by anybody at any time.
        unsafe { socket.receive_vectored(&self.vectors.payload) }
    }

    /// Gives the chains that `bytes` of payload went to back to the driver, each with the header that `header` makes of its
    /// length, and puts the others back. Returns how many there were. Without payload one chain is used, for its header alone.
    pub fn finish(
        self,
        ring: &mut Ring,
        bytes: usize,
        mut header: impl FnMut(u32) -> Header,
    ) -> Result<usize, RingError> {
        let Vectors {
            headers, chains, used, ..
        } = &mut *self.vectors;
        let (mut left, mut first) = (bytes, 0usize);
        for piece in chains.iter() {
            if left == 0 && !used.is_empty() {
                break;
            }
            let len = u32::try_from(piece.room.min(left)).unwrap_or(u32::MAX);
            left = left.saturating_sub(piece.room);
            let bytes = header(len).bytes();
            let mut rest = bytes.as_slice();
            for vector in headers.get(first..piece.headers).unwrap_or_default() {
                // SAFETY: the address is of a slice of `mem`, which is borrowed.
                let slice = unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) };
                slice.copy_from(rest);
                rest = rest.get(vector.iov_len..).unwrap_or_default();
            }
            first = piece.headers;
            used.push((piece.head, len.saturating_add(HEADER_LEN)));
        }
        ring.push_all(used)?;
        let count = used.len();
        self.put_back_from(ring, count);
        Ok(count)
    }

    /// Gives all chains back to the driver unused.
    pub fn discard(self, ring: &mut Ring) -> Result<(), RingError> {
        self.vectors
            .chains
            .iter()
            .try_for_each(|piece| ring.push(piece.head, 0))
    }

    /// Puts all chains back.
    pub fn cancel(self, ring: &mut Ring) {
        self.put_back_from(ring, 0);
    }

    fn put_back_from(self, ring: &mut Ring, first: usize) {
        let unused = self.vectors.chains.get(first..).unwrap_or_default();
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
    vectors: &'v mut Vectors,
    mem: PhantomData<&'m GuestMemoryMmap>,
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
        self.vectors.truncate(len);
        // SAFETY: the addresses are of slices of `mem`, which is borrowed.
        unsafe { socket.send_vectored(&self.vectors.payload) }
    }

    /// Copies the payload from `from` up to `to` into `outbox`.
    pub fn store(&self, outbox: &mut Outbox, from: usize, to: usize) {
        let (mut skip, mut left) = (from, to.saturating_sub(from));
        for vector in &self.vectors.payload {
            let before = skip.min(vector.iov_len);
            skip = skip.saturating_sub(before);
            // SAFETY: the address is of a slice of `mem`, which is borrowed by `self` and so for as long as `slice` lives.
            let slice = unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) };
            if let Ok(rest) = slice.offset(before)
                && let Ok(part) = rest.subslice(0, rest.len().min(left))
                && !part.is_empty()
            {
                left = left.saturating_sub(part.len());
                outbox.push(part);
            }
        }
    }
}

fn vector(slice: VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}
