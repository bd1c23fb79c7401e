//! Where an I/O thread is held: a control thread asks for that and does not wait; the I/O thread comes by itself.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use husk_devices::lock;

/// Where one thread is held, and whether it is to be. [`State::Running`] at first.
#[derive(Debug)]
pub(crate) struct HoldPoint {
    state: Mutex<State>,
    changed: Condvar,
    /// Woken when the thread has come to be held.
    waker: Waker,
}

/// What is asked of the thread, and whether it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The thread goes on.
    Running,
    /// The thread is to come and wait.
    HoldRequested,
    /// It has come, and waits.
    Held,
    /// The thread is to end, now and for ever.
    Ended,
}

impl HoldPoint {
    /// Nothing is asked of the thread. `waker` is woken when [`HoldPoint::state`] has become [`State::Held`].
    pub fn new(waker: Waker) -> Self {
        Self {
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
            waker,
        }
    }

    /// How it stands.
    pub fn state(&self) -> State {
        *self.lock()
    }

    /// Asks the thread to come. Waits for nobody.
    pub fn request_hold(&self) {
        self.change(|state| match state {
            State::Running => State::HoldRequested,
            other => other,
        });
    }

    /// Lets the thread go on.
    pub fn release(&self) {
        self.change(|state| match state {
            State::HoldRequested | State::Held => State::Running,
            other => other,
        });
    }

    /// Lets the thread go to its end.
    pub fn end(&self) {
        self.change(|_| State::Ended);
    }

    /// The thread is there. Waits as long as it is held, and returns how it stands then: [`State::Running`] or
    /// [`State::Ended`].
    pub fn wait_while_held(&self) -> State {
        let state = self.changed.wait_while(self.lock(), |state| self.must_wait(state));
        *state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a thread that finds `state` has to wait. Says that it is there when that is new: under the lock, so that
    /// whoever is woken finds it held.
    fn must_wait(&self, state: &mut State) -> bool {
        if *state == State::HoldRequested {
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

    struct Wakes(Mutex<Sender<()>>);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    fn hold_point() -> (Arc<HoldPoint>, Receiver<()>) {
        let (ring, rings) = channel();
        let wakes = Arc::new(Wakes(Mutex::new(ring)));
        (Arc::new(HoldPoint::new(wakes.into())), rings)
    }

    /// A thread that arrives, and the state in which it left.
    fn arriving(hold_point: &Arc<HoldPoint>) -> Receiver<State> {
        let (left, seen) = channel();
        let hold_point = hold_point.clone();
        thread::spawn(move || left.send(hold_point.wait_while_held()).unwrap());
        seen
    }

    #[test]
    fn every_request_leads_from_every_state_to_the_one_it_should() {
        use State::{Ended, Held, HoldRequested, Running};
        type Ask = fn(&HoldPoint);
        let table: [(Ask, [(State, State); 4]); 3] = [
            (
                HoldPoint::request_hold,
                [
                    (Running, HoldRequested),
                    (HoldRequested, HoldRequested),
                    (Held, Held),
                    (Ended, Ended),
                ],
            ),
            (
                HoldPoint::release,
                [
                    (Running, Running),
                    (HoldRequested, Running),
                    (Held, Running),
                    (Ended, Ended),
                ],
            ),
            (
                HoldPoint::end,
                [(Running, Ended), (HoldRequested, Ended), (Held, Ended), (Ended, Ended)],
            ),
        ];
        for (number, (ask, rows)) in table.into_iter().enumerate() {
            for (before, after) in rows {
                let (hold_point, rings) = hold_point();
                *hold_point.lock() = before;
                ask(&hold_point);
                assert_eq!(hold_point.state(), after, "request {number} in state {before:?}");
                assert!(rings.try_recv().is_err(), "only an arrival is news");
            }
        }
    }

    #[test]
    fn every_state_holds_the_thread_that_finds_it_or_lets_it_go() {
        use State::{Ended, Held, HoldRequested, Running};
        for (before, after, keeps, news) in [
            (Running, Running, false, false),
            (HoldRequested, Held, true, true),
            // As after a wake-up without a reason.
            (Held, Held, true, false),
            (Ended, Ended, false, false),
        ] {
            let (hold_point, rings) = hold_point();
            let mut state = before;
            assert_eq!((hold_point.must_wait(&mut state), state), (keeps, after), "{before:?}");
            assert_eq!(rings.try_recv().is_ok(), news, "{before:?}");
        }
    }

    /// Asks when the thread says that it is there, and lets it go on once whoever asks waits for the lock.
    struct Hurry {
        ask: fn(&HoldPoint),
        hold_point: OnceLock<Weak<HoldPoint>>,
    }

    impl Wake for Hurry {
        fn wake(self: Arc<Self>) {
            let hold_point = self.hold_point.get().and_then(Weak::upgrade).unwrap();
            assert!(
                matches!(hold_point.state.try_lock(), Err(TryLockError::WouldBlock)),
                "nobody may look before it is held"
            );
            let (name, id) = channel();
            let ask = self.ask;
            thread::spawn(move || {
                name.send(gettid().as_raw_nonzero().get()).unwrap();
                ask(&hold_point);
            });
            until_asleep(id.recv().unwrap());
        }
    }

    #[test]
    fn what_is_asked_while_the_thread_says_that_it_is_there_is_not_lost() {
        for (ask, after) in [
            (HoldPoint::release as fn(&HoldPoint), State::Running),
            (HoldPoint::end, State::Ended),
        ] {
            let hurry = Arc::new(Hurry {
                ask,
                hold_point: OnceLock::new(),
            });
            let hold_point = Arc::new(HoldPoint::new(hurry.clone().into()));
            hurry.hold_point.set(Arc::downgrade(&hold_point)).unwrap();
            hold_point.request_hold();
            assert_eq!(arriving(&hold_point).recv_timeout(PATIENCE).unwrap(), after);
        }
    }

    #[test]
    fn a_hold_point_is_released_at_first_and_lets_the_thread_through() {
        let (hold_point, rings) = hold_point();
        assert_eq!(hold_point.state(), State::Running);
        assert_eq!(hold_point.wait_while_held(), State::Running);
        assert_eq!(hold_point.state(), State::Running);
        assert!(rings.try_recv().is_err());
    }

    #[test]
    fn a_thread_asked_to_hold_says_so_once_and_waits_for_the_release_or_the_end() {
        for (ask, after) in [
            (HoldPoint::release as fn(&HoldPoint), State::Running),
            (HoldPoint::end, State::Ended),
        ] {
            let (hold_point, rings) = hold_point();
            hold_point.request_hold();
            let left = arriving(&hold_point);
            rings.recv_timeout(PATIENCE).unwrap();
            assert_eq!(hold_point.state(), State::Held);
            // Neither a second request nor a wake-up without a reason lets it go.
            hold_point.request_hold();
            assert_eq!(hold_point.state(), State::Held);
            assert!(left.try_recv().is_err());
            ask(&hold_point);
            assert_eq!(left.recv_timeout(PATIENCE).unwrap(), after);
            assert!(rings.try_recv().is_err());
        }
    }

    #[test]
    fn a_hold_asked_for_again_before_the_thread_has_left_holds_it_a_second_time() {
        let (hold_point, rings) = hold_point();
        hold_point.request_hold();
        let left = arriving(&hold_point);
        rings.recv_timeout(PATIENCE).unwrap();
        // Under one lock, so that the thread cannot get away in between.
        *hold_point.lock() = State::HoldRequested;
        hold_point.changed.notify_all();
        rings.recv_timeout(PATIENCE).unwrap();
        assert_eq!(hold_point.state(), State::Held);
        hold_point.release();
        assert_eq!(left.recv_timeout(PATIENCE).unwrap(), State::Running);
    }

    #[test]
    fn an_ended_hold_point_holds_nobody() {
        let (hold_point, rings) = hold_point();
        hold_point.end();
        hold_point.request_hold();
        assert_eq!(hold_point.wait_while_held(), State::Ended);
        assert!(rings.try_recv().is_err());
    }
}
