//! The I/O thread that hosts one [`Handler`]: an epoll loop, a way to stop it, and what it leaves behind.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Handler, HandlerError, Watch};
use crate::ring::RingState;

/// Stack of an I/O thread. Requests live on the heap; what is not touched is not resident.
const STACK_BYTES: usize = 128 << 10;
/// A thread name in Linux has room for 15 bytes.
const NAME_BYTES: usize = 15;
/// File descriptors reported by one wait; a handler has a few.
const EVENTS_PER_WAIT: usize = 16;

/// A running I/O thread. Dropping it stops the thread and waits, so [`Worker::stop`] it before, away from vCPU threads.
pub struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Vec<RingState>>>,
}

impl Worker {
    /// Starts a thread called `name` (cut to 15 bytes) that serves `handler` until told to stop.
    ///
    /// If the handler gives up, `on_failure` is called on the I/O thread, the handler is stopped and the thread ends.
    ///
    /// # Errors
    /// When the host refuses an eventfd or a thread.
    pub fn spawn(
        name: &str,
        handler: Box<dyn Handler>,
        on_failure: Box<dyn FnOnce(HandlerError) + Send>,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let asked = stop.clone();
        let thread = Builder::new()
            .name(
                name.chars()
                    .take(NAME_BYTES)
                    .filter(|c| c.is_ascii() && *c != '\0')
                    .collect(),
            )
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let (handler, failure) = serve(handler, asked);
                if let Some(error) = failure {
                    on_failure(error);
                }
                handler.stop()
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Asks the thread to stop, and returns at once: see [`Worker::is_stopped`].
    pub fn stop(&self) {
        // Fails only when the counter is full, and then the thread has been asked.
        let _ = self.stop.write(1);
    }

    /// Whether the thread has ended and touches guest memory no more.
    pub fn is_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops the thread, waits for its end and returns where its rings stood. Immediate once [`Worker::is_stopped`].
    pub fn join(mut self) -> Vec<RingState> {
        self.finish()
    }

    fn finish(&mut self) -> Vec<RingState> {
        self.stop();
        // A panicked handler leaves no positions; its rings died with it.
        self.thread
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Why a look-up of the subscriber cannot fail.
const ONLY_HERE: &str = "only `serve` removes the subscriber that it added";

/// The epoll loop. Returns the handler, and why it gave up if it did.
fn serve(handler: Box<dyn Handler>, stop: Arc<EventFd>) -> (Box<dyn Handler>, Option<HandlerError>) {
    let waiting = |error| HandlerError::Host {
        what: "cannot wait for events",
        source: io::Error::other(error),
    };
    let mut manager = match EventManager::new_with_capacity(EVENTS_PER_WAIT) {
        Ok(manager) => manager,
        Err(error) => return (handler, Some(waiting(error))),
    };
    let id = manager.add_subscriber(Hosted {
        handler,
        stop,
        end: None,
    });
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
    let hosted = manager.remove_subscriber(id).expect(ONLY_HERE);
    match hosted.end {
        Some(End::Failed(error)) => (hosted.handler, Some(error)),
        _ => (hosted.handler, None),
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
    stop: Arc<EventFd>,
    end: Option<End>,
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
        self.end = watched.err().map(End::Failed);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.end.is_some() {
            return;
        }
        if events.fd() == self.stop.as_raw_fd() {
            self.end = Some(End::Asked);
            return;
        }
        self.end = self.handler.wake(events.data(), &mut Fds(ops)).err().map(End::Failed);
    }
}

struct Fds<'a, 'b>(&'a mut EventOps<'b>);

impl Watch for Fds<'_, '_> {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.0
            .add(Events::with_data_raw(fd, token, EventSet::IN))
            .map_err(io::Error::other)
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.remove(Events::empty_raw(fd)).map_err(io::Error::other)
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
