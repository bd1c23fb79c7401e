//! Where an I/O thread is held: asked by a control thread, which does not wait for it, and arrived at by the I/O thread itself.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use husk_devices::lock;

/// A gate. Open at first.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Woken when the thread has arrived at the shut gate.
    waker: Waker,
}

/// All that there is to know of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The thread goes on.
    Open,
    /// The thread is to come and wait.
    Shut,
    /// It has come, and waits.
    Held,
    /// The thread is to end, now and for ever.
    Broken,
}

impl Gate {
    /// An open gate. `waker` is woken when [`Gate::state`] has become [`State::Held`].
    pub fn new(waker: Waker) -> Self {
        Self {
            state: Mutex::new(State::Open),
            changed: Condvar::new(),
            waker,
        }
    }

    /// How it stands.
    pub fn state(&self) -> State {
        *self.lock()
    }

    /// Asks the thread to come. Waits for nobody.
    pub fn shut(&self) {
        self.change(|state| match state {
            State::Open => State::Shut,
            other => other,
        });
    }

    /// Lets the thread go on.
    pub fn open(&self) {
        self.change(|state| match state {
            State::Shut | State::Held => State::Open,
            other => other,
        });
    }

    /// Lets the thread go to its end.
    pub fn break_open(&self) {
        self.change(|_| State::Broken);
    }

    /// The thread is there. Waits as long as the gate is shut, and returns how it stands then: open or broken.
    pub fn arrive(&self) -> State {
        let state = self.changed.wait_while(self.lock(), |state| self.keeps(state));
        *state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread that finds the gate so has to wait. Says that it is there when that is new: under the lock, so that whoever is
    /// woken finds it held.
    fn keeps(&self, state: &mut State) -> bool {
        if *state == State::Shut {
            *state = State::Held;
            self.waker.wake_by_ref();
        }
        *state == State::Held
    }

    fn change(&self, to: impl FnOnce(State) -> State) {
        let mut state = self.lock();
        *state = to(*state);
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, OnceLock, TryLockError, Weak};
    use std::task::Wake;
    use std::thread;

    use husk_devices::testing::{PATIENCE, until_asleep};
    use rustix::thread::gettid;

    use super::*;

    struct Bell(Mutex<Sender<()>>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    fn gate() -> (Arc<Gate>, Receiver<()>) {
        let (ring, rings) = channel();
        let bell = Arc::new(Bell(Mutex::new(ring)));
        (Arc::new(Gate::new(bell.into())), rings)
    }

    /// A thread that arrives, and how the gate stood when it left.
    fn arriving(gate: &Arc<Gate>) -> Receiver<State> {
        let (left, seen) = channel();
        let gate = gate.clone();
        thread::spawn(move || left.send(gate.arrive()).unwrap());
        seen
    }

    #[test]
    fn every_request_leads_from_every_state_to_the_one_it_should() {
        use State::{Broken, Held, Open, Shut};
        type Ask = fn(&Gate);
        let table: [(Ask, [(State, State); 4]); 3] = [
            (Gate::shut, [(Open, Shut), (Shut, Shut), (Held, Held), (Broken, Broken)]),
            (Gate::open, [(Open, Open), (Shut, Open), (Held, Open), (Broken, Broken)]),
            (
                Gate::break_open,
                [(Open, Broken), (Shut, Broken), (Held, Broken), (Broken, Broken)],
            ),
        ];
        for (number, (ask, rows)) in table.into_iter().enumerate() {
            for (before, after) in rows {
                let (gate, rings) = gate();
                *gate.lock() = before;
                ask(&gate);
                assert_eq!(gate.state(), after, "request {number} in state {before:?}");
                assert!(rings.try_recv().is_err(), "only an arrival is news");
            }
        }
    }

    #[test]
    fn every_state_keeps_whoever_finds_it_or_lets_it_go() {
        use State::{Broken, Held, Open, Shut};
        for (before, after, keeps, news) in [
            (Open, Open, false, false),
            (Shut, Held, true, true),
            // As after a wake-up without a reason.
            (Held, Held, true, false),
            (Broken, Broken, false, false),
        ] {
            let (gate, rings) = gate();
            let mut state = before;
            assert_eq!((gate.keeps(&mut state), state), (keeps, after), "{before:?}");
            assert_eq!(rings.try_recv().is_ok(), news, "{before:?}");
        }
    }

    /// Asks when the thread says that it is there, and lets it go on once whoever asks waits for the lock.
    struct Hurry {
        ask: fn(&Gate),
        gate: OnceLock<Weak<Gate>>,
    }

    impl Wake for Hurry {
        fn wake(self: Arc<Self>) {
            let gate = self.gate.get().and_then(Weak::upgrade).unwrap();
            assert!(
                matches!(gate.state.try_lock(), Err(TryLockError::WouldBlock)),
                "nobody may look before it is held"
            );
            let (name, id) = channel();
            let ask = self.ask;
            thread::spawn(move || {
                name.send(gettid().as_raw_nonzero().get()).unwrap();
                ask(&gate);
            });
            until_asleep(id.recv().unwrap());
        }
    }

    #[test]
    fn what_is_asked_while_the_thread_says_that_it_is_there_is_not_lost() {
        for (ask, after) in [
            (Gate::open as fn(&Gate), State::Open),
            (Gate::break_open, State::Broken),
        ] {
            let hurry = Arc::new(Hurry {
                ask,
                gate: OnceLock::new(),
            });
            let gate = Arc::new(Gate::new(hurry.clone().into()));
            hurry.gate.set(Arc::downgrade(&gate)).unwrap();
            gate.shut();
            assert_eq!(arriving(&gate).recv_timeout(PATIENCE).unwrap(), after);
        }
    }

    #[test]
    fn a_gate_is_open_at_first_and_lets_through_whoever_arrives() {
        let (gate, rings) = gate();
        assert_eq!(gate.state(), State::Open);
        assert_eq!(gate.arrive(), State::Open);
        assert_eq!(gate.state(), State::Open);
        assert!(rings.try_recv().is_err());
    }

    #[test]
    fn whoever_arrives_at_a_shut_gate_says_so_once_and_stays_until_it_opens_or_breaks() {
        for (ask, after) in [
            (Gate::open as fn(&Gate), State::Open),
            (Gate::break_open, State::Broken),
        ] {
            let (gate, rings) = gate();
            gate.shut();
            let left = arriving(&gate);
            rings.recv_timeout(PATIENCE).unwrap();
            assert_eq!(gate.state(), State::Held);
            // Neither a second request nor a wake-up without a reason lets it go.
            gate.shut();
            assert_eq!(gate.state(), State::Held);
            assert!(left.try_recv().is_err());
            ask(&gate);
            assert_eq!(left.recv_timeout(PATIENCE).unwrap(), after);
            assert!(rings.try_recv().is_err());
        }
    }

    #[test]
    fn a_gate_that_shuts_again_before_its_thread_has_left_holds_it_a_second_time() {
        let (gate, rings) = gate();
        gate.shut();
        let left = arriving(&gate);
        rings.recv_timeout(PATIENCE).unwrap();
        // Under one lock, so that the thread cannot get away in between.
        *gate.lock() = State::Shut;
        gate.changed.notify_all();
        rings.recv_timeout(PATIENCE).unwrap();
        assert_eq!(gate.state(), State::Held);
        gate.open();
        assert_eq!(left.recv_timeout(PATIENCE).unwrap(), State::Open);
    }

    #[test]
    fn a_broken_gate_holds_nobody() {
        let (gate, rings) = gate();
        gate.break_open();
        gate.shut();
        assert_eq!(gate.arrive(), State::Broken);
        assert!(rings.try_recv().is_err());
    }
}
