//! The socket device with its streams in the host's kernel (vhost-vsock): programs of the host
//! reach the guest by `AF_VSOCK` sockets, and the guest them, by its context on this host.
//!
//! The kernel has the queues for packets. That for events stays here and is never used: nothing but
//! a move to another host breaks the streams of a driver that goes on (virtio 1.2 §5.10.6.7).

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::MetricsSource;

use super::{CIDS, VIRTIO_VSOCK_F_STREAM, VsockError, config_space, profile};
use crate::config::ConfigBytes;
use crate::device::{
    Activation, ConfigAccess, Handler, HandlerError, MemoryListener, Profile, StartError, VirtioDevice,
};
use crate::ring::{Ring, RingState};
use crate::threads::ThreadClass;
use crate::vhost::{Group, OwnQueue, VhostHandler, VhostHandles, VsockRings};

/// Message boundaries (virtio 1.2 §5.10.3): the host's sockets keep them.
const VIRTIO_VSOCK_F_SEQPACKET: u64 = 1 << 1;

/// A vsock device whose context is the guest's address on this host, as long as the device lives.
pub struct KernelVsock {
    config: Arc<Mutex<ConfigBytes>>,
    handles: Arc<VhostHandles>,
}

impl KernelVsock {
    /// A device of context `cid`, whose packets the kernel copies from and to `memory`.
    ///
    /// # Errors
    /// When the context is reserved or in use on this host, or the kernel does not serve it.
    pub fn open(cid: u32, memory: &GuestMemory) -> Result<Self, VsockError> {
        if !CIDS.contains(&cid) {
            return Err(VsockError::Cid { found: cid });
        }
        let rings = VsockRings::open(memory.clone(), cid)?;
        Ok(Self::on(cid, VhostHandles::new(vec![Box::new(rings)], memory.clone())))
    }

    fn on(cid: u32, handles: Arc<VhostHandles>) -> Self {
        let config = config_space(cid);
        Self { config, handles }
    }
}

impl VirtioDevice for KernelVsock {
    fn profile(&self) -> Profile {
        profile(VIRTIO_VSOCK_F_STREAM | self.handles.features() & VIRTIO_VSOCK_F_SEQPACKET)
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Vhost
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.handles.metrics().clone()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn memory_listener(&self) -> Option<Arc<dyn MemoryListener>> {
        Some(self.handles.clone())
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let group = Group::new([activation.take_ring(0)?, activation.take_ring(1)?])?;
        let events = activation.take_ring(2).ok();
        let events = events.map(|ring| Box::new(Events(ring)) as Box<dyn OwnQueue>);
        let (mem, features) = (activation.mem, activation.features);
        let handler = VhostHandler::new(self.handles.clone(), mem, features, vec![group], events);
        Ok(vec![Box::new(handler)])
    }
}

/// The driver's buffers for events, of which there are none.
struct Events(Ring);

impl OwnQueue for Events {
    fn kick(&self) -> RawFd {
        self.0.kick().as_raw_fd()
    }

    fn serve(&mut self) -> Result<(), HandlerError> {
        self.0.take_kick();
        Ok(())
    }

    fn stop(self: Box<Self>) -> RingState {
        self.0.into_state()
    }
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
