//! A device's connection to its back-end, over the device's whole life.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::{Counter, Metered};
use vm_memory::GuestAddressSpace;

use super::channel::REPLY_TIMEOUT;
use super::error::BackendError;
use super::frontend::Frontend;
use super::socket::dial;
use crate::device::MemoryListener;

/// How often a socket that nobody listens at yet is tried.
const RETRY: Duration = Duration::from_millis(10);

/// What a vhost-user device has done since it was made.
#[derive(Debug, Default)]
pub struct VhostUserMetrics {
    /// Connections made and agreed on.
    pub connects: Counter,
    /// Times that all rings were handed over.
    pub starts: Counter,
    /// Times that the back-end left, refused, kept silent or talked nonsense.
    pub backend_failures: Counter,
    /// Requests answered with an error because there was no back-end: those it owed, and those that came later.
    pub refused_requests: Counter,
    /// Requests that a back-end owed when it left, and that could not be found.
    pub lost_requests: Counter,
    /// Changes of guest RAM that the back-end was told while it served rings.
    pub memory_updates: Counter,
}

impl Metered for VhostUserMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("connects", self.connects.get()),
            ("starts", self.starts.get()),
            ("backend_failures", self.backend_failures.get()),
            ("refused_requests", self.refused_requests.get()),
            ("lost_requests", self.lost_requests.get()),
            ("memory_updates", self.memory_updates.get()),
        ]
    }
}

/// The connection. Used by the device's I/O thread, and by the thread that changes guest RAM; never by a vCPU.
#[derive(Debug)]
pub struct Link {
    socket: PathBuf,
    queues: u16,
    limit: Duration,
    metrics: Arc<VhostUserMetrics>,
    frontend: Mutex<Option<Frontend>>,
    /// What the back-end is told, where that is not what the device reaches.
    shared: OnceLock<GuestMemory>,
}

impl Link {
    /// Connects to the back-end that listens at `socket` and has to serve `queues` virtqueues. One that does not listen yet has
    /// `patience` to begin.
    ///
    /// # Errors
    /// See [`BackendError`]. With it, the error does not name the socket: the caller knows it.
    pub fn connect(socket: &Path, queues: u16, patience: Duration) -> Result<Arc<Self>, BackendError> {
        let deadline = Instant::now().checked_add(patience);
        let stream = loop {
            match dial(socket) {
                Err(error) if is_early(&error) && deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                    thread::sleep(RETRY);
                }
                dialled => break dialled.map_err(BackendError::Connect)?,
            }
        };
        Self::over(stream, socket, queues, REPLY_TIMEOUT)
    }

    /// Comes to terms with a back-end over a connection that is already made.
    pub(crate) fn over(
        stream: UnixStream,
        socket: &Path,
        queues: u16,
        limit: Duration,
    ) -> Result<Arc<Self>, BackendError> {
        let metrics = Arc::<VhostUserMetrics>::default();
        let frontend = Frontend::negotiate(stream, limit, queues)?;
        metrics.connects.inc();
        Ok(Arc::new(Self {
            socket: socket.to_owned(),
            queues,
            limit,
            metrics,
            frontend: Mutex::new(Some(frontend)),
            shared: OnceLock::new(),
        }))
    }

    /// What the device counts.
    pub fn metrics(&self) -> &Arc<VhostUserMetrics> {
        &self.metrics
    }

    /// Has the back-end told of `memory` whenever rings are handed over, in place of what the device reaches. Once.
    pub fn share(&self, memory: GuestMemory) {
        let _ = self.shared.set(memory);
    }

    /// What the back-end is told of, if it was said.
    pub(super) fn shared(&self) -> Option<&GuestMemory> {
        self.shared.get()
    }

    /// The socket's path.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection for one exchange or a few, each bounded in time.
    pub(super) fn lock(&self) -> Connection<'_> {
        // A connection that somebody panicked with is one whose next answer does not fit.
        Connection {
            link: self,
            frontend: self.frontend.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// A link that is in use.
pub(super) struct Connection<'a> {
    link: &'a Link,
    frontend: MutexGuard<'a, Option<Frontend>>,
}

impl Connection<'_> {
    /// A back-end that can be spoken to: a new one if the last one has gone.
    pub fn ready(&mut self) -> Result<&mut Frontend, BackendError> {
        let usable = self.frontend.as_mut().is_some_and(|frontend| frontend.check().is_ok());
        if !usable {
            *self.frontend = None;
            let stream = dial(&self.link.socket).map_err(BackendError::Connect)?;
            let frontend = Frontend::negotiate(stream, self.link.limit, self.link.queues)?;
            self.link.metrics.connects.inc();
            *self.frontend = Some(frontend);
        }
        self.present()
    }

    /// The back-end as it is.
    pub fn present(&mut self) -> Result<&mut Frontend, BackendError> {
        self.frontend.as_mut().ok_or(BackendError::Gone(None))
    }

    /// Ends the connection.
    pub fn close(&mut self) {
        *self.frontend = None;
    }
}

impl MemoryListener for Link {
    fn memory_changed(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut connection = self.lock();
        // One that is not there is told everything when it comes.
        let Ok(frontend) = connection.present() else {
            return Ok(());
        };
        match frontend.set_memory(&memory.memory()) {
            Ok(changed) => {
                if changed {
                    self.metrics.memory_updates.inc();
                }
                Ok(())
            }
            Err(error) => {
                // Without that memory it would fail later, and in a worse place. The I/O thread hears of it and does the rest.
                frontend.hang_up();
                Err(io::Error::other(error))
            }
        }
    }
}

/// Whether nobody listens yet.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}
