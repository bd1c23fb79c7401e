//! The threads of `background`: work waits for one of them, and is never done by whoever has it.
//!
//! A host may have no thread left (`pids.max`, `RLIMIT_NPROC`), for a neighbour's sake. What has to be done all the
//! same waits in the order in which it came: the next thread that is done with something takes it, and whoever has more
//! work, or asks, starts one for it if one can be had by then.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;

use husk_devices::{error_chain, lock};

use crate::seccomp::{Mode, Role};

/// What a thread is to do, and who is to be told.
pub(super) type Work = Box<dyn FnOnce() -> Waker + Send>;

/// What a thread is.
type Body = Box<dyn FnOnce() + Send>;

/// Work that no thread does, and why.
pub(super) struct NotStarted {
    pub work: Work,
    pub why: io::Error,
}

/// Threads, and what they have to do.
///
/// Its lock is held for moments: never while work is done or dropped.
pub(super) struct Pool {
    state: Mutex<State>,
    /// There is work.
    work: Condvar,
    /// A thread is to be started by the one that may.
    start: Condvar,
    /// Starts a thread.
    spawn: fn(Body) -> io::Result<()>,
}

struct State {
    waiting: VecDeque<Work>,
    /// Threads that are about to look for work, or wait for some.
    idle: usize,
    starts: Starts,
}

/// Who starts threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Starts {
    /// Whoever has work for one. A thread stays for the next time.
    Anyone,
    /// One thread of the pool. A thread ends when there is nothing more to do.
    Starter,
    /// Nobody any more. The threads that there are stay.
    Nobody,
}

impl Pool {
    /// No thread yet; `spawn` starts them.
    pub const fn new(spawn: fn(Body) -> io::Result<()>) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            idle: 0,
            starts: Starts::Anyone,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            start: Condvar::new(),
            spawn,
        }
    }

    /// Has a thread do `work` at once: one that has nothing to do, or another one.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn submit(&'static self, work: Work) -> Result<(), NotStarted> {
        let mut state = self.lock();
        match self.provide(&mut state, 1) {
            Ok(()) => {
                self.put(state, work);
                Ok(())
            }
            Err(why) => Err(NotStarted { work, why }),
        }
    }

    /// Has a thread do `work`, as soon as there is one. Never waits.
    pub fn queue(&'static self, work: Work) {
        let mut state = self.lock();
        if let Err(why) = self.provide(&mut state, 1) {
            log::debug!("what may take long waits for a thread: {why}");
        }
        self.put(state, work);
    }

    /// Tries again to find a thread for what waits for one; whether some of it still does. Never waits.
    pub fn retry(&'static self) -> bool {
        let mut state = self.lock();
        self.provide(&mut state, 0).is_err()
    }

    /// Whether there is work that no thread is there for, and that nobody looks after but by [`Pool::retry`].
    pub fn is_short(&self) -> bool {
        let state = self.lock();
        state.starts == Starts::Anyone && state.idle < state.waiting.len()
    }

    /// See [`super::confine`].
    pub fn confine(&'static self, seccomp: Mode) {
        // Nobody may have a thread started by this one once it is confined, whatever comes of the other.
        self.lock().starts = Starts::Nobody;
        let starter = (self.spawn)(Box::new(move || {
            if let Err(error) = seccomp.enter(Role::Closer) {
                log::error!("the thread that closes devices ends: {}", error_chain(&error));
                return;
            }
            self.start_threads();
        }));
        if let Err(error) = starter {
            log::debug!("no other thread can be had for what may take long: {error}");
        }
    }

    /// Starts a thread for each piece of work, for ever. Does it itself where there is no other.
    fn start_threads(&'static self) {
        let mut state = self.lock();
        state.starts = Starts::Starter;
        // They end: they may do more than this one.
        self.work.notify_all();
        loop {
            while state.idle >= state.waiting.len() {
                state = self.start.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if self.begin(&mut state).is_err()
                && let Some(work) = state.waiting.pop_front()
            {
                drop(state);
                work().wake();
                state = self.lock();
            }
        }
    }

    /// Sees to it that there are threads for what waits and for `more` besides, if the caller may start any.
    fn provide(&'static self, state: &mut State, more: usize) -> io::Result<()> {
        while state.idle < state.waiting.len() + more {
            match state.starts {
                Starts::Anyone => self.begin(state)?,
                Starts::Starter => break,
                Starts::Nobody => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(())
    }

    fn begin(&'static self, state: &mut State) -> io::Result<()> {
        (self.spawn)(Box::new(move || self.serve()))?;
        state.idle += 1;
        Ok(())
    }

    fn put(&self, mut state: MutexGuard<'_, State>, work: Work) {
        state.waiting.push_back(work);
        let starter = state.starts == Starts::Starter && state.idle < state.waiting.len();
        drop(state);
        self.work.notify_one();
        if starter {
            self.start.notify_one();
        }
    }

    /// A thread, which counts as idle when it begins.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            let Some(work) = state.waiting.pop_front() else {
                if state.starts == Starts::Starter {
                    state.idle -= 1;
                    return;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.idle -= 1;
            drop(state);
            let waker = work();
            state = self.lock();
            let ends = state.starts == Starts::Starter && state.waiting.is_empty();
            // First, so that whoever is woken finds it there for the next piece.
            state.idle += usize::from(!ends);
            drop(state);
            waker.wake();
            if ends {
                return;
            }
            state = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Starts a thread of the host.
pub(super) fn spawn(body: Body) -> io::Result<()> {
    thread::Builder::new().name("builder".into()).spawn(body).map(drop)
}
