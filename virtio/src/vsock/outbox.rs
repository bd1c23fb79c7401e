//! What the guest has sent and the host's program has not taken yet. Bounded by the credit that the guest was given.

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;

use super::socket::Socket;

/// Guest memory is copied in pieces of this size.
const COPY_BYTES: usize = 4096;

/// A queue of bytes. Never has memory for more than twice of what it holds at most; empty, it has none.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<u8>);

impl Outbox {
    /// Whether everything has gone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory that it has.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Appends a copy of guest memory.
    pub fn push(&mut self, slice: VolatileSlice<'_>) {
        let mut rest = slice;
        let mut piece = [0; COPY_BYTES];
        while !rest.is_empty() {
            let copied = rest.copy_to(&mut piece);
            self.0.extend(piece.get(..copied).unwrap_or_default());
            let Ok(behind) = rest.offset(copied) else { return };
            rest = behind;
        }
    }

    /// Sends as much as `socket` takes and says how much that was.
    ///
    /// # Errors
    /// When the socket takes no more, ever.
    pub fn flush(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut total = 0usize;
        while !self.0.is_empty() {
            let (front, _) = self.0.as_slices();
            match socket.send(front) {
                Ok(sent) => {
                    total = total.saturating_add(sent);
                    self.0.drain(..sent.min(self.0.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.0.len() <= self.0.capacity() >> 1 {
            // With room to grow, so that it need not move for every few bytes.
            self.0.shrink_to(self.0.len().saturating_add(self.0.len() >> 1));
        }
        Ok(total)
    }

    /// Forgets everything and says how much it was.
    pub fn clear(&mut self) -> usize {
        std::mem::take(&mut self.0).len()
    }
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
    fn small_packets_take_little_memory_and_none_when_they_have_gone() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let socket = Socket::from(ours);
        let mut outbox = Outbox::default();
        for held in 1..1000 {
            push(&mut outbox, &mut [1]);
            assert!(outbox.capacity() <= 2 * held + 16, "{} for {held}", outbox.capacity());
        }
        assert_eq!(outbox.flush(&socket).unwrap(), 999);
        assert_eq!(outbox.capacity(), 0);
        client.read_exact(&mut [0; 999]).unwrap();
        push(&mut outbox, &mut [1]);
        assert_eq!((outbox.clear(), outbox.capacity()), (1, 0));
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
