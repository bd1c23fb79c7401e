//! Tasks in the background of the control thread, because they may take long: the host or a back-end is waited for by a
//! thread that nobody else needs. Making something is such work, and so is taking it apart: close(2) waits for the file
//! system, and the last one of a block device for all that was written to it.
//!
//! Such a thread stays for the next time. Kata's shims look for a VM's vCPUs among the threads of
//! the process when `vm.boot` or `vm.resize` is answered (`/proc/PID/task`), and take the pod for
//! broken if one that was there is gone when they ask for its name.

mod pool;

use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use husk_devices::lock;

use crate::seccomp::Mode;
use pool::{NotStarted, Pool};

static POOL: Pool = Pool::new(pool::spawn);

/// From now on nobody who has work starts a thread for it: one that is started by this call does,
/// and a thread ends when its work is done. For a control thread that is about to give up its right
/// to start any: the new thread has it still, and may take apart what there is, confined as
/// `seccomp` says. Where the host has no thread left for that, the threads that there are do what
/// they can.
pub fn confine(seccomp: Mode) {
    POOL.confine(seccomp);
}

/// Whether there is work that waits for a thread to be had: then [`retry`] is to be called from time to time.
pub fn is_short() -> bool {
    POOL.is_short()
}

/// Tries again to find threads for what waits for one. Never waits.
pub fn retry() {
    POOL.retry();
}

/// A result on its way. Dropping this leaves it to its thread, or to another one if it is there
/// already: nobody waits for what nobody wants any more to be taken apart.
pub struct BackgroundTask<T: Send + 'static> {
    state: Arc<Mutex<State<T>>>,
    waker: Waker,
    pool: &'static Pool,
}

enum State<T> {
    /// The work goes on, and its result is wanted.
    Running,
    /// The result is there, and nobody has taken it yet.
    Ready(T),
    /// The result is not wanted any more, and is not dropped yet.
    Abandoned,
    /// The result was taken, or was dropped because nobody wanted it: nothing is left to wait for.
    Finished,
}

impl<T: Send + 'static> BackgroundTask<T> {
    /// Begins to `work` at once, to make something. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left. What `work` has is dropped by a thread, once there is one.
    pub fn spawn(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        Self::spawn_on(&POOL, waker, work)
    }

    /// Has `work` done as soon as there is a thread for it, to take something apart. `waker` tells of the end.
    pub fn queue(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::queue_on(&POOL, waker, work)
    }

    fn spawn_on(pool: &'static Pool, waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (task, work) = Self::of(pool, waker, work);
        match pool.submit(work) {
            Ok(()) => Ok(task),
            Err(NotStarted { work, why }) => {
                // Descriptors may be in it, and the last close of one takes as long as its file system likes.
                drop_on(pool, work);
                Err(why)
            }
        }
    }

    fn queue_on(pool: &'static Pool, waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> Self {
        let (task, work) = Self::of(pool, waker, work);
        pool.queue(work);
        task
    }

    fn of(pool: &'static Pool, waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> (Self, pool::Work) {
        let state = Arc::new(Mutex::new(State::Running));
        let (place, told) = (state.clone(), waker.clone());
        let work = move || {
            let result = work();
            if let Some(unwanted) = deliver(&place, result) {
                drop(unwanted);
                *lock(&place) = State::Finished;
            }
            told
        };
        (Self { state, waker, pool }, Box::new(work))
    }

    /// What has come of it, once. Never waits.
    pub fn take_result(&self) -> Option<T> {
        let mut state = lock(&self.state);
        match mem::replace(&mut *state, State::Finished) {
            State::Ready(result) => Some(result),
            other => {
                let is_running = matches!(other, State::Running);
                *state = other;
                // The thread has the other one until it has brought its result.
                let is_lost = is_running && Arc::strong_count(&self.state) == 1;
                assert!(!is_lost, "a panic anywhere ends the process");
                None
            }
        }
    }

    /// Wants nothing of it any more: what comes of it is taken apart by a thread. Whether that is
    /// done, which `waker` tells of; to be called again until it is. Never waits.
    pub fn abandon(&self) -> bool {
        let mut state = lock(&self.state);
        match mem::replace(&mut *state, State::Abandoned) {
            State::Running | State::Abandoned => false,
            State::Ready(_) if !mem::needs_drop::<T>() => {
                *state = State::Finished;
                true
            }
            State::Ready(result) => {
                drop(state);
                let (place, waker) = (self.state.clone(), self.waker.clone());
                self.pool.queue(Box::new(move || {
                    drop(result);
                    *lock(&place) = State::Finished;
                    waker
                }));
                false
            }
            State::Finished => {
                *state = State::Finished;
                true
            }
        }
    }
}

/// Leaves `result` to whoever waits for it. It comes back if nobody does.
fn deliver<T>(place: &Mutex<State<T>>, result: T) -> Option<T> {
    let mut state = lock(place);
    if let State::Running = *state {
        *state = State::Ready(result);
        return None;
    }
    Some(result)
}

impl<T: Send + 'static> Drop for BackgroundTask<T> {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl<T: Send + 'static> fmt::Debug for BackgroundTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundTask").finish_non_exhaustive()
    }
}

/// Has a thread `act`, which may take long. Nobody is told of the end.
pub fn run_in_background(act: impl FnOnce() + Send + 'static) {
    POOL.queue(Box::new(move || {
        act();
        Waker::noop().clone()
    }));
}

/// Has a thread drop `value`, which may take long. Nobody is told of the end.
pub fn drop_in_background<T: Send + 'static>(value: T) {
    drop_on(&POOL, value);
}

fn drop_on<T: Send + 'static>(pool: &'static Pool, value: T) {
    pool.queue(Box::new(move || {
        drop(value);
        Waker::noop().clone()
    }));
}

/// A value that [goes](drop_in_background) by a thread, wherever whoever has it loses it.
#[derive(Debug)]
pub struct DropInBackground<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> DropInBackground<T> {
    /// `value`, from now on.
    pub const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value itself, for whoever keeps it.
    pub fn into_inner(mut self) -> T {
        self.0.take().expect("taken by this and `drop` alone")
    }
}

impl<T: Send + 'static> Drop for DropInBackground<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            drop_in_background(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::Wake;
    use std::thread::{self, ThreadId};

    use super::*;

    /// Says by which thread it was dropped.
    struct Told(Sender<ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    struct RingOnWake(Sender<()>);

    impl Wake for RingOnWake {
        fn wake(self: Arc<Self>) {
            // Nobody may listen any more.
            let _ = self.0.send(());
        }
    }

    /// Has `work` done, and waits for the wake.
    fn done<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (rung, rings) = channel();
        let task = BackgroundTask::spawn(Arc::new(RingOnWake(rung)).into(), work).unwrap();
        rings.recv().unwrap();
        task.take_result().unwrap()
    }

    /// Other tests may have the thread do something in between: sooner or later it is there for this one.
    #[test]
    fn a_thread_that_has_done_its_work_does_more_and_ends_when_its_starter_is_confined() {
        let id = || thread::current().id();
        let first = done(id);
        while done(id) != first {}
        let (told, dropped) = channel();
        thread_local! {
            static LAST: std::cell::RefCell<Option<Told>> = const { std::cell::RefCell::new(None) };
        }
        done(move || LAST.set(Some(Told(told))));
        confine(Mode::Off);
        dropped.recv().unwrap();
        // One that waits keeps no other from its work.
        let (rung, _rings) = channel();
        let (_go, gate) = channel::<()>();
        let waits = BackgroundTask::spawn(Arc::new(RingOnWake(rung)).into(), move || gate.recv().is_ok()).unwrap();
        let second = done(id);
        assert_ne!(second, thread::current().id());
        assert_ne!(done(id), second, "a thread ends with its work");
        assert_eq!(waits.take_result(), None);
    }

    #[test]
    fn a_result_comes_with_a_wake_and_one_that_is_not_wanted_is_dropped_elsewhere() {
        let (rung, rings) = channel();
        let waker: Waker = Arc::new(RingOnWake(rung)).into();
        let (go, gate) = channel::<()>();
        let task = BackgroundTask::spawn(waker.clone(), move || gate.recv().unwrap()).unwrap();
        assert_eq!(task.take_result(), None, "nobody waits for it");
        go.send(()).unwrap();
        rings.recv().unwrap();
        assert_eq!(task.take_result(), Some(()));
        assert_eq!(task.take_result(), None, "once");
        let (told, dropped) = channel();
        let (go, gate) = channel::<()>();
        let task = BackgroundTask::spawn(waker, move || {
            gate.recv().unwrap();
            Told(told)
        });
        drop(task.unwrap());
        go.send(()).unwrap();
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_result_that_is_there_and_not_wanted_any_more_is_dropped_elsewhere() {
        let (rung, rings) = channel();
        let waker: Waker = Arc::new(RingOnWake(rung)).into();
        let (told, dropped) = channel();
        let work = |told: &Sender<ThreadId>| {
            let told = told.clone();
            move || Told(told)
        };
        let task = BackgroundTask::spawn(waker.clone(), work(&told)).unwrap();
        rings.recv().unwrap();
        drop(task);
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        rings.recv().unwrap();
        drop_in_background(Told(told.clone()));
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        drop(DropInBackground::new(Told(told.clone())));
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        drop(DropInBackground::new(Told(told)).into_inner());
        assert_eq!(dropped.recv().unwrap(), thread::current().id(), "kept");
    }

    /// Waits as it is dropped until it may go.
    #[derive(Debug)]
    struct Slow(Receiver<()>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.0.recv().unwrap();
        }
    }

    #[test]
    fn what_is_abandoned_is_over_when_it_is_dropped() {
        for is_there in [false, true] {
            let (rung, rings) = channel();
            let waker: Waker = Arc::new(RingOnWake(rung)).into();
            let ((go, gate), (end, ends)) = (channel::<()>(), channel());
            let task = BackgroundTask::spawn(waker, move || {
                gate.recv().unwrap();
                Slow(ends)
            });
            let task = task.unwrap();
            if is_there {
                go.send(()).unwrap();
                rings.recv().unwrap();
            }
            assert!(!task.abandon() && !task.abandon());
            if !is_there {
                go.send(()).unwrap();
            }
            assert!(!task.abandon() && task.take_result().is_none(), "it is not gone yet");
            end.send(()).unwrap();
            rings.recv().unwrap();
            assert!(task.abandon());
        }
    }

    thread_local! {
        /// Whether the host has no thread left for this one to start.
        static FULL: Cell<bool> = const { Cell::new(true) };
    }

    /// Threads of such a host.
    fn scarce() -> &'static Pool {
        Box::leak(Box::new(Pool::new(|body| match FULL.get() {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => pool::spawn(body),
        })))
    }

    #[test]
    fn without_a_thread_work_waits_for_one_and_is_not_done_by_whoever_has_it() {
        let (pool, here) = (scarce(), thread::current().id());
        let ((rung, rings), (told, dropped)) = (channel(), channel());
        let waker: Waker = Arc::new(RingOnWake(rung)).into();
        let value = || Told(told.clone());
        // To make something is refused, and what was for it goes elsewhere.
        let parts = value();
        assert!(BackgroundTask::spawn_on(pool, waker.clone(), move || drop(parts)).is_err());
        let old = value();
        let closing = BackgroundTask::queue_on(pool, waker, move || drop(old));
        drop_on(pool, value());
        assert!(pool.is_short() && pool.retry(), "there is still none");
        assert!(dropped.try_recv().is_err() && closing.take_result().is_none());
        FULL.set(false);
        assert!(!pool.retry() && !pool.is_short());
        for _ in 0..3 {
            assert_ne!(dropped.recv().unwrap(), here);
        }
        rings.recv().unwrap();
        assert_eq!(closing.take_result(), Some(()));
    }

    #[test]
    fn what_waits_for_a_thread_is_done_by_the_first_that_comes_back() {
        let pool = scarce();
        let (go, gate) = channel::<()>();
        FULL.set(false);
        let hangs = BackgroundTask::spawn_on(pool, Waker::noop().clone(), move || gate.recv().is_ok()).unwrap();
        FULL.set(true);
        let (told, dropped) = channel();
        drop_on(pool, Told(told));
        assert!(pool.is_short() && dropped.try_recv().is_err());
        drop(go);
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        assert_eq!(hangs.take_result(), Some(false));
        assert!(!pool.is_short());
    }
}
