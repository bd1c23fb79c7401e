//! Sending: from the driver's buffers straight to the tap (virtio 1.2 §5.1.6.2).

use vm_memory::VolatileSlice;

use super::header::{self, HEADER_BYTES};
use super::link::{TapFault, TapPort};
use crate::device::HandlerError;
use crate::iovecs::{BorrowedIovecs, Iovecs, MAX_IOVECS};
use crate::rate_limit::QueueLimiter;
use crate::ring::{Ring, RingError, RingState};

/// Frames after which the driver gets its buffers back, so that it never waits for the last of them.
const BATCH: usize = 32;

/// The sending half of a queue pair.
pub(super) struct Transmit {
    ring: Ring,
    pub limiter: QueueLimiter,
    /// Features agreed on.
    features: u64,
    iovecs: Iovecs,
    /// The tap had no room for the next frame.
    blocked: bool,
    done: Vec<(u16, u32)>,
}

/// A frame on its way: its header, copied, and its buffers.
struct Frame<'a, 'm> {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have been found.
    found: usize,
    bytes: usize,
    buffers: BorrowedIovecs<'a, 'm>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It is not the ring's any more.
    Done,
    /// The tap has no room.
    Blocked,
}

impl<'m> Frame<'_, 'm> {
    /// Takes the chain's next buffer: the first bytes are the header, wherever they lie.
    fn push(&mut self, slice: VolatileSlice<'m>) {
        let mut rest = slice;
        if let Some(missing) = self.header.get_mut(self.found..).filter(|missing| !missing.is_empty()) {
            let count = slice.copy_to(missing);
            self.found = self.found.saturating_add(count);
            match slice.offset(count) {
                Ok(left) => rest = left,
                Err(_) => return,
            }
        }
        if !rest.is_empty() {
            self.bytes = self.bytes.saturating_add(rest.len());
            self.buffers.push(rest);
        }
    }

    /// Whether it may be sent. If so, `header` is the first of its buffers: what was checked is what is sent.
    fn check(&mut self, header: &'m mut [u8; HEADER_BYTES], features: u64) -> bool {
        if self.found < HEADER_BYTES || self.buffers.len() >= MAX_IOVECS {
            return false;
        }
        let Ok(checked) = header::check(self.header, self.bytes, features) else {
            return false;
        };
        *header = checked;
        self.buffers.push_front(VolatileSlice::from(header.as_mut_slice()));
        true
    }
}

impl Transmit {
    /// Takes the ring of a transmit queue.
    pub fn new(ring: Ring, limiter: QueueLimiter, features: u64) -> Self {
        Self {
            ring,
            limiter,
            features,
            iovecs: Iovecs::default(),
            blocked: false,
            done: Vec::new(),
        }
    }

    /// The ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Goes on if it was the tap that had no room.
    ///
    /// # Errors
    /// As [`Transmit::run`].
    pub fn unblock(&mut self, port: &TapPort) -> Result<(), HandlerError> {
        if !self.blocked {
            return Ok(());
        }
        self.run(port)
    }

    /// Sends what is there, and tells the driver.
    ///
    /// # Errors
    /// When the driver broke the ring's rules.
    pub fn run(&mut self, port: &TapPort) -> Result<(), HandlerError> {
        let sent = self.send_frames(port);
        let returned = self.give_back();
        self.ring.signal()?;
        sent.and(returned)?;
        Ok(())
    }

    fn send_frames(&mut self, port: &TapPort) -> Result<(), RingError> {
        let mem = self.ring.memory().into_inner();
        loop {
            self.ring.disable_kicks()?;
            loop {
                if !self.limiter.allows(&port.metrics.tx_throttled) {
                    return Ok(());
                }
                let mut header = [0; HEADER_BYTES];
                let mut frame = Frame {
                    header,
                    found: 0,
                    bytes: 0,
                    buffers: self.iovecs.begin(),
                };
                let taken = self.ring.take(&mem, |writable, slice| {
                    if !writable {
                        frame.push(slice);
                    }
                })?;
                let Some(head) = taken else { break };
                let sensible = frame.check(&mut header, self.features);
                self.blocked = send(&frame, sensible, &self.limiter, port) == Sent::Blocked;
                if self.blocked {
                    self.ring.put_back(head);
                    port.metrics.tx_blocked.inc();
                    return Ok(());
                }
                self.done.push((head, 0));
                if self.done.len() >= BATCH {
                    self.give_back()?;
                }
            }
            self.give_back()?;
            if !self.ring.enable_kicks()? {
                return Ok(());
            }
        }
    }

    fn give_back(&mut self) -> Result<(), RingError> {
        if self.done.is_empty() {
            return Ok(());
        }
        let returned = self.ring.push_all(&self.done);
        self.done.clear();
        returned
    }

    /// Ends sending.
    pub fn stop(self) -> RingState {
        self.ring.into_state()
    }
}

/// Sends a frame, if it is `sensible`.
fn send(frame: &Frame<'_, '_>, sensible: bool, limiter: &QueueLimiter, port: &TapPort) -> Sent {
    if !sensible {
        port.metrics.tx_malformed.inc();
        return Sent::Done;
    }
    if port.is_down() {
        port.metrics.tx_refused.inc();
        return Sent::Done;
    }
    match port.tap.send(frame.buffers.buffers()) {
        Ok(_) => {
            port.metrics.tx_frames.inc();
            port.metrics.tx_bytes.add(frame.bytes as u64);
        }
        Err(error) => match TapFault::of(&error) {
            TapFault::Wait => return Sent::Blocked,
            TapFault::Frame => port.metrics.tx_refused.inc(),
            TapFault::Gone => {
                port.metrics.tx_refused.inc();
                port.set_down();
            }
        },
    }
    limiter.spend(frame.bytes as u64);
    Sent::Done
}
