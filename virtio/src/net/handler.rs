//! One queue pair on its I/O thread: both directions, and with the first pair the control queue.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::control::{Control, TapControl};
use super::link::{TapFault, TapPort};
use super::rx::Receive;
use super::tx::Transmit;
use crate::device::{Handler, HandlerError, Watch};
use crate::rate_limit::DeadlineTimer;
use crate::ring::RingState;

/// [`Watch`] tokens: doorbells, the tap, the timer of the rate limiters.
const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const CONTROL_KICK: u32 = 2;
const TAP: u32 = 3;
const TIMER: u32 = 4;

/// The running half of a queue pair.
pub(super) struct PairHandler {
    rx: Receive,
    tx: Transmit,
    control: Option<Control>,
    port: TapPort,
    start_commands: Option<StartCommands>,
    /// For rate limiters, if there are any.
    timer: Option<DeadlineTimer>,
}

/// What the host is told when a driver starts: one pair, and the offloads that it took, whatever
/// the last one had (virtio 1.2 §5.1.6.5.5, §5.1.6.5.6). The host may take its time for this, so it
/// is done on the I/O thread.
pub(super) struct StartCommands {
    /// What it acts on.
    pub tap_control: Arc<dyn TapControl>,
    /// Offloads (`TUN_F_…`).
    pub offloads: u32,
}

impl StartCommands {
    /// Tells the host.
    ///
    /// # Errors
    /// What it says.
    pub fn carry_out(self) -> io::Result<()> {
        self.tap_control.set_pairs(1)?;
        self.tap_control.set_offloads(self.offloads)
    }
}

impl PairHandler {
    /// Joins both directions with their way out. The first pair has a beginning, and the control queue if there is one.
    pub fn new(
        rx: Receive,
        tx: Transmit,
        port: TapPort,
        start_commands: Option<StartCommands>,
        control: Option<Control>,
    ) -> Self {
        Self {
            rx,
            tx,
            control,
            port,
            start_commands,
            timer: None,
        }
    }

    /// Sets the timer to the first moment at which a direction that waits for its limiter may go on.
    fn set_timer(&mut self) -> Result<(), HandlerError> {
        let Some(timer) = &mut self.timer else { return Ok(()) };
        let (rx, tx) = (self.rx.limiter.until(), self.tx.limiter.until());
        timer
            .set(rx.into_iter().chain(tx).min())
            .map_err(|source| HandlerError::Host {
                what: "cannot set the timer of a rate limiter",
                source,
            })
    }
}

impl Handler for PairHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match self.start_commands.take().map(StartCommands::carry_out) {
            None | Some(Ok(())) => {}
            Some(Err(error)) if TapFault::of(&error) == TapFault::Gone => self.port.set_down(),
            Some(Err(source)) => {
                let what = "cannot set the tap's queues and offloads";
                return Err(HandlerError::Host { what, source });
            }
        }
        let mut doorbell = |fd: RawFd, token| watch.readable(fd, token).map_err(HandlerError::watch);
        doorbell(self.rx.ring().kick().as_raw_fd(), RX_KICK)?;
        doorbell(self.tx.ring().kick().as_raw_fd(), TX_KICK)?;
        if let Some(control) = &self.control {
            doorbell(control.ring().kick().as_raw_fd(), CONTROL_KICK)?;
        }
        if self.rx.limiter.is_limited() || self.tx.limiter.is_limited() {
            let timer = DeadlineTimer::new().map_err(HandlerError::watch)?;
            doorbell(timer.as_raw_fd(), TIMER)?;
            self.timer = Some(timer);
        }
        watch
            .edges(self.port.tap.as_raw_fd(), TAP)
            .map_err(HandlerError::watch)?;
        // For what became available before there was a thread.
        self.tx.ring().kick_self();
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match token {
            RX_KICK => {
                self.rx.ring().take_kick();
                self.rx.run(&self.port)?;
            }
            TX_KICK => {
                self.tx.ring().take_kick();
                self.tx.run(&self.port)?;
            }
            CONTROL_KICK => {
                if let Some(control) = &mut self.control {
                    control.run()?;
                }
            }
            TIMER => {
                if let Some(timer) = &mut self.timer {
                    timer.on_timer();
                }
                self.rx.limiter.on_timer();
                self.tx.limiter.on_timer();
                self.rx.run(&self.port)?;
                self.tx.run(&self.port)?;
            }
            _ => {
                self.rx.run(&self.port)?;
                self.tx.unblock(&self.port)?;
            }
        }
        self.set_timer()
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        let Self { rx, tx, control, .. } = *self;
        let control = control.map(Control::stop);
        [rx.stop(), tx.stop()].into_iter().chain(control).collect()
    }
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
