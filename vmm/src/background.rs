//! Tasks in the background of the control thread, because they may take long: the host or a back-end is waited for by a
//! thread that nobody else needs. Making something is such work, and so is taking it apart: close(2) waits for the file
//! system, and the last one of a block device for all that was written to it.
//!
//! Such a thread stays for the next time. Kata's shims look for a VM's vCPUs among the threads of the process when `vm.boot` or `vm.resize` is answered
//! (`/proc/PID/task`), and take the pod for broken if one that was there is gone when they ask for its name.

use std::fmt;
use std::io;
use std::mem;
use std::sync::mpsc::{SendError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::thread;

use husk_devices::{error_chain, lock};

use crate::seccomp::{Mode, Role};

/// What a thread is to do, and who is to be told.
type Work = Box<dyn FnOnce() -> Waker + Send>;

/// Work that no thread does, and why.
struct NotStarted {
    work: Work,
    why: io::Error,
}

/// Work for a thread, and the way to give it more.
struct Job {
    work: Work,
    thread: Sender<Job>,
}

/// Where the threads are.
enum Pool {
    /// Those that have nothing to do; whoever has work for more starts one. One whose sender is dropped ends.
    Open(Vec<Sender<Job>>),
    /// Whoever has work may start no thread: this one starts one for each.
    Confined(Sender<Work>),
}

static POOL: Mutex<Pool> = Mutex::new(Pool::Open(Vec::new()));

/// From now on nobody who has work starts a thread for it: one that is started by this call does, and a thread ends when its work is done. For
/// a control thread that is about to give up its right to start any: the new thread has it still, and may take apart what there is, confined as
/// `seccomp` says. Where the host has no thread left for that, there is nobody for more work.
pub fn confine(seccomp: Mode) {
    let (jobs, received) = channel::<Work>();
    let starter = builder().spawn(move || {
        if let Err(error) = seccomp.enter(Role::Closer) {
            log::error!("the thread that closes devices ends: {}", error_chain(&error));
            return;
        }
        for work in received {
            if let Err(NotStarted { work, .. }) = start(work) {
                // Without another thread this one waits.
                work().wake();
            }
        }
    });
    if let Err(error) = starter {
        log::debug!("no thread stays for what may take long: {error}");
    }
    *lock(&POOL) = Pool::Confined(jobs);
}

fn builder() -> thread::Builder {
    thread::Builder::new().name("builder".into())
}

/// Has a thread do `work`: one that has nothing to do, or another one.
///
/// # Errors
/// The host has no thread left.
fn submit(mut work: Work) -> Result<(), NotStarted> {
    loop {
        let idle = match &mut *lock(&POOL) {
            Pool::Open(idle) => idle.pop(),
            Pool::Confined(starter) => return starter.send(work).map_err(not_started),
        };
        let Some(thread) = idle else { return start(work) };
        match send_to(&thread, work) {
            Ok(()) => return Ok(()),
            Err(SendError(job)) => work = job.work,
        }
    }
}

/// The thread that should have the work is gone.
fn not_started(SendError(work): SendError<Work>) -> NotStarted {
    let why = io::ErrorKind::BrokenPipe.into();
    NotStarted { work, why }
}

/// Starts a thread, and has it do `work`.
fn start(work: Work) -> Result<(), NotStarted> {
    let (thread, jobs) = channel::<Job>();
    let body = move || {
        while let Ok(Job { work, thread }) = jobs.recv() {
            let waker = work();
            match &mut *lock(&POOL) {
                Pool::Open(idle) => idle.push(thread),
                Pool::Confined(_) => drop(thread),
            }
            waker.wake();
        }
    };
    match builder().spawn(body) {
        Ok(_) => send_to(&thread, work).map_err(|SendError(job)| not_started(SendError(job.work))),
        Err(why) => Err(NotStarted { work, why }),
    }
}

fn send_to(thread: &Sender<Job>, work: Work) -> Result<(), SendError<Job>> {
    let own = thread.clone();
    thread.send(Job { work, thread: own })
}

/// A result on its way. Dropping this leaves it to its thread, or to another one if it is there already: nobody waits for what nobody wants any
/// more to be taken apart.
pub struct BackgroundTask<T: Send + 'static> {
    state: Arc<Mutex<State<T>>>,
    waker: Waker,
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
    /// Begins to `work`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn spawn(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::Running));
        let (place, told) = (state.clone(), waker.clone());
        let submitted = submit(Box::new(move || {
            let result = work();
            if let Some(unwanted) = deliver(&place, result) {
                drop(unwanted);
                *lock(&place) = State::Finished;
            }
            told
        }));
        match submitted {
            Ok(()) => Ok(Self { state, waker }),
            Err(NotStarted { why, .. }) => Err(why),
        }
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

    /// Wants nothing of it any more: what comes of it is taken apart by a thread. Whether that is done, which `waker` tells of; to be called
    /// again until it is. Never waits.
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
                // Without a thread it goes here.
                let submitted = submit(Box::new(move || {
                    drop(result);
                    *lock(&place) = State::Finished;
                    waker
                }));
                submitted.map_err(|NotStarted { work, .. }| drop(work())).is_err()
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

/// Has a thread drop `value`, which may take long. Nobody is told of the end.
pub fn drop_in_background<T: Send + 'static>(value: T) {
    let submitted = submit(Box::new(move || {
        drop(value);
        Waker::noop().clone()
    }));
    // Without a thread it goes here.
    drop(submitted);
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
    use std::sync::mpsc::Receiver;
    use std::task::Wake;
    use std::thread::ThreadId;

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
}
