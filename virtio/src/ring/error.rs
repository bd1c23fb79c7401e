//! What a driver can do wrong with a virtqueue.

/// A rule of the split virtqueue (virtio 1.2 §2.7) that the driver broke. The device needs a reset afterwards.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A part of the ring, or a buffer, is not in guest RAM.
    #[error("queue {queue}: {what} of {size} bytes at {gpa:#x} is not all in guest RAM")]
    OutsideMemory {
        /// Queue index.
        queue: u16,
        /// What lies there.
        what: &'static str,
        /// Guest-physical address.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// The queue's size or alignment is not allowed.
    #[error("queue {queue}: the configuration is not allowed")]
    Config {
        /// Queue index.
        queue: u16,
        /// Which rule.
        source: virtio_queue::Error,
    },
    /// The available ring claims more new entries than it has.
    #[error("queue {queue}: available index {found} is more than {size} entries ahead of {next}")]
    AvailIndex {
        /// Queue index.
        queue: u16,
        /// What the driver wrote.
        found: u16,
        /// The next entry the device would take.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A chain starts outside the descriptor table.
    #[error("queue {queue}: descriptor chain {head} is not below the queue size {size}")]
    HeadOutside {
        /// Queue index.
        queue: u16,
        /// What the driver wrote.
        head: u16,
        /// Descriptors in the table.
        size: u16,
    },
    /// A chain was made available again before the device had used it.
    #[error("queue {queue}: descriptor chain {head} is available a second time while in flight")]
    HeadInFlight {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
    },
    /// A chain does not come to an end.
    #[error(
        "queue {queue}: descriptor chain {head} breaks off after {after} descriptors: it loops, leaves its table, nests an \
         indirect table or exceeds 4 GiB"
    )]
    ChainBroken {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
        /// Descriptors that were good.
        after: u16,
    },
    /// A chain has more descriptors than the device accepts.
    #[error("queue {queue}: descriptor chain {head} is longer than {limit} descriptors")]
    ChainTooLong {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
        /// Longest chain: the largest queue size that the device offers.
        limit: u16,
    },
    /// A chain has a device-readable buffer after a device-writable one.
    #[error("queue {queue}: descriptor chain {head} has a readable buffer after a writable one")]
    ReadAfterWrite {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
    },
    /// The device completed a chain that it does not hold.
    #[error("queue {queue}: descriptor chain {head} is completed but not in flight")]
    NotInFlight {
        /// Queue index.
        queue: u16,
        /// Head of the chain.
        head: u16,
    },
    /// The ring's own memory went away.
    #[error("queue {queue}: the rings cannot be accessed")]
    Access {
        /// Queue index.
        queue: u16,
        /// What failed.
        source: virtio_queue::Error,
    },
}
