//! What a network device counts.

use std::sync::Arc;

use husk_devices::metrics::{Counter, MetricsSource};

use crate::vhost::VhostMetrics;

/// Counters of one network device, over all its queue pairs, since it was opened. Received is what the guest receives.
#[derive(Debug, Default)]
pub struct NetMetrics {
    /// Frames given to the guest.
    pub(super) rx_frames: Counter,
    /// Bytes of them.
    pub(super) rx_bytes: Counter,
    /// Frames for which the guest's buffers were too short, or that were longer than the link's MTU.
    pub(super) rx_dropped: Counter,
    /// Buffers of the guest that cannot hold a header or are in too many pieces.
    pub(super) rx_malformed: Counter,
    /// Times that receiving waited for the guest to give buffers.
    pub(super) rx_starved: Counter,
    /// Times that receiving waited for its rate limiter.
    pub(super) rx_throttled: Counter,
    /// Reads that the tap refused.
    pub(super) rx_errors: Counter,
    /// Frames sent.
    pub(super) tx_frames: Counter,
    /// Bytes of them.
    pub(super) tx_bytes: Counter,
    /// Frames not sent because of their header or length.
    pub(super) tx_malformed: Counter,
    /// Frames that the tap refused, as when its interface is down.
    pub(super) tx_refused: Counter,
    /// Times that sending waited for its rate limiter.
    pub(super) tx_throttled: Counter,
    /// Times that sending waited for the tap.
    pub(super) tx_blocked: Counter,
    /// Commands carried out.
    pub(super) control_commands: Counter,
    /// Commands refused.
    pub(super) control_refused: Counter,
    /// Taps that went away.
    pub(super) tap_losses: Counter,
}

/// Counters of a device whose frames the kernel moves: those of its rings, and of commands, which stay here.
pub(super) struct KernelNetMetrics {
    pub(super) rings: Arc<VhostMetrics>,
    pub(super) commands: Arc<NetMetrics>,
}

impl MetricsSource for KernelNetMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        [self.rings.metrics(), self.commands.of_commands()].concat()
    }
}

impl NetMetrics {
    /// Counters of commands alone.
    fn of_commands(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("control_commands", self.control_commands.get()),
            ("control_refused_commands", self.control_refused.get()),
        ]
    }
}

impl MetricsSource for NetMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        [
            ("rx_frames", &self.rx_frames),
            ("rx_bytes", &self.rx_bytes),
            ("rx_dropped_frames", &self.rx_dropped),
            ("rx_malformed_chains", &self.rx_malformed),
            ("rx_starved_waits", &self.rx_starved),
            ("rx_throttled_waits", &self.rx_throttled),
            ("rx_tap_errors", &self.rx_errors),
            ("tx_frames", &self.tx_frames),
            ("tx_bytes", &self.tx_bytes),
            ("tx_malformed_frames", &self.tx_malformed),
            ("tx_refused_frames", &self.tx_refused),
            ("tx_throttled_waits", &self.tx_throttled),
            ("tx_blocked_waits", &self.tx_blocked),
            ("tap_losses", &self.tap_losses),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.get()))
        .chain(self.of_commands())
        .collect()
    }
}
