use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ring::Notify;
use crate::testing::{ABUSES, Buf, Driver, memory};

const DATA: u64 = 0x8_0000;

struct Ignore;

impl Watch for Ignore {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        Ok(())
    }
}

/// A sink whose contents a test can see, and which can be broken.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>, Arc<Mutex<bool>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.1.lock().unwrap() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    console: Console,
    screen: Screen,
    receive: Driver,
    transmit: Driver,
    config_changes: Arc<AtomicUsize>,
}

fn bench() -> Bench {
    let mem = memory();
    let screen = Screen::default();
    Bench {
        console: Console::new(80, 25, Box::new(screen.clone())).unwrap(),
        screen,
        receive: Driver::new(&mem, 0x1000, 16),
        transmit: Driver::new(&mem, 0x2000, 16),
        config_changes: Arc::default(),
    }
}

impl Bench {
    fn start(&mut self, features: u64) -> Box<dyn Handler> {
        let changes = self.config_changes.clone();
        let activation = Activation {
            mem: self.receive.mem.clone(),
            features,
            rings: vec![Some(self.receive.ring()), Some(self.transmit.ring())],
            config_changed: Notify::new(move || {
                changes.fetch_add(1, Ordering::SeqCst);
            }),
        };
        self.console.start(activation).unwrap().remove(0)
    }

    fn size(&self) -> [u16; 2] {
        let mut bytes = [0; 4];
        self.console.config().lock().unwrap().read(0, &mut bytes);
        [
            u16::from_le_bytes([bytes[0], bytes[1]]),
            u16::from_le_bytes([bytes[2], bytes[3]]),
        ]
    }
}

#[test]
fn output_reaches_the_sink_in_order() {
    let mut bench = bench();
    let mut handler = bench.start(0);
    let long: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
    bench.transmit.write(DATA, b"hello ");
    bench.transmit.write(DATA + 0x1000, &long);
    bench.transmit.add(&[Buf::Out(DATA, 6)]);
    bench
        .transmit
        .add(&[Buf::Out(DATA + 0x1000, 5000), Buf::Out(DATA + 0x1000 + 5000, 5000)]);

    handler.wake(TRANSMIT, &mut Ignore).unwrap();

    assert_eq!(*bench.screen.0.lock().unwrap(), [b"hello ".as_slice(), &long].concat());
    assert_eq!(bench.transmit.take_used(), Some((0, 0)));
    assert_eq!(bench.transmit.take_used(), Some((1, 0)));
    let metrics = bench.console.metrics();
    assert_eq!((metrics.tx_requests.get(), metrics.tx_bytes.get()), (2, 10_006));
}

#[test]
fn broken_sink_drops_output_but_not_the_guest() {
    let mut bench = bench();
    let mut handler = bench.start(0);
    *bench.screen.1.lock().unwrap() = true;
    bench.transmit.add(&[Buf::Out(DATA, 6)]);
    handler.wake(TRANSMIT, &mut Ignore).unwrap();
    assert_eq!(bench.transmit.take_used(), Some((0, 0)));
    assert_eq!(bench.console.metrics().tx_dropped_bytes.get(), 6);
}

/// Takes so many bytes in all, and is full after that.
struct Narrow(usize);

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_full_sink_does_not_take_is_counted_to_the_byte_and_told() {
    let mut bench = bench();
    bench.console = Console::new(80, 25, Box::new(Narrow(4500))).unwrap();
    let mut handler = bench.start(0);
    bench.transmit.add(&[Buf::Out(DATA, 10_000)]);
    handler.wake(TRANSMIT, &mut Ignore).unwrap();
    assert_eq!(bench.transmit.take_used(), Some((0, 0)), "the guest goes on");
    let counters = bench.console.counters();
    assert!(counters.contains(&("tx_bytes", 4500)), "{counters:?}");
    assert!(counters.contains(&("tx_dropped_bytes", 5500)), "{counters:?}");
}

#[test]
fn typed_bytes_fill_the_drivers_buffers() {
    let mut bench = bench();
    let mut handler = bench.start(0);
    let handle = bench.console.handle();
    bench.receive.add(&[Buf::In(DATA, 4)]);
    bench.receive.add(&[Buf::In(DATA + 16, 4)]);
    handler.wake(RECEIVE, &mut Ignore).unwrap();
    assert_eq!(bench.receive.take_used(), None, "nothing typed yet");

    assert_eq!(handle.input(b"abcdef"), 6);
    handler.wake(INPUT, &mut Ignore).unwrap();

    assert_eq!(bench.receive.take_used(), Some((0, 4)));
    assert_eq!(bench.receive.take_used(), Some((1, 2)));
    assert_eq!(
        (bench.receive.read(DATA, 4), bench.receive.read(DATA + 16, 2)),
        (b"abcd".to_vec(), b"ef".to_vec())
    );
    assert_eq!(bench.receive.interrupts(), 1);
}

#[test]
fn input_waits_for_buffers_and_for_a_driver() {
    let mut bench = bench();
    bench.console.handle().input(b"early");
    let mut handler = bench.start(0);
    handler.wake(INPUT, &mut Ignore).unwrap();
    assert_eq!(
        bench.receive.used_flags(),
        0,
        "the driver is asked to kick when it has buffers"
    );
    bench.receive.add(&[Buf::In(DATA, 16)]);
    handler.wake(RECEIVE, &mut Ignore).unwrap();
    assert_eq!(bench.receive.take_used(), Some((0, 5)));
}

#[test]
fn input_queue_is_bounded() {
    let bench = bench();
    let handle = bench.console.handle();
    let taken: usize = (0..100).map(|_| handle.input(&[b'x'; 1000])).sum();
    assert_eq!(taken, 64 << 10);
}

#[test]
fn resize_is_told_to_a_driver_that_cares() {
    let mut bench = bench();
    let handle = bench.console.handle();
    assert_eq!(bench.size(), [80, 25]);
    handle.resize(100, 30);
    assert_eq!(
        (bench.size(), bench.config_changes.load(Ordering::SeqCst)),
        ([100, 30], 0),
        "no driver yet"
    );

    let before = bench.console.config().lock().unwrap().generation();
    let handler = bench.start(VIRTIO_CONSOLE_F_SIZE);
    handle.resize(120, 40);
    assert_eq!(
        (bench.size(), bench.config_changes.load(Ordering::SeqCst)),
        ([120, 40], 1)
    );
    assert_ne!(bench.console.config().lock().unwrap().generation(), before);

    assert_eq!(handler.stop().len(), 2);
    handle.resize(1, 1);
    assert_eq!(bench.config_changes.load(Ordering::SeqCst), 1, "the driver is gone");
    bench.start(0);
    handle.resize(2, 2);
    assert_eq!(
        bench.config_changes.load(Ordering::SeqCst),
        1,
        "the driver does not know sizes"
    );
}

#[test]
fn a_driver_that_cares_is_told_the_first_size_after_it_has_printed() {
    for (features, times) in [(0, 0), (VIRTIO_CONSOLE_F_SIZE, 1)] {
        let mut bench = bench();
        let mut handler = bench.start(features);
        handler.watch(&mut Ignore).unwrap();
        bench.transmit.add(&[Buf::Out(DATA, 1)]);
        handler.wake(TRANSMIT, &mut Ignore).unwrap();
        assert_eq!(bench.config_changes.load(Ordering::SeqCst), 0, "not at once");
        // Waits for the timer, if there is one.
        handler.wake(SIZE_TIMER, &mut Ignore).unwrap();
        assert_eq!(bench.config_changes.load(Ordering::SeqCst), times);
    }
}

#[test]
fn everything_readable_is_watched() {
    struct Tokens(BTreeSet<u32>);
    impl Watch for Tokens {
        fn readable(&mut self, _: RawFd, token: u32) -> io::Result<()> {
            self.0.insert(token);
            Ok(())
        }
        fn forget(&mut self, _: RawFd) -> io::Result<()> {
            Ok(())
        }
    }
    let mut bench = bench();
    let mut tokens = Tokens(BTreeSet::new());
    bench.start(0).watch(&mut tokens).unwrap();
    assert_eq!(tokens.0.iter().copied().collect::<Vec<_>>(), [RECEIVE, TRANSMIT, INPUT]);
    bench.receive = Driver::new(&bench.receive.mem.clone(), 0x1000, 16);
    bench.transmit = Driver::new(&bench.transmit.mem.clone(), 0x2000, 16);
    bench.start(VIRTIO_CONSOLE_F_SIZE).watch(&mut tokens).unwrap();
    assert!(tokens.0.contains(&SIZE_TIMER));
}

#[test]
fn abused_output_ends_the_handler_and_shows_nothing() {
    let mut bench = bench();
    let mem = bench.transmit.mem.clone();
    for (number, (name, abuse)) in (1..).zip(ABUSES) {
        bench.transmit = Driver::new(&mem, 0x2000, 16);
        let mut handler = bench.start(0);
        abuse(&bench.transmit);
        let end = handler.wake(TRANSMIT, &mut Ignore);
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        assert_eq!(handler.stop().len(), 2);

        bench.transmit = Driver::new(&mem, 0x2000, 16);
        bench.transmit.write(DATA, b".");
        bench.transmit.add(&[Buf::Out(DATA, 1)]);
        bench.start(0).wake(TRANSMIT, &mut Ignore).unwrap();
        assert_eq!(bench.transmit.take_used(), Some((0, 0)), "after {name}");
        let metrics = bench.console.metrics();
        assert_eq!((metrics.tx_requests.get(), metrics.tx_bytes.get()), (number, number));
    }
    assert_eq!(bench.screen.0.lock().unwrap().len(), ABUSES.len());
}

#[test]
fn abused_input_ends_the_handler_and_loses_nothing_that_was_typed() {
    let mut bench = bench();
    let mem = bench.receive.mem.clone();
    let handle = bench.console.handle();
    for (name, abuse) in ABUSES {
        assert_eq!(handle.input(b"typed"), 5);
        bench.receive = Driver::new(&mem, 0x1000, 16);
        let mut handler = bench.start(0);
        abuse(&bench.receive);
        let end = handler.wake(INPUT, &mut Ignore);
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        assert_eq!(handler.stop().len(), 2);

        bench.receive = Driver::new(&mem, 0x1000, 16);
        bench.receive.add(&[Buf::In(DATA, 16)]);
        bench.start(0).wake(RECEIVE, &mut Ignore).unwrap();
        assert_eq!(bench.receive.take_used(), Some((0, 5)), "after {name}");
        assert_eq!(bench.receive.read(DATA, 5), b"typed", "after {name}");
    }
}

#[test]
fn a_reset_leaves_buffers_that_wait_for_input_to_the_next_driver() {
    let mut bench = bench();
    let mut handler = bench.start(0);
    bench.receive.add(&[Buf::In(DATA, 16)]);
    handler.wake(RECEIVE, &mut Ignore).unwrap();
    assert_eq!(handler.stop()[0].queue.next_avail, 0, "the buffer is the ring's");
    assert_eq!(bench.console.handle().input(b"late"), 4);
    assert_eq!(
        (bench.receive.take_used(), bench.receive.read(DATA, 4)),
        (None, vec![0; 4])
    );
}

#[test]
fn a_driver_that_is_always_at_work_does_not_keep_the_thread() {
    let mut bench = bench();
    bench.receive.add(&[Buf::Out(DATA, 4)]);
    bench.transmit.add(&[Buf::In(DATA, 4)]);
    (bench.receive.busy_heads, bench.transmit.busy_heads) = (1, 1);
    let mut handler = bench.start(0);
    assert_eq!(bench.console.handle().input(&[0; 100]), 100);
    for (token, driver) in [
        (TRANSMIT, &bench.transmit),
        (RECEIVE, &bench.receive),
        (INPUT, &bench.receive),
    ] {
        handler.wake(token, &mut Ignore).unwrap();
        assert!(driver.kick.read().is_ok(), "it comes back by itself");
    }
    assert_eq!(bench.console.metrics().tx_requests.get(), 16);
}

#[test]
fn output_too_long_for_one_turn_is_printed_in_several() {
    let mut bench = bench();
    let mut handler = bench.start(0);
    let data: Vec<u8> = (0..0x10_0000u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    bench.transmit.write(DATA, &data);
    let len = u32::try_from(data.len()).unwrap();
    bench.transmit.add(&[Buf::Out(DATA, len), Buf::Out(DATA, len - 7)]);
    bench.transmit.add(&[Buf::Out(DATA, 3)]);
    let expected = [&data[..], &data[..data.len() - 7], &data[..3]].concat();

    let mut turns = 0;
    bench.transmit.kick.write(1).unwrap();
    while bench.transmit.kick.read().is_ok() {
        let before = bench.screen.0.lock().unwrap().len();
        // The doorbell was read above, as by no real thread: it rings again.
        bench.transmit.kick.write(1).unwrap();
        handler.wake(TRANSMIT, &mut Ignore).unwrap();
        turns += 1;
        assert!(bench.screen.0.lock().unwrap().len() - before <= TURN_BYTES);
    }

    assert!(*bench.screen.0.lock().unwrap() == expected);
    assert!(turns >= 2 * data.len() / TURN_BYTES, "{turns}");
    assert_eq!(std::iter::from_fn(|| bench.transmit.take_used()).count(), 2);
    assert_eq!(bench.console.metrics().tx_requests.get(), 2);
}
