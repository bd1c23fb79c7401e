//! A file server with several request queues, each with a thread of its own: what virtiofsd, which
//! has one, cannot show.
//!
//! It lives in the test's process, so the test reads its counts, and decides when two requests must
//! be in progress at once.

mod fuse;

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{Error, ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use fuse::Folder;

/// `VIRTIO_F_RING_INDIRECT_DESC`, `VIRTIO_F_RING_EVENT_IDX`, `VIRTIO_F_VERSION_1` (virtio 1.2 §6).
const FEATURES: u64 = 1 << 28 | 1 << 29 | 1 << 32;
const QUEUE_SIZE: usize = 1024;

/// How long a request waits for one on the other queue.
const ALONE: Duration = Duration::from_secs(60);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What becomes of a request for a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// An answer.
    Prompt,
    /// An answer as soon as each request queue has one in progress.
    Together,
    /// No answer: the server leaves as soon as each request queue has one in progress.
    Leave,
}

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
    meeting: Mutex<Meeting>,
    changed: Condvar,
    way_out: OnceLock<ShutdownHandle>,
}

struct Meeting {
    manner: Manner,
    /// The queues that have a request in progress.
    here: Vec<usize>,
}

impl QueuesServer {
    /// Serves `folder` at `socket` with this many request queues.
    pub fn start(folder: &Path, socket: &Path, queues: usize) -> Self {
        let memory = Memory::new(GuestMemoryMmap::new());
        let service = Arc::new(Service {
            folder: Folder::new(folder),
            requests: (0..=queues).map(|_| AtomicU64::new(0)).collect(),
            memory: memory.clone(),
            meeting: Mutex::new(Meeting {
                manner: Manner::Prompt,
                here: Vec::new(),
            }),
            changed: Condvar::new(),
            way_out: OnceLock::new(),
        });
        let mut listener = Listener::new(socket, true).unwrap();
        let mut daemon = VhostUserDaemon::new("file server".into(), service.clone(), memory).unwrap();
        let known = service.clone();
        let thread = thread::spawn(move || {
            daemon.start(&mut listener)?;
            if let Some(handle) = daemon.shutdown_handle() {
                let _ = known.way_out.set(handle);
            }
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

    /// Whether each request queue has had a request for content in progress while the others had.
    pub fn met(&self) -> bool {
        self.service.meeting().here.len() + 1 == self.service.requests.len()
    }

    /// From now on.
    pub fn behave(&self, manner: Manner) {
        let mut meeting = self.service.meeting();
        *meeting = Meeting {
            manner,
            here: Vec::new(),
        };
    }

    /// Waits until the other end, or the server itself, has left.
    pub fn ended(self) {
        match self.thread.join().unwrap() {
            Ok(()) | Err(Error::HandleRequest(vhost::vhost_user::Error::Disconnected)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

impl Service {
    fn meeting(&self) -> std::sync::MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
                if fuse::opcode(&request) == Some(fuse::READ) {
                    self.meet(queue)?;
                }
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

    /// Does with a request for content what the [`Manner`] asks for.
    fn meet(&self, queue: usize) -> io::Result<()> {
        let mut meeting = self.meeting();
        if meeting.manner == Manner::Prompt {
            return Ok(());
        }
        if !meeting.here.contains(&queue) {
            meeting.here.push(queue);
        }
        let all = self.requests.len() - 1;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(meeting, ALONE, |meeting| meeting.here.len() < all);
        let (mut meeting, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            meeting.here.retain(|here| *here != queue);
            return Ok(());
        }
        if meeting.manner == Manner::Leave {
            self.way_out.get().into_iter().for_each(ShutdownHandle::shutdown);
            return Err(io::Error::other("leaving"));
        }
        Ok(())
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
