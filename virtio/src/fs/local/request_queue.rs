//! One queue of a share that husk serves: its ring, whose turn it is, and the requests that wait for a lock.
//!
//! A ring has one owner at a time: whoever holds the queue's lock, for as long as it takes to fetch a chain or to give
//! one back. Nobody holds it while a request is carried out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use husk_devices::lock;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Hold;
use crate::fs::fuse;
use crate::fs::serve::{Outcome, Serve, most_waiting};
use crate::ring::{Chain, Ring, RingError, RingState};

/// How long the driver may be kept from knowing of what is done while more is being done.
const INTERRUPT_DELAY_MAX: Duration = Duration::from_micros(50);

/// A queue.
pub(super) struct RequestQueue {
    kick: Arc<EventFd>,
    state: Mutex<State>,
    /// Notified when nothing is being carried out any more.
    quiet: Condvar,
    /// Which request the queue's own thread is in, by a number that grows; 0 while it is in none.
    own: AtomicU64,
    /// Requests that have come to an end.
    done: AtomicU64,
    /// Requests that wait for a lock.
    waiting: AtomicUsize,
}

struct State {
    /// Gone once the queue has ended.
    ring: Option<Ring>,
    /// Nothing is begun for now.
    held: bool,
    /// Requests under way.
    busy: usize,
    /// Somebody waits at the doorbell in the place of the queue's own thread.
    doorbell_claimed: bool,
    /// What wait for a lock.
    waiting: Vec<Chain>,
    /// What is to be tried again.
    again: VecDeque<Chain>,
    /// Whether the ring may be touched at present.
    bus_master: Arc<AtomicBool>,
    /// What ended while it might not be: head and length of each.
    deferred: Vec<(u16, u32)>,
    /// Since when the driver is owed an interrupt.
    interrupt_due_since: Option<Instant>,
    /// Nanoseconds that a request took lately.
    average: u64,
    /// The driver broke a rule: nothing is begun any more.
    failed: bool,
    /// Which one, as long as nobody was told.
    failure: Option<RingError>,
}

/// A request to be carried out.
pub(super) struct FetchedRequest {
    pub chain: Chain,
    /// Requests that are there and that nobody has taken.
    pub backlog: usize,
    /// Requests under way, with this one.
    pub busy: usize,
    /// How long one usually takes.
    pub average: Duration,
}

/// How far a queue has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Which request the queue's own thread is in; 0 for none.
    pub own: u64,
    /// Requests that have come to an end.
    pub done: u64,
}

impl RequestQueue {
    /// A queue around `ring`.
    pub fn new(ring: Ring) -> Self {
        Self {
            kick: ring.doorbell(),
            state: Mutex::new(State {
                ring: Some(ring),
                held: false,
                busy: 0,
                doorbell_claimed: false,
                waiting: Vec::new(),
                again: VecDeque::new(),
                bus_master: Arc::new(AtomicBool::new(true)),
                deferred: Vec::new(),
                interrupt_due_since: None,
                average: 0,
                failed: false,
                failure: None,
            }),
            quiet: Condvar::new(),
            own: AtomicU64::new(0),
            done: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// The ring may be touched only as long as `right` is set, but for what was begun before.
    pub fn set_bus_master_flag(&self, bus_master: Arc<AtomicBool>) {
        lock(&self.state).bus_master = bus_master;
    }

    /// Rings when the driver kicks, and when there is something to be tried again.
    pub fn doorbell(&self) -> &EventFd {
        &self.kick
    }

    /// Rings the doorbell.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then the doorbell rings anyway.
        let _ = self.kick.write(1);
    }

    /// Begins to look for requests because the doorbell rang, on the queue's own thread, which goes on until
    /// [`RequestQueue::next`] gives none.
    pub fn begin(&self) {
        let mut state = lock(&self.state);
        if state.held {
            // `release` rings again.
            state.ring.iter_mut().for_each(Ring::take_kick);
            return;
        }
        state.begin();
    }

    /// As [`RequestQueue::begin`], on another thread, as long as the own one is in request `away`. Otherwise `false`,
    /// and the ring is the own thread's to answer: it waits for the next one already, and nobody watches whether this
    /// one gets on.
    ///
    /// When it comes back from that request, it looks for others before it waits, and has the doorbell ring for what
    /// comes later.
    pub fn begin_in_place(&self, away: u64) -> bool {
        let mut state = lock(&self.state);
        // `set_own` may come next, but no `next` after it: that needs the lock.
        let begins = !state.held && self.own.load(Ordering::SeqCst) == away && state.is_bus_master();
        if begins {
            state.begin();
        }
        begins
    }

    /// The next request, after which [`RequestQueue::end`] is owed. `None` when there is none for now: the doorbell
    /// rings for the next one.
    pub fn next(&self) -> Option<FetchedRequest> {
        let mut state = lock(&self.state);
        let Some(chain) = state.fetch() else {
            match state.is_bus_master() {
                true => state.announce(),
                // Nobody looked, and no kick is wanted any more: looked at when the right is back, or by `release`.
                false if !state.held => self.ring(),
                false => {}
            }
            return None;
        };
        state.busy = state.busy.saturating_add(1);
        Some(FetchedRequest {
            chain,
            backlog: state.backlog(),
            busy: state.busy,
            average: Duration::from_nanos(state.average),
        })
    }

    /// A request that took `took` came to this end by `now`. `false` if it waits and there is no
    /// room for that: it was refused, and `serve` told.
    pub fn end(&self, serve: &dyn Serve, chain: Chain, outcome: Outcome, took: Duration, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // An eighth of it is the new one.
        state.average = state
            .average
            .saturating_sub(state.average >> 3)
            .saturating_add(took >> 3);
        let kept = outcome != Outcome::Wait || state.has_room_to_wait();
        match outcome {
            Outcome::Done(len) => state.finish(chain.head(), len, now),
            Outcome::Wait if kept => {
                state.waiting.push(chain);
                self.waiting.store(state.waiting.len(), Ordering::SeqCst);
            }
            Outcome::Wait => {
                // Not under the lock: the server has locks of its own. The request is under way until it is refused.
                drop(state);
                serve.give_up(chain.reader());
                let len = fuse::refuse(&mut chain.reader(), &mut chain.writer(), libc::ENOLCK);
                state = lock(&self.state);
                state.finish(chain.head(), len, now);
            }
        }
        state.busy = state.busy.saturating_sub(1);
        self.done.fetch_add(1, Ordering::SeqCst);
        if state.busy == 0 {
            self.quiet.notify_all();
            if state.held {
                // The own thread asks again whether it is at rest.
                self.ring();
            }
        }
        kept
    }

    /// The queue's own thread is in request `number` from now on, or in none.
    pub fn set_own(&self, number: u64) {
        self.own.store(number, Ordering::SeqCst);
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        Progress {
            own: self.own.load(Ordering::SeqCst),
            done: self.done.load(Ordering::SeqCst),
        }
    }

    /// Requests that wait for a lock.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Has every request that waits tried again.
    pub fn try_again(&self) {
        if self.waiting() == 0 {
            return;
        }
        let mut state = lock(&self.state);
        let State { waiting, again, .. } = &mut *state;
        again.extend(waiting.drain(..));
        self.waiting.store(0, Ordering::SeqCst);
        self.ring();
    }

    /// Claims the doorbell, if nobody has and there is something to be done there.
    pub fn claim_doorbell(&self) -> bool {
        let mut state = lock(&self.state);
        let free = state.ring.is_some() && !state.doorbell_claimed && state.is_bus_master();
        state.doorbell_claimed |= free;
        free
    }

    /// Gives the doorbell up.
    pub fn unclaim_doorbell(&self) {
        lock(&self.state).doorbell_claimed = false;
    }

    /// Whether somebody is at the doorbell.
    pub fn is_doorbell_claimed(&self) -> bool {
        lock(&self.state).doorbell_claimed
    }

    /// Begins nothing more. Once what has been begun has ended, the driver is told; until then the doorbell rings when
    /// it does.
    pub fn hold(&self) -> Hold {
        let mut state = lock(&self.state);
        state.held = true;
        if state.busy > 0 {
            return Hold::Pending;
        }
        if state.is_bus_master() {
            state.return_deferred();
            state.announce();
        }
        Hold::Held
    }

    /// Goes on after [`RequestQueue::hold`], however far that came.
    pub fn release(&self) {
        lock(&self.state).held = false;
        self.ring();
    }

    /// Whether it begins nothing.
    #[cfg(test)]
    pub fn is_holding(&self) -> bool {
        lock(&self.state).held
    }

    /// Why the queue serves no more, if the driver broke a rule.
    pub fn failure(&self) -> Option<RingError> {
        lock(&self.state).failure.take()
    }

    /// As [`RequestQueue::hold`], for good, and waits for what has been begun: what waits for a lock is refused, or
    /// without the right to memory forgotten. Returns where the ring stood.
    pub fn finish(&self) -> Option<RingState> {
        let mut state = lock(&self.state);
        state.held = true;
        while state.busy > 0 {
            state = self.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_bus_master() {
            state.return_deferred();
        }
        let State { waiting, again, .. } = &mut *state;
        let left: Vec<Chain> = again.drain(..).chain(waiting.drain(..)).collect();
        self.waiting.store(0, Ordering::SeqCst);
        if !state.is_bus_master() {
            return state.ring.take().map(Ring::into_state);
        }
        let now = Instant::now();
        for chain in left {
            let len = fuse::refuse(&mut chain.reader(), &mut chain.writer(), libc::ENOTCONN);
            state.give_back(chain.head(), len, now);
        }
        state.announce();
        state.ring.take().map(Ring::into_state)
    }
}

impl State {
    /// Looks for requests from now on; without the right to memory the doorbell goes on ringing until it is back.
    fn begin(&mut self) {
        if !self.is_bus_master() {
            return;
        }
        self.return_deferred();
        if let Some(ring) = &mut self.ring {
            ring.take_kick();
            let disabled = ring.disable_kicks();
            self.note(disabled);
        }
    }

    /// Takes what is to be tried again, then what is new.
    fn fetch(&mut self) -> Option<Chain> {
        if self.held || self.failed || !self.is_bus_master() {
            return None;
        }
        if let Some(chain) = self.again.pop_front() {
            return Some(chain);
        }
        loop {
            let ring = self.ring.as_mut()?;
            let popped = ring.pop();
            let more = match popped {
                Ok(None) => ring.enable_kicks(),
                other => {
                    let chain = self.note(other);
                    return chain.flatten();
                }
            };
            if self.note(more) != Some(true) {
                return None;
            }
        }
    }

    fn is_bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    /// Gives a chain back as soon as that is allowed.
    fn finish(&mut self, head: u16, len: u32, now: Instant) {
        if self.is_bus_master() {
            return self.give_back(head, len, now);
        }
        self.deferred.push((head, len));
        // Which is looked at when the right is back.
        self.ring.iter().for_each(Ring::kick_self);
    }

    /// Gives back what ended while that was not allowed.
    fn return_deferred(&mut self) {
        let now = Instant::now();
        for (head, len) in std::mem::take(&mut self.deferred) {
            self.give_back(head, len, now);
        }
    }

    fn give_back(&mut self, head: u16, len: u32, now: Instant) {
        let Some(ring) = &mut self.ring else { return };
        let pushed = ring.push(head, len);
        self.note(pushed);
        let interrupt_due_since = *self.interrupt_due_since.get_or_insert(now);
        // Who has nothing else to look forward to is told at once.
        if self.backlog() == 0 || now.saturating_duration_since(interrupt_due_since) >= INTERRUPT_DELAY_MAX {
            self.announce();
        }
    }

    fn announce(&mut self) {
        if self.interrupt_due_since.take().is_none() {
            return;
        }
        if let Some(ring) = &mut self.ring {
            let signalled = ring.signal();
            self.note(signalled);
        }
    }

    /// Requests that are there and that nobody has taken.
    fn backlog(&self) -> usize {
        let backlog = self.ring.as_ref().and_then(|ring| ring.backlog().ok());
        usize::from(backlog.unwrap_or_default()).saturating_add(self.again.len())
    }

    fn has_room_to_wait(&self) -> bool {
        let size = self.ring.as_ref().map_or(0, Ring::size);
        self.waiting.len().saturating_add(self.again.len()) < most_waiting(size)
    }

    fn note<T>(&mut self, done: Result<T, RingError>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    self.failure = Some(error);
                    // Whoever this is, the queue's own thread is to know.
                    self.ring.iter().for_each(Ring::kick_self);
                }
                None
            }
        }
    }
}

#[cfg(test)]
#[path = "request_queue_test.rs"]
mod tests;
