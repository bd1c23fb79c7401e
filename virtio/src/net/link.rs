//! The way out: the tap, and the link that the driver sees of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;

use super::metrics::NetMetrics;
use super::tap::Tap;
use super::{LINK_DOWN, STATUS};
use crate::config::ConfigBytes;
use crate::ring::Notify;

/// What all queue pairs of a device share: whether there still is a tap.
pub(super) struct LinkState {
    space: Arc<Mutex<ConfigBytes>>,
    config_changed: Notify,
    down: AtomicBool,
}

impl LinkState {
    /// The link of a tap that is there as far as anybody knows.
    pub fn new(space: Arc<Mutex<ConfigBytes>>, config_changed: Notify) -> Self {
        Self {
            space,
            config_changed,
            down: AtomicBool::new(false),
        }
    }
}

/// One queue pair's way out.
pub(super) struct TapPort {
    pub tap: Arc<Tap>,
    pub link: Arc<LinkState>,
    pub metrics: Arc<NetMetrics>,
}

/// What an error of the tap means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TapFault {
    /// Not now.
    Wait,
    /// Not this frame.
    Frame,
    /// The interface is gone, and does not come back.
    Gone,
}

impl TapFault {
    /// `EBADFD`: the descriptor has lost its interface. `EIO`: the interface is down. `EINVAL`: the
    /// header makes no sense to the kernel.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::Wait,
            Some(libc::EBADFD | libc::ENODEV) => Self::Gone,
            _ => Self::Frame,
        }
    }
}

impl TapPort {
    /// Whether the tap is gone.
    pub fn is_down(&self) -> bool {
        self.link.down.load(Ordering::Relaxed)
    }

    /// The tap is gone: tells the driver, counts, and says so, once.
    pub fn set_down(&self) {
        if self.link.down.swap(true, Ordering::Relaxed) {
            return;
        }
        self.metrics.tap_losses.inc();
        // A driver that starts anew finds the tap gone once more: said once is enough.
        if self.metrics.tap_losses.get() == 1 {
            log::warn!("the tap of a network device is gone: its link is down");
        }
        let mut space = lock(&self.link.space);
        space.update(STATUS, &LINK_DOWN);
        drop(space);
        self.link.config_changed.signal();
    }
}
