//! A file server with several request queues, each with a thread of its own: what virtiofsd, which has one, cannot show.
//!
//! It lives in the test's process, so the test reads its counts.

mod fuse;

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{Error, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use fuse::Folder;

/// `VIRTIO_F_RING_INDIRECT_DESC`, `VIRTIO_F_RING_EVENT_IDX`, `VIRTIO_F_VERSION_1` (virtio 1.2 §6).
const FEATURES: u64 = 1 << 28 | 1 << 29 | 1 << 32;
const QUEUE_SIZE: usize = 1024;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A server, for one connection.
pub struct QueuesServer {
    service: Arc<Service>,
    thread: JoinHandle<Result<(), Error>>,
}

struct Service {
    folder: Folder,
    /// Requests so far, by queue; the first is for what is urgent.
    requests: Vec<AtomicU64>,
    memory: Memory,
}

impl QueuesServer {
    /// Serves `folder` at `socket` with this many request queues.
    pub fn start(folder: &Path, socket: &Path, queues: usize) -> Self {
        let memory = Memory::new(GuestMemoryMmap::new());
        let service = Arc::new(Service {
            folder: Folder::new(folder),
            requests: (0..=queues).map(|_| AtomicU64::new(0)).collect(),
            memory: memory.clone(),
        });
        let mut listener = Listener::new(socket, true).unwrap();
        let mut daemon = VhostUserDaemon::new("file server".into(), service.clone(), memory).unwrap();
        let thread = thread::spawn(move || {
            daemon.start(&mut listener)?;
            daemon.wait()
        });
        Self { service, thread }
    }

    /// Requests so far, by queue.
    pub fn requests(&self) -> Vec<u64> {
        self.service
            .requests
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect()
    }

    /// Waits until the other end has left.
    pub fn ended(self) {
        match self.thread.join().unwrap() {
            Ok(()) | Err(Error::HandleRequest(vhost::vhost_user::Error::Disconnected)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl Service {
    /// Answers all that waits in a queue.
    fn drain(&self, queue: usize, vring: &VringRwLock) -> io::Result<()> {
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            loop {
                let memory = self.memory.memory();
                let Some(chain) = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone()) else {
                    break;
                };
                let head = chain.head_index();
                let mut request = Vec::new();
                chain
                    .clone()
                    .reader(&memory)
                    .map_err(io::Error::other)?
                    .read_to_end(&mut request)?;
                self.requests[queue].fetch_add(1, Ordering::Relaxed);
                let reply = self.folder.answer(&request).unwrap_or_default();
                let mut writer = chain.writer(&memory).map_err(io::Error::other)?;
                writer.write_all(&reply)?;
                let written = u32::try_from(reply.len()).map_err(io::Error::other)?;
                vring.add_used(head, written).map_err(io::Error::other)?;
                if vring.needs_notification().map_err(io::Error::other)? {
                    vring.signal_used_queue()?;
                }
            }
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl VhostUserBackend for Service {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.requests.len()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// The daemon has put it where [`Service::memory`] finds it.
    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    /// A thread for each queue.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.requests.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[VringRwLock], thread: usize) -> io::Result<()> {
        vrings.iter().try_for_each(|vring| self.drain(thread, vring))
    }
}
