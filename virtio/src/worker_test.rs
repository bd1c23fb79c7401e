use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use husk_devices::testing::{PATIENCE, until};

use super::*;
use crate::ring::{Ring, Step};
use crate::testing::{Buf, Driver, memory};

/// Answers its ring; fails when told so by a chain without buffers to write.
struct Probe {
    ring: Ring,
    log: Sender<String>,
}

impl Handler for Probe {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.log
            .send(std::thread::current().name().unwrap_or_default().into())
            .unwrap();
        watch
            .readable(self.ring.kick().as_raw_fd(), 7)
            .map_err(|source| HandlerError::Host { what: "watch", source })
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let Self { ring, log } = self;
        let drained = ring.drain(|_, writer| Ok(Step::Used(u32::try_from(writer.available_bytes()).unwrap())));
        log.send(format!("wake {token}")).unwrap();
        drained
    }

    fn hold(&mut self, _: &mut dyn Watch) -> Result<Hold, HandlerError> {
        self.log.send("hold".into()).unwrap();
        Ok(Hold::Held)
    }

    fn release(&mut self, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.log.send("release".into()).unwrap();
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.log.send("stop".into()).unwrap();
        vec![self.ring.into_state()]
    }
}

/// Threads whose end, or rest, is heard of.
struct Watched(Mutex<Sender<()>>);

impl Threads for Arc<Watched> {
    fn start(&self, name: &str, body: crate::threads::ThreadBody) -> io::Result<()> {
        UnconfinedThreads.start(name, body)
    }

    fn confine(&self, _: ThreadClass) -> io::Result<()> {
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.clone().into()
    }
}

impl std::task::Wake for Watched {
    fn wake(self: Arc<Self>) {
        // A test that has seen enough does not mind.
        let _ = self.0.lock().unwrap().send(());
    }
}

/// A worker, and news of it.
fn watched(handler: Box<dyn Handler>) -> (Worker, Receiver<()>) {
    let (tell, news) = channel();
    let threads: Arc<dyn Threads> = Arc::new(Arc::new(Watched(Mutex::new(tell))));
    let worker = Worker::spawn_on(&threads, ThreadClass::Stream, "io-probe", handler, Box::new(|_| ())).unwrap();
    (worker, news)
}

#[test]
fn a_held_worker_says_so_and_does_nothing_until_it_is_released() {
    let mut driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let (worker, news) = watched(handler);
    assert_eq!(next(&seen), "io-probe");
    assert!(!worker.is_held());
    worker.hold();
    assert_eq!(next(&seen), "hold");
    while !worker.is_held() {
        news.recv_timeout(PATIENCE).unwrap();
    }
    driver.add(&[Buf::In(0x2_0000, 4)]);
    driver.kick.write(1).unwrap();
    worker.release();
    assert!(!worker.is_held());
    // In this order: nothing was looked at in between.
    assert_eq!([next(&seen), next(&seen)], ["release", "wake 7"]);
    // And once more.
    worker.hold();
    assert_eq!(next(&seen), "hold");
    worker.release();
    assert_eq!(next(&seen), "release");
}

#[test]
fn a_held_worker_stops_without_going_on_first() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let (worker, news) = watched(handler);
    worker.hold();
    while !worker.is_held() {
        news.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(worker.join().len(), 1);
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["io-probe", "hold", "stop"]);
    news.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_handler_that_gives_up_while_it_is_to_hold_is_not_held_as_long_as_it_lives() {
    /// Cannot be held the first time.
    struct Unruly(bool);
    impl Handler for Unruly {
        fn watch(&mut self, _: &mut dyn Watch) -> Result<(), HandlerError> {
            Ok(())
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            unreachable!("nothing is watched")
        }
        fn hold(&mut self, _: &mut dyn Watch) -> Result<Hold, HandlerError> {
            let source = io::ErrorKind::TimedOut.into();
            match std::mem::replace(&mut self.0, true) {
                true => Ok(Hold::Held),
                false => Err(HandlerError::Host { what: "no", source }),
            }
        }
        fn survive(&mut self, _: &mut dyn Watch) -> bool {
            true
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            Vec::new()
        }
    }
    let (failed, failure) = channel();
    let tell = Box::new(move |error: HandlerError| failed.send(error.to_string()).unwrap());
    let worker = Worker::spawn("unruly", Box::new(Unruly(false)), tell).unwrap();
    worker.hold();
    assert_eq!(next(&failure), "no");
    assert!(!worker.is_held());
    worker.release();
    worker.hold();
    until(|| worker.is_held());
}

/// Has begun something that ends when its event rings.
struct Slow {
    end: Arc<EventFd>,
    ended: bool,
    log: Sender<String>,
}

impl Handler for Slow {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        watch.readable(self.end.as_raw_fd(), 1).map_err(HandlerError::watch)
    }

    fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.end.read().unwrap();
        self.ended = true;
        self.log.send("wake".into()).unwrap();
        Ok(())
    }

    fn hold(&mut self, _: &mut dyn Watch) -> Result<Hold, HandlerError> {
        self.log.send("hold".into()).unwrap();
        Ok(if self.ended { Hold::Held } else { Hold::Pending })
    }

    fn release(&mut self, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.log.send("release".into()).unwrap();
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.log.send("stop".into()).unwrap();
        Vec::new()
    }
}

fn slow() -> (Box<Slow>, Arc<EventFd>, Receiver<String>) {
    let (log, seen) = channel();
    let end = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let ended = false;
    let handler = Slow {
        end: end.clone(),
        ended,
        log,
    };
    (Box::new(handler), end, seen)
}

#[test]
fn a_worker_with_something_under_way_is_held_once_that_has_ended() {
    let (handler, end, seen) = slow();
    let (worker, news) = watched(handler);
    worker.hold();
    assert_eq!(next(&seen), "hold");
    assert!(!worker.is_held() && news.try_recv().is_err());
    end.write(1).unwrap();
    assert_eq!([next(&seen), next(&seen)], ["wake", "hold"]);
    while !worker.is_held() {
        news.recv_timeout(PATIENCE).unwrap();
    }
    worker.release();
    assert_eq!(next(&seen), "release");
}

#[test]
fn a_hold_that_is_pending_is_called_off_at_once_and_keeps_nobody_from_the_end() {
    let (handler, _end, seen) = slow();
    let (worker, news) = watched(handler);
    for _ in 0..2 {
        worker.hold();
        assert_eq!(next(&seen), "hold");
        worker.release();
        assert_eq!(next(&seen), "release");
    }
    worker.hold();
    assert_eq!(next(&seen), "hold");
    assert!(!worker.is_held() && news.try_recv().is_err());
    worker.join();
    assert_eq!(seen.iter().collect::<Vec<_>>(), ["stop"]);
}

fn probe(driver: &Driver) -> (Box<Probe>, Receiver<String>) {
    let (log, seen) = channel();
    (
        Box::new(Probe {
            ring: driver.ring(),
            log,
        }),
        seen,
    )
}

fn next(seen: &Receiver<String>) -> String {
    seen.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn worker_serves_until_stopped_and_gives_the_rings_back() {
    let mut driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let worker = Worker::spawn("io-probe", handler, Box::new(|error| panic!("{error}"))).unwrap();
    assert_eq!(next(&seen), "io-probe");

    driver.add(&[Buf::In(0x2_0000, 4)]);
    driver.kick.write(1).unwrap();
    assert_eq!(next(&seen), "wake 7");
    assert_eq!(driver.take_used(), Some((0, 4)));
    assert!(!worker.is_stopped());

    worker.stop();
    assert_eq!(next(&seen), "stop");
    let states = worker.join();
    assert_eq!(
        (states.len(), states[0].queue.next_avail, states[0].queue.next_used),
        (1, 1, 1)
    );
}

/// Files that the calling thread's table has open, the one through which this looks among them.
fn open_files() -> usize {
    std::fs::read_dir("/proc/thread-self/fd").unwrap().count()
}

#[test]
#[expect(unsafe_code, reason = "a table of descriptors that no other test opens files in")]
fn a_worker_has_two_descriptors_of_its_own() {
    struct Count(Sender<usize>);
    impl Handler for Count {
        fn watch(&mut self, _: &mut dyn Watch) -> Result<(), HandlerError> {
            self.0.send(open_files()).unwrap();
            Ok(())
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            Ok(())
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            Vec::new()
        }
    }
    std::thread::spawn(|| {
        // Without copies of what other tests have open, who may wait for its end. SAFETY: this
        // thread and the worker that it starts have no descriptor yet, and those of other threads
        // stay as they are.
        let unshared = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_UNSHARE.cast_signed()) };
        assert_eq!(unshared, 0);
        let before = open_files();
        let (count, counted) = channel();
        let worker = Worker::spawn("io-count", Box::new(Count(count)), Box::new(|error| panic!("{error}"))).unwrap();
        // The eventfd that it is told by, and its epoll.
        assert_eq!(counted.recv_timeout(PATIENCE).unwrap(), before + 2);
        worker.join();
    })
    .join()
    .unwrap();
}

#[test]
fn stop_is_seen_without_waiting() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let worker = Worker::spawn("io-probe", handler, Box::new(|error| panic!("{error}"))).unwrap();
    worker.stop();
    until(|| worker.is_stopped());
    assert_eq!(seen.iter().last().unwrap(), "stop");
}

#[test]
fn a_worker_that_is_dropped_has_stopped() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    drop(Worker::spawn("io-probe", handler, Box::new(|error| panic!("{error}"))).unwrap());
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["io-probe", "stop"]);
}

#[test]
fn a_handler_that_panics_takes_its_rings_with_it_and_nobody_waits_for_it() {
    struct Frail;
    impl Handler for Frail {
        fn watch(&mut self, _: &mut dyn Watch) -> Result<(), HandlerError> {
            panic!("as a fault of ours would")
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            unreachable!("nothing is watched")
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            unreachable!("it is gone")
        }
    }
    let (worker, news) = watched(Box::new(Frail));
    news.recv_timeout(PATIENCE).unwrap();
    assert!(worker.is_stopped());
    assert!(worker.join().is_empty());
}

#[test]
fn failure_is_reported_and_ends_the_thread() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let (failed, failure) = channel();
    let worker = Worker::spawn(
        "io-probe",
        handler,
        Box::new(move |error| failed.send(error.to_string()).unwrap()),
    )
    .unwrap();
    next(&seen);

    driver.offer(1000);
    driver.kick.write(1).unwrap();

    let message = failure.recv_timeout(PATIENCE).unwrap();
    assert_eq!(message, "queue 0: descriptor chain 1000 is not below the queue size 4");
    assert_eq!(next(&seen), "wake 7");
    assert_eq!(next(&seen), "stop");
    assert_eq!(worker.join().len(), 1);
}

#[test]
fn handler_that_cannot_watch_fails_instead_of_hanging() {
    struct Deaf;
    impl Handler for Deaf {
        fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
            watch.readable(-1, 0).map_err(|source| HandlerError::Host {
                what: "cannot watch",
                source,
            })
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            unreachable!("nothing is watched")
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            Vec::new()
        }
    }
    let (failed, failure) = channel();
    let _worker = Worker::spawn(
        "x",
        Box::new(Deaf),
        Box::new(move |error| failed.send(error.to_string()).unwrap()),
    )
    .unwrap();
    assert_eq!(failure.recv_timeout(PATIENCE).unwrap(), "cannot watch");
}

#[test]
fn long_name_is_cut() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let _worker = Worker::spawn("io-a-name-beyond-measure", handler, Box::new(|error| panic!("{error}"))).unwrap();
    assert_eq!(next(&seen), "io-a-name-beyon");
}

/// Threads that cannot be had, or not be confined.
struct Scarce {
    started: bool,
    seen: Mutex<Sender<String>>,
}

impl Threads for Scarce {
    fn start(&self, name: &str, body: crate::threads::ThreadBody) -> io::Result<()> {
        if self.started {
            return UnconfinedThreads.start(name, body);
        }
        drop(body);
        Ok(())
    }

    fn confine(&self, thread_class: ThreadClass) -> io::Result<()> {
        self.seen
            .lock()
            .unwrap()
            .send(format!("confine {thread_class:?}"))
            .unwrap();
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

#[test]
fn thread_that_cannot_be_had_is_a_failure_and_gives_the_rings_back() {
    let driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let (failed, failure) = channel();
    let threads: Arc<dyn Threads> = Arc::new(Scarce {
        started: false,
        seen: Mutex::new(channel().0),
    });
    let on_failure = Box::new(move |error: HandlerError| failed.send(error.to_string()).unwrap());
    let worker = Worker::spawn_on(&threads, ThreadClass::Block, "io-probe", handler, on_failure).unwrap();
    assert_eq!(next(&failure), "cannot start an I/O thread");
    assert_eq!(next(&seen), "stop");
    assert!(worker.is_stopped());
    assert_eq!(worker.join().len(), 1);
}

#[test]
fn confinement_follows_the_set_up_and_its_failure_keeps_requests_from_being_served() {
    let mut driver = Driver::new(&memory(), 0x1000, 4);
    let (handler, seen) = probe(&driver);
    let (log, failure) = channel();
    let threads: Arc<dyn Threads> = Arc::new(Scarce {
        started: true,
        seen: Mutex::new(handler.log.clone()),
    });
    driver.add(&[Buf::In(0x2_0000, 4)]);
    driver.kick.write(1).unwrap();
    let on_failure = Box::new(move |error: HandlerError| log.send(error.to_string()).unwrap());
    let worker = Worker::spawn_on(&threads, ThreadClass::Block, "io-probe", handler, on_failure).unwrap();
    assert_eq!(
        [next(&seen), next(&seen), next(&seen)],
        ["io-probe", "confine Block", "stop"]
    );
    assert_eq!(next(&failure), "cannot confine an I/O thread");
    assert_eq!(worker.join().len(), 1);
    assert_eq!(driver.take_used(), None);
}

#[test]
fn a_handler_that_survives_goes_on_and_its_failure_is_reported_once() {
    /// Fails at every doorbell; survives twice.
    struct Tough(Arc<EventFd>, Vec<()>);
    impl Handler for Tough {
        fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
            watch.readable(self.0.as_raw_fd(), 1).map_err(HandlerError::watch)
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            let _ = self.0.read();
            let source = io::ErrorKind::BrokenPipe.into();
            Err(HandlerError::Host { what: "hurt", source })
        }
        fn survive(&mut self, _: &mut dyn Watch) -> bool {
            self.1.pop().is_some()
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            Vec::new()
        }
    }
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let (failed, failure) = channel();
    let tell = Box::new(move |error: HandlerError| failed.send(error.to_string()).unwrap());
    let worker = Worker::spawn("tough", Box::new(Tough(bell.clone(), vec![(); 2])), tell).unwrap();
    bell.write(1).unwrap();
    assert_eq!(next(&failure), "hurt");
    assert!(!worker.is_stopped());
    until(|| {
        bell.write(1).unwrap();
        worker.is_stopped()
    });
    let again = failure.recv_timeout(PATIENCE);
    assert_eq!(again, Err(RecvTimeoutError::Disconnected), "reported a second time");
}
