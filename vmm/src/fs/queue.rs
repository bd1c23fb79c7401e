//! A virtqueue in service: its ring between the threads that serve it, and the requests in it that wait for a lock.
//!
//! A front-end that takes its ring back to pause the VM brings it again as it was: the ring and the
//! requests that wait are kept until then, and are thrown away when another ring comes in its
//! place.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use husk_devices::lock;
use husk_devices::memory::GuestMemory;
use husk_virtio::fs::serve::{Outcome, RETRY, Serve, most_waiting, refuse};
use husk_virtio::ring::{Chain, Notify, Ring, RingError, RingState};
use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::vring::Vring;

/// A virtqueue.
pub(super) struct Queue {
    index: u16,
    state: Mutex<State>,
    /// Told when the last thread has finished.
    finished: Condvar,
    /// Requests taken, ever.
    taken: AtomicU64,
}

/// What a front-end sets up.
pub(super) struct Source {
    /// The virtqueue.
    pub vring: Vring,
    /// The guest's memory, which is empty at first.
    pub mem: GuestMemory,
    /// Rung by a ring whose turn is over, and heard by nobody.
    pub bell: Arc<EventFd>,
}

#[derive(Default)]
struct State {
    ring: Option<Ring>,
    /// Of the front-end that there is.
    source: Option<Source>,
    /// Requests may be taken.
    running: bool,
    /// Somebody waits until threads have finished, and means to change what is here.
    resting: bool,
    /// Requests that threads have.
    serving: usize,
    waiting: Vec<Waiting>,
    /// Those of them that threads have for another try: their places are kept.
    tried: usize,
    /// The ring broke the rules, and is left alone until the front-end has it back.
    broken: bool,
}

struct Waiting {
    chain: Chain,
    generation: u64,
    since: Instant,
}

/// What is to be done for a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Requests that nobody has taken.
    pub backlog: u16,
    /// Requests that threads have.
    pub serving: usize,
    /// Requests taken, ever.
    pub taken: u64,
    /// Requests that wait for a lock.
    pub waiting: usize,
    /// One of them may be handed in again.
    pub due: bool,
}

impl Queue {
    pub fn new(index: u16) -> Self {
        Self {
            index,
            state: Mutex::default(),
            finished: Condvar::new(),
            taken: AtomicU64::new(0),
        }
    }

    /// Has the ring be what a front-end sets up as `source`, once it has.
    pub fn bring(&self, source: Source) {
        lock(&self.state).source = Some(source);
    }

    /// Begins or goes on with what the front-end has set up, if it has. Called by whoever looks at the queue, and not
    /// by its own thread alone, which may be in a request of another queue.
    pub fn start(&self) {
        let state = &mut *lock(&self.state);
        if state.running || state.resting || state.broken {
            return;
        }
        let Some(Source { vring, mem, bell }) = &state.source else {
            return;
        };
        let queue = {
            let vring = vring.get_ref();
            if !vring.is_enabled() || !vring.get_queue().ready() || mem.memory().num_regions() == 0 {
                return;
            }
            vring.get_queue().state()
        };
        let stands = RingState {
            index: self.index,
            queue,
        };
        if state.ring.as_ref().is_none_or(|ring| !is_same(&ring.state(), &stands)) {
            let caller = vring.clone();
            let notify = Notify::new(move || {
                // Fails only when the front-end has closed it.
                let _ = caller.signal_used_queue();
            });
            let ring = Ring::new(stands, bell.clone(), notify, mem.clone());
            state.waiting.clear();
            state.ring = None;
            match ring {
                Ok(ring) => state.ring = Some(ring),
                Err(error) => return state.fail(&error),
            }
        }
        state.running = true;
    }

    /// The next request, if there is one. Without one the driver is asked for a kick.
    pub fn take(&self) -> Option<Chain> {
        let state = &mut *lock(&self.state);
        let chain = state.take()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(chain)
    }

    /// Gives a request back, with what became of it. `waited`: it is one of [`Queue::take_waiting`]. One that
    /// cannot wait is refused, and `serve` told.
    pub fn give_back(&self, serve: &dyn Serve, chain: Chain, outcome: Outcome, generation: u64, waited: bool) {
        let mut state = lock(&self.state);
        state.tried = state.tried.saturating_sub(usize::from(waited));
        match outcome {
            Outcome::Done(written) => state.push(&chain, written),
            Outcome::Wait if waited || state.has_room() => state.waiting.push(Waiting {
                chain,
                generation,
                since: Instant::now(),
            }),
            // Else who has the lock could not give it back.
            Outcome::Wait => {
                // The file system is asked under no lock of a queue. The request still counts as one that is served:
                // the ring stays.
                drop(state);
                serve.give_up(chain.reader());
                let written = refuse(chain.reader(), chain.writer(), libc::ENOLCK);
                state = lock(&self.state);
                state.push(&chain, written);
            }
        }
        state.serving = state.serving.saturating_sub(1);
        if state.serving == 0 && !state.running {
            self.finished.notify_all();
        }
    }

    /// One of the requests that wait, if there is one that may go on now.
    pub fn take_waiting(&self, generation: u64) -> Option<Chain> {
        let state = &mut *lock(&self.state);
        let found = state.waiting.iter().position(|waiting| waiting.is_due(generation));
        let waiting = state.waiting.remove(found.filter(|_| state.running)?);
        state.serving = state.serving.saturating_add(1);
        state.tried = state.tried.saturating_add(1);
        Some(waiting.chain)
    }

    /// What there is to do.
    pub fn load(&self, generation: u64) -> Load {
        let state = &*lock(&self.state);
        let ring = state.ring.as_ref().filter(|_| state.running);
        Load {
            backlog: ring.and_then(|ring| ring.backlog().ok()).unwrap_or(0),
            serving: state.serving,
            taken: self.taken.load(Ordering::Relaxed),
            waiting: if state.running { state.waiting.len() } else { 0 },
            due: state.running && state.waiting.iter().any(|waiting| waiting.is_due(generation)),
        }
    }

    /// Takes no more requests, waits for those that threads have, and tells the front-end's ring where this one stands.
    /// One that was not started since the front-end brought it stands where that said: what is kept is another then.
    pub fn stop(&self) {
        let (mut state, was_running) = self.come_to_rest();
        let state = &mut *state;
        state.broken = false;
        if let (true, Some(ring), Some(source)) = (was_running, &state.ring, &state.source) {
            source.vring.set_queue_next_avail(ring.state().queue.next_avail);
        }
    }

    /// As [`Queue::stop`], and nothing is kept but what the front-end sets the ring up by.
    pub fn reset(&self) {
        let (mut state, _) = self.come_to_rest();
        *state = State {
            source: state.source.take(),
            ..State::default()
        };
    }

    /// As [`Queue::reset`], and the front-end has gone.
    pub fn forget(&self) {
        let (mut state, _) = self.come_to_rest();
        *state = State::default();
    }

    /// And whether requests were taken before.
    fn come_to_rest(&self) -> (MutexGuard<'_, State>, bool) {
        let mut state = lock(&self.state);
        let was_running = std::mem::replace(&mut state.running, false);
        state.resting = true;
        while state.serving > 0 {
            state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
        (state, was_running)
    }
}

impl State {
    fn take(&mut self) -> Option<Chain> {
        let source = self.source.as_ref();
        let enabled = source.is_some_and(|source| source.vring.get_ref().is_enabled());
        let ring = self.ring.as_mut().filter(|_| self.running && enabled)?;
        match next(ring) {
            Ok(chain) => {
                self.serving = self.serving.saturating_add(usize::from(chain.is_some()));
                chain
            }
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn push(&mut self, chain: &Chain, written: u32) {
        let Some(ring) = &mut self.ring else { return };
        if let Err(error) = ring.push(chain.head(), written).and_then(|()| ring.signal()) {
            self.fail(&error);
        }
    }

    /// Whether one more request may wait for a lock.
    fn has_room(&self) -> bool {
        let size = self.ring.as_ref().map_or(0, Ring::size);
        self.waiting.len().saturating_add(self.tried) < most_waiting(size)
    }

    fn fail(&mut self, error: &RingError) {
        self.running = false;
        self.broken = true;
        self.ring = None;
        self.waiting.clear();
        log::warn!(
            "a queue is left alone until its driver is reset: {}",
            husk_devices::error_chain(error)
        );
    }
}

impl Waiting {
    fn is_due(&self, generation: u64) -> bool {
        self.generation != generation || self.since.elapsed() >= RETRY
    }
}

/// Whole turns are of no use here: every queue is served by threads of its own.
fn next(ring: &mut Ring) -> Result<Option<Chain>, RingError> {
    ring.disable_kicks()?;
    loop {
        if let Some(chain) = ring.pop()? {
            return Ok(Some(chain));
        }
        if ring.is_spent() {
            ring.note_kick();
        } else if !ring.enable_kicks()? && !ring.is_spent() {
            return Ok(None);
        }
    }
}

/// Whether a ring that was given back is brought again where it stood. What a driver has taken
/// apart begins at another position, but for an accident.
fn is_same(kept: &RingState, brought: &RingState) -> bool {
    let (kept, brought) = (kept.queue, brought.queue);
    kept == virtio_queue::QueueState {
        ready: kept.ready,
        ..brought
    }
}
