//! A gate that an I/O thread passes before each piece of work, so that a pause can hold it with everything it has.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// A gate. Open at first.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Woken when somebody comes out while the gate is shut.
    waker: Waker,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody may pass.
    shut: bool,
    /// Nobody is held any more, shut or not.
    broken: bool,
    /// Somebody has passed and not come back.
    inside: bool,
}

impl Gate {
    /// An open gate. `waker` is woken when [`Gate::is_clear`] has become true.
    pub fn new(waker: Waker) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            waker,
        }
    }

    /// Does `work` inside, waiting first while the gate is shut.
    pub fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        while state.shut && !state.broken {
            state = self.wait(state);
        }
        state.inside = true;
        drop(state);
        let done = work();
        let mut state = self.state();
        state.inside = false;
        // A notification is a system call, whether somebody waits or not; who waits has shut the gate before.
        let awaited = state.shut;
        drop(state);
        if awaited {
            self.waker.wake_by_ref();
        }
        done
    }

    /// Shuts the gate: whoever is inside comes out, and nobody goes in any more. Waits for neither: see [`Gate::is_clear`].
    pub fn shut(&self) {
        self.state().shut = true;
    }

    /// Whether nobody is inside, nor will be before the gate opens.
    pub fn is_clear(&self) -> bool {
        let state = self.state();
        state.shut && !state.inside && !state.broken
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.state().shut = false;
        self.changed.notify_all();
    }

    /// Lets everybody through, now and for ever: the thread has to end.
    pub fn break_open(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use std::task::Wake;
    use std::thread;

    use super::*;

    #[test]
    fn a_shut_gate_holds_whoever_comes_until_it_opens() {
        let gate = Arc::new(Gate::new(Waker::noop().clone()));
        gate.shut();
        assert!(gate.is_clear());
        let (done, seen) = channel();
        let thread = thread::spawn({
            let gate = gate.clone();
            move || gate.pass(|| done.send(()).unwrap())
        });
        thread::yield_now();
        assert!(seen.try_recv().is_err());
        gate.open();
        seen.recv().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_shut_gate_is_clear_once_who_was_inside_has_come_out() {
        struct Bell(Mutex<Sender<()>>);
        impl Wake for Bell {
            fn wake(self: Arc<Self>) {
                self.0.lock().unwrap().send(()).unwrap();
            }
        }
        let (rung, rings) = channel();
        let gate = Arc::new(Gate::new(Arc::new(Bell(Mutex::new(rung))).into()));
        let (entered, inside) = channel();
        let (leave, told) = channel::<()>();
        let worker = thread::spawn({
            let gate = gate.clone();
            move || {
                gate.pass(|| {
                    entered.send(()).unwrap();
                    told.recv().unwrap();
                });
            }
        });
        inside.recv().unwrap();
        gate.shut();
        assert!(!gate.is_clear());
        assert!(rings.try_recv().is_err());
        leave.send(()).unwrap();
        rings.recv().unwrap();
        assert!(gate.is_clear());
        worker.join().unwrap();
        gate.open();
        assert!(!gate.is_clear(), "an open gate holds nobody");
    }

    #[test]
    fn a_broken_gate_holds_nobody() {
        let gate = Gate::new(Waker::noop().clone());
        gate.shut();
        gate.break_open();
        assert!(!gate.is_clear());
        assert_eq!(gate.pass(|| 7), 7);
        gate.shut();
        assert_eq!(gate.pass(|| 8), 8);
    }
}
