//! What a vsock device counts.

use husk_devices::metrics::{Counter, MetricsSource};

/// Counters of one vsock device since it was made.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    /// Streams opened by programs of the host.
    pub host_streams: Counter,
    /// Streams opened by programs of the guest.
    pub guest_streams: Counter,
    /// Dials of the host closed because no guest driver was there.
    pub dials_without_driver: Counter,
    /// Dials of the host that the guest refused.
    pub dials_refused: Counter,
    /// Dials of the host whose command made no sense.
    pub dials_malformed: Counter,
    /// Dials of the host closed because there were too many of them or of descriptors.
    pub dials_dropped: Counter,
    /// Dials of the guest that no socket of the host answered, or that were too many.
    pub guest_dials_refused: Counter,
    /// Packets to the guest.
    pub rx_packets: Counter,
    /// Bytes of payload in them.
    pub rx_bytes: Counter,
    /// Packets from the guest.
    pub tx_packets: Counter,
    /// Bytes of payload in them that a stream took.
    pub tx_bytes: Counter,
    /// Streams cut off because the guest's counts of credit were impossible.
    pub credit_lies: Counter,
    /// Packets that their stream did not allow, which was cut off.
    pub protocol_errors: Counter,
    /// Packets for nobody, of an unknown kind or to a foreign context.
    pub stray_packets: Counter,
    /// Buffers of the driver that could not hold a header, or held less than it promised.
    pub malformed_chains: Counter,
}

impl MetricsSource for VsockMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        [
            ("host_streams", &self.host_streams),
            ("guest_streams", &self.guest_streams),
            ("dials_without_driver", &self.dials_without_driver),
            ("dials_refused", &self.dials_refused),
            ("dials_malformed", &self.dials_malformed),
            ("dials_dropped", &self.dials_dropped),
            ("guest_dials_refused", &self.guest_dials_refused),
            ("rx_packets", &self.rx_packets),
            ("rx_bytes", &self.rx_bytes),
            ("tx_packets", &self.tx_packets),
            ("tx_bytes", &self.tx_bytes),
            ("credit_lies", &self.credit_lies),
            ("protocol_errors", &self.protocol_errors),
            ("stray_packets", &self.stray_packets),
            ("malformed_chains", &self.malformed_chains),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.get()))
        .collect()
    }
}
