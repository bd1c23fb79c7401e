//! Bus mastering: a function whose driver has taken that right away issues no memory requests (PCIe 5.0 §7.5.1.1.3).
//!
//! Its handlers are not called meanwhile. What they wait for stays in its descriptor: doorbells that have rung, frames,
//! completions. A handler that would be called has its descriptors watched no more, so that its thread sleeps, and is
//! called for all of them when the right is back. Neither direction has anybody wait: taking the right away is a flag,
//! which the thread sees before its next piece of work. The piece that it is at is short; what the host has begun by
//! then, such as a read from a disk, is finished. A handler that other threads help, or that is held or stopped while
//! it has requests to answer, is given the flag itself ([`Handler::set_bus_master_flag`]); one whose hold is pending is
//! called all the same, since it begins nothing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Handler, HandlerError, Hold, Watch};
use crate::ring::RingState;

/// Token of the event that the right is back; a handler's own are far below.
const UNPARK: u32 = u32::MAX;

/// The right of one device, and who has to know when it comes back.
pub(super) struct BusMaster {
    allowed: Arc<AtomicBool>,
    back: Vec<Arc<EventFd>>,
}

impl BusMaster {
    /// The device has the right, as on a bus that knows of none.
    pub fn new() -> Self {
        Self {
            allowed: Arc::new(AtomicBool::new(true)),
            back: Vec::new(),
        }
    }

    /// Gives or takes the right. Waits for nobody.
    pub fn set(&self, allowed: bool) {
        if self.allowed.swap(allowed, Ordering::AcqRel) == allowed || !allowed {
            return;
        }
        for back in &self.back {
            // Fails only when the counter is full, and then the thread wakes anyway.
            let _ = back.write(1);
        }
    }

    /// `handler` as one that needs the right.
    ///
    /// # Errors
    /// When the host refuses an eventfd.
    pub fn gate(&mut self, mut handler: Box<dyn Handler>) -> io::Result<Box<dyn Handler>> {
        handler.set_bus_master_flag(self.allowed.clone());
        let back = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.back.push(back.clone());
        Ok(Box::new(GatedHandler {
            handler,
            allowed: self.allowed.clone(),
            back,
            watched: Vec::new(),
            parked: false,
            holding: false,
        }))
    }

    /// Forgets the handlers, which have ended.
    pub fn forget(&mut self) {
        self.back.clear();
    }
}

/// A descriptor that a handler waits for.
#[derive(Clone, Copy)]
struct Watched {
    fd: RawFd,
    token: u32,
    edges: bool,
}

impl Watched {
    fn watch(self, watch: &mut dyn Watch) -> io::Result<()> {
        match self.edges {
            true => watch.edges(self.fd, self.token),
            false => watch.readable(self.fd, self.token),
        }
    }
}

/// A handler that is called only as long as its device has the right.
struct GatedHandler {
    handler: Box<dyn Handler>,
    allowed: Arc<AtomicBool>,
    back: Arc<EventFd>,
    /// What the handler waits for.
    watched: Vec<Watched>,
    /// None of it is watched at present.
    parked: bool,
    /// It waits for what it has begun: that is noticed with the right and without.
    holding: bool,
}

impl GatedHandler {
    fn allowed(&self) -> bool {
        self.allowed.load(Ordering::Acquire)
    }

    /// The handler, and what it is to watch by.
    fn parts<'a>(&'a mut self, watch: &'a mut dyn Watch) -> (&'a mut dyn Handler, WatchRecorder<'a>) {
        let recorder = WatchRecorder {
            watch,
            watched: &mut self.watched,
            parked: self.parked,
        };
        (self.handler.as_mut(), recorder)
    }

    fn park(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        self.parked = true;
        self.watched.iter().try_for_each(|watched| watch.forget(watched.fd))
    }

    /// The right may be back.
    fn unpark(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        // Fails only when there was no event.
        let _ = self.back.read();
        match self.allowed() {
            true => self.watch_again(watch),
            false => Ok(()),
        }
    }

    fn watch_again(&mut self, watch: &mut dyn Watch) -> io::Result<()> {
        if !std::mem::take(&mut self.parked) {
            return Ok(());
        }
        self.watched.iter().try_for_each(|watched| watched.watch(watch))
    }
}

impl Handler for GatedHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch
            .readable(self.back.as_raw_fd(), UNPARK)
            .map_err(HandlerError::watch)?;
        let (handler, mut watch) = self.parts(watch);
        handler.watch(&mut watch)
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        if token == UNPARK {
            return self.unpark(watch).map_err(HandlerError::watch);
        }
        if self.holding {
            let (handler, mut watch) = self.parts(watch);
            return handler.wake(token, &mut watch);
        }
        if self.parked {
            // Of the same wait as the one before: what it was about is looked at when the right is back.
            return Ok(());
        }
        if !self.allowed() {
            return self.park(watch).map_err(HandlerError::watch);
        }
        let (handler, mut watch) = self.parts(watch);
        handler.wake(token, &mut watch)
    }

    /// Whether or not it has the right: what it has begun ends all the same, and is answered when it has.
    fn hold(&mut self, watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        let (handler, mut noting) = self.parts(watch);
        let hold = handler.hold(&mut noting)?;
        self.holding = hold == Hold::Pending;
        if self.holding {
            self.watch_again(watch).map_err(HandlerError::watch)?;
        }
        Ok(hold)
    }

    fn release(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.holding = false;
        let (handler, mut watch) = self.parts(watch);
        handler.release(&mut watch)
    }

    fn survive(&mut self, watch: &mut dyn Watch) -> bool {
        self.holding = false;
        let (handler, mut watch) = self.parts(watch);
        handler.survive(&mut watch)
    }

    /// Without the right it answers nobody: the driver that resets the device may have given the memory to others.
    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.handler.stop()
    }
}

/// Notes what a handler waits for.
struct WatchRecorder<'a> {
    watch: &'a mut dyn Watch,
    watched: &'a mut Vec<Watched>,
    /// It is watched later, when the right is back.
    parked: bool,
}

impl WatchRecorder<'_> {
    fn add(&mut self, watched: Watched) -> io::Result<()> {
        if !self.parked {
            watched.watch(self.watch)?;
        }
        self.watched.push(watched);
        Ok(())
    }
}

impl Watch for WatchRecorder<'_> {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        let edges = false;
        self.add(Watched { fd, token, edges })
    }

    fn edges(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        let edges = true;
        self.add(Watched { fd, token, edges })
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.watched.retain(|watched| watched.fd != fd);
        match self.parked {
            true => Ok(()),
            false => self.watch.forget(fd),
        }
    }
}

#[cfg(test)]
#[path = "bus_master_test.rs"]
mod tests;
