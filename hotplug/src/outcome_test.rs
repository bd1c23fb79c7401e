use std::sync::{Arc, Mutex};
use std::task::Wake;

use super::*;

fn now() -> Instant {
    Instant::now()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn kept(outcome: Outcome) -> OutcomeReceiver {
    let (sender, receiver) = OutcomeReceiver::new();
    sender.send(outcome);
    receiver
}

/// Counts how often it is woken, and what could be seen of a receiver then.
struct Watcher {
    receiver: Mutex<Option<OutcomeReceiver>>,
    seen: Mutex<Vec<Outcome>>,
}

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        if let Some(receiver) = &*self.receiver.lock().unwrap() {
            self.seen.lock().unwrap().push(receiver.wait(Instant::now()));
        }
    }
}

fn watched() -> (OutcomeSender, Arc<Watcher>) {
    let watcher = Arc::new(Watcher {
        receiver: Mutex::default(),
        seen: Mutex::default(),
    });
    let (sender, receiver) = OutcomeReceiver::with(watcher.clone().into());
    *watcher.receiver.lock().unwrap() = Some(receiver);
    (sender, watcher)
}

#[test]
fn who_is_woken_by_an_outcome_finds_it() {
    let (sender, watcher) = watched();
    sender.send(Outcome::Refused { ost: 0x81 });
    assert_eq!(*watcher.seen.lock().unwrap(), [Outcome::Refused { ost: 0x81 }]);
}

#[test]
fn who_is_woken_by_a_dropped_sender_finds_it_withdrawn() {
    let (sender, watcher) = watched();
    drop(sender);
    assert_eq!(*watcher.seen.lock().unwrap(), [Outcome::Withdrawn]);
}

#[test]
fn an_outcome_is_seen_again_and_again() {
    let receiver = kept(Outcome::Refused { ost: 0x82 });
    assert_eq!(receiver.wait(now()), Outcome::Refused { ost: 0x82 });
    assert_eq!(receiver.wait(now()), Outcome::Refused { ost: 0x82 });
}

#[test]
fn an_answer_after_the_deadline_is_not_lost() {
    let (sender, receiver) = OutcomeReceiver::new();
    assert_eq!(receiver.wait(now()), Outcome::TimedOut);
    assert_eq!(receiver.latency(), None);
    sender.send(Outcome::Accepted);
    assert_eq!(receiver.wait(now()), Outcome::Accepted);
    assert!(receiver.latency().is_some());
}

#[test]
fn a_dropped_sender_wakes_the_waiter() {
    let (sender, receiver) = OutcomeReceiver::new();
    let waiter = std::thread::spawn(move || receiver.wait(soon()));
    drop(sender);
    assert_eq!(waiter.join().unwrap(), Outcome::Withdrawn);
}

#[test]
fn an_outcome_sent_elsewhere_wakes_the_waiter() {
    let (sender, receiver) = OutcomeReceiver::new();
    let waiter = std::thread::spawn(move || receiver.wait(soon()));
    sender.send(Outcome::Accepted);
    assert_eq!(waiter.join().unwrap(), Outcome::Accepted);
}

#[test]
fn an_outcome_without_a_receiver_is_dropped() {
    let (sender, receiver) = OutcomeReceiver::new();
    drop(receiver);
    sender.send(Outcome::Accepted);
}

#[test]
fn latency_ends_with_the_answer_and_not_with_the_wait() {
    let (sender, receiver) = OutcomeReceiver::new();
    sender.send(Outcome::Accepted);
    let answered_by = receiver.0[0].asked.elapsed();
    std::thread::sleep(Duration::from_millis(20));
    receiver.wait(now());
    assert!(receiver.latency().unwrap() <= answered_by);
}

#[test]
fn all_is_as_good_as_the_worst() {
    use Outcome::{Accepted, Refused, TimedOut, Unproven, Withdrawn};
    let no = Refused { ost: 1 };
    for (outcomes, expected) in [
        (vec![], Accepted),
        (vec![Accepted, Accepted], Accepted),
        (vec![Accepted, Withdrawn], Withdrawn),
        (vec![TimedOut, Withdrawn, Accepted], TimedOut),
        (vec![TimedOut, Unproven], Unproven),
        (vec![Unproven, TimedOut, no], no),
        (vec![Withdrawn, no, TimedOut], no),
        (vec![no, Refused { ost: 2 }], no),
    ] {
        let all = OutcomeReceiver::all(outcomes.iter().copied().map(kept));
        assert_eq!(all.wait(now()), expected, "{outcomes:?}");
    }
}

#[test]
fn all_has_no_latency_before_the_last_answer() {
    let (sender, slow) = OutcomeReceiver::new();
    let all = OutcomeReceiver::all([kept(Outcome::Accepted), slow]);
    assert_eq!(all.wait(now()), Outcome::TimedOut);
    assert_eq!(all.latency(), None);
    sender.send(Outcome::Accepted);
    assert_eq!(all.wait(now()), Outcome::Accepted);
    assert!(all.latency().is_some());
}
