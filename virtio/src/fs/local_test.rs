//! The device with a server of four requests.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, PoisonError};
use std::time::{Duration, Instant};

use husk_devices::lock;
use husk_devices::memory::GuestMemory;
use husk_devices::testing::{PATIENCE, until};

use super::*;
use crate::device::{HandlerError, Watch};
use crate::fs::serve::Outcome;
use crate::ring::{Notify, Reader, RingState, Writer};
use crate::testing::{ABUSES, Buf, Driver, memory};
use crate::threads::{ThreadBody, UnconfinedThreads};
use crate::worker::Worker;

/// Answered at once.
const ECHO: u32 = 1;
/// Answered when the test lets it go.
const SLOW: u32 = 2;
/// Answered when the one lock is free.
const LOCK: u32 = 3;
/// Frees the lock.
const UNLOCK: u32 = 4;
/// Answered after a moment in which the thread sleeps.
const DOZE: u32 = 5;
/// Answered when the test ends what hangs.
const HANG: u32 = 6;

/// Serves these, and tells what it saw.
#[derive(Default)]
struct Fake {
    /// Slow requests that may end, and those that are under way.
    slow: Mutex<(usize, usize)>,
    changed: Condvar,
    /// Whether a request hangs.
    hangs: Mutex<bool>,
    thawed: Condvar,
    locked: AtomicBool,
    generation: AtomicU64,
    /// Numbers of the requests, in the order in which they were handed in.
    seen: Mutex<Vec<u64>>,
    /// Those that were to wait, and were not allowed to.
    given_up: Mutex<Vec<u64>>,
    entered: AtomicUsize,
    roomy: AtomicUsize,
    resets: AtomicUsize,
    under_way: AtomicUsize,
}

impl Fake {
    fn let_go(&self, count: usize) {
        lock(&self.slow).0 += count;
        self.changed.notify_all();
    }

    /// Waits until so many slow requests are under way.
    fn wait_for_slow(&self, count: usize) {
        until(|| lock(&self.slow).1 == count);
    }

    fn be_slow(&self) {
        let mut slow = lock(&self.slow);
        slow.1 += 1;
        while slow.0 == 0 {
            slow = self.changed.wait(slow).unwrap_or_else(PoisonError::into_inner);
        }
        slow.0 -= 1;
        slow.1 -= 1;
    }

    fn hang(&self) {
        let mut hangs = lock(&self.hangs);
        *hangs = true;
        while *hangs {
            hangs = self.thawed.wait(hangs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn thaw(&self) {
        *lock(&self.hangs) = false;
        self.thawed.notify_all();
    }
}

impl Serve for Fake {
    fn enter(&self) -> std::io::Result<()> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn reserve_fds(&self) {
        self.roomy.fetch_add(1, Ordering::SeqCst);
    }

    fn handle(&self, mut request: Reader<'_>, mut reply: Writer<'_>) -> Outcome {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let (_, code, unique): (u32, u32, u64) = (
            request.read_obj().unwrap(),
            request.read_obj().unwrap(),
            request.read_obj().unwrap(),
        );
        lock(&self.seen).push(unique);
        match code {
            SLOW => self.be_slow(),
            HANG => self.hang(),
            LOCK if self.locked.load(Ordering::SeqCst) => {
                self.under_way.fetch_sub(1, Ordering::SeqCst);
                return Outcome::Wait;
            }
            UNLOCK => {
                self.locked.store(false, Ordering::SeqCst);
                self.generation.fetch_add(1, Ordering::SeqCst);
            }
            DOZE => std::thread::sleep(Duration::from_millis(2)),
            _ => {}
        }
        reply.write_all(&answer(unique, 0)).unwrap();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        Outcome::Done(16)
    }

    fn give_up(&self, mut request: Reader<'_>) {
        let (_, unique): (u64, u64) = (request.read_obj().unwrap(), request.read_obj().unwrap());
        lock(&self.given_up).push(unique);
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn reset(&self) {
        assert_eq!(self.under_way.load(Ordering::SeqCst), 0);
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("fake_seen", lock(&self.seen).len() as u64)]
    }
}

fn answer(unique: u64, error: i32) -> Vec<u8> {
    [&16u32.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes()].concat()
}

/// A driver of one queue, which remembers where its replies will be.
struct Queue {
    driver: Driver,
    data: u64,
    sent: Vec<(u16, u64)>,
}

impl Queue {
    fn new(mem: &GuestMemory, number: u64) -> Self {
        Self {
            driver: Driver::new(mem, 0x1_0000 * (number + 1), 64),
            data: 0x10_0000 + 0x2_0000 * number,
            sent: Vec::new(),
        }
    }

    fn offer(&mut self, code: u32, unique: u64) {
        let (request, reply) = (self.data, self.data + 64);
        self.data += 128;
        let header = [
            &40u32.to_le_bytes()[..],
            &code.to_le_bytes(),
            &unique.to_le_bytes(),
            &[0; 24],
        ]
        .concat();
        self.driver.write(request, &header);
        let head = self.driver.add(&[Buf::Out(request, 40), Buf::In(reply, 16)]);
        self.sent.push((head, reply));
    }

    fn kick(&self) {
        self.driver.kick.write(1).unwrap();
    }

    fn send(&mut self, code: u32, unique: u64) {
        self.offer(code, unique);
        self.kick();
    }

    /// The next reply that has come: number and error.
    fn reply(&mut self) -> Option<(u64, i32)> {
        let (head, _) = self.driver.take_used()?;
        let place = self.sent.iter().position(|(sent, _)| u32::from(*sent) == head).unwrap();
        let (_, at) = self.sent.remove(place);
        let bytes = self.driver.read(at, 16);
        let error = i32::from_le_bytes(bytes[4..8].try_into().unwrap());
        Some((u64::from_le_bytes(bytes[8..].try_into().unwrap()), error))
    }

    fn replies(&mut self, count: usize) -> Vec<(u64, i32)> {
        let (mut replies, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while replies.len() < count {
            match self.reply() {
                Some(reply) => replies.push(reply),
                None => std::thread::sleep(Duration::from_micros(200)),
            }
            assert!(Instant::now() < deadline, "{replies:?} of {count}");
        }
        replies
    }
}

/// A device with an urgent queue and two for requests, each on its thread.
struct Bench {
    serve: Arc<Fake>,
    local: Local,
    session: Arc<Session>,
    workers: Vec<Worker>,
    queues: Vec<Queue>,
}

fn config() -> LocalConfig {
    LocalConfig {
        tag: "share".into(),
        queues: 2,
        queue_size: 64,
        name: "t".into(),
    }
}

fn activation(mem: &GuestMemory, queues: &[Queue]) -> Activation {
    Activation {
        mem: mem.clone(),
        features: 0,
        rings: queues.iter().map(|queue| Some(queue.driver.ring())).collect(),
        config_changed: Notify::none(),
    }
}

impl Bench {
    /// Has a lock waited for in queue 2, which is number 1 there, and a slow request in service in
    /// queue 1, which is number 3.
    fn keep_busy(&mut self) {
        self.serve.locked.store(true, Ordering::SeqCst);
        self.queues[2].send(LOCK, 1);
        self.queues[2].send(ECHO, 2);
        assert_eq!(self.queues[2].replies(1), ok([2]));
        self.queues[1].send(SLOW, 3);
        self.serve.wait_for_slow(1);
    }

    fn new() -> Self {
        Self::on(&(Arc::new(UnconfinedThreads) as Arc<dyn Threads>))
    }

    fn on(threads: &Arc<dyn Threads>) -> Self {
        let serve = Arc::new(Fake::default());
        let local = Local::new(&config(), serve.clone(), threads);
        let mem = memory();
        let queues: Vec<Queue> = (0..3).map(|number| Queue::new(&mem, number)).collect();
        let session = local.session(activation(&mem, &queues)).unwrap();
        let spawn = |queue| {
            let handler = Box::new(RequestQueueHandler::new(session.clone(), queue));
            Worker::spawn("io-t", handler, Box::new(|error| panic!("{error}"))).unwrap()
        };
        Self {
            workers: (0..3).map(spawn).collect(),
            serve,
            local,
            session,
            queues,
        }
    }

    fn stop(&mut self) -> Vec<RingState> {
        self.workers.iter().for_each(Worker::stop);
        self.workers.drain(..).flat_map(Worker::join).collect()
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.local.counters();
        counters.iter().find(|(found, _)| *found == name).unwrap().1
    }
}

fn ok(numbers: impl IntoIterator<Item = u64>) -> Vec<(u64, i32)> {
    numbers.into_iter().map(|number| (number, 0)).collect()
}

fn sorted(mut replies: Vec<(u64, i32)>) -> Vec<(u64, i32)> {
    replies.sort_unstable();
    replies
}

#[test]
fn the_driver_sees_the_tag_and_the_queues() {
    let local = Local::new(
        &config(),
        Arc::new(Fake::default()),
        &(Arc::new(UnconfinedThreads) as Arc<dyn Threads>),
    );
    let mut data = [0; 40];
    lock(&local.config()).read(0, &mut data);
    assert_eq!((&data[..6], &data[36..]), (&b"share\0"[..], &[2, 0, 0, 0][..]));
    let profile = local.profile();
    assert_eq!((profile.id, profile.queue_sizes), (26, vec![64; 3]));
    assert_eq!(local.thread_class(), ThreadClass::Files);
}

#[test]
fn requests_of_every_queue_are_answered_each_once() {
    let mut bench = Bench::new();
    for number in 0..3u64 {
        let queue = &mut bench.queues[usize::try_from(number).unwrap()];
        for unique in 1..=8 {
            queue.offer(ECHO, 100 * number + unique);
        }
        queue.kick();
        let replies = sorted(queue.replies(8));
        assert_eq!(replies, ok((1..=8).map(|unique| 100 * number + unique)));
    }
    bench.queues[1].send(ECHO, 9);
    assert_eq!(bench.queues[1].replies(1), ok([9]));
    assert_eq!(bench.counter("fake_seen"), 25);
    assert_eq!(bench.counter("malformed_chains"), 0);
    assert!(bench.queues[1].driver.interrupts() > 0);
}

#[test]
fn a_request_that_takes_long_holds_up_none_behind_it() {
    let mut bench = Bench::new();
    // More than one, so that those who stand in are held up as well.
    for unique in 1..=4 {
        bench.queues[1].send(SLOW, unique);
        bench.serve.wait_for_slow(usize::try_from(unique).unwrap());
        bench.queues[1].send(ECHO, 10 + unique);
        assert_eq!(bench.queues[1].replies(1), ok([10 + unique]));
    }
    assert!(bench.session.helpers() >= 3);
    bench.serve.let_go(4);
    assert_eq!(sorted(bench.queues[1].replies(4)), ok(1..=4));
    bench.queues[1].send(ECHO, 20);
    assert_eq!(bench.queues[1].replies(1), ok([20]));
}

#[test]
fn a_slow_request_is_waited_for_behind_as_many_as_there_are_helpers_and_no_longer() {
    let mut bench = Bench::new();
    let all = helper_pool::HELPERS_MAX + 1;
    for unique in 1..=u64::try_from(all).unwrap() {
        bench.queues[1].send(SLOW, unique);
        bench.serve.wait_for_slow(usize::try_from(unique).unwrap());
    }
    assert_eq!(bench.session.helpers(), helper_pool::HELPERS_MAX);
    bench.queues[1].send(ECHO, 99);
    assert_eq!(bench.queues[1].reply(), None);
    bench.serve.let_go(1);
    let mut replies = bench.queues[1].replies(2);
    assert_eq!(replies.pop(), Some((99, 0)));
    // Another queue has a thread of its own all the while.
    bench.queues[2].send(ECHO, 100);
    assert_eq!(bench.queues[2].replies(1), ok([100]));
    bench.serve.let_go(all - 1);
    bench.queues[1].replies(all - 1);
}

#[test]
fn requests_that_pile_up_and_are_not_short_are_shared_out() {
    let mut bench = Bench::new();
    for unique in 1..=24 {
        bench.queues[1].offer(DOZE, unique);
    }
    bench.queues[1].kick();
    assert_eq!(sorted(bench.queues[1].replies(24)), ok(1..=24));
    assert!(bench.session.helpers() >= 2);
}

#[test]
fn a_request_that_waits_goes_on_when_the_lock_goes_on_whatever_queue() {
    let mut bench = Bench::new();
    bench.serve.locked.store(true, Ordering::SeqCst);
    bench.queues[1].offer(LOCK, 1);
    bench.queues[1].offer(ECHO, 2);
    bench.queues[1].kick();
    assert_eq!(bench.queues[1].replies(1), ok([2]));
    bench.queues[2].send(UNLOCK, 3);
    assert_eq!(bench.queues[2].replies(1), ok([3]));
    assert_eq!(bench.queues[1].replies(1), ok([1]));
    assert!(bench.counter("lock_waits") >= 1);
}

#[test]
fn a_lock_that_goes_without_a_word_is_found_out() {
    let mut bench = Bench::new();
    bench.serve.locked.store(true, Ordering::SeqCst);
    bench.queues[1].send(LOCK, 1);
    bench.queues[1].send(ECHO, 2);
    assert_eq!(bench.queues[1].replies(1), ok([2]));
    bench.serve.locked.store(false, Ordering::SeqCst);
    assert_eq!(bench.queues[1].replies(1), ok([1]));
}

#[test]
fn those_who_wait_leave_room_in_the_ring_for_whoever_lets_go() {
    let mut bench = Bench::new();
    bench.serve.locked.store(true, Ordering::SeqCst);
    for unique in 1..=10 {
        bench.queues[1].offer(LOCK, unique);
    }
    bench.queues[1].kick();
    // An eighth of 64 entries may wait.
    let refused = bench.queues[1].replies(2);
    assert_eq!(
        refused.iter().map(|(_, error)| *error).collect::<Vec<_>>(),
        [-libc::ENOLCK; 2]
    );
    let gone: Vec<_> = refused.iter().map(|(unique, _)| *unique).collect();
    assert_eq!(*lock(&bench.serve.given_up), gone);
    bench.queues[1].send(UNLOCK, 11);
    let replies = sorted(bench.queues[1].replies(9));
    let kept = (1..=11).filter(|unique| refused.iter().all(|(gone, _)| gone != unique));
    assert_eq!(replies, ok(kept));
    assert_eq!(bench.counter("refused_lock_waits"), 2);
}

#[test]
fn a_held_share_finishes_what_it_has_begun_and_begins_nothing() {
    let mut bench = Bench::new();
    bench.queues[1].send(SLOW, 1);
    bench.serve.wait_for_slow(1);
    bench.queues[1].send(SLOW, 2);
    bench.serve.wait_for_slow(2);
    bench.workers.iter().for_each(Worker::hold);
    bench.serve.let_go(2);
    until(|| bench.workers.iter().all(Worker::is_held));
    assert_eq!(sorted(bench.queues[1].replies(2)), ok([1, 2]));
    bench.queues[1].send(ECHO, 3);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.queues[1].reply(), None);
    assert_eq!(*lock(&bench.serve.seen), [1, 2]);
    bench.workers.iter().for_each(Worker::release);
    assert_eq!(bench.queues[1].replies(1), ok([3]));
}

#[test]
fn a_pause_that_is_given_up_leaves_a_queue_at_work_beside_a_request_that_hangs() {
    let mut bench = Bench::new();
    bench.queues[1].send(SLOW, 1);
    bench.serve.wait_for_slow(1);
    // A helper's, so that the own thread is free later.
    bench.queues[1].send(HANG, 2);
    until(|| *lock(&bench.serve.hangs));
    bench.serve.let_go(1);
    assert_eq!(bench.queues[1].replies(1), ok([1]));
    bench.workers.iter().for_each(Worker::hold);
    until(|| bench.workers[2].is_held() && bench.session.queues[1].is_holding());
    assert!(!bench.workers[1].is_held());
    bench.workers.iter().for_each(Worker::release);
    bench.queues[1].send(ECHO, 3);
    assert_eq!(bench.queues[1].replies(1), ok([3]));
    bench.serve.thaw();
    assert_eq!(bench.queues[1].replies(1), ok([2]));
}

#[test]
fn a_device_without_the_right_to_memory_leaves_its_ring_alone_whoever_is_at_it() {
    let bus_master = Arc::new(AtomicBool::new(true));
    let mut bench = Bench::new();
    bench.session.queues[1].set_bus_master_flag(bus_master.clone());
    for unique in [1, 2] {
        bench.queues[1].send(SLOW, unique);
        bench.serve.wait_for_slow(usize::try_from(unique).unwrap());
    }
    bus_master.store(false, Ordering::SeqCst);
    bench.queues[1].send(ECHO, 3);
    bench.serve.let_go(2);
    bench.serve.wait_for_slow(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((bench.queues[1].reply(), bench.counter("fake_seen")), (None, 2));
    bus_master.store(true, Ordering::SeqCst);
    // As the transport does for a handler that it calls again.
    bench.queues[1].kick();
    assert_eq!(sorted(bench.queues[1].replies(3)), ok(1..=3));
}

#[test]
fn a_reset_of_a_device_without_the_right_to_memory_answers_nobody() {
    let bus_master = Arc::new(AtomicBool::new(true));
    let mut bench = Bench::new();
    for queue in &bench.session.queues {
        queue.set_bus_master_flag(bus_master.clone());
    }
    bench.keep_busy();
    bus_master.store(false, Ordering::SeqCst);
    bench.serve.let_go(1);
    assert_eq!(bench.stop().len(), 3);
    assert_eq!((bench.queues[2].reply(), bench.queues[1].reply()), (None, None));
}

#[test]
fn a_reset_waits_for_what_was_begun_refuses_what_waits_and_begins_anew() {
    let mut bench = Bench::new();
    bench.keep_busy();
    bench.queues[1].send(SLOW, 4);
    bench.serve.wait_for_slow(2);
    bench.workers.iter().for_each(Worker::stop);
    assert_eq!(bench.queues[2].replies(1), [(1, -libc::ENOTCONN)]);
    assert!(!bench.workers[1].is_stopped());
    assert_eq!(bench.serve.resets.load(Ordering::SeqCst), 0);
    bench.serve.let_go(2);
    let states = bench.stop();
    assert_eq!(states.len(), 3);
    assert_eq!(sorted(bench.queues[1].replies(2)), ok([3, 4]));
    assert_eq!(bench.serve.resets.load(Ordering::SeqCst), 1);
    assert_eq!(bench.session.helpers(), 0);

    let mem = memory();
    let mut queues: Vec<Queue> = (0..3).map(|number| Queue::new(&mem, number)).collect();
    let handlers = bench.local.start(activation(&mem, &queues)).unwrap();
    let spawn = |handler| Worker::spawn("io-t", handler, Box::new(|error| panic!("{error}"))).unwrap();
    bench.workers = handlers.into_iter().map(spawn).collect();
    queues[1].send(ECHO, 5);
    assert_eq!(queues[1].replies(1), ok([5]));
    bench.stop();
    assert_eq!(bench.serve.resets.load(Ordering::SeqCst), 2);
}

/// Threads that the host does not have.
struct Barren;

impl Threads for Barren {
    fn start(&self, _name: &str, body: ThreadBody) -> std::io::Result<()> {
        drop(body);
        Ok(())
    }

    fn confine(&self, _thread_class: ThreadClass) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_share_that_nobody_can_help_serves_all_the_same() {
    let mut bench = Bench::on(&(Arc::new(Barren) as Arc<dyn Threads>));
    for unique in 1..=12 {
        bench.queues[1].offer(DOZE, unique);
    }
    bench.queues[1].kick();
    assert_eq!(bench.queues[1].replies(12), ok(1..=12));
    assert_eq!(bench.session.helpers(), 0);
    assert_eq!(bench.stop().len(), 3);
}

/// Threads of which the host refuses the second helper, once.
#[derive(Default)]
struct Short(AtomicUsize);

impl Threads for Short {
    fn start(&self, name: &str, body: ThreadBody) -> std::io::Result<()> {
        if name.ends_with("-h") && self.0.fetch_add(1, Ordering::SeqCst) == 1 {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        UnconfinedThreads.start(name, body)
    }

    fn confine(&self, _thread_class: ThreadClass) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_helper_that_could_not_be_had_is_called_again_though_the_one_that_there_is_never_comes_back() {
    let threads = Arc::new(Short::default());
    let mut bench = Bench::on(&(threads.clone() as Arc<dyn Threads>));
    for unique in [1, 2] {
        bench.queues[1].send(SLOW, unique);
        bench.serve.wait_for_slow(usize::try_from(unique).unwrap());
    }
    until(|| threads.0.load(Ordering::SeqCst) >= 2);
    bench.queues[1].send(ECHO, 3);
    assert_eq!(bench.queues[1].replies(1), ok([3]));
    bench.serve.let_go(2);
    assert_eq!(sorted(bench.queues[1].replies(2)), ok([1, 2]));
}

#[test]
fn every_thread_that_serves_is_prepared() {
    let mut bench = Bench::new();
    bench.queues[1].send(SLOW, 1);
    bench.serve.wait_for_slow(1);
    bench.queues[1].send(ECHO, 2);
    bench.queues[1].replies(1);
    bench.serve.let_go(1);
    bench.stop();
    // Three of the queues, one that helped, the watcher.
    assert_eq!(bench.serve.entered.load(Ordering::SeqCst), 5);
}

#[test]
fn room_for_descriptors_is_made_once_and_not_by_a_queue_of_requests() {
    let mut bench = Bench::new();
    for queue in [1, 2] {
        bench.queues[queue].send(ECHO, 1);
        bench.queues[queue].replies(1);
    }
    bench.stop();
    assert_eq!(bench.serve.roomy.load(Ordering::SeqCst), 1);
}

#[test]
fn a_chain_too_short_for_a_request_is_given_back_and_counted() {
    let mut bench = Bench::new();
    let driver = &mut bench.queues[1].driver;
    let heads = [
        driver.add(&[Buf::Out(0x10_0000, 39), Buf::In(0x10_0100, 16)]),
        driver.add(&[Buf::In(0x10_0200, 16)]),
        driver.add(&[Buf::Out(0x10_0000, 0)]),
    ];
    driver.kick.write(1).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // In whatever order: under load a helper takes one of them.
    let mut used = Vec::new();
    while used.len() < heads.len() {
        used.extend(driver.take_used());
        assert!(Instant::now() < deadline);
    }
    used.sort_unstable();
    assert_eq!(used, heads.map(|head| (u32::from(head), 0)));
    bench.queues[1].send(ECHO, 1);
    assert_eq!(bench.queues[1].replies(1), ok([1]));
    assert_eq!((bench.counter("malformed_chains"), bench.counter("fake_seen")), (3, 1));
}

/// Watches nothing.
struct Blind;

impl Watch for Blind {
    fn readable(&mut self, _: std::os::fd::RawFd, _: u32) -> std::io::Result<()> {
        Ok(())
    }

    fn forget(&mut self, _: std::os::fd::RawFd) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_abused_ring_ends_its_handler_and_the_next_driver_is_served() {
    let serve = Arc::new(Fake::default());
    let mut local = Local::new(
        &config(),
        serve.clone(),
        &(Arc::new(UnconfinedThreads) as Arc<dyn Threads>),
    );
    for (number, (name, abuse)) in (1..).zip(ABUSES) {
        let mem = memory();
        let queues: Vec<Queue> = (0..3).map(|number| Queue::new(&mem, number)).collect();
        let mut handlers = local.start(activation(&mem, &queues)).unwrap();
        abuse(&queues[1].driver);
        let end = handlers[1].wake(0, &mut Blind);
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        assert_eq!(handlers.drain(..).flat_map(Handler::stop).count(), 3);
        assert_eq!(serve.resets.load(Ordering::SeqCst), 2 * number - 1);

        let mem = memory();
        let mut queues: Vec<Queue> = (0..3).map(|number| Queue::new(&mem, number)).collect();
        let mut handlers = local.start(activation(&mem, &queues)).unwrap();
        queues[1].send(ECHO, 7);
        handlers[1].wake(0, &mut Blind).unwrap();
        assert_eq!(queues[1].replies(1), ok([7]), "after {name}");
        handlers.drain(..).for_each(|handler| drop(handler.stop()));
    }
    assert_eq!(lock(&serve.seen).len(), ABUSES.len());
}

#[test]
fn a_rule_that_is_broken_while_another_thread_looks_ends_the_queue_as_well() {
    let (serve, mem) = (Arc::new(Fake::default()), memory());
    let local = Local::new(
        &config(),
        serve.clone(),
        &(Arc::new(UnconfinedThreads) as Arc<dyn Threads>),
    );
    let mut queues: Vec<Queue> = (0..2).map(|number| Queue::new(&mem, number)).collect();
    let session = local.session(activation(&mem, &queues)).unwrap();
    let (failed, failure) = std::sync::mpsc::channel();
    let on_failure = Box::new(move |error: HandlerError| failed.send(error.to_string()).unwrap());
    let worker = Worker::spawn(
        "io-t",
        Box::new(RequestQueueHandler::new(session.clone(), 1)),
        on_failure,
    )
    .unwrap();
    queues[1].send(SLOW, 1);
    serve.wait_for_slow(1);
    queues[1].driver.offer(1000);
    queues[1].kick();
    // The own thread is away: a helper finds it.
    until(|| session.helpers() > 0);
    serve.let_go(1);
    let message = failure.recv_timeout(PATIENCE).unwrap();
    assert!(message.contains("1000"), "{message}");
    assert_eq!(worker.join().len(), 1);
    assert_eq!(session.finish(0).map(|state| state.index), Some(0));
}

#[test]
fn a_driver_that_leaves_out_what_no_share_can_do_without_is_refused() {
    let mut local = Local::new(
        &config(),
        Arc::new(Fake::default()),
        &(Arc::new(UnconfinedThreads) as Arc<dyn Threads>),
    );
    let mem = memory();
    let queues: Vec<Queue> = (0..3).map(|number| Queue::new(&mem, number)).collect();
    for missing in [0u16, 1] {
        let mut activation = activation(&mem, &queues);
        activation.rings[usize::from(missing)] = None;
        let refused = local.start(activation).err().unwrap();
        assert!(matches!(refused, StartError::QueueMissing(queue) if queue == missing));
    }
    let mut activation = activation(&mem, &queues);
    activation.rings[2] = None;
    assert_eq!(local.start(activation).unwrap().len(), 2);
}
