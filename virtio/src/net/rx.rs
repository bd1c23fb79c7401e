//! Receiving: from the tap straight into the driver's buffers (virtio 1.2 §5.1.6.3, §5.1.6.4).
//!
//! Nobody says how long the next frame is. So it is read into whatever room the driver has given,
//! followed by a buffer of husk's own, and nothing is ever cut off: what ends up there is copied as
//! soon as the driver gives more room. Mostly there is enough.

use super::header::{self, BEGINNING_BYTES, FLAGS, HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, NUM_BUFFERS};
use super::link::{TapFault, TapPort};
use super::rx_buffers::RxBuffers;
use crate::device::HandlerError;
use crate::rate_limit::QueueLimiter;
use crate::ring::{Ring, RingError, RingState};

/// Most bytes of one frame with its header.
const MAX_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;
/// Frames after which the thread looks at its other work.
const BUDGET: usize = 256;
/// Frames after which the driver is told, so that it need not wait for the last of them.
const BATCH: usize = 32;

/// What was agreed on with the driver about frames that it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RxTerms {
    /// A frame may take several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// `flags` of a header may say something of the checksum (`VIRTIO_NET_F_GUEST_CSUM`); otherwise
    /// they are 0 (virtio 1.3 §5.1.6.4.1).
    pub checksums: bool,
    /// Longer frames are for segmentation only (`VIRTIO_NET_F_MTU`, virtio 1.2 §5.1.4.1).
    pub mtu: Option<u16>,
}

/// The receiving half of a queue pair.
pub(super) struct Receive {
    ring: Ring,
    pub limiter: QueueLimiter,
    terms: RxTerms,
    buffers: RxBuffers,
    /// Takes what the room does not.
    overflow: Box<[u8]>,
    /// Bytes of a frame that wait in `overflow` for more room; what is before them fills the room.
    tail: usize,
    done: Vec<(u16, u32)>,
}

/// Why receiving has stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// No frame is there: the tap will tell.
    NoFrame,
    /// No room: the driver will kick.
    NoRoom,
    /// The limiter: its timer will ring.
    Throttled,
    /// There may be more.
    Budget,
}

impl Receive {
    /// Takes the ring of a receive queue.
    pub fn new(ring: Ring, limiter: QueueLimiter, terms: RxTerms) -> Self {
        Self {
            ring,
            limiter,
            terms,
            buffers: RxBuffers::default(),
            overflow: vec![0; MAX_BYTES].into_boxed_slice(),
            tail: 0,
            done: Vec::new(),
        }
    }

    /// The ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Receives what is there, and tells the driver.
    ///
    /// # Errors
    /// When the driver broke the ring's rules.
    pub fn run(&mut self, port: &TapPort) -> Result<(), HandlerError> {
        let pause = self.receive_frames(port);
        self.ring.signal()?;
        match pause? {
            Pause::NoFrame | Pause::Throttled => {}
            // Its turn is over, and not the driver's buffers.
            Pause::NoRoom if self.ring.is_spent() => {}
            Pause::NoRoom => port.metrics.rx_starved.inc(),
            Pause::Budget => self.ring.kick_self(),
        }
        Ok(())
    }

    fn receive_frames(&mut self, port: &TapPort) -> Result<Pause, RingError> {
        self.ring.disable_kicks()?;
        for frame in 1..=BUDGET {
            self.follow_memory(port);
            if port.is_down() {
                return Ok(Pause::NoFrame);
            }
            if !self.limiter.allows(&port.metrics.rx_throttled) {
                return Ok(Pause::Throttled);
            }
            if !self.refill(port)? {
                return Ok(Pause::NoRoom);
            }
            let spill = match self.buffers.bytes() {
                enough if enough >= MAX_BYTES => Default::default(),
                _ => &mut *self.overflow,
            };
            let Some(got) = self.buffers.with_buffers(spill, |buffers| port.tap.receive(buffers)) else {
                return Ok(Pause::NoRoom);
            };
            match got {
                Ok(bytes) => self.deliver(bytes, port)?,
                Err(error) => match TapFault::of(&error) {
                    TapFault::Wait => return Ok(Pause::NoFrame),
                    TapFault::Gone => port.set_down(),
                    TapFault::Frame => port.metrics.rx_errors.inc(),
                },
            }
            if frame.is_multiple_of(BATCH) {
                self.ring.signal()?;
            }
        }
        Ok(Pause::Budget)
    }

    /// Sees to it that the next frame can be read. `false`: the driver has to give more first, and will kick.
    fn refill(&mut self, port: &TapPort) -> Result<bool, RingError> {
        loop {
            let (bytes, chains) = if self.terms.mergeable {
                (MAX_BYTES, usize::MAX)
            } else {
                (MAX_BYTES, 1)
            };
            let filled = self.buffers.bytes();
            self.buffers
                .fill(&mut self.ring, bytes, chains, || port.metrics.rx_malformed.inc())?;
            if self.tail > 0 {
                self.finish(filled, port)?;
            }
            if self.tail == 0 && self.buffers.chains() > 0 {
                return Ok(true);
            }
            if self.tail > 0 && self.buffers.pieces() >= usize::from(self.ring.size() / 2) {
                // Half of all that the driver can ever give is not enough, and it may be waiting
                // for the other half itself.
                self.drop_frame(port);
                continue;
            }
            if !self.ring.enable_kicks()? {
                return Ok(false);
            }
            self.ring.disable_kicks()?;
        }
    }

    /// Lets go of guest memory that is no longer what the room was found in: parts of it may be
    /// somebody else's by now, and none of it can be given back as long as it is kept. Looked at
    /// before each frame, whether or not there is one.
    fn follow_memory(&mut self, port: &TapPort) {
        if !self.buffers.is_stale(&self.ring) {
            return;
        }
        if self.tail > 0 {
            self.drop_frame(port);
        }
        self.buffers.return_all(&mut self.ring);
    }

    /// A frame of `bytes` with its header has been read.
    fn deliver(&mut self, bytes: usize, port: &TapPort) -> Result<(), RingError> {
        if bytes < HEADER_BYTES {
            port.metrics.rx_errors.inc();
            return Ok(());
        }
        self.limiter.spend(bytes.saturating_sub(HEADER_BYTES) as u64);
        if self.is_too_long(bytes) {
            self.drop_frame(port);
            return Ok(());
        }
        match bytes.checked_sub(self.buffers.bytes()) {
            None | Some(0) => self.complete(bytes, port),
            Some(tail) => {
                self.tail = tail;
                if !self.terms.mergeable {
                    self.drop_frame(port);
                }
                Ok(())
            }
        }
    }

    /// Whether the frame of `bytes` that was just read is one that the link does not carry.
    fn is_too_long(&self, bytes: usize) -> bool {
        let Some(mtu) = self.terms.mtu else { return false };
        let frame = bytes.saturating_sub(HEADER_BYTES);
        if frame <= usize::from(mtu).saturating_add(MIN_FRAME_BYTES) {
            return false;
        }
        let mut begins = [0; BEGINNING_BYTES];
        let found = self.buffers.read(0, &mut begins);
        for (to, from) in begins.iter_mut().skip(found).zip(&self.overflow) {
            *to = *from;
        }
        header::exceeds(&begins, frame, mtu)
    }

    /// Moves on with the frame that fills the first `filled` bytes of the room and goes on in `overflow`.
    fn finish(&mut self, filled: usize, port: &TapPort) -> Result<(), RingError> {
        let bytes = filled.saturating_add(self.tail);
        let space = self.buffers.bytes().saturating_sub(filled).min(self.tail);
        if space == 0 {
            return Ok(());
        }
        self.buffers
            .write(filled, self.overflow.get(..space).unwrap_or_default());
        self.overflow.copy_within(space..self.tail, 0);
        self.tail = self.tail.saturating_sub(space);
        if self.tail == 0 {
            self.complete(bytes, port)?;
        }
        Ok(())
    }

    /// Gives the driver the frame of `bytes` at the beginning of the room, all its chains at once.
    fn complete(&mut self, bytes: usize, port: &TapPort) -> Result<(), RingError> {
        let chains = u16::try_from(self.buffers.chains_needed(bytes)).unwrap_or(u16::MAX);
        self.buffers.write(NUM_BUFFERS, &chains.to_le_bytes());
        if !self.terms.checksums {
            self.buffers.write(FLAGS, &[0]);
        }
        self.done.clear();
        self.buffers.consume(bytes, &mut self.done);
        port.metrics.rx_frames.inc();
        port.metrics.rx_bytes.add(bytes.saturating_sub(HEADER_BYTES) as u64);
        self.ring.push_all(&self.done)
    }

    /// Forgets the frame that does not fit, or is not to be passed on. Its chains are the next one's.
    fn drop_frame(&mut self, port: &TapPort) {
        self.tail = 0;
        port.metrics.rx_dropped.inc();
    }

    /// Ends receiving. What was taken and not used is the ring's again.
    pub fn stop(mut self) -> RingState {
        self.buffers.return_all(&mut self.ring);
        self.ring.into_state()
    }
}
