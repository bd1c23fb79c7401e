//! What can go wrong with a back-end.

use std::io;
use std::time::Duration;

use super::message::Request;

/// Why a back-end cannot be used, or no longer. An error of its device only.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Nobody listens at the socket.
    #[error("cannot connect to its socket")]
    Connect(#[source] io::Error),
    /// The socket refused a setting.
    #[error("cannot set its socket up")]
    Setup(#[source] io::Error),
    /// The connection has ended.
    #[error("it closed the connection{}", During(*.0))]
    Gone(Option<Request>),
    /// The connection failed.
    #[error("the connection failed at {request:?}")]
    Broken {
        /// What was being asked.
        request: Request,
        /// The host's answer.
        source: io::Error,
    },
    /// No answer, or not all of it, or too late after answers that took long.
    #[error("it has not answered {request:?} within {} ms, with all that was asked before", limit.as_millis())]
    Silent {
        /// What was asked.
        request: Request,
        /// How long it had, for all that it was asked on this occasion.
        limit: Duration,
    },
    /// Somebody else was still speaking to it.
    #[error("it was busy with something else for {} ms", limit.as_millis())]
    Busy {
        /// How long that was waited for.
        limit: Duration,
    },
    /// An answer, but not to what was asked.
    #[error("it answered {request:?} ({code}) with message {found}, flags {flags:#x}, {size} bytes, where 8 are due", code = *request as u32)]
    Answer {
        /// What was asked.
        request: Request,
        /// Which message it says that it answers.
        found: u32,
        /// Flags of the answer.
        flags: u32,
        /// Size that the answer claims.
        size: u32,
    },
    /// Something that nobody has asked for.
    #[error("it sent what it was not asked for")]
    Unasked,
    /// The answer is a refusal.
    #[error("it refused {request:?} with code {code}")]
    Refused {
        /// What was asked.
        request: Request,
        /// Its answer: anything but 0.
        code: u64,
    },
    /// Virtio features that husk offers to drivers, or needs, and that are missing.
    #[error("it lacks virtio features {0:#x}")]
    Features(u64),
    /// Features of the protocol that husk needs.
    #[error("it lacks vhost-user protocol features {0:#x} (MQ is 0x1, REPLY_ACK is 0x8)")]
    ProtocolFeatures(u64),
    /// Fewer queues than configured.
    #[error("it serves {found} virtqueues, the device has {needed}")]
    Queues {
        /// What the back-end serves.
        found: u64,
        /// What the device has.
        needed: u16,
    },
    /// Guest RAM has more regions than it takes.
    #[error("it takes {allowed} memory regions, guest RAM has {found}")]
    Regions {
        /// Regions of guest RAM that other processes can map.
        found: usize,
        /// What the back-end takes.
        allowed: u64,
    },
    /// Guest RAM cannot be mapped by another process.
    #[error("guest RAM is private to this process, a vhost-user back-end needs it shared (memory.shared=true)")]
    PrivateMemory,
    /// A part of a ring is in memory that the back-end does not have.
    #[error("queue {queue}: ring at {gpa:#x} is not in memory that the back-end shares")]
    RingMemory {
        /// Queue index.
        queue: u16,
        /// Guest-physical address.
        gpa: u64,
    },
    /// A position outside any ring.
    #[error("queue {queue}: it says that it stopped at position {found}, positions are below 65536")]
    Position {
        /// Queue index.
        queue: u16,
        /// What the back-end says.
        found: u32,
    },
}

/// When a connection ended.
struct During(Option<Request>);

impl std::fmt::Display for During {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(request) => write!(f, " at {request:?}"),
            None => Ok(()),
        }
    }
}

impl BackendError {
    /// Whether husk found it before it said anything: the back-end is as it was.
    pub(super) fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Regions { .. } | Self::PrivateMemory | Self::RingMemory { .. } | Self::Busy { .. }
        )
    }
}
