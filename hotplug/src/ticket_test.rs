use std::sync::{Arc, Mutex};
use std::task::Wake;

use super::*;

fn now() -> Instant {
    Instant::now()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn kept(outcome: Outcome) -> Ticket {
    let (promise, ticket) = Ticket::new();
    promise.keep(outcome);
    ticket
}

/// Counts how often it is woken, and what could be seen of a ticket then.
struct Watcher {
    ticket: Mutex<Option<Ticket>>,
    seen: Mutex<Vec<Outcome>>,
}

impl Wake for Watcher {
    fn wake(self: Arc<Self>) {
        if let Some(ticket) = &*self.ticket.lock().unwrap() {
            self.seen.lock().unwrap().push(ticket.wait(Instant::now()));
        }
    }
}

fn watched() -> (Promise, Arc<Watcher>) {
    let watcher = Arc::new(Watcher {
        ticket: Mutex::default(),
        seen: Mutex::default(),
    });
    let (promise, ticket) = Ticket::with(watcher.clone().into());
    *watcher.ticket.lock().unwrap() = Some(ticket);
    (promise, watcher)
}

#[test]
fn who_is_woken_by_a_promise_finds_the_answer() {
    let (promise, watcher) = watched();
    promise.keep(Outcome::Refused { ost: 0x81 });
    assert_eq!(*watcher.seen.lock().unwrap(), [Outcome::Refused { ost: 0x81 }]);
}

#[test]
fn who_is_woken_by_a_dropped_promise_finds_it_withdrawn() {
    let (promise, watcher) = watched();
    drop(promise);
    assert_eq!(*watcher.seen.lock().unwrap(), [Outcome::Withdrawn]);
}

#[test]
fn a_kept_promise_is_seen_again_and_again() {
    let ticket = kept(Outcome::Refused { ost: 0x82 });
    assert_eq!(ticket.wait(now()), Outcome::Refused { ost: 0x82 });
    assert_eq!(ticket.wait(now()), Outcome::Refused { ost: 0x82 });
}

#[test]
fn an_answer_after_the_deadline_is_not_lost() {
    let (promise, ticket) = Ticket::new();
    assert_eq!(ticket.wait(now()), Outcome::TimedOut);
    assert_eq!(ticket.latency(), None);
    promise.keep(Outcome::Accepted);
    assert_eq!(ticket.wait(now()), Outcome::Accepted);
    assert!(ticket.latency().is_some());
}

#[test]
fn a_dropped_promise_wakes_the_waiter() {
    let (promise, ticket) = Ticket::new();
    let waiter = std::thread::spawn(move || ticket.wait(soon()));
    drop(promise);
    assert_eq!(waiter.join().unwrap(), Outcome::Withdrawn);
}

#[test]
fn a_promise_kept_elsewhere_wakes_the_waiter() {
    let (promise, ticket) = Ticket::new();
    let waiter = std::thread::spawn(move || ticket.wait(soon()));
    promise.keep(Outcome::Accepted);
    assert_eq!(waiter.join().unwrap(), Outcome::Accepted);
}

#[test]
fn a_promise_to_nobody_is_kept_in_peace() {
    let (promise, ticket) = Ticket::new();
    drop(ticket);
    promise.keep(Outcome::Accepted);
}

#[test]
fn latency_ends_with_the_answer_and_not_with_the_wait() {
    let (promise, ticket) = Ticket::new();
    promise.keep(Outcome::Accepted);
    let answered_by = ticket.0[0].asked.elapsed();
    std::thread::sleep(Duration::from_millis(20));
    ticket.wait(now());
    assert!(ticket.latency().unwrap() <= answered_by);
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
        let all = Ticket::all(outcomes.iter().copied().map(kept));
        assert_eq!(all.wait(now()), expected, "{outcomes:?}");
    }
}

#[test]
fn all_has_no_latency_before_the_last_answer() {
    let (promise, slow) = Ticket::new();
    let all = Ticket::all([kept(Outcome::Accepted), slow]);
    assert_eq!(all.wait(now()), Outcome::TimedOut);
    assert_eq!(all.latency(), None);
    promise.keep(Outcome::Accepted);
    assert_eq!(all.wait(now()), Outcome::Accepted);
    assert!(all.latency().is_some());
}
