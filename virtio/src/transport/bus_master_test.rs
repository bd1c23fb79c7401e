use std::sync::atomic::AtomicUsize;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

/// An I/O thread's loop, one turn at a time.
struct Turns(Epoll);

impl Turns {
    fn add(&self, fd: RawFd, events: EventSet, token: u32) -> io::Result<()> {
        let event = EpollEvent::new(events, token.into());
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    /// What has happened, by token.
    fn events(&self) -> Vec<u32> {
        let mut events = [EpollEvent::default(); 8];
        let count = self.0.wait(0, &mut events).unwrap();
        let tokens = events[..count].iter().map(|event| event.data());
        tokens.map(|token| u32::try_from(token).unwrap()).collect()
    }
}

impl Watch for Turns {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.add(fd, EventSet::IN, token)
    }

    fn edges(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.add(fd, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

const LEVEL: u32 = 0;
const EDGE: u32 = 1;
const LATE: u32 = 2;

/// Counts its calls. Never resets what is watched by edges; begins to watch a third event when
/// called, and ends that when called for it.
struct Counting {
    events: [Arc<EventFd>; 3],
    calls: Arc<[AtomicUsize; 3]>,
}

impl Handler for Counting {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let [level, edge, _] = &self.events;
        watch.readable(level.as_raw_fd(), LEVEL).map_err(HandlerError::watch)?;
        watch.edges(edge.as_raw_fd(), EDGE).map_err(HandlerError::watch)
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.calls[token as usize].fetch_add(1, Ordering::SeqCst);
        let late = self.events[2].as_raw_fd();
        match token {
            LEVEL => {
                self.events[0].read().unwrap();
                // Watched already if nobody rang it since the last time.
                let _ = watch.readable(late, LATE);
                Ok(())
            }
            LATE => watch.forget(late).map_err(HandlerError::watch),
            _ => Ok(()),
        }
    }

    /// Does without its first event as long as it is held, as a handler does whose rings another process gives back.
    fn hold(&mut self, watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        let level = self.events[0].as_raw_fd();
        watch.forget(level).map_err(HandlerError::watch)?;
        Ok(Hold::Held)
    }

    fn release(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let level = self.events[0].as_raw_fd();
        watch.readable(level, LEVEL).map_err(HandlerError::watch)
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        Vec::new()
    }
}

struct Bench {
    bus_master: BusMaster,
    handler: Box<dyn Handler>,
    events: [Arc<EventFd>; 3],
    calls: Arc<[AtomicUsize; 3]>,
    turns: Turns,
}

impl Bench {
    fn new() -> Self {
        let events = [(); 3].map(|()| Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let calls = Arc::<[AtomicUsize; 3]>::default();
        let mut bus_master = BusMaster::new();
        let counting = Counting {
            events: events.clone(),
            calls: calls.clone(),
        };
        let mut handler = bus_master.gate(Box::new(counting)).unwrap();
        let mut turns = Turns(Epoll::new().unwrap());
        handler.watch(&mut turns).unwrap();
        Self {
            bus_master,
            handler,
            events,
            calls,
            turns,
        }
    }

    fn ring(&self, token: u32) {
        self.events[token as usize].write(1).unwrap();
    }

    /// Calls since the last time, by token, once nothing happens any more.
    fn calls(&mut self) -> [usize; 3] {
        for turn in 0.. {
            assert!(turn < 10, "the thread would not sleep");
            let events = self.turns.events();
            if events.is_empty() {
                break;
            }
            for token in events {
                self.handler.wake(token, &mut self.turns).unwrap();
            }
        }
        [0, 1, 2].map(|token: usize| self.calls[token].swap(0, Ordering::SeqCst))
    }
}

#[test]
fn without_the_right_no_handler_is_called_and_its_thread_sleeps() {
    let mut bench = Bench::new();
    bench.ring(LEVEL);
    bench.ring(EDGE);
    assert_eq!(bench.calls(), [1, 1, 0]);
    bench.bus_master.set(false);
    for token in [LEVEL, EDGE, LATE] {
        bench.ring(token);
    }
    assert_eq!(bench.calls(), [0, 0, 0]);
    bench.ring(LEVEL);
    assert_eq!(bench.calls(), [0, 0, 0]);
}

#[test]
fn what_happened_meanwhile_is_remembered() {
    let mut bench = Bench::new();
    bench.ring(LEVEL);
    assert_eq!(bench.calls(), [1, 0, 0]);
    bench.bus_master.set(false);
    for token in [LEVEL, EDGE, LATE] {
        bench.ring(token);
        assert_eq!(bench.calls(), [0, 0, 0]);
    }
    bench.bus_master.set(true);
    assert_eq!(bench.calls(), [1, 1, 1]);
}

#[test]
fn a_right_that_comes_and_goes_before_anybody_looks_changes_nothing() {
    let mut bench = Bench::new();
    bench.bus_master.set(false);
    bench.bus_master.set(true);
    bench.ring(EDGE);
    assert_eq!(bench.calls(), [0, 1, 0]);

    bench.bus_master.set(false);
    bench.ring(EDGE);
    assert_eq!(bench.calls(), [0, 0, 0]);
    bench.bus_master.set(true);
    bench.bus_master.set(false);
    assert_eq!(bench.calls(), [0, 0, 0]);
    bench.bus_master.set(true);
    assert_eq!(bench.calls(), [0, 1, 0]);
}

#[test]
fn what_a_handler_forgets_is_not_watched_again() {
    let mut bench = Bench::new();
    bench.ring(LEVEL);
    bench.ring(LATE);
    assert_eq!(bench.calls(), [1, 0, 1]);
    bench.bus_master.set(false);
    bench.ring(EDGE);
    assert_eq!(bench.calls(), [0, 0, 0]);
    bench.bus_master.set(true);
    assert_eq!(bench.calls(), [0, 1, 0], "and not for the event that still stands");
}

#[test]
fn a_handler_is_held_and_let_go_on_with_the_right_and_without() {
    let mut bench = Bench::new();
    bench.handler.hold(&mut bench.turns).unwrap();
    bench.ring(LEVEL);
    assert_eq!(bench.calls(), [0, 0, 0], "it is held");
    bench.handler.release(&mut bench.turns).unwrap();
    assert_eq!(bench.calls(), [1, 0, 0]);

    bench.bus_master.set(false);
    bench.ring(EDGE);
    assert_eq!(bench.calls(), [0, 0, 0]);
    bench.handler.hold(&mut bench.turns).unwrap();
    bench.handler.release(&mut bench.turns).unwrap();
    bench.ring(LEVEL);
    assert_eq!(bench.calls(), [0, 0, 0], "it has no right");
    bench.bus_master.set(true);
    assert_eq!(bench.calls(), [1, 1, 0]);
}

#[test]
fn the_end_of_what_a_handler_has_begun_is_noticed_without_the_right() {
    /// Has begun something that ends when its event rings.
    struct Slow(Arc<EventFd>, bool);
    impl Handler for Slow {
        fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
            watch.readable(self.0.as_raw_fd(), LEVEL).map_err(HandlerError::watch)
        }
        fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
            self.0.read().unwrap();
            self.1 = true;
            Ok(())
        }
        fn hold(&mut self, _: &mut dyn Watch) -> Result<Hold, HandlerError> {
            Ok(if self.1 { Hold::Held } else { Hold::Pending })
        }
        fn stop(self: Box<Self>) -> Vec<RingState> {
            Vec::new()
        }
    }
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut turns = Turns(Epoll::new().unwrap());
    let mut bus_master = BusMaster::new();
    let mut handler = bus_master.gate(Box::new(Slow(event.clone(), false))).unwrap();
    handler.watch(&mut turns).unwrap();
    bus_master.set(false);
    // It is called no more, and its event watched no more.
    event.write(1).unwrap();
    handler.wake(LEVEL, &mut turns).unwrap();
    event.read().unwrap();
    assert_eq!(handler.hold(&mut turns).unwrap(), Hold::Pending);
    event.write(1).unwrap();
    assert_eq!(turns.events(), [LEVEL]);
    handler.wake(LEVEL, &mut turns).unwrap();
    assert_eq!(handler.hold(&mut turns).unwrap(), Hold::Held);
    handler.release(&mut turns).unwrap();
    event.write(1).unwrap();
    handler.wake(LEVEL, &mut turns).unwrap();
    assert_eq!(turns.events(), [0_u32; 0]);
    bus_master.set(true);
    handler.wake(UNPARK, &mut turns).unwrap();
    assert_eq!(turns.events(), [LEVEL], "what happened meanwhile is remembered");
}
