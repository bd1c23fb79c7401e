//! virtio network device (virtio 1.2 §5.1) on a tap interface of the host.
//!
//! One handler, one I/O thread for each queue pair: frames go from the tap into the driver's
//! buffers and back without a copy in between, one system call each. Pairs share no lock. Or the
//! host's kernel does that ([`Net::by_kernel`]), and one handler keeps the commands.
//!
//! | queue | carries |
//! |---|---|
//! | 2 n | frames that the guest receives, pair n |
//! | 2 n + 1 | frames that the guest sends, pair n |
//! | after the last pair | commands |
//!
//! | offset | width | configuration field | value |
//! |---|---|---|---|
//! | 0 | 6 | `mac` | the guest's address |
//! | 6 | 2 | `status` | 1: link up; 0: the tap is gone |
//! | 8 | 2 | `max_virtqueue_pairs` | pairs there are |
//! | 10 | 2 | `mtu` | the link's largest packet; 0 if nobody said |
//!
//! | part | what it holds |
//! |---|---|
//! | `tap` | the interface's descriptors |
//! | `features` | offloads: virtio's names and the tap's |
//! | `header` | what precedes each frame, checked |
//! | `rx_buffers`, `rx` | the driver's buffers; receiving |
//! | `tx` | sending |
//! | `doorbells` | what has receiving let go of memory that is gone |
//! | `control` | commands |
//! | `link` | the tap as long as there is one |
//! | `handler` | one pair |
//!
//! Once it runs, a handler makes these system calls and no other: `preadv2`, `pwritev2`, `poll` and
//! `ioctl` (`TUNSETOFFLOAD`, `TUNSETQUEUE`, on commands) on the tap; `read` and `write` on eventfds
//! and a timerfd; `timerfd_settime`; `epoll_wait`; `clock_gettime`.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "a test that cuts its own numbers fails, as it should"
    )
)]

mod control;
mod doorbells;
mod features;
mod handler;
pub mod header;
mod link;
mod metrics;
mod rx;
mod rx_buffers;
mod tap;
mod tx;

use metrics::KernelNetMetrics;
pub use metrics::NetMetrics;
pub use tap::{TapError, check_name as check_tap_name};

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::MetricsSource;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, MemoryListener, Profile, StartError, VirtioDevice};
use crate::rate_limit::{Limiter, LimiterConfig, QueueLimiter};
use crate::ring::Ring;
use crate::threads::ThreadClass;
use crate::vhost::{Group, KernelRings, NetRings, OwnQueue, VhostError, VhostHandler, VhostHandles};
use control::{CommandContext, Control, TapControl};
use doorbells::Doorbells;
use features::has;
use handler::{PairHandler, StartCommands};
use link::TapPort;
use rx::{Receive, RxTerms};
use tap::Tap;
use tx::Transmit;

/// PCI class: network controller, Ethernet.
const PCI_CLASS: u32 = 0x02_00_00;
/// Entries of the control queue: a driver has one command under way.
const CONTROL_SIZE: u16 = 16;
/// Bytes of a MAC address.
const MAC_BYTES: usize = 6;
/// Offsets of what changes in the configuration space.
const MAC: usize = 0;
const STATUS: usize = 6;
/// `status` without and with `VIRTIO_NET_S_LINK_UP`.
const LINK_DOWN: [u8; 2] = [0, 0];
const LINK_UP: [u8; 2] = [1, 0];

/// What a network device shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The guest's MAC address.
    pub mac: [u8; MAC_BYTES],
    /// The link's largest packet, for the guest to know.
    pub mtu: Option<u16>,
    /// Queue pairs, each with its own I/O thread once the driver enables it: 1 to 127.
    pub pairs: u16,
    /// Entries of each queue: a power of two.
    pub queue_size: u16,
    /// Offer checksum offloads, which the two below need.
    pub offload_csum: bool,
    /// Offer TCP segmentation.
    pub offload_tso: bool,
    /// Offer UDP fragmentation and segmentation.
    pub offload_ufo: bool,
    /// How fast the guest may receive, and as fast again send.
    pub limits: LimiterConfig,
}

impl NetConfig {
    /// A device with one queue pair of 256 entries, all offloads, no limits.
    pub fn new(mac: [u8; MAC_BYTES]) -> Self {
        Self {
            mac,
            mtu: None,
            pairs: 1,
            queue_size: 256,
            offload_csum: true,
            offload_tso: true,
            offload_ufo: true,
            limits: LimiterConfig::default(),
        }
    }
}

/// A virtio network device. Holds the tap's descriptors as long as it lives.
pub struct Net {
    config: NetConfig,
    taps: Arc<Taps>,
    features: u64,
    space: Arc<Mutex<ConfigBytes>>,
    rx_limiter: Option<Arc<Limiter>>,
    tx_limiter: Option<Arc<Limiter>>,
    metrics: Arc<NetMetrics>,
    /// Of the threads that move frames.
    doorbells: Arc<Doorbells>,
    /// Who moves frames, if not the threads of this process.
    kernel: Option<Arc<VhostHandles>>,
}

/// One tap for each queue pair.
struct Taps(Vec<Arc<Tap>>);

impl Net {
    /// A device on the tap interface called `name`, which the kernel makes if there is none and this user may.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(config: NetConfig, name: &str) -> Result<Self, TapError> {
        let taps = Tap::open(name, config.pairs)?;
        Ok(Self::new(config, taps))
    }

    /// A device on a tap interface that somebody else has opened: one descriptor for each queue pair.
    ///
    /// # Errors
    /// See [`TapError`].
    ///
    /// # Panics
    /// When there are not as many descriptors as pairs.
    pub fn adopt(config: NetConfig, fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        assert_eq!(fds.len(), usize::from(config.pairs), "one descriptor for each pair");
        let taps = Tap::adopt(fds)?;
        Ok(Self::new(config, taps))
    }

    /// A device that tests can talk to: on sockets that keep frames apart, one for each queue pair,
    /// each in the place of a tap that can do everything. They must be non-blocking.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn on_sockets(config: NetConfig, sockets: Vec<OwnedFd>) -> Self {
        Self::new(config, sockets.into_iter().map(Tap::fake).collect())
    }

    fn new(config: NetConfig, taps: Vec<Tap>) -> Self {
        let known = taps.first().map_or(0, Tap::known_offloads);
        let features = features::offered(&config, known);
        let mut space = Vec::from(config.mac);
        space.extend(LINK_UP);
        space.extend(config.pairs.to_le_bytes());
        space.extend(config.mtu.unwrap_or(0).to_le_bytes());
        let limiter = || Limiter::new(config.limits, Instant::now()).map(Arc::new);
        Self {
            taps: Arc::new(Taps(taps.into_iter().map(Arc::new).collect())),
            features,
            space: Arc::new(Mutex::new(ConfigBytes::new(space))),
            rx_limiter: limiter(),
            tx_limiter: limiter(),
            metrics: Arc::default(),
            doorbells: Arc::default(),
            kernel: None,
            config,
        }
    }

    /// The same device with its frames moved by the host's kernel (vhost-net), which reaches
    /// `memory`. What the kernel does not know is not offered to the driver. There are no limits on
    /// rates: the configuration must have none. A tap that goes away shows nowhere.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn by_kernel(self, memory: &GuestMemory) -> Result<Self, VhostError> {
        let open = |tap: &Arc<Tap>| {
            let rings = NetRings::open(memory.clone(), tap.clone())?;
            Ok(Box::new(rings) as Box<dyn KernelRings>)
        };
        let handles: Result<_, VhostError> = self.taps.0.iter().map(open).collect();
        Ok(self.with_kernel(VhostHandles::new(handles?, memory.clone())))
    }

    /// A device whose rings the kernel serves, one of `handles` for each pair.
    fn with_kernel(self, handles: Arc<VhostHandles>) -> Self {
        // Of all others it knows nothing: they are between the driver and the tap.
        let unknown = (1 << VIRTIO_NET_F_MRG_RXBUF) & !handles.features();
        Self {
            features: self.features & !unknown,
            kernel: Some(handles),
            ..self
        }
    }

    /// What the device has done so far. Stays valid, and keeps counting, while the device runs.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.metrics.clone()
    }

    /// Index of the control queue: behind the pairs that the driver knows of (virtio 1.2 §5.1.2).
    fn control_index(&self, features: u64) -> u16 {
        let pairs = if has(features, VIRTIO_NET_F_MQ) {
            self.config.pairs
        } else {
            1
        };
        pairs.saturating_mul(2)
    }

    fn control(&self, activation: &mut Activation) -> Option<Control> {
        let features = activation.features;
        if !has(features, VIRTIO_NET_F_CTRL_VQ) {
            return None;
        }
        let ring = activation.take_ring(self.control_index(features)).ok()?;
        let commands = CommandContext {
            features,
            pairs: self.config.pairs,
            space: self.space.clone(),
            tap_control: self.taps.clone(),
            metrics: self.metrics.clone(),
        };
        Some(Control::new(ring, commands))
    }

    /// What holds for frames that the driver receives.
    fn terms(&self, features: u64) -> RxTerms {
        RxTerms {
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            checksums: has(features, VIRTIO_NET_F_GUEST_CSUM),
            mtu: self.config.mtu.filter(|_| has(features, VIRTIO_NET_F_MTU)),
        }
    }

    /// What is done on an I/O thread before the first frame.
    fn start_commands(&self, features: u64) -> StartCommands {
        StartCommands {
            tap_control: self.taps.clone(),
            offloads: features::tap_offloads(features),
        }
    }

    /// One handler for all pairs.
    fn start_kernel(
        &self,
        handles: &Arc<VhostHandles>,
        mut activation: Activation,
    ) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let features = activation.features;
        let control = self.control(&mut activation);
        let mut groups = Vec::new();
        for queue in (0..self.config.pairs.saturating_mul(2)).step_by(2) {
            groups.push(match take_pair(&mut activation, queue)? {
                Some((rx, tx)) => Group::new([rx, tx])?,
                None => Group::new([])?,
            });
        }
        let start_commands = self.start_commands(features);
        let own = control.map(|control| Box::new(control) as Box<dyn OwnQueue>);
        let handler = VhostHandler::new(handles.clone(), activation.mem, features, groups, own);
        let handler = handler.after(Box::new(|| start_commands.carry_out()));
        Ok(vec![Box::new(handler)])
    }
}

/// Both rings of the pair from `queue` on, if the driver enabled both.
///
/// # Errors
/// [`StartError::QueueMissing`] for the first pair, without which nothing works.
fn take_pair(activation: &mut Activation, queue: u16) -> Result<Option<(Ring, Ring)>, StartError> {
    match (
        activation.take_ring(queue),
        activation.take_ring(queue.saturating_add(1)),
    ) {
        (Ok(rx), Ok(tx)) => Ok(Some((rx, tx))),
        (Err(missing), _) | (_, Err(missing)) if queue == 0 => Err(missing),
        _ => Ok(None),
    }
}

impl TapControl for Taps {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // They are the interface's, not the queue's; the first queue always takes part.
        self.0.first().map_or(Ok(()), |tap| tap.set_offloads(offloads))
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        let mut taps = self.0.iter().enumerate();
        taps.try_for_each(|(index, tap)| tap.take_part(index < usize::from(pairs)))
    }
}

impl VirtioDevice for Net {
    fn profile(&self) -> Profile {
        let mut queue_sizes = vec![self.config.queue_size; usize::from(self.config.pairs.saturating_mul(2))];
        queue_sizes.push(CONTROL_SIZE);
        Profile {
            id: VIRTIO_ID_NET,
            class: PCI_CLASS,
            features: self.features,
            queue_sizes,
        }
    }

    fn thread_class(&self) -> ThreadClass {
        match self.kernel {
            Some(_) => ThreadClass::Vhost,
            None => ThreadClass::Net,
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        match &self.kernel {
            Some(handles) => Arc::new(KernelNetMetrics {
                rings: handles.metrics().clone(),
                commands: self.metrics.clone(),
            }),
            None => self.metrics.clone(),
        }
    }

    fn memory_listener(&self) -> Option<Arc<dyn MemoryListener>> {
        Some(match &self.kernel {
            Some(handles) => handles.clone(),
            None => self.doorbells.clone(),
        })
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.space.clone()
    }

    /// One handler for every pair whose queues are both enabled; the first one must be.
    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        if let Some(handles) = &self.kernel {
            return self.start_kernel(handles, activation);
        }
        let features = activation.features;
        let link = Arc::new(link::LinkState::new(
            self.space.clone(),
            activation.config_changed.clone(),
        ));
        let mut start_commands = Some(self.start_commands(features));
        let mut control = self.control(&mut activation);
        let mut handlers: Vec<Box<dyn Handler>> = Vec::new();
        let mut doorbells = Vec::new();
        for (queue, tap) in (0u16..).step_by(2).zip(&self.taps.0) {
            let Some((rx, tx)) = take_pair(&mut activation, queue)? else {
                continue;
            };
            doorbells.push(rx.doorbell());
            let port = TapPort {
                tap: tap.clone(),
                link: link.clone(),
                metrics: self.metrics.clone(),
            };
            let rx = Receive::new(rx, QueueLimiter::new(self.rx_limiter.clone()), self.terms(features));
            let tx = Transmit::new(tx, QueueLimiter::new(self.tx_limiter.clone()), features);
            handlers.push(Box::new(PairHandler::new(
                rx,
                tx,
                port,
                start_commands.take(),
                control.take(),
            )));
        }
        self.doorbells.set(doorbells);
        Ok(handlers)
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
