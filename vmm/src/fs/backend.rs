//! The vhost-user back-end of a share: what the front-end may ask, and who attends to its queues.
//!
//! There is a thread for each processor, up to four, and one for the queue that must not wait;
//! queues are dealt out to them.

#![expect(
    unsafe_code,
    reason = "vhost-user-backend 0.24 gives descriptors up that nobody closes"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::memory::GuestMemory;
use husk_virtio::fs::config_space;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::{virtio_config, virtio_ring};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::queue::Source;
use super::vring::Vring;
use super::worker_pool::WorkerPool;

/// Request queues that a front-end may use.
const REQUEST_QUEUES: u16 = 32;
/// With the one that must not wait.
pub(super) const QUEUES: u16 = REQUEST_QUEUES + 1;
/// Most entries of a queue (virtio 1.2 §2.7).
const QUEUE_SIZE: usize = 32_768;
/// Most threads that request queues are dealt out to.
const MOST_THREADS: usize = 4;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// A share for one front-end at a time.
pub(super) struct Backend {
    pool: Arc<WorkerPool>,
    /// Configuration space, if the front-end may ask for it (virtio 1.2 §5.11.4).
    config: Option<Vec<u8>>,
    bell: Arc<EventFd>,
    threads: usize,
    /// What the threads of the front-end that is served wait for to end. `vhost_user_backend` takes them as its own,
    /// has its threads watch their numbers, and does not close them (`VringEpollHandler::new` of 0.24).
    exits: Mutex<Vec<RawFd>>,
}

impl Backend {
    /// A share that is served by `pool`, with a tag if the front-end may ask for it.
    ///
    /// # Errors
    /// The host has no eventfd.
    pub fn new(pool: Arc<WorkerPool>, tag: Option<&str>) -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            pool,
            config: tag.map(|tag| config_space(tag, REQUEST_QUEUES)),
            bell: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            threads: processors.clamp(1, MOST_THREADS),
            exits: Mutex::default(),
        })
    }

    /// A front-end will set `vrings` up, in the order of their numbers, in `mem`.
    pub fn begin(&self, vrings: Vec<Vring>, mem: &GuestMemory) {
        for (index, vring) in vrings.into_iter().enumerate() {
            let (mem, bell) = (mem.clone(), self.bell.clone());
            if let Some(queue) = self.pool.queue(index) {
                queue.bring(Source { vring, mem, bell });
            }
        }
    }

    /// Forgets a front-end, whose threads have ended.
    pub fn reset(&self) {
        self.pool.forget();
        for exit in lock(&self.exits).drain(..) {
            // SAFETY: the descriptor was given up by its number, and who watched it has gone: nobody else closes it.
            drop(unsafe { OwnedFd::from_raw_fd(exit) });
        }
    }

    /// The number of the `event`th queue of a thread.
    fn queue_of(&self, thread: usize, event: u16) -> Option<usize> {
        let mask = self.queues_per_thread().get(thread).copied()?;
        (0..usize::from(QUEUES))
            .filter(|index| mask >> index & 1 == 1)
            .nth(event.into())
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << virtio_config::VIRTIO_F_VERSION_1
            | 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
            | 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX
            | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let always = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        match self.config {
            Some(_) => always | VhostUserProtocolFeatures::CONFIG,
            None => always,
        }
    }

    fn reset_device(&self) {
        self.pool.reset();
    }

    /// Each ring knows it.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bounds = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
        let range = bounds.and_then(|(offset, size)| Some(offset..offset.checked_add(size)?));
        let config = self.config.as_deref().unwrap_or_default();
        range.and_then(|range| config.get(range)).unwrap_or_default().to_vec()
    }

    /// The memory is that of [`Backend::begin`], which has changed.
    fn update_memory(&self, _: GuestMemory) -> std::io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        let mut masks = vec![0_u64; self.threads];
        for queue in 0..REQUEST_QUEUES {
            let thread = usize::from(queue) % self.threads;
            if let Some(mask) = masks.get_mut(thread) {
                *mask |= 1 << (queue + 1);
            }
        }
        // The first queue's own.
        masks.insert(0, 1);
        masks
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()?;
        lock(&self.exits).push(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, queue: u32) -> std::io::Result<()> {
        let index = usize::try_from(queue).unwrap_or(usize::MAX);
        self.pool.queue(index).into_iter().for_each(super::queue::Queue::stop);
        Ok(())
    }

    /// An error would end the thread: what is wrong with a queue is its own matter.
    fn handle_event(&self, event: u16, _: EventSet, _: &[Vring], thread: usize) -> std::io::Result<()> {
        let queue = self.queue_of(thread, event);
        queue.into_iter().for_each(|index| self.pool.serve_queue(index));
        Ok(())
    }
}
