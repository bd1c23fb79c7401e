//! Why a request to a husk came to nothing.

use std::io;
use std::path::PathBuf;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or not for us.
    #[error("cannot connect to {}", .socket.display())]
    Connect {
        /// The API's socket.
        socket: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Somebody listens, and does not take connections.
    #[error("{} takes no connection within {seconds} s", .socket.display())]
    Busy {
        /// The API's socket.
        socket: PathBuf,
        /// How long it was given.
        seconds: f64,
    },
    /// No answer.
    #[error("{request} was not answered within {seconds} s{}", goes_on(.request))]
    Silent {
        /// The request.
        request: String,
        /// How long it was given.
        seconds: f64,
    },
    /// The connection ended.
    #[error("the connection ended before {request} was answered")]
    Closed {
        /// The request.
        request: String,
    },
    /// The connection broke.
    #[error("{request} cannot be asked")]
    Broken {
        /// The request.
        request: String,
        /// The host's answer.
        source: io::Error,
    },
    /// What came is no answer of this API.
    #[error("the answer to {request} is {what}")]
    Nonsense {
        /// The request.
        request: String,
        /// What came instead, in words.
        what: String,
    },
    /// The server answered with a status other than 2xx.
    #[error("{request} was refused ({status}): {chain}")]
    Refused {
        /// The request.
        request: String,
        /// The HTTP status.
        status: u16,
        /// What failed, then why, in one line.
        chain: String,
    },
}

/// What there is to know of a request that was not answered: one that changes something is carried out nevertheless.
fn goes_on(request: &str) -> &'static str {
    match request {
        "vm.info" | "vm.containers" | "vmm.ping" | "vm.counters" | "vm.queues" | "vm.resize-status" | "vmm.metrics"
        | "vm.events" | "vm.past-events" | "vmm.log-level" => "",
        _ => "; husk goes on with it, and husk ctl SOCKET info shows how far it has come",
    }
}

impl ClientError {
    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
