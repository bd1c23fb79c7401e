//! A gate that an I/O thread passes before each piece of work, so that a pause can hold it with everything it has.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A gate. Open at first.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
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
            self.changed.notify_all();
        }
        done
    }

    /// Shuts the gate and waits until nobody is inside.
    pub fn shut(&self) {
        let mut state = self.state();
        state.shut = true;
        while state.inside && !state.broken {
            state = self.wait(state);
        }
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
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_shut_gate_holds_whoever_comes_until_it_opens() {
        let gate = Arc::new(Gate::default());
        gate.shut();
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
    fn shutting_waits_for_who_is_inside() {
        let gate = Arc::new(Gate::default());
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
        let (shut, is_shut) = channel();
        let shutter = thread::spawn({
            let gate = gate.clone();
            move || {
                gate.shut();
                shut.send(()).unwrap();
            }
        });
        thread::yield_now();
        assert!(is_shut.try_recv().is_err());
        leave.send(()).unwrap();
        is_shut.recv().unwrap();
        worker.join().unwrap();
        shutter.join().unwrap();
    }

    #[test]
    fn a_broken_gate_holds_nobody() {
        let gate = Gate::default();
        gate.shut();
        gate.break_open();
        assert_eq!(gate.pass(|| 7), 7);
        gate.shut();
        assert_eq!(gate.pass(|| 8), 8);
    }
}
