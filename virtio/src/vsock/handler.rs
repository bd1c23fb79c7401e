//! The running half of the device: three queues, all sockets, one I/O thread.
//!
//! Sockets are watched by an epoll instance of the handler's own, which the thread's loop watches
//! beside the doorbells. All of it is edge-triggered, so that neither reading a doorbell nor asking
//! for an event again costs a call.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vmm_sys_util::epoll::EpollEvent;

use super::host::{FD_RETRY_DELAY, Host};
use super::interrupt_coalescer::InterruptCoalescer;
use super::muxer::Muxer;
use super::receive::Receive;
use super::table::Token;
use super::vectors::Vectors;
use crate::device::{Handler, HandlerError, Watch};
use crate::rate_limit::DeadlineTimer;
use crate::ring::{Ring, RingError, RingState, Step};

/// Events taken in one go.
const EVENTS: usize = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2 §5.10.6.7), `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// epoll's number of the listening socket; those of connections are far below.
const LISTENER: u64 = u64::MAX;

/// [`Watch`] tokens: doorbells, the reset event of the device, all sockets, interrupts put off, descriptors that may be
/// there.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const EVENT: u32 = 2;
const RESET: u32 = 3;
const SOCKETS: u32 = 4;
const COALESCE_TIMER: u32 = 5;
const DESCRIPTORS: u32 = 6;

/// Queues and streams.
pub(super) struct VsockHandler {
    receive: Receive,
    transmit: Ring,
    event: Option<Ring>,
    vectors: Vectors,
    muxer: Muxer,
    host: Arc<Host>,
    events: [EpollEvent; EVENTS],
    /// Packets of the guest were left in the ring because too many answers were waiting.
    held_up: bool,
    /// A transport reset is still to be told.
    reset_due: bool,
    /// News for the driver that wait; none before there is a thread.
    coalescer: Option<InterruptCoalescer>,
    /// For dials that wait for a descriptor.
    timer: Option<DeadlineTimer>,
}

impl VsockHandler {
    /// Takes the queues of a device whose guest is context `cid`.
    pub fn new(cid: u64, host: Arc<Host>, receive: Ring, transmit: Ring, event: Option<Ring>) -> Self {
        Self {
            receive: Receive::new(receive),
            transmit,
            event,
            vectors: Vectors::default(),
            muxer: Muxer::new(cid, host.clone(), LISTENER),
            host,
            events: [EpollEvent::default(); EVENTS],
            held_up: false,
            reset_due: false,
            coalescer: None,
            timer: None,
        }
    }

    fn watch_all(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        let doorbells = [
            (self.receive.ring.kick().as_raw_fd(), RECEIVE),
            (self.transmit.kick().as_raw_fd(), TRANSMIT),
            (self.host.reset_event.as_raw_fd(), RESET),
        ];
        let event = self.event.as_ref().map(|ring| (ring.kick().as_raw_fd(), EVENT));
        for (fd, token) in doorbells.into_iter().chain(event) {
            watch.edges(fd, token)?;
        }
        let coalescer = self.coalescer.insert(InterruptCoalescer::new()?);
        watch.readable(coalescer.as_raw_fd(), COALESCE_TIMER)?;
        let timer = self.timer.insert(DeadlineTimer::new()?);
        watch.readable(timer.as_raw_fd(), DESCRIPTORS)?;
        watch.readable(self.muxer.open()?, SOCKETS)
    }

    /// Takes what has happened at sockets.
    fn look_at_sockets(&mut self) -> io::Result<()> {
        let count = self.muxer.events(&mut self.events)?;
        for n in 0..count {
            let Some(event) = self.events.get(n).copied() else {
                break;
            };
            match event.data() {
                LISTENER => self.muxer.accept()?,
                connection => self.muxer.socket_event(Token::from_number(connection), event.events()),
            }
        }
        Ok(())
    }

    /// Looks again for a descriptor, if dials wait for one: it may be others that give it back.
    fn set_timer(&mut self) -> io::Result<()> {
        match &mut self.timer {
            Some(timer) if self.muxer.is_starved() && !timer.is_set() => {
                timer.set(Instant::now().checked_add(FD_RETRY_DELAY))
            }
            _ => Ok(()),
        }
    }

    /// Takes the guest's packets and gives their buffers back. The driver hears of it later.
    fn take_packets(&mut self) -> Result<(), RingError> {
        let mem = self.transmit.memory();
        self.held_up = false;
        loop {
            self.transmit.disable_kicks()?;
            loop {
                if self.muxer.is_congested() {
                    self.held_up = true;
                    return Ok(());
                }
                let Some(mut packet) = self.vectors.outgoing(&mut self.transmit, &mem)? else {
                    break;
                };
                self.muxer.packet(&mut packet);
                self.transmit.push(packet.head(), 0)?;
            }
            if !self.transmit.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Gives the guest what there is for it, and takes more of its packets where that has made room for answers.
    fn serve(&mut self, kicked: bool) -> Result<(), RingError> {
        let mut kicked = kicked;
        loop {
            if kicked {
                self.take_packets()?;
            }
            self.receive.serve(&mut self.muxer, &self.host.metrics)?;
            self.receive.ring.signal()?;
            kicked = self.held_up && !self.muxer.is_congested();
            if !kicked {
                return Ok(());
            }
        }
    }

    /// Tells the driver what became of its packets: when it is interrupted anyway, or when that is `due`.
    fn notify_used(&mut self, due: bool) -> Result<(), RingError> {
        let now = std::mem::take(&mut self.receive.gave) || due;
        match &mut self.coalescer {
            Some(coalescer) => coalescer.notify(&mut self.transmit, now),
            None => self.transmit.signal(),
        }
    }

    /// Tells the driver that all its streams are gone (virtio 1.2 §5.10.6.7), once it has a buffer for that.
    fn tell_reset(&mut self) -> Result<(), HandlerError> {
        if !self.reset_due {
            return Ok(());
        }
        self.muxer.forget_all();
        let (Some(event), due) = (&mut self.event, &mut self.reset_due) else {
            self.reset_due = false;
            return Ok(());
        };
        event.drain(|_, writer| {
            if !std::mem::take(due) {
                return Ok(Step::Later);
            }
            // A buffer that is too small gets what fits.
            let _ = writer.write_obj(TRANSPORT_RESET);
            Ok(Step::Used(u32::try_from(writer.bytes_written()).expect("at most 4")))
        })
    }
}

fn no_sockets(source: io::Error) -> HandlerError {
    HandlerError::Host {
        what: "cannot wait for sockets",
        source,
    }
}

impl Handler for VsockHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.host.set_served(true);
        self.watch_all(watch).map_err(HandlerError::watch)?;
        // For what became available before there was a thread.
        self.transmit.kick_self();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match token {
            SOCKETS => self.look_at_sockets().map_err(no_sockets)?,
            DESCRIPTORS => {
                self.timer.iter_mut().for_each(DeadlineTimer::on_timer);
                if self.muxer.is_starved() {
                    self.muxer.accept().map_err(no_sockets)?;
                }
            }
            RESET => self.reset_due |= self.host.reset_wanted.swap(false, Ordering::AcqRel),
            // New buffers are found by whoever needs some.
            RECEIVE => self.receive.ring.note_kick(),
            TRANSMIT => self.transmit.note_kick(),
            _ => {}
        }
        self.tell_reset()?;
        if let (COALESCE_TIMER, Some(coalescer)) = (token, &mut self.coalescer) {
            coalescer.on_timer();
        }
        self.serve(token == TRANSMIT || self.held_up)?;
        self.notify_used(token == COALESCE_TIMER)?;
        self.set_timer().map_err(no_sockets)
    }

    /// All streams end. The listening socket stays, and whoever dials it is sent away.
    fn stop(mut self: Box<Self>) -> Vec<RingState> {
        self.host.set_served(false);
        // Rings that cannot be read any more have nobody to tell.
        let _ = self.transmit.signal();
        let rings = [Some(self.receive.ring), Some(self.transmit), self.event];
        drop(self.muxer);
        rings.into_iter().flatten().map(Ring::into_state).collect()
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
