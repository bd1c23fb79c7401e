//! The I/O thread that hosts one [`Handler`]: an epoll loop, a way to stop it, and what it leaves behind.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use husk_devices::lock;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Handler, HandlerError, Hold, Watch};
use crate::hold_point::{HoldPoint, State};
use crate::ring::RingState;
use crate::threads::{ThreadClass, Threads, UnconfinedThreads};

/// File descriptors reported by one wait; a handler has a few.
const EVENTS_PER_WAIT: usize = 16;

/// What to do when the handler gives up, or there is no thread for it.
pub type OnFailure = Box<dyn FnOnce(HandlerError) + Send>;

/// A running I/O thread. Dropping it stops the thread and waits, so [`Worker::stop`] it before, away from vCPU threads.
pub struct Worker {
    /// Readable whenever the hold point has changed.
    wakeup: Arc<EventFd>,
    hold_point: Arc<HoldPoint>,
    outcome: Arc<Outcome>,
}

impl Worker {
    /// As [`Worker::spawn_on`], on a thread like any other.
    ///
    /// # Errors
    /// When the host refuses an eventfd or a thread.
    pub fn spawn(name: &str, handler: Box<dyn Handler>, on_failure: OnFailure) -> io::Result<Self> {
        let threads: Arc<dyn Threads> = Arc::new(UnconfinedThreads);
        Self::spawn_on(&threads, ThreadClass::Stream, name, handler, on_failure)
    }

    /// Has `threads` start a thread called `name` (cut to 15 bytes), which serves `handler` of a device whose threads
    /// are of `thread_class` until told to stop. Returns at once.
    ///
    /// If the handler gives up, `on_failure` is called on the I/O thread, once; unless it survives,
    /// the handler is stopped and the thread ends. If there turns out to be no thread, the same
    /// happens elsewhere.
    ///
    /// # Errors
    /// When the host refuses an eventfd or a thread.
    pub fn spawn_on(
        threads: &Arc<dyn Threads>,
        thread_class: ThreadClass,
        name: &str,
        handler: Box<dyn Handler>,
        on_failure: OnFailure,
    ) -> io::Result<Self> {
        let wakeup = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let outcome = Arc::new(Outcome::new(threads.waker()));
        let hold_point = Arc::new(HoldPoint::new(threads.waker()));
        let (rung, passed, confiner) = (wakeup.clone(), hold_point.clone(), threads.clone());
        let thread = HandlerThread {
            handler: Some(handler),
            on_failure: Some(on_failure),
            outcome: outcome.clone(),
        };
        threads.start(
            name,
            Box::new(move || thread.run(rung, passed, || confiner.confine(thread_class))),
        )?;
        Ok(Self {
            wakeup,
            hold_point,
            outcome,
        })
    }

    /// Asks the thread to stop, and returns at once: see [`Worker::is_stopped`]. The waker of its
    /// [`Threads`] is woken when it has.
    pub fn stop(&self) {
        self.hold_point.end();
        self.ring();
    }

    /// Asks the thread to finish what its handler has begun, here and elsewhere, and to begin
    /// nothing more until [`Worker::release`]. Returns at once: see [`Worker::is_held`].
    pub fn hold(&self) {
        self.hold_point.request_hold();
        self.ring();
    }

    /// Whether nothing of the handler writes guest memory any more after [`Worker::hold`]. The
    /// waker of its [`Threads`] is woken when that becomes true. It does not if the handler gives
    /// up instead.
    pub fn is_held(&self) -> bool {
        self.hold_point.state() == State::Held || self.is_stopped()
    }

    /// Lets the handler go on after [`Worker::hold`], whether or not it is held yet.
    pub fn release(&self) {
        self.hold_point.release();
        // A handler whose hold is pending is not at the hold point.
        self.ring();
    }

    fn ring(&self) {
        // Fails only when the counter is full, and then it rings anyway.
        let _ = self.wakeup.write(1);
    }

    /// Whether the thread is done with its handler and touches guest memory no more.
    pub fn is_stopped(&self) -> bool {
        self.outcome.ended.load(Ordering::Acquire)
    }

    /// Stops the thread, waits until it is done and returns where its rings stood. Immediate once
    /// [`Worker::is_stopped`].
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
        let mut rings = lock(&self.rings);
        while !self.ended.load(Ordering::Acquire) {
            rings = self.changed.wait(rings).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::take(&mut rings)
    }

    fn end(&self, left: Vec<RingState>) {
        let mut rings = lock(&self.rings);
        rings.extend(left);
        self.ended.store(true, Ordering::Release);
        drop(rings);
        self.changed.notify_all();
        self.waker.wake_by_ref();
    }
}

/// A handler on its way through its thread. However that ends, there is an outcome.
struct HandlerThread {
    handler: Option<Box<dyn Handler>>,
    on_failure: Option<OnFailure>,
    outcome: Arc<Outcome>,
}

impl HandlerThread {
    fn run(mut self, wakeup: Arc<EventFd>, hold_point: Arc<HoldPoint>, confine: impl FnOnce() -> io::Result<()>) {
        let Some(handler) = self.handler.take() else { return };
        let subscriber = HandlerSubscriber {
            handler,
            on_failure: self.on_failure.take(),
            wakeup,
            hold_point,
            holding: false,
            end: None,
        };
        let (subscriber, failure) = serve(subscriber, confine);
        self.on_failure = subscriber.on_failure;
        self.finish(subscriber.handler, failure);
    }

    fn finish(&mut self, handler: Box<dyn Handler>, failure: Option<HandlerError>) {
        if let (Some(error), Some(on_failure)) = (failure, self.on_failure.take()) {
            on_failure(error);
        }
        self.outcome.end(handler.stop());
    }
}

impl Drop for HandlerThread {
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

/// The epoll loop, confined as soon as the handler has set itself up. Returns the subscriber, and why it gave up if it
/// did.
fn serve(
    subscriber: HandlerSubscriber,
    confine: impl FnOnce() -> io::Result<()>,
) -> (HandlerSubscriber, Option<HandlerError>) {
    let waiting = |error| HandlerError::Host {
        what: "cannot wait for events",
        source: io::Error::other(error),
    };
    let mut manager = match EventManager::new_with_capacity(EVENTS_PER_WAIT) {
        Ok(manager) => manager,
        Err(error) => return (subscriber, Some(waiting(error))),
    };
    let id = manager.add_subscriber(subscriber);
    if let Err(source) = confine() {
        let what = "cannot confine an I/O thread";
        let subscriber = manager.subscriber_mut(id).expect(ONLY_HERE);
        subscriber
            .end
            .get_or_insert(End::Failed(HandlerError::Host { what, source }));
    }
    loop {
        let subscriber = manager.subscriber_mut(id).expect(ONLY_HERE);
        if subscriber.end.is_some() {
            break;
        }
        if let Err(error) = manager.run() {
            let subscriber = manager.subscriber_mut(id).expect(ONLY_HERE);
            subscriber.end.get_or_insert(End::Failed(waiting(error)));
        }
    }
    let mut subscriber = manager.remove_subscriber(id).expect(ONLY_HERE);
    match subscriber.end.take() {
        Some(End::Failed(error)) => (subscriber, Some(error)),
        _ => (subscriber, None),
    }
}

/// Why the loop ends.
enum End {
    Asked,
    Failed(HandlerError),
}

/// A handler as event-manager sees it.
struct HandlerSubscriber {
    handler: Box<dyn Handler>,
    on_failure: Option<OnFailure>,
    wakeup: Arc<EventFd>,
    hold_point: Arc<HoldPoint>,
    /// The handler was asked to hold, and neither released since then nor given up.
    holding: bool,
    end: Option<End>,
}

impl HandlerSubscriber {
    /// Does what the hold point says.
    fn follow_hold_point(&mut self, watch: &mut dyn Watch) -> Option<End> {
        let mut state = self.hold_point.state();
        if state == State::HoldRequested {
            self.holding = true;
            match self.handler.hold(watch) {
                Ok(Hold::Held) => state = self.hold_point.wait_while_held(),
                // What has begun ends when it ends; until then whoever asked may call it off, or end the thread.
                Ok(Hold::Pending) => return None,
                Err(error) => return self.end_of(Err(error), watch),
            }
        }
        if state == State::Ended {
            return Some(End::Asked);
        }
        if !std::mem::take(&mut self.holding) {
            return None;
        }
        let released = self.handler.release(watch);
        self.end_of(released, watch)
    }

    /// What an error of the handler means: its end, unless it survives. One that gives up while it is asked to hold is
    /// not held: whoever asked learns that it does not come.
    fn end_of(&mut self, done: Result<(), HandlerError>, watch: &mut dyn Watch) -> Option<End> {
        let error = done.err()?;
        self.holding = false;
        if !self.handler.survive(watch) {
            return Some(End::Failed(error));
        }
        if let Some(on_failure) = self.on_failure.take() {
            on_failure(error);
        }
        None
    }
}

impl MutEventSubscriber for HandlerSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut watch = Fds(ops);
        let watched = watch
            .readable(self.wakeup.as_raw_fd(), 0)
            .map_err(|source| HandlerError::Host {
                what: "cannot watch for requests to stop",
                source,
            })
            .and_then(|()| self.handler.watch(&mut watch));
        self.end = self.end_of(watched, &mut watch);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.end.is_some() {
            return;
        }
        let mut watch = Fds(ops);
        if events.fd() == self.wakeup.as_raw_fd() {
            // Before looking at the hold point: a change after that wakes again.
            let _ = self.wakeup.read();
            return self.end = self.follow_hold_point(&mut watch);
        }
        let woken = self.handler.wake(events.data(), &mut watch);
        self.end = self.end_of(woken, &mut watch);
        if self.holding && self.end.is_none() {
            self.end = self.follow_hold_point(&mut watch);
        }
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
