//! The I/O thread that hosts one [`Handler`]: an epoll loop, a way to stop it, and what it leaves behind.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Handler, HandlerError, Watch};
use crate::gate::Gate;
use crate::ring::RingState;
use crate::threads::{Plain, Threads};

/// File descriptors reported by one wait; a handler has a few.
const EVENTS_PER_WAIT: usize = 16;

/// What to do when the handler gives up, or there is no thread for it.
pub type OnFailure = Box<dyn FnOnce(HandlerError) + Send>;

/// A running I/O thread. Dropping it stops the thread and waits, so [`Worker::stop`] it before, away from vCPU threads.
pub struct Worker {
    stop: Arc<EventFd>,
    gate: Arc<Gate>,
    outcome: Arc<Outcome>,
}

impl Worker {
    /// As [`Worker::spawn_on`], on a thread like any other.
    ///
    /// # Errors
    /// When the host refuses an eventfd or a thread.
    pub fn spawn(name: &str, handler: Box<dyn Handler>, on_failure: OnFailure) -> io::Result<Self> {
        let threads: Arc<dyn Threads> = Arc::new(Plain);
        Self::spawn_on(&threads, 0, name, handler, on_failure)
    }

    /// Has `threads` start a thread called `name` (cut to 15 bytes), which serves `handler` of a device of virtio ID `device`
    /// until told to stop. Returns at once.
    ///
    /// If the handler gives up, `on_failure` is called on the I/O thread, once; unless it survives, the handler is stopped and the
    /// thread ends. If there turns out to be no thread, the same happens elsewhere.
    ///
    /// # Errors
    /// When the host refuses an eventfd or a thread.
    pub fn spawn_on(
        threads: &Arc<dyn Threads>,
        device: u32,
        name: &str,
        handler: Box<dyn Handler>,
        on_failure: OnFailure,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let outcome = Arc::new(Outcome::new(threads.waker()));
        let gate = Arc::new(Gate::new(threads.waker()));
        let (asked, passed, confiner) = (stop.clone(), gate.clone(), threads.clone());
        let life = Life {
            handler: Some(handler),
            on_failure: Some(on_failure),
            outcome: outcome.clone(),
        };
        threads.start(
            name,
            Box::new(move || life.run(asked, passed, || confiner.confine(device))),
        )?;
        Ok(Self { stop, gate, outcome })
    }

    /// Asks the thread to stop, and returns at once: see [`Worker::is_stopped`]. The waker of its [`Threads`] is woken when it has.
    pub fn stop(&self) {
        self.gate.break_open();
        // Fails only when the counter is full, and then the thread has been asked.
        let _ = self.stop.write(1);
    }

    /// Keeps the handler from being called until [`Worker::release`], and returns at once: see [`Worker::is_held`]. What it has
    /// begun with the host goes on there, and is noticed afterwards.
    pub fn hold(&self) {
        self.gate.shut();
    }

    /// Whether the handler is not called any more after [`Worker::hold`]. The waker of its [`Threads`] is woken when that becomes true.
    pub fn is_held(&self) -> bool {
        self.gate.is_clear() || self.is_stopped()
    }

    /// Lets the handler go on after [`Worker::hold`].
    pub fn release(&self) {
        self.gate.open();
    }

    /// Whether the thread is done with its handler and touches guest memory no more.
    pub fn is_stopped(&self) -> bool {
        self.outcome.ended.load(Ordering::Acquire)
    }

    /// Stops the thread, waits until it is done and returns where its rings stood. Immediate once [`Worker::is_stopped`].
    pub fn join(self) -> Vec<RingState> {
        self.stop();
        self.outcome.wait()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        self.outcome.wait();
    }
}

/// What a thread leaves behind.
struct Outcome {
    /// Set last, once the handler is gone.
    ended: AtomicBool,
    /// Empty also when the handler panicked: its rings died with it.
    rings: Mutex<Vec<RingState>>,
    changed: Condvar,
    waker: Waker,
}

impl Outcome {
    fn new(waker: Waker) -> Self {
        Self {
            ended: AtomicBool::new(false),
            rings: Mutex::default(),
            changed: Condvar::new(),
            waker,
        }
    }

    fn wait(&self) -> Vec<RingState> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.ended.load(Ordering::Acquire) {
            rings = self.changed.wait(rings).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut rings)
    }

    fn end(&self, left: Vec<RingState>) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.extend(left);
        self.ended.store(true, Ordering::Release);
        drop(rings);
        self.changed.notify_all();
        self.waker.wake_by_ref();
    }
}

/// A handler on its way through its thread. However that ends, there is an outcome.
struct Life {
    handler: Option<Box<dyn Handler>>,
    on_failure: Option<OnFailure>,
    outcome: Arc<Outcome>,
}

impl Life {
    fn run(mut self, stop: Arc<EventFd>, gate: Arc<Gate>, confine: impl FnOnce() -> io::Result<()>) {
        let Some(handler) = self.handler.take() else { return };
        let hosted = Hosted {
            handler,
            on_failure: self.on_failure.take(),
            stop,
            gate,
            end: None,
        };
        let (hosted, failure) = serve(hosted, confine);
        self.on_failure = hosted.on_failure;
        self.finish(hosted.handler, failure);
    }

    fn finish(&mut self, handler: Box<dyn Handler>, failure: Option<HandlerError>) {
        if let (Some(error), Some(on_failure)) = (failure, self.on_failure.take()) {
            on_failure(error);
        }
        self.outcome.end(handler.stop());
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(handler) = self.handler.take() {
            let source = io::ErrorKind::OutOfMemory.into();
            let what = "cannot start an I/O thread";
            self.finish(handler, Some(HandlerError::Host { what, source }));
        } else if !self.outcome.ended.load(Ordering::Acquire) {
            self.outcome.end(Vec::new());
        }
    }
}

/// Why a look-up of the subscriber cannot fail.
const ONLY_HERE: &str = "only `serve` removes the subscriber that it added";

/// The epoll loop, confined as soon as the handler has set itself up. Returns what it hosted, and why it gave up if it did.
fn serve(hosted: Hosted, confine: impl FnOnce() -> io::Result<()>) -> (Hosted, Option<HandlerError>) {
    let waiting = |error| HandlerError::Host {
        what: "cannot wait for events",
        source: io::Error::other(error),
    };
    let mut manager = match EventManager::new_with_capacity(EVENTS_PER_WAIT) {
        Ok(manager) => manager,
        Err(error) => return (hosted, Some(waiting(error))),
    };
    let id = manager.add_subscriber(hosted);
    if let Err(source) = confine() {
        let what = "cannot confine an I/O thread";
        let hosted = manager.subscriber_mut(id).expect(ONLY_HERE);
        hosted
            .end
            .get_or_insert(End::Failed(HandlerError::Host { what, source }));
    }
    loop {
        let hosted = manager.subscriber_mut(id).expect(ONLY_HERE);
        if hosted.end.is_some() {
            break;
        }
        if let Err(error) = manager.run() {
            let hosted = manager.subscriber_mut(id).expect(ONLY_HERE);
            hosted.end.get_or_insert(End::Failed(waiting(error)));
        }
    }
    let mut hosted = manager.remove_subscriber(id).expect(ONLY_HERE);
    match hosted.end.take() {
        Some(End::Failed(error)) => (hosted, Some(error)),
        _ => (hosted, None),
    }
}

/// Why the loop ends.
enum End {
    Asked,
    Failed(HandlerError),
}

/// A handler as event-manager sees it.
struct Hosted {
    handler: Box<dyn Handler>,
    on_failure: Option<OnFailure>,
    stop: Arc<EventFd>,
    gate: Arc<Gate>,
    end: Option<End>,
}

impl Hosted {
    /// What an error of the handler means: its end, unless it survives.
    fn judge(&mut self, done: Result<(), HandlerError>, watch: &mut dyn Watch) -> Option<End> {
        let error = done.err()?;
        if !self.handler.survive(watch) {
            return Some(End::Failed(error));
        }
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(error);
        }
        None
    }
}

impl MutEventSubscriber for Hosted {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut watch = Fds(ops);
        let watched = watch
            .readable(self.stop.as_raw_fd(), 0)
            .map_err(|source| HandlerError::Host {
                what: "cannot watch the stop event",
                source,
            })
            .and_then(|()| self.handler.watch(&mut watch));
        self.end = self.judge(watched, &mut watch);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.end.is_some() {
            return;
        }
        if events.fd() == self.stop.as_raw_fd() {
            self.end = Some(End::Asked);
            return;
        }
        let (gate, mut watch) = (self.gate.clone(), Fds(ops));
        self.end = gate.pass(|| {
            let woken = self.handler.wake(events.data(), &mut watch);
            self.judge(woken, &mut watch)
        });
    }
}

struct Fds<'a, 'b>(&'a mut EventOps<'b>);

impl Watch for Fds<'_, '_> {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.0
            .add(Events::with_data_raw(fd, token, EventSet::IN))
            .map_err(io::Error::other)
    }

    fn edges(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        self.0
            .add(Events::with_data_raw(fd, token, edges))
            .map_err(io::Error::other)
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.remove(Events::empty_raw(fd)).map_err(io::Error::other)
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
