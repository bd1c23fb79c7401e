//! The threads that help those of a share's queues, as many as the load asks for: when requests
//! pile up, and when one takes so long that nobody is at its queue's doorbell.
//!
//! The watcher is one more of them: while there is work it looks every millisecond whether each
//! queue gets on. It costs a queue's own thread nothing but two stores for each request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use husk_devices::lock;

/// Most helpers of a share. With all of them in requests that the host does not finish, others wait.
pub(super) const HELPERS_MAX: usize = 16;
/// How long a thread with nothing to do stays.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a host that had no thread is not asked for another.
const SPAWN_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The threads that there are, and what they are wanted for.
#[derive(Default)]
pub(super) struct HelperPool {
    state: Mutex<State>,
    /// Notified when a helper is requested.
    requested: Condvar,
    /// Notified when the watcher has work.
    work: Condvar,
    /// Notified when a thread has gone.
    gone: Condvar,
    /// The watcher sleeps, or there is none.
    dozing: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Numbers of the queues that helpers are wanted at.
    requests: VecDeque<usize>,
    /// Helpers that wait for a request.
    idle: usize,
    /// Helpers that there are, or will be.
    helpers: usize,
    watcher: bool,
    /// The host had no thread: none is asked for until then.
    no_spawn_until: Option<Instant>,
    /// No thread is to be started any more.
    closed: bool,
}

/// What somebody who asked has to see to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing.
    Nobody,
    /// A thread is to be started.
    Thread,
}

/// How the watcher's sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sleep {
    /// There is work.
    Work,
    /// There was none for long: it has no place in the pool any more.
    IdleTimeout,
    /// All are to end.
    Closed,
}

impl HelperPool {
    /// Nobody yet.
    pub fn new() -> Self {
        Self {
            dozing: AtomicBool::new(true),
            ..Self::default()
        }
    }

    /// Wants a helper at a queue. [`Wanted::Thread`]: one more is to be started.
    pub fn request_helper(&self, queue: usize) -> Wanted {
        let mut state = lock(&self.state);
        if state.closed || state.requests.contains(&queue) {
            return Wanted::Nobody;
        }
        if state.idle > state.requests.len() {
            state.requests.push_back(queue);
            drop(state);
            self.requested.notify_one();
            return Wanted::Nobody;
        }
        if state.helpers >= HELPERS_MAX || state.is_spawning_suspended() {
            return Wanted::Nobody;
        }
        state.requests.push_back(queue);
        state.helpers = state.helpers.saturating_add(1);
        Wanted::Thread
    }

    /// Waits for a queue that wants a helper. `None`: the helper is to end.
    pub fn next_request(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(queue) = state.requests.pop_front() {
                return Some(queue);
            }
            state.idle = state.idle.saturating_add(1);
            let (back, timeout) = wait(&self.requested, state, IDLE_TIMEOUT);
            state = back;
            state.idle = state.idle.saturating_sub(1);
            if timeout && state.requests.is_empty() {
                return None;
            }
        }
    }

    /// A helper is no more.
    pub fn helper_gone(&self) {
        let mut state = lock(&self.state);
        state.helpers = state.helpers.saturating_sub(1);
        drop(state);
        self.gone.notify_all();
    }

    /// The host had no thread for a helper that was wanted at `queue`. The request for it goes as well, so that there
    /// can be another: the helpers that there are may be in requests that never end.
    pub fn helper_refused(&self, queue: usize) {
        let mut state = lock(&self.state);
        state.suspend_spawning();
        state.requests.retain(|requested| *requested != queue);
        drop(state);
        self.helper_gone();
    }

    /// Work has begun. [`Wanted::Thread`]: there is no watcher, and one is to be started.
    pub fn wake_watcher(&self) -> Wanted {
        // Pairs with `doze`: either sees what the other has written.
        if !self.dozing.load(Ordering::SeqCst) || !self.dozing.swap(false, Ordering::SeqCst) {
            return Wanted::Nobody;
        }
        let mut state = lock(&self.state);
        if state.closed {
            return Wanted::Nobody;
        }
        if !state.watcher {
            if state.is_spawning_suspended() {
                self.doze();
                return Wanted::Nobody;
            }
            state.watcher = true;
            return Wanted::Thread;
        }
        drop(state);
        self.work.notify_all();
        Wanted::Nobody
    }

    /// The watcher waits for its next look. `false`: it is to end.
    pub fn pause(&self, time: Duration) -> bool {
        let state = lock(&self.state);
        !state.closed && !wait(&self.work, state, time).0.closed
    }

    /// The watcher says that it is going to sleep. It looks once more after that, and sleeps only if there is no work.
    pub fn doze(&self) {
        self.dozing.store(true, Ordering::SeqCst);
    }

    /// It does not after all.
    pub fn stay_awake(&self) {
        self.dozing.store(false, Ordering::SeqCst);
    }

    /// The watcher sleeps until there is work.
    pub fn sleep(&self) -> Sleep {
        let mut state = lock(&self.state);
        while !state.closed && self.dozing.load(Ordering::SeqCst) {
            let (back, timeout) = wait(&self.work, state, IDLE_TIMEOUT);
            state = back;
            if timeout && self.dozing.load(Ordering::SeqCst) {
                // Under the lock: whoever wakes it from now on starts another.
                state.watcher = false;
                self.gone.notify_all();
                return Sleep::IdleTimeout;
            }
        }
        if state.closed { Sleep::Closed } else { Sleep::Work }
    }

    /// The watcher is no more; not to be called once it had [`Sleep::IdleTimeout`].
    pub fn watcher_gone(&self) {
        lock(&self.state).watcher = false;
        self.doze();
        self.gone.notify_all();
    }

    /// The host had no thread for the watcher.
    pub fn watcher_refused(&self) {
        lock(&self.state).suspend_spawning();
        self.watcher_gone();
    }

    /// Whether all are to end.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// No thread is to be started from now on, and those that there are end when they have done what they are at.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.requested.notify_all();
        self.work.notify_all();
    }

    /// Waits until all have ended.
    pub fn wait(&self) {
        let mut state = lock(&self.state);
        while state.helpers > 0 || state.watcher {
            state = self.gone.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Helpers that there are.
    #[cfg(test)]
    pub fn helpers(&self) -> usize {
        lock(&self.state).helpers
    }
}

impl State {
    /// The host had no thread.
    fn suspend_spawning(&mut self) {
        self.no_spawn_until = Instant::now().checked_add(SPAWN_RETRY_DELAY);
    }

    fn is_spawning_suspended(&self) -> bool {
        self.no_spawn_until.is_some_and(|until| Instant::now() < until)
    }
}

fn wait<'a, T>(on: &Condvar, state: MutexGuard<'a, T>, time: Duration) -> (MutexGuard<'a, T>, bool) {
    let waited = on.wait_timeout(state, time);
    let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
    (state, timeout.timed_out())
}
