//! Sending: from the driver's buffers straight to the tap (virtio 1.2 §5.1.6.2).
#![expect(unsafe_code, reason = "the kernel reads guest memory by raw pointers")]

use vm_memory::VolatileSlice;

use super::header::{self, HEADER_BYTES};
use super::line::{Fault, Line};
use super::room::{MAX_IOVECS, as_iovec};
use crate::device::HandlerError;
use crate::rate_limit::Pace;
use crate::ring::{Ring, RingError, RingState};

/// Frames after which the driver gets its buffers back, so that it never waits for the last of them.
const BATCH: usize = 32;

/// The sending half of a queue pair.
pub(super) struct Transmit {
    ring: Ring,
    pub pace: Pace,
    /// Features agreed on.
    features: u64,
    frame: Frame,
    /// The tap had no room for the next frame.
    blocked: bool,
    done: Vec<(u16, u32)>,
}

/// A frame on its way. The header is a copy: what was checked is what is sent.
struct Frame {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have been found.
    found: usize,
    bytes: usize,
    /// The first is for the header.
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the pointers are only used within one call of `Transmit::send`, on whatever thread; they are stale in between.
unsafe impl Send for Frame {}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It is not the ring's any more.
    Done,
    /// The tap has no room.
    Blocked,
}

impl Frame {
    fn clear(&mut self) {
        self.iovecs.clear();
        self.iovecs.push(libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        });
        (self.found, self.bytes) = (0, 0);
    }

    /// Takes the chain's next buffer: the first bytes are the header, wherever they lie.
    fn push(&mut self, slice: VolatileSlice<'_>) {
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
            self.iovecs.push(as_iovec(&rest));
        }
    }

    /// Whether it may be sent, and if so how.
    fn check(&mut self, features: u64) -> bool {
        if self.found < HEADER_BYTES || self.iovecs.len() > MAX_IOVECS {
            return false;
        }
        let Ok(header) = header::check(self.header, self.bytes, features) else {
            return false;
        };
        self.header = header;
        if let Some(first) = self.iovecs.first_mut() {
            *first = libc::iovec {
                iov_base: self.header.as_mut_ptr().cast(),
                iov_len: HEADER_BYTES,
            };
        }
        true
    }
}

impl Transmit {
    /// Takes the ring of a transmit queue.
    pub fn new(ring: Ring, pace: Pace, features: u64) -> Self {
        Self {
            ring,
            pace,
            features,
            frame: Frame {
                header: [0; HEADER_BYTES],
                found: 0,
                bytes: 0,
                iovecs: Vec::new(),
            },
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
    pub fn unblock(&mut self, line: &Line) -> Result<(), HandlerError> {
        if !self.blocked {
            return Ok(());
        }
        self.run(line)
    }

    /// Sends what is there, and tells the driver.
    ///
    /// # Errors
    /// When the driver broke the ring's rules.
    pub fn run(&mut self, line: &Line) -> Result<(), HandlerError> {
        let sent = self.send_frames(line);
        let returned = self.give_back();
        self.ring.signal()?;
        sent.and(returned)?;
        Ok(())
    }

    fn send_frames(&mut self, line: &Line) -> Result<(), RingError> {
        let mem = self.ring.memory().into_inner();
        loop {
            self.ring.disable_kicks()?;
            loop {
                if !self.pace.allows(&line.metrics.tx_throttled) {
                    return Ok(());
                }
                self.frame.clear();
                let frame = &mut self.frame;
                let taken = self.ring.take(&mem, |writable, slice| {
                    if !writable {
                        frame.push(slice);
                    }
                })?;
                let Some(head) = taken else { break };
                self.blocked = self.send(line) == Sent::Blocked;
                if self.blocked {
                    self.ring.put_back(head);
                    line.metrics.tx_blocked.inc();
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

    /// Sends the frame, or finds that it cannot be sent.
    fn send(&mut self, line: &Line) -> Sent {
        if !self.frame.check(self.features) {
            line.metrics.tx_malformed.inc();
            return Sent::Done;
        }
        if line.is_down() {
            line.metrics.tx_refused.inc();
            return Sent::Done;
        }
        // SAFETY: the first buffer is the frame's own header; the others lie in guest memory, which `send_frames` keeps mapped.
        match unsafe { line.tap.send(&self.frame.iovecs) } {
            Ok(_) => {
                line.metrics.tx_frames.inc();
                line.metrics.tx_bytes.add(self.frame.bytes as u64);
            }
            Err(error) => match Fault::of(&error) {
                Fault::Wait => return Sent::Blocked,
                Fault::Frame => line.metrics.tx_refused.inc(),
                Fault::Gone => {
                    line.metrics.tx_refused.inc();
                    line.lose();
                }
            },
        }
        self.pace.spend(self.frame.bytes as u64);
        Sent::Done
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
