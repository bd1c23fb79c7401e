//! What is done beside the control thread, because it may take long: the host or a back-end is waited for by a thread that nobody else needs.
//! Making something is such work, and so is taking it apart: close(2) waits for the file system, and the last one of a block device for all that
//! was written to it.
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
struct Refused {
    work: Work,
    why: io::Error,
}

/// Work for a thread, and the way to give it more.
struct Order {
    work: Work,
    thread: Sender<Order>,
}

/// Where the threads are.
enum Pool {
    /// Those that have nothing to do; whoever has work for more starts one. One whose sender is dropped ends.
    Open(Vec<Sender<Order>>),
    /// Whoever has work may start no thread: this one starts one for each.
    Confined(Sender<Work>),
}

static POOL: Mutex<Pool> = Mutex::new(Pool::Open(Vec::new()));

/// From now on nobody who has work starts a thread for it: one that is started by this call does, and a thread ends when its work is done. For
/// a control thread that is about to give up its right to start any: the new thread has it still, and may take apart what there is, confined as
/// `seccomp` says. Where the host has no thread left for that, there is nobody for more work.
pub fn confine(seccomp: Mode) {
    let (orders, received) = channel::<Work>();
    let starter = builder().spawn(move || {
        if let Err(error) = seccomp.enter(Role::Closer) {
            log::error!("the thread that closes devices ends: {}", error_chain(&error));
            return;
        }
        for work in received {
            if let Err(Refused { work, .. }) = start(work) {
                // Without another thread this one waits.
                work().wake();
            }
        }
    });
    if let Err(error) = starter {
        log::debug!("no thread stays for what may take long: {error}");
    }
    *lock(&POOL) = Pool::Confined(orders);
}

fn builder() -> thread::Builder {
    thread::Builder::new().name("builder".into())
}

/// Has a thread do `work`: one that has nothing to do, or another one.
///
/// # Errors
/// The host has no thread left.
fn order(mut work: Work) -> Result<(), Refused> {
    loop {
        let idle = match &mut *lock(&POOL) {
            Pool::Open(idle) => idle.pop(),
            Pool::Confined(starter) => return starter.send(work).map_err(refused),
        };
        let Some(thread) = idle else { return start(work) };
        match give(&thread, work) {
            Ok(()) => return Ok(()),
            Err(SendError(refused)) => work = refused.work,
        }
    }
}

/// The thread that should have the work is gone.
fn refused(SendError(work): SendError<Work>) -> Refused {
    let why = io::ErrorKind::BrokenPipe.into();
    Refused { work, why }
}

/// Starts a thread, and has it do `work`.
fn start(work: Work) -> Result<(), Refused> {
    let (thread, orders) = channel::<Order>();
    let body = move || {
        while let Ok(Order { work, thread }) = orders.recv() {
            let waker = work();
            match &mut *lock(&POOL) {
                Pool::Open(idle) => idle.push(thread),
                Pool::Confined(_) => drop(thread),
            }
            waker.wake();
        }
    };
    match builder().spawn(body) {
        Ok(_) => give(&thread, work).map_err(|SendError(order)| refused(SendError(order.work))),
        Err(why) => Err(Refused { work, why }),
    }
}

fn give(thread: &Sender<Order>, work: Work) -> Result<(), SendError<Order>> {
    let own = thread.clone();
    thread.send(Order { work, thread: own })
}

/// A result on its way. Dropping this leaves it to its thread, or to another one if it is there already: nobody waits for what nobody wants any
/// more to be taken apart.
pub struct Beside<T: Send + 'static> {
    state: Arc<Mutex<State<T>>>,
    waker: Waker,
}

enum State<T> {
    /// Wanted, and not there yet.
    Awaited,
    /// There.
    Ready(T),
    /// Not wanted any more, and not gone yet.
    Unwanted,
    /// Taken, or gone.
    Over,
}

impl<T: Send + 'static> Beside<T> {
    /// Begins to `work`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn begin(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::Awaited));
        let (place, told) = (state.clone(), waker.clone());
        let begun = order(Box::new(move || {
            let result = work();
            if let Some(unwanted) = bring(&place, result) {
                drop(unwanted);
                *lock(&place) = State::Over;
            }
            told
        }));
        match begun {
            Ok(()) => Ok(Self { state, waker }),
            Err(Refused { why, .. }) => Err(why),
        }
    }

    /// What has come of it, once. Never waits.
    pub fn take(&self) -> Option<T> {
        let mut state = lock(&self.state);
        match mem::replace(&mut *state, State::Over) {
            State::Ready(result) => Some(result),
            other => {
                let awaited = matches!(other, State::Awaited);
                *state = other;
                // The thread has the other one until it has brought its result.
                let is_lost = awaited && Arc::strong_count(&self.state) == 1;
                assert!(!is_lost, "a panic anywhere ends the process");
                None
            }
        }
    }

    /// Wants nothing of it any more: what comes of it is taken apart by a thread. Whether that is done, which `waker` tells of; to be called
    /// again until it is. Never waits.
    pub fn forgo(&self) -> bool {
        let mut state = lock(&self.state);
        match mem::replace(&mut *state, State::Unwanted) {
            State::Awaited | State::Unwanted => false,
            State::Ready(_) if !mem::needs_drop::<T>() => {
                *state = State::Over;
                true
            }
            State::Ready(result) => {
                drop(state);
                let (place, waker) = (self.state.clone(), self.waker.clone());
                // Without a thread it goes here.
                let ordered = order(Box::new(move || {
                    drop(result);
                    *lock(&place) = State::Over;
                    waker
                }));
                ordered.map_err(|Refused { work, .. }| drop(work())).is_err()
            }
            State::Over => {
                *state = State::Over;
                true
            }
        }
    }
}

/// Leaves `result` to whoever waits for it. It comes back if nobody does.
fn bring<T>(place: &Mutex<State<T>>, result: T) -> Option<T> {
    let mut state = lock(place);
    if let State::Awaited = *state {
        *state = State::Ready(result);
        return None;
    }
    Some(result)
}

impl<T: Send + 'static> Drop for Beside<T> {
    fn drop(&mut self) {
        self.forgo();
    }
}

impl<T: Send + 'static> fmt::Debug for Beside<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

/// Has a thread drop `value`, which may take long. Nobody is told of the end.
pub fn discard<T: Send + 'static>(value: T) {
    let ordered = order(Box::new(move || {
        drop(value);
        Waker::noop().clone()
    }));
    // Without a thread it goes here.
    drop(ordered);
}

/// A value that [goes](discard) by a thread, wherever whoever has it loses it.
#[derive(Debug)]
pub struct Discarded<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Discarded<T> {
    /// `value`, from now on.
    pub const fn new(value: T) -> Self {
        Self(Some(value))
    }

    /// The value itself, for whoever keeps it.
    pub fn keep(mut self) -> T {
        self.0.take().expect("taken by this and `drop` alone")
    }
}

impl<T: Send + 'static> Drop for Discarded<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            discard(value);
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

    struct Bell(Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            // Nobody may listen any more.
            let _ = self.0.send(());
        }
    }

    /// Has `work` done, and waits for the wake.
    fn done<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let (rung, rings) = channel();
        let beside = Beside::begin(Arc::new(Bell(rung)).into(), work).unwrap();
        rings.recv().unwrap();
        beside.take().unwrap()
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
        let waits = Beside::begin(Arc::new(Bell(rung)).into(), move || gate.recv().is_ok()).unwrap();
        let second = done(id);
        assert_ne!(second, thread::current().id());
        assert_ne!(done(id), second, "a thread ends with its work");
        assert_eq!(waits.take(), None);
    }

    #[test]
    fn a_result_comes_with_a_wake_and_one_that_is_not_wanted_is_dropped_elsewhere() {
        let (rung, rings) = channel();
        let waker: Waker = Arc::new(Bell(rung)).into();
        let (go, gate) = channel::<()>();
        let beside = Beside::begin(waker.clone(), move || gate.recv().unwrap()).unwrap();
        assert_eq!(beside.take(), None, "nobody waits for it");
        go.send(()).unwrap();
        rings.recv().unwrap();
        assert_eq!(beside.take(), Some(()));
        assert_eq!(beside.take(), None, "once");
        let (told, dropped) = channel();
        let (go, gate) = channel::<()>();
        let beside = Beside::begin(waker, move || {
            gate.recv().unwrap();
            Told(told)
        });
        drop(beside.unwrap());
        go.send(()).unwrap();
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_result_that_is_there_and_not_wanted_any_more_is_dropped_elsewhere() {
        let (rung, rings) = channel();
        let waker: Waker = Arc::new(Bell(rung)).into();
        let (told, dropped) = channel();
        let work = |told: &Sender<ThreadId>| {
            let told = told.clone();
            move || Told(told)
        };
        let beside = Beside::begin(waker.clone(), work(&told)).unwrap();
        rings.recv().unwrap();
        drop(beside);
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        rings.recv().unwrap();
        discard(Told(told.clone()));
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        drop(Discarded::new(Told(told.clone())));
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
        drop(Discarded::new(Told(told)).keep());
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
    fn what_is_forgone_is_over_when_it_is_dropped() {
        for is_there in [false, true] {
            let (rung, rings) = channel();
            let waker: Waker = Arc::new(Bell(rung)).into();
            let ((go, gate), (end, ends)) = (channel::<()>(), channel());
            let beside = Beside::begin(waker, move || {
                gate.recv().unwrap();
                Slow(ends)
            });
            let beside = beside.unwrap();
            if is_there {
                go.send(()).unwrap();
                rings.recv().unwrap();
            }
            assert!(!beside.forgo() && !beside.forgo());
            if !is_there {
                go.send(()).unwrap();
            }
            assert!(!beside.forgo() && beside.take().is_none(), "it is not gone yet");
            end.send(()).unwrap();
            rings.recv().unwrap();
            assert!(beside.forgo());
        }
    }
}
