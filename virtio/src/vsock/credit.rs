//! Credit accounting of one stream (virtio 1.2 §5.10.6.3).
//!
//! Each side tells the other how large its buffer for the stream is (`buf_alloc`) and how much has
//! left that buffer so far (`fwd_cnt`); the other side never has more than that under way. All
//! counts are modulo 2^32. How large ours is depends on the other streams, and changes: see
//! [`BufAlloc`].

use super::buf_alloc::{BufAlloc, BufAllocPool};

/// More than this is never under way to the guest, whatever it offers. Counts of what is under way
/// can so be told from counts that went backwards.
const IN_FLIGHT_MAX: u32 = 1 << 30;

/// A count that the guest cannot have reached honestly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CreditViolation;

/// Both directions of one stream.
#[derive(Debug)]
pub(super) struct Credit {
    /// Our buffer: what the guest may send, and what of that is kept here.
    window: BufAlloc,
    /// Bytes received from the guest.
    received: u32,
    /// Those of them that have left our buffer.
    forwarded: u32,
    /// Where the guest must stop: `fwd_cnt` and `buf_alloc` as it was told last, added. Never goes back.
    limit: u32,
    /// Bytes sent to the guest.
    sent: u32,
    /// The guest's buffer.
    peer_buf_alloc: u32,
    /// What has left it.
    peer_fwd_cnt: u32,
}

impl Credit {
    /// A stream whose buffer is a part of `pool`. Nothing may be sent before the other side has
    /// offered its own, either way.
    pub fn new(pool: BufAllocPool) -> Self {
        Self {
            window: BufAlloc::new(pool),
            received: 0,
            forwarded: 0,
            limit: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// Takes what the guest says of its buffer. Old news, overtaken by newer, are no lie.
    pub fn peer_says(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), CreditViolation> {
        if self.sent.wrapping_sub(fwd_cnt) > IN_FLIGHT_MAX {
            return Err(CreditViolation);
        }
        if fwd_cnt.wrapping_sub(self.peer_fwd_cnt) <= IN_FLIGHT_MAX {
            self.peer_fwd_cnt = fwd_cnt;
        }
        self.peer_buf_alloc = buf_alloc;
        Ok(())
    }

    /// Bytes that may be sent to the guest now.
    pub fn free(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.min(IN_FLIGHT_MAX).saturating_sub(in_flight)
    }

    /// So many bytes were sent to the guest.
    pub fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// So many bytes came from the guest. A lie is more than it was told that there is room for.
    pub fn received(&mut self, bytes: u32) -> Result<(), CreditViolation> {
        if bytes > self.limit.wrapping_sub(self.received) {
            return Err(CreditViolation);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// So many bytes have left our buffer, or have never been in it.
    pub fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        self.window.shrink(bytes);
    }

    /// `buf_alloc` and `fwd_cnt` for a packet to the guest, which now knows them.
    pub fn announce(&mut self) -> (u32, u32) {
        self.window.grow();
        let buf_alloc = self.window.bytes();
        self.limit = self.forwarded.wrapping_add(buf_alloc);
        (buf_alloc, self.forwarded)
    }

    /// Whether the guest should be told of room that it does not know of: when it is half of all.
    /// Telling it earlier costs an interrupt each time, telling it later may have it wait.
    pub fn is_update_due(&self) -> bool {
        self.window.bytes() <= self.window.grown() >> 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(peer: u32) -> Credit {
        let mut credit = Credit::new(BufAllocPool::new());
        credit.peer_says(peer, 0).unwrap();
        credit
    }

    #[test]
    fn nothing_may_be_sent_before_the_peer_offers_room() {
        let mut credit = Credit::new(BufAllocPool::new());
        assert_eq!(credit.free(), 0);
        credit.peer_says(10, 0).unwrap();
        assert_eq!(credit.free(), 10);
    }

    #[test]
    fn sending_uses_up_what_the_peer_gives_back() {
        let mut credit = open(100);
        credit.sent(100);
        assert_eq!(credit.free(), 0);
        credit.peer_says(100, 60).unwrap();
        assert_eq!(credit.free(), 60);
        credit.peer_says(40, 60).unwrap();
        assert_eq!(credit.free(), 0, "a buffer may shrink");
        credit.peer_says(30, 100).unwrap();
        assert_eq!(credit.free(), 30);
    }

    #[test]
    fn counts_go_round() {
        let mut credit = open(1 << 20);
        for _ in 0..10_000 {
            credit.sent(1 << 20);
            assert_eq!(credit.free(), 0);
            let sent = credit.sent;
            credit.peer_says(1 << 20, sent).unwrap();
        }
        assert_eq!(credit.free(), 1 << 20);
        let mut told = 0u64;
        while told < 5 << 32 {
            let (buf_alloc, fwd_cnt) = credit.announce();
            assert_eq!(u64::from(fwd_cnt), told & u64::from(u32::MAX));
            credit.received(buf_alloc).unwrap();
            assert_eq!(credit.received(1), Err(CreditViolation));
            credit.forwarded(buf_alloc);
            told += u64::from(buf_alloc);
        }
    }

    #[test]
    fn peer_cannot_have_forwarded_what_was_not_sent() {
        let mut credit = open(100);
        credit.sent(50);
        assert_eq!(credit.peer_says(100, 51), Err(CreditViolation));
        assert_eq!(credit.peer_says(100, 1 << 31), Err(CreditViolation));
        assert_eq!(credit.peer_says(100, 50), Ok(()));
    }

    #[test]
    fn old_news_take_nothing_back() {
        let mut credit = open(100);
        credit.sent(80);
        credit.peer_says(100, 80).unwrap();
        credit.peer_says(100, 20).unwrap();
        assert_eq!(credit.free(), 100);
    }

    #[test]
    fn a_boundless_buffer_is_bounded() {
        let mut credit = open(u32::MAX);
        assert_eq!(credit.free(), IN_FLIGHT_MAX);
        credit.sent(IN_FLIGHT_MAX);
        assert_eq!(credit.free(), 0);
        assert_eq!(credit.peer_says(u32::MAX, 0), Ok(()), "none of it has been forwarded");
    }

    #[test]
    fn more_than_was_offered_is_a_lie() {
        let mut credit = open(0);
        assert_eq!(credit.received(1), Err(CreditViolation), "nothing was offered yet");
        let (first, _) = credit.announce();
        credit.received(first - 40).unwrap();
        credit.forwarded(first - 40);
        assert_eq!(
            credit.received(41),
            Err(CreditViolation),
            "the peer has not been told of the others"
        );
        credit.received(40).unwrap();
        assert_eq!(credit.received(1), Err(CreditViolation));
        let (second, forwarded) = credit.announce();
        assert_eq!(forwarded, first - 40);
        credit.received(second - 40).unwrap();
        assert_eq!(credit.received(1), Err(CreditViolation), "the 40 are still here");
        assert_eq!(credit.received(u32::MAX), Err(CreditViolation));
    }

    #[test]
    fn what_was_offered_is_never_taken_back() {
        let pool = BufAllocPool::new();
        let mut credits: Vec<_> = (0..300).map(|_| Credit::new(pool.clone())).collect();
        let mut limits = vec![0u64; 300];
        for round in 0..20 {
            for (credit, limit) in credits.iter_mut().zip(&mut limits) {
                let (buf_alloc, fwd_cnt) = credit.announce();
                let now = u64::from(fwd_cnt) + u64::from(buf_alloc);
                assert!(now >= *limit, "round {round}");
                *limit = now;
                let bytes = buf_alloc / 3;
                credit.received(bytes).unwrap();
                credit.forwarded(bytes);
            }
        }
    }

    #[test]
    fn update_is_due_when_half_of_the_room_is_unknown() {
        let mut credit = open(0);
        let (room, _) = credit.announce();
        credit.received(room).unwrap();
        credit.forwarded(room / 2 - 1);
        assert!(!credit.is_update_due());
        credit.forwarded(1);
        assert!(credit.is_update_due());
        credit.announce();
        assert!(!credit.is_update_due());
    }
}
