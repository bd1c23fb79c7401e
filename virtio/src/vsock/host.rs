//! The device's side that outlives a driver: the listening socket, and a listener that closes dials while there is no
//! driver.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::listener::{Listener, ReserveFd, is_shortage};
use super::metrics::VsockMetrics;
use crate::device::{Handler, HandlerError, Watch};
use crate::ring::RingState;
use crate::threads::{ThreadBody, ThreadClass, Threads, UnconfinedThreads};

/// Dials closed before the idle listener looks again whether a handler takes them.
const DIALS_PER_TURN: usize = 64;

/// How long a dial waits when not even one descriptor can be had.
pub(super) const FD_RETRY_DELAY: Duration = Duration::from_millis(10);

const DIAL: u32 = 0;
const SERVED_CHANGED: u32 = 1;

/// What device, handler and idle listener share.
pub(super) struct Host {
    /// The socket that programs of the host dial.
    pub listener: Listener,
    /// Counters.
    pub metrics: Arc<VsockMetrics>,
    /// A handler takes the dials.
    served: AtomicBool,
    /// Wakes the idle listener when `served` has changed.
    served_changed: EventFd,
    /// The driver is to be told that its streams are gone.
    pub reset_wanted: AtomicBool,
    /// Wakes the handler when `reset_wanted` was set.
    pub reset_event: EventFd,
}

impl Host {
    /// The host's side around a listening socket.
    pub fn new(listener: Listener) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            listener,
            metrics: Arc::default(),
            served: AtomicBool::new(false),
            served_changed: event()?,
            reset_wanted: AtomicBool::new(false),
            reset_event: event()?,
        })
    }

    /// Says whether a handler takes the dials.
    pub fn set_served(&self, by_handler: bool) {
        self.served.store(by_handler, Ordering::Release);
        // Fails only when the counter is full, and then the idle listener wakes anyway.
        let _ = self.served_changed.write(1);
    }

    /// Asks the handler to tell the driver that its streams are gone.
    pub fn reset_transport(&self) {
        self.reset_wanted.store(true, Ordering::Release);
        // Fails only when the counter is full, and then the handler wakes anyway.
        let _ = self.reset_event.write(1);
    }
}

/// Starts the idle listener's thread at once, as any thread is, because there are dials before anything else of the
/// machine runs.
pub(super) struct DirectSpawn(pub Arc<dyn Threads>);

impl Threads for DirectSpawn {
    fn start(&self, name: &str, body: ThreadBody) -> io::Result<()> {
        UnconfinedThreads.start(name, body)
    }

    fn confine(&self, thread_class: ThreadClass) -> io::Result<()> {
        self.0.confine(thread_class)
    }
}

/// Closes dials at once while no driver is there: a shim that got no answer would wait for ever.
pub(super) struct IdleListener {
    reserve: ReserveFd,
    host: Arc<Host>,
    watching: bool,
}

impl IdleListener {
    /// Takes dials as soon as there is a thread for it.
    pub fn new(host: Arc<Host>) -> Self {
        Self {
            reserve: ReserveFd::new(&host.listener),
            host,
            watching: false,
        }
    }

    /// Watches the listening socket if no handler does.
    fn update_watch(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        let wanted = !self.host.served.load(Ordering::Acquire);
        if wanted == self.watching {
            return Ok(());
        }
        self.watching = wanted;
        let fd = self.host.listener.as_raw_fd();
        if wanted {
            watch.readable(fd, DIAL)
        } else {
            watch.forget(fd)
        }
    }

    fn reject_dials(&mut self) {
        for _ in 0..DIALS_PER_TURN {
            let Host { listener, metrics, .. } = &*self.host;
            match listener.accept() {
                Ok(_closed) => {
                    metrics.dials_without_driver.inc();
                    self.reserve.renew(listener);
                }
                Err(error) if is_shortage(&error) => {
                    metrics.dials_dropped.inc();
                    if !self.reserve.shed(listener) {
                        return thread::sleep(FD_RETRY_DELAY);
                    }
                }
                Err(_) => return,
            }
        }
    }
}

impl Handler for IdleListener {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.host.served_changed.as_raw_fd(), SERVED_CHANGED)
            .and_then(|()| self.update_watch(watch))
            .map_err(HandlerError::watch)
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == SERVED_CHANGED {
            // Readable, so this only resets it.
            let _ = self.host.served_changed.read();
        }
        self.update_watch(watch).map_err(HandlerError::watch)?;
        if self.watching {
            self.reject_dials();
        }
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        Vec::new()
    }
}
