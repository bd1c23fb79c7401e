//! Socket device (virtio 1.2 §5.10) whose host side is Unix sockets: *hybrid* vsock, all in user
//! space; or, with [`KernelVsock`], the host's own vsock.
//!
//! | queue | carries                                            |
//! |-------|----------------------------------------------------|
//! | 0     | rx: packets to the guest                           |
//! | 1     | tx: packets from the guest                         |
//! | 2     | event: `TRANSPORT_RESET`                           |
//!
//! | offset | width | R/W | configuration field (§5.10.4)          |
//! |--------|-------|-----|----------------------------------------|
//! | 0      | 8     | R   | `guest_cid`                            |
//!
//! Programs of the host connect to the device's socket, write `connect PORT\n` (in any letter case)
//! and, when a program of the guest listens at that port, read `OK <port>\n`; from then on bytes go
//! through. If nobody listens the connection is closed. Programs of the guest connect to port P of
//! context 2 and reach the program of the host that listens at the socket `<path>_P`.
//!
//! | part | what it holds |
//! |---|---|
//! | `listener`, `socket` | the socket in the file system; sockets that never block |
//! | `host` | what outlives a driver, and the listener that closes dials while there is none |
//! | `command` | the line that a program of the host begins with |
//! | `packet`, `credit`, `buf_alloc` | the wire format; flow control; what all streams may have the guest send |
//! | `connection`, `outbox`, `table` | one stream; what its reader has not taken yet; all streams |
//! | `muxer` | what becomes of packets and of events at sockets |
//! | `receive`, `vectors` | turns on the way to the guest; guest buffers as `iovec`s |
//! | `interrupt_coalescer` | when the driver hears that its packets have been taken |
//! | `handler` | queues and sockets on one I/O thread |
//! | `kernel` | the device whose streams are in the host's kernel |

mod buf_alloc;
mod command;
mod connection;
mod credit;
mod handler;
mod host;
mod interrupt_coalescer;
mod kernel;
mod listener;
mod metrics;
mod muxer;
mod outbox;
mod packet;
mod receive;
#[cfg(test)]
mod rig;
mod socket;
mod table;
mod vectors;

pub use kernel::KernelVsock;
pub use metrics::VsockMetrics;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use husk_devices::error_chain;
use husk_devices::metrics::MetricsSource;

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice};
use crate::threads::{ThreadClass, Threads};
use crate::unix::{BindError, SocketFile};
use crate::vhost::VhostError;
use crate::worker::Worker;
use handler::VsockHandler;
use host::{DirectSpawn, Host, IdleListener};
use listener::Listener;

/// virtio device ID (virtio 1.2 §5).
pub const VIRTIO_ID_VSOCK: u32 = 19;
/// "Other communication device".
const PCI_CLASS: u32 = 0x07_80_00;
/// Streams are supported (virtio 1.2 §5.10.3). `VIRTIO_VSOCK_F_SEQPACKET` is not offered: a Unix
/// stream keeps no boundaries.
const VIRTIO_VSOCK_F_STREAM: u64 = 1 << 0;
/// A driver fills the receive queue with pages: 256 of them take a whole window of credit several times over.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The guest's context: 0 to 2 and the last one have meanings of their own (virtio 1.2 §5.10.4).
pub const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// Why there can be no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A context that no guest can have.
    #[error("cid {found}, allowed: {} to {}", CIDS.start(), CIDS.end())]
    Cid {
        /// What was asked for.
        found: u32,
    },
    /// The socket.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The kernel does not serve it.
    #[error(transparent)]
    Kernel(#[from] VhostError),
    /// The host refused something small.
    #[error("cannot {what}")]
    Host {
        /// What was being done, in the infinitive.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

/// A vsock device. Its socket takes dials from the beginning and goes when the device goes.
pub struct Vsock {
    // Goes first, while the socket is open.
    _file: SocketFile,
    cid: u64,
    config: Arc<Mutex<ConfigBytes>>,
    host: Arc<Host>,
    _idle_listener: Worker,
}

impl Vsock {
    /// A device of context `cid` that listens at `path`. The thread of the idle listener, `io-vsock-door`, is
    /// started at once, and confined as `threads` does it.
    ///
    /// # Errors
    /// When the context is reserved, or nothing can listen at `path`.
    pub fn open(cid: u32, path: &Path, threads: &Arc<dyn Threads>) -> Result<Self, VsockError> {
        if !CIDS.contains(&cid) {
            return Err(VsockError::Cid { found: cid });
        }
        let (listener, file) = Listener::bind(path)?;
        let host = Host::new(listener).map_err(|source| VsockError::Host {
            what: "make an eventfd",
            source,
        })?;
        let host = Arc::new(host);
        let idle_listener = Box::new(IdleListener::new(host.clone()));
        let gave_up = Box::new(|error: HandlerError| {
            log::warn!("vsock: dials wait for the guest's driver: {}", error_chain(&error));
        });
        let threads: Arc<dyn Threads> = Arc::new(DirectSpawn(threads.clone()));
        let idle_listener = Worker::spawn_on(&threads, ThreadClass::Vsock, "io-vsock-door", idle_listener, gave_up);
        Ok(Self {
            cid: cid.into(),
            config: config_space(cid),
            host,
            _idle_listener: idle_listener.map_err(|source| VsockError::Host {
                what: "start a thread",
                source,
            })?,
            _file: file,
        })
    }

    /// The device's metrics. They stay valid, and go on, while the device runs.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        self.host.metrics.clone()
    }

    /// Ends all streams and tells the driver so with `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio
    /// 1.2 §5.10.6.7): for a guest that goes on in another VM than the one that its streams began
    /// in. Takes effect on the I/O thread.
    pub fn reset_transport(&self) {
        self.host.reset_transport();
    }
}

/// A device that offers `features`.
fn profile(features: u64) -> Profile {
    Profile {
        id: VIRTIO_ID_VSOCK,
        class: PCI_CLASS,
        features,
        queue_sizes: QUEUE_SIZES.to_vec(),
    }
}

/// The configuration space of the guest whose context is `cid`.
fn config_space(cid: u32) -> Arc<Mutex<ConfigBytes>> {
    Arc::new(Mutex::new(ConfigBytes::new(u64::from(cid).to_le_bytes())))
}

impl VirtioDevice for Vsock {
    fn profile(&self) -> Profile {
        profile(VIRTIO_VSOCK_F_STREAM)
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Vsock
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.host.metrics.clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let (receive, transmit) = (activation.take_ring(0)?, activation.take_ring(1)?);
        let event = activation.take_ring(2).ok();
        let handler = VsockHandler::new(self.cid, self.host.clone(), receive, transmit, event);
        Ok(vec![Box::new(handler)])
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
