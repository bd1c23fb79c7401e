//! What the guest has sent and the host's program has not taken yet. Bounded by the credit that the guest was given.

#![expect(
    unsafe_code,
    reason = "guest memory is copied into a buffer that is not initialised before"
)]

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;

use super::socket::Socket;

/// Least size of a piece, so that many small packets do not become many small pieces.
const PIECE_BYTES: usize = 16 << 10;

/// A queue of bytes in pieces; empty, it holds no memory.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that have gone.
    gone: usize,
}

impl Outbox {
    /// Whether everything has gone.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Appends a copy of guest memory.
    pub fn push(&mut self, slice: VolatileSlice<'_>) {
        let room = self
            .pieces
            .back()
            .map_or(0, |piece| piece.capacity().saturating_sub(piece.len()));
        let Ok((first, rest)) = slice.split_at(room.min(slice.len())) else {
            return;
        };
        if let Some(piece) = self.pieces.back_mut() {
            append(piece, first);
        }
        if !rest.is_empty() {
            let mut piece = Vec::with_capacity(rest.len().max(PIECE_BYTES));
            append(&mut piece, rest);
            self.pieces.push_back(piece);
        }
    }

    /// Sends as much as `socket` takes and says how much that was.
    ///
    /// # Errors
    /// When the socket takes no more, ever.
    pub fn flush(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut total = 0usize;
        while let Some(piece) = self.pieces.front() {
            let rest = piece.get(self.gone..).unwrap_or_default();
            match socket.send(rest) {
                Ok(sent) => {
                    total = total.saturating_add(sent);
                    self.gone = self.gone.saturating_add(sent);
                    if sent < rest.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            self.pieces.pop_front();
            self.gone = 0;
        }
        Ok(total)
    }

    /// Forgets everything and says how much it was.
    pub fn clear(&mut self) -> usize {
        let held = self.pieces.iter().map(Vec::len).fold(0, usize::saturating_add);
        let left = held.saturating_sub(self.gone);
        *self = Self::default();
        left
    }
}

/// Copies `slice` into what `piece` has allocated and not used yet, as far as it fits.
fn append(piece: &mut Vec<u8>, slice: VolatileSlice<'_>) {
    let spare = piece.spare_capacity_mut();
    let count = slice.len().min(spare.len());
    // SAFETY: the bytes are allocated and borrowed from the piece; nothing reads them before they are written.
    let to = unsafe { VolatileSlice::new(spare.as_mut_ptr().cast(), count) };
    slice.copy_to_volatile_slice(to);
    // SAFETY: within the capacity, and these bytes have just been written.
    unsafe { piece.set_len(piece.len().saturating_add(count)) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn push(outbox: &mut Outbox, bytes: &mut [u8]) {
        outbox.push(VolatileSlice::from(bytes));
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let socket = Socket::from(ours);
        let mut outbox = Outbox::default();
        let mut sent: Vec<u8> = (0..1_000_000u32)
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
            .collect();
        let copy = sent.clone();
        for chunk in sent.chunks_mut(7001) {
            push(&mut outbox, chunk);
        }
        let mut received = Vec::new();
        let mut flushed = 0;
        while !outbox.is_empty() {
            flushed += outbox.flush(&socket).unwrap();
            let mut some = vec![0; flushed - received.len()];
            client.read_exact(&mut some).unwrap();
            received.extend(some);
        }
        assert!(received == copy);
        assert_eq!(flushed, copy.len());
        assert_eq!(outbox.flush(&socket).unwrap(), 0);
    }

    #[test]
    fn small_packets_share_a_piece() {
        let mut outbox = Outbox::default();
        for _ in 0..PIECE_BYTES {
            push(&mut outbox, &mut [1]);
        }
        assert_eq!(outbox.pieces.len(), 1);
        assert_eq!(outbox.clear(), PIECE_BYTES);
        assert!(outbox.is_empty());
    }

    #[test]
    fn clearing_counts_what_had_not_gone() {
        let (_client, ours) = UnixStream::pair().unwrap();
        let socket = Socket::from(ours);
        let mut outbox = Outbox::default();
        push(&mut outbox, &mut vec![0; 4 << 20]);
        let gone = outbox.flush(&socket).unwrap();
        assert!(gone > 0 && !outbox.is_empty());
        assert_eq!(outbox.clear(), (4 << 20) - gone);
    }

    #[test]
    fn dead_socket_is_an_error_and_no_signal() {
        let (client, ours) = UnixStream::pair().unwrap();
        drop(client);
        let mut outbox = Outbox::default();
        push(&mut outbox, &mut [1]);
        assert!(outbox.flush(&Socket::from(ours)).is_err());
    }
}
