//! A queue whose threads take turns as the test says.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Sender, channel};

use husk_devices::testing::PATIENCE;

use super::*;
use crate::ring::{Reader, Writer};
use crate::syscall::is_ready;
use crate::testing::{Buf, Driver, memory};

/// Which request the own thread is in.
const AWAY: u64 = 7;

fn bench() -> (Driver, Arc<RequestQueue>) {
    let driver = Driver::new(&memory(), 0x1_0000, 16);
    let queue = Arc::new(RequestQueue::new(driver.ring()));
    (driver, queue)
}

fn send(driver: &mut Driver) {
    driver.add(&[Buf::Out(0x10_0000, 40), Buf::In(0x10_1000, 16)]);
    driver.kick.write(1).unwrap();
}

/// Whether the own thread would be woken now.
fn rings(queue: &RequestQueue) -> bool {
    is_ready(queue.doorbell().as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap()
}

/// Asks nothing of anybody.
struct Idle;

impl Serve for Idle {
    fn enter(&self) -> io::Result<()> {
        Ok(())
    }

    fn handle(&self, _: Reader<'_>, _: Writer<'_>) -> Outcome {
        Outcome::Done(0)
    }

    fn give_up(&self, _: Reader<'_>) {}

    fn generation(&self) -> u64 {
        0
    }

    fn reset(&self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

fn end(queue: &RequestQueue, turn: FetchedRequest, outcome: Outcome) -> bool {
    queue.end(&Idle, turn.chain, outcome, Duration::ZERO, Instant::now())
}

/// An own thread that looks for nothing more, and waits for the doorbell.
fn rest(queue: &RequestQueue) {
    queue.set_own(0);
    assert!(queue.next().is_none());
}

#[test]
fn a_kick_for_which_the_own_thread_waits_is_not_taken_by_another() {
    let (mut driver, queue) = bench();
    queue.set_own(AWAY);
    rest(&queue);
    send(&mut driver);
    assert!(!queue.begin_in_place(AWAY));
    assert!(rings(&queue));
    // In another request it is not where that thread saw it go.
    queue.set_own(AWAY + 1);
    assert!(!queue.begin_in_place(AWAY));
    assert!(rings(&queue));
    assert!(queue.begin_in_place(AWAY + 1));
    assert!(!rings(&queue));
}

#[test]
fn an_own_thread_that_comes_back_hears_of_what_comes_while_another_is_in_a_request() {
    let (mut driver, queue) = bench();
    queue.set_own(AWAY);
    send(&mut driver);
    assert!(queue.begin_in_place(AWAY));
    assert_eq!(driver.used_flags(), 1, "no kick is wanted: the other thread looks");
    let slow = queue.next().unwrap();
    rest(&queue);
    assert_eq!(driver.used_flags(), 0);
    send(&mut driver);
    assert!(!queue.begin_in_place(AWAY) && rings(&queue));
    queue.begin();
    let turn = queue.next().unwrap();
    assert!(end(&queue, turn, Outcome::Done(0)) && end(&queue, slow, Outcome::Done(0)));
}

#[test]
fn a_request_that_another_thread_has_wait_is_heard_of_by_the_own_one_which_has_the_timer() {
    let (mut driver, queue) = bench();
    queue.set_own(AWAY);
    send(&mut driver);
    assert!(queue.begin_in_place(AWAY));
    let turn = queue.next().unwrap();
    rest(&queue);
    assert!(end(&queue, turn, Outcome::Wait));
    queue.ring();
    assert!(!queue.begin_in_place(AWAY));
    assert!(rings(&queue) && queue.waiting() == 1);
}

#[test]
fn a_kick_is_kept_when_the_right_to_memory_goes_between_it_and_the_look_at_the_ring() {
    let (mut driver, queue) = bench();
    let right = Arc::new(AtomicBool::new(true));
    queue.set_bus_master_flag(right.clone());
    send(&mut driver);
    queue.begin();
    right.store(false, Ordering::SeqCst);
    assert!(queue.next().is_none());
    assert!(rings(&queue));
    right.store(true, Ordering::SeqCst);
    queue.begin();
    assert!(queue.next().is_some());
}

#[test]
fn a_hold_is_pending_until_the_last_request_ends_which_rings_with_the_right_and_without() {
    for has_right in [true, false] {
        let (mut driver, queue) = bench();
        let right = Arc::new(AtomicBool::new(true));
        queue.set_bus_master_flag(right.clone());
        send(&mut driver);
        queue.begin();
        let turn = queue.next().unwrap();
        right.store(has_right, Ordering::SeqCst);
        assert_eq!(queue.hold(), Hold::Pending);
        assert!(!rings(&queue));
        // Neither the own thread nor another begins, and the own one does not ring for itself for ever.
        send(&mut driver);
        assert!(!queue.begin_in_place(0) && rings(&queue));
        queue.begin();
        assert!(queue.next().is_none() && !rings(&queue));
        end(&queue, turn, Outcome::Done(0));
        assert!(rings(&queue));
        queue.begin();
        assert!(queue.next().is_none() && !rings(&queue));
        assert_eq!(queue.hold(), Hold::Held);
        assert_eq!(driver.take_used().is_some(), has_right);
        right.store(true, Ordering::SeqCst);
        queue.release();
        assert!(rings(&queue));
        queue.begin();
        assert!(queue.next().is_some());
    }
}

#[test]
fn a_hold_that_is_called_off_leaves_the_queue_at_work_beside_a_request_that_does_not_end() {
    let (mut driver, queue) = bench();
    send(&mut driver);
    queue.begin();
    let slow = queue.next().unwrap();
    assert_eq!(queue.hold(), Hold::Pending);
    send(&mut driver);
    queue.begin();
    assert!(queue.next().is_none());
    queue.release();
    assert!(rings(&queue));
    queue.begin();
    let turn = queue.next().unwrap();
    assert!(end(&queue, turn, Outcome::Done(0)) && driver.take_used().is_some());
    end(&queue, slow, Outcome::Done(0));
}

/// Looks at the queue when it is told of a request, as somebody would who has locks of its own.
struct Looking(Arc<RequestQueue>, Mutex<Sender<()>>);

impl Serve for Looking {
    fn enter(&self) -> io::Result<()> {
        Ok(())
    }

    fn handle(&self, _: Reader<'_>, _: Writer<'_>) -> Outcome {
        Outcome::Wait
    }

    fn give_up(&self, _: Reader<'_>) {
        let (queue, (looked, has_looked)) = (self.0.clone(), channel());
        std::thread::spawn(move || looked.send(queue.is_doorbell_claimed()));
        has_looked.recv_timeout(PATIENCE).expect("the queue's lock is not held");
        lock(&self.1).send(()).unwrap();
    }

    fn generation(&self) -> u64 {
        0
    }

    fn reset(&self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

#[test]
fn the_server_is_told_of_a_request_that_may_not_wait_without_the_queues_lock() {
    let (mut driver, queue) = bench();
    let (told, hears) = channel();
    let serve = Looking(queue.clone(), Mutex::new(told));
    // An eighth of 16 entries may wait.
    for kept in [true, true, false] {
        send(&mut driver);
        queue.begin();
        let turn = queue.next().unwrap();
        let outcome = serve.handle(turn.chain.reader(), turn.chain.writer());
        let is_kept = queue.end(&serve, turn.chain, outcome, Duration::ZERO, Instant::now());
        assert_eq!((is_kept, hears.try_recv().is_ok()), (kept, !kept));
    }
    assert_eq!((queue.hold(), driver.take_used().is_some()), (Hold::Held, true));
}
