//! A device's connection to its back-end, over the device's whole life.
//!
//! Whoever speaks to the back-end takes the connection for that time, with one deadline for all
//! exchanges. The lock is held for moments only: others wait for the connection until deadlines of
//! their own, or end it, and then whoever is in the middle of an exchange returns at once.

use std::io;
use std::net::Shutdown;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::memory::GuestMemory;
use husk_devices::metrics::{Counter, MetricsSource};
use husk_devices::{error_chain, lock};
use vm_memory::GuestAddressSpace;

use super::channel::REPLY_TIMEOUT;
use super::deadline::Deadline;
use super::doorbell::Doorbell;
use super::error::BackendError;
use super::frontend::Frontend;
use super::late_requests;
use crate::device::{MemoryListener, Retire};
use crate::unix;

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
    /// Requests that the back-end had taken and not ended a second after it gave their queue back.
    pub late_requests: Counter,
    /// Changes of guest RAM that the back-end was told while it served rings.
    pub memory_updates: Counter,
}

impl MetricsSource for VhostUserMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("connects", self.connects.get()),
            ("starts", self.starts.get()),
            ("backend_failures", self.backend_failures.get()),
            ("refused_requests", self.refused_requests.get()),
            ("lost_requests", self.lost_requests.get()),
            ("late_requests", self.late_requests.get()),
            ("memory_updates", self.memory_updates.get()),
        ]
    }
}

/// The connection. Used by the device's I/O thread, and by the thread that changes guest RAM; a
/// vCPU may end it, and speaks to nobody.
#[derive(Debug)]
pub struct Link {
    socket: PathBuf,
    queues: u16,
    /// What the back-end has on each occasion.
    limit: Mutex<Duration>,
    /// What it has for requests whose queue has come back.
    late_limit: Mutex<Duration>,
    metrics: Arc<VhostUserMetrics>,
    /// What the back-end is told, where that is not what the device reaches.
    shared: OnceLock<GuestMemory>,
    state: Mutex<LinkState>,
    /// The connection has come back.
    free: Condvar,
    /// By queue, once it is needed.
    doorbells: Vec<OnceLock<Doorbell>>,
}

/// Who has the connection.
#[derive(Debug, Default)]
struct LinkState {
    /// The back-end while nobody speaks to it, if there is one.
    frontend: Option<Frontend>,
    /// Somebody speaks to it.
    busy: bool,
    /// Memory that has shrunk since then: said by whoever brings the connection back.
    shrunk: Option<GuestMemory>,
    /// What can be hung up meanwhile.
    stream: Option<Arc<UnixStream>>,
    /// The device is on its way out: there is no other connection after this one.
    retired: bool,
}

impl Link {
    /// Connects to the back-end that listens at `socket` and has to serve `queues` virtqueues. One
    /// that does not listen yet has `patience` to begin.
    ///
    /// # Errors
    /// See [`BackendError`]. With it, the error does not name the socket: the caller knows it.
    pub fn connect(socket: &Path, queues: u16, patience: Duration) -> Result<Arc<Self>, BackendError> {
        let deadline = Instant::now().checked_add(patience);
        let stream = loop {
            match unix::connect(socket) {
                Err(error) if is_early(&error) && deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                    thread::sleep(RETRY);
                }
                dialled => break dialled.map_err(BackendError::Connect)?,
            }
        };
        Self::from_stream(stream, socket, queues, REPLY_TIMEOUT)
    }

    /// Comes to terms with a back-end over a connection that is already made.
    pub(crate) fn from_stream(
        stream: UnixStream,
        socket: &Path,
        queues: u16,
        limit: Duration,
    ) -> Result<Arc<Self>, BackendError> {
        let metrics = Arc::<VhostUserMetrics>::default();
        let stream = Arc::new(stream);
        let frontend = Frontend::negotiate(stream.clone(), Deadline::after(limit), queues)?;
        metrics.connects.inc();
        Ok(Arc::new(Self {
            socket: socket.to_owned(),
            queues,
            limit: Mutex::new(limit),
            late_limit: Mutex::new(late_requests::LIMIT),
            metrics,
            shared: OnceLock::new(),
            state: Mutex::new(LinkState {
                frontend: Some(frontend),
                stream: Some(stream),
                ..LinkState::default()
            }),
            free: Condvar::new(),
            doorbells: vec![OnceLock::new(); queues.into()],
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

    /// The doorbell of `queue`, always the same one. Made when first needed.
    pub(crate) fn doorbell(&self, queue: u16) -> io::Result<Doorbell> {
        let place = self.doorbells.get(usize::from(queue));
        let place = place.ok_or_else(|| io::Error::other(format!("the device has no queue {queue}")))?;
        if let Some(doorbell) = place.get() {
            return Ok(doorbell.clone());
        }
        let made = Doorbell::new()?;
        Ok(place.get_or_init(|| made).clone())
    }

    /// Whether [`Retire::retire`] was called.
    pub(super) fn is_retired(&self) -> bool {
        self.state().retired
    }

    /// Ends this connection, whoever has it.
    pub(super) fn hang_up(&self) {
        self.state().hang_up();
    }

    /// Ends this connection and closes it, or leaves that to whoever has it.
    pub(super) fn close(&self) {
        match self.acquire() {
            Ok(mut connection) => connection.close(),
            Err(_) => self.hang_up(),
        }
    }

    /// The connection for all that is to be said now, which has the usual time in all.
    pub(super) fn acquire(&self) -> Result<LinkGuard<&Self>, BackendError> {
        LinkGuard::acquire_until(self, Deadline::after(self.limit()))
    }

    /// As [`Link::acquire`], for what may be answered after the caller has returned.
    pub(super) fn acquire_owned(self: &Arc<Self>) -> Result<LinkGuard<Arc<Self>>, BackendError> {
        LinkGuard::acquire_until(self.clone(), Deadline::after(self.limit()))
    }

    fn limit(&self) -> Duration {
        *lock(&self.limit)
    }

    /// How long requests are waited for whose queue has come back.
    pub(super) fn late_limit(&self) -> Duration {
        *lock(&self.late_limit)
    }

    /// Gives such requests `limit` from the next wait on.
    #[cfg(test)]
    pub(super) fn set_late_limit(&self, limit: Duration) {
        *lock(&self.late_limit) = limit;
    }

    /// Gives the back-end `limit` from the next occasion on.
    #[cfg(test)]
    pub(super) fn set_limit(&self, limit: Duration) {
        *lock(&self.limit) = limit;
    }

    /// A new connection, unless the device is on its way out.
    fn reconnect(&self) -> Result<Arc<UnixStream>, BackendError> {
        if self.state().retired {
            return Err(BackendError::Gone(None));
        }
        let stream = Arc::new(unix::connect(&self.socket).map_err(BackendError::Connect)?);
        let mut state = self.state();
        state.stream = Some(stream.clone());
        if state.retired {
            state.hang_up();
        }
        Ok(stream)
    }

    /// `error` for somebody who knows nothing of the socket.
    fn named(&self, error: &BackendError) -> io::Error {
        io::Error::other(format!("{}: {}", self.socket.display(), error_chain(error)))
    }

    /// Tells the back-end, to whom nobody else speaks, which memory is gone. Waits for nothing.
    fn give_up_memory(&self, state: &mut LinkState, memory: &GuestMemory) -> Result<(), BackendError> {
        // One that is not there is told everything when it comes.
        let Some(frontend) = &mut state.frontend else {
            return Ok(());
        };
        frontend.set_deadline(Deadline::after(Duration::ZERO));
        let told = match frontend.check() {
            Ok(()) => frontend.give_up_memory(&memory.memory()),
            Err(_) => Ok(false),
        };
        if frontend.is_lost() {
            // Whoever serves the device's rings, if there are any, sees it, too.
            frontend.hang_up();
        }
        if told? {
            self.metrics.memory_updates.inc();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }
}

impl LinkState {
    fn hang_up(&self) {
        if let Some(stream) = &self.stream {
            // Fails only when the other end has gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A link that is in use.
pub(super) struct LinkGuard<L: Deref<Target = Link>> {
    link: L,
    deadline: Deadline,
    frontend: Option<Frontend>,
}

impl<L: Deref<Target = Link>> LinkGuard<L> {
    /// The connection of `link`, when nobody else has it any more, for all that can be said until `deadline`.
    fn acquire_until(link: L, deadline: Deadline) -> Result<Self, BackendError> {
        let mut state = link.state();
        while state.busy {
            let Some(left) = deadline.left() else {
                let limit = deadline.limit();
                return Err(BackendError::Busy { limit });
            };
            let waited = link.free.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = true;
        let frontend = state.frontend.take();
        drop(state);
        let mut connection = Self {
            link,
            deadline,
            frontend,
        };
        connection.set_deadline(deadline);
        Ok(connection)
    }

    /// Another occasion, with the usual time in all from now on.
    pub fn renew(&mut self) {
        self.set_deadline(Deadline::after(self.link.limit()));
    }

    fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
        if let Some(frontend) = &mut self.frontend {
            frontend.set_deadline(deadline);
        }
    }

    /// A back-end that can be spoken to: a new one if the last one has gone.
    pub fn ready(&mut self) -> Result<&mut Frontend, BackendError> {
        let usable = self.frontend.as_mut().is_some_and(|frontend| frontend.check().is_ok());
        if !usable {
            self.close();
            let dialled = self.link.reconnect();
            match dialled.and_then(|stream| Frontend::negotiate(stream, self.deadline, self.link.queues)) {
                Ok(frontend) => self.frontend = Some(frontend),
                Err(error) => {
                    self.close();
                    return Err(error);
                }
            }
            self.link.metrics.connects.inc();
        }
        self.present()
    }

    /// The back-end as it is.
    pub fn present(&mut self) -> Result<&mut Frontend, BackendError> {
        self.frontend.as_mut().ok_or(BackendError::Gone(None))
    }

    /// Whether there is an answer to what was asked, or will be none.
    pub fn has_answered(&self) -> bool {
        self.frontend.as_ref().is_none_or(Frontend::has_answered)
    }

    /// Ends the connection.
    pub fn close(&mut self) {
        self.frontend = None;
        self.link.state().stream = None;
    }
}

impl<L: Deref<Target = Link>> Drop for LinkGuard<L> {
    fn drop(&mut self) {
        let mut state = self.link.state();
        state.frontend = self.frontend.take();
        state.busy = false;
        if let Some(memory) = state.shrunk.take()
            && let Err(error) = self.link.give_up_memory(&mut state, &memory)
        {
            let socket = self.link.socket.display();
            log::warn!(
                "{socket}: it is not told of memory that is gone: {}",
                error_chain(&error)
            );
        }
        drop(state);
        self.link.free.notify_one();
    }
}

impl Retire for Link {
    /// Ends the connection for good: whoever speaks over it returns at once, and there will be no other. Waits for
    /// nobody.
    fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        state.hang_up();
    }
}

impl MemoryListener for Link {
    fn memory_added(&self, memory: &GuestMemory, deadline: Instant) -> io::Result<()> {
        let changed = LinkGuard::acquire_until(self, Deadline::at(deadline)).and_then(|mut connection| {
            // One that is not there is told everything when it comes.
            let Ok(frontend) = connection.present() else {
                return Ok(false);
            };
            if frontend.check().is_err() {
                // Whoever serves the device's rings, if there are any, sees it, too.
                frontend.hang_up();
                return Ok(false);
            }
            let changed = frontend.set_memory(&memory.memory());
            if frontend.is_lost() {
                // The I/O thread hears of it and does the rest.
                frontend.hang_up();
            }
            changed
        });
        match changed {
            Ok(true) => self.metrics.memory_updates.inc(),
            Ok(false) => {}
            Err(error) => return Err(self.named(&error)),
        }
        Ok(())
    }

    fn memory_removed(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut state = self.state();
        if state.busy {
            state.shrunk = Some(memory.clone());
            return Ok(());
        }
        self.give_up_memory(&mut state, memory)
            .map_err(|error| self.named(&error))
    }
}

/// Whether nobody listens yet.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}
