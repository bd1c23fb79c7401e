//! What is done beside the control thread, because it may take long: the host or a back-end is waited for by a thread that nobody else needs.
//!
//! Such a thread stays for the next time. Kata's shims look for a VM's vCPUs among the threads of the process when `vm.boot` or `vm.resize` is answered
//! (`/proc/PID/task`), and take the pod for broken if one that was there is gone when they ask for its name.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SendError, Sender, TryRecvError, channel};
use std::task::Waker;
use std::thread;

use husk_devices::lock;

/// What a thread is to do, and who is to be told.
type Work = Box<dyn FnOnce() -> Waker + Send>;

/// Work for a thread, and the way to give it more.
struct Order {
    work: Work,
    thread: Sender<Order>,
}

/// The threads that have nothing to do; `None` if they are to end. One whose sender is dropped ends.
static IDLE: Mutex<Option<Vec<Sender<Order>>>> = Mutex::new(Some(Vec::new()));

/// From now on a thread ends when it has nothing to do.
pub fn end_when_idle() {
    *lock(&IDLE) = None;
}

fn idle() -> Option<Sender<Order>> {
    lock(&IDLE).as_mut()?.pop()
}

/// Has a thread do `work`: one that has nothing to do, or another one.
fn order(mut work: Work) -> io::Result<()> {
    while let Some(thread) = idle() {
        let own = thread.clone();
        match thread.send(Order { work, thread: own }) {
            Ok(()) => return Ok(()),
            Err(SendError(refused)) => work = refused.work,
        }
    }
    let (thread, orders) = channel();
    let body = move || {
        let mut next = Some(Order { work, thread });
        while let Some(Order { work, thread }) = next {
            let waker = work();
            match lock(&IDLE).as_mut() {
                Some(idle) => idle.push(thread),
                None => drop(thread),
            }
            waker.wake();
            next = orders.recv().ok();
        }
    };
    thread::Builder::new().name("builder".into()).spawn(body)?;
    Ok(())
}

/// A result on its way. Dropping this leaves it to its thread, which takes apart what nobody wants any more.
#[derive(Debug)]
pub struct Beside<T>(Receiver<T>);

impl<T: Send + 'static> Beside<T> {
    /// Begins to `work`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn begin(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (done, result) = channel();
        order(Box::new(move || {
            // When nobody waits for it any more, it goes here.
            drop(done.send(work()));
            waker
        }))?;
        Ok(Self(result))
    }

    /// What has come of it, once. Never waits.
    pub fn take(&self) -> Option<T> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("a panic anywhere ends the process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
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
    fn a_thread_that_has_done_its_work_does_more_and_ends_when_told() {
        let id = || thread::current().id();
        let first = done(id);
        while done(id) != first {}
        let (told, dropped) = channel();
        thread_local! {
            static LAST: std::cell::RefCell<Option<Told>> = const { std::cell::RefCell::new(None) };
        }
        done(move || LAST.set(Some(Told(told))));
        end_when_idle();
        dropped.recv().unwrap();
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
}
