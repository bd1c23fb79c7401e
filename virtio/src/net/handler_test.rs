use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::memory::{GuestMemory, GuestRegionMmap};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, MemoryRegionAddress};

use super::*;
use crate::config::ConfigBytes;
use crate::net::header::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::net::link::LinkState;
use crate::net::metrics::NetMetrics;
use crate::net::rx::RxTerms;
use crate::net::tap::Tap;
use crate::rate_limit::{BucketConfig, Limiter, LimiterConfig, QueueLimiter};
use crate::ring::{Notify, RingError};
use crate::syscall::is_ready;
use crate::testing::{ABUSES, Buf, Driver, SECOND, memory};

const RX: u64 = 0x1000;
const TX: u64 = 0x1_1000;
/// Where buffers for receiving and for sending begin.
const RX_DATA: u64 = 0x4_0000;
const TX_DATA: u64 = 0xc_0000;
const ALL: u64 = u64::MAX;

struct Ignore;

impl Watch for Ignore {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        Ok(())
    }
}

/// A queue pair whose tap is one end of a pair of sockets that keep frames apart. The other end is the host's network.
struct Bench {
    rx: Driver,
    tx: Driver,
    wire: UnixDatagram,
    metrics: Arc<NetMetrics>,
    handler: Option<Box<PairHandler>>,
    given: u64,
}

struct Setup {
    size: u16,
    terms: RxTerms,
    limits: LimiterConfig,
}

const TERMS: RxTerms = RxTerms {
    mergeable: true,
    checksums: true,
    mtu: None,
};

const USUAL: Setup = Setup {
    size: 256,
    terms: TERMS,
    limits: LimiterConfig {
        bandwidth: None,
        ops: None,
    },
};

impl Bench {
    fn new(setup: &Setup) -> Self {
        let (wire, tap) = UnixDatagram::pair().unwrap();
        Self::over(wire, Tap::fake(OwnedFd::from(tap)), setup)
    }

    fn over(wire: UnixDatagram, tap: Tap, setup: &Setup) -> Self {
        let mem = memory();
        let (rx, tx) = (Driver::new(&mem, RX, setup.size), Driver::new(&mem, TX, setup.size));
        wire.set_nonblocking(true).unwrap();
        let mut bench = Self {
            rx,
            tx,
            wire,
            metrics: Arc::default(),
            handler: None,
            given: 0,
        };
        bench.start(tap, setup);
        bench
    }

    fn start(&mut self, tap: Tap, setup: &Setup) {
        let limiter = || Limiter::new(setup.limits, Instant::now()).map(Arc::new);
        let port = TapPort {
            tap: Arc::new(tap),
            link: Arc::new(LinkState::new(
                Arc::new(Mutex::new(ConfigBytes::new([0; 12]))),
                Notify::none(),
            )),
            metrics: self.metrics.clone(),
        };
        let rx = Receive::new(self.rx.ring(), QueueLimiter::new(limiter()), setup.terms);
        let tx = Transmit::new(self.tx.ring(), QueueLimiter::new(limiter()), ALL);
        let mut handler = PairHandler::new(rx, tx, port, None, None);
        handler.watch(&mut Ignore).unwrap();
        self.handler = Some(Box::new(handler));
    }

    fn wake(&mut self, token: u32) -> Result<(), HandlerError> {
        self.handler.as_mut().unwrap().wake(token, &mut Ignore)
    }

    /// Waits until the timer of the rate limiters has rung.
    fn await_timer(&self) {
        let timer = self.handler.as_ref().unwrap().timer.as_ref().unwrap();
        assert!(is_ready(timer.as_raw_fd(), libc::POLLIN, Duration::from_secs(60)).unwrap());
    }

    fn stop(&mut self) -> Vec<RingState> {
        self.handler.take().unwrap().stop()
    }

    /// Gives `count` buffers of `len` bytes to receive into.
    fn give(&mut self, count: u64, len: u32) {
        for _ in 0..count {
            let place = RX_DATA + self.given;
            self.given += u64::from(len);
            self.rx.add(&[Buf::In(place, len)]);
        }
    }

    /// What arrived, with its header: buffers of one frame joined, by `num_buffers`.
    fn received(&mut self, buffer_bytes: u64) -> Option<Vec<u8>> {
        let (head, len) = self.rx.take_used()?;
        let address = |driver: &Driver, head: u32| {
            let at = driver.read(driver.desc + 16 * u64::from(head), 8);
            u64::from_le_bytes(at.try_into().unwrap())
        };
        let mut frame = self.rx.read(address(&self.rx, head), len as usize);
        for _ in 1..u16::from_le_bytes([frame[10], frame[11]]) {
            let (head, len) = self.rx.take_used().expect("a frame comes as a whole");
            assert!(u64::from(len) <= buffer_bytes);
            frame.extend(self.rx.read(address(&self.rx, head), len as usize));
        }
        Some(frame)
    }

    /// Puts a frame on the wire, as the host's kernel does: without `num_buffers`.
    fn arrive(&self, frame: &[u8]) {
        let bytes = [&[0; HEADER_BYTES], frame].concat();
        assert_eq!(self.wire.send(&bytes).unwrap(), bytes.len());
    }

    /// Has the driver send a frame with its header, in buffers of the given lengths and one for the rest.
    fn send(&mut self, bytes: &[u8], cuts: &[u32]) -> u16 {
        self.tx.write(TX_DATA, bytes);
        let mut bufs = Vec::new();
        let mut at = 0;
        for cut in cuts {
            bufs.push(Buf::Out(TX_DATA + u64::from(at), *cut));
            at += cut;
        }
        bufs.push(Buf::Out(TX_DATA + u64::from(at), bytes.len() as u32 - at));
        self.tx.add(&bufs)
    }

    /// The next frame that left.
    fn left(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 100_000];
        let got = self.wire.recv(&mut bytes).ok()?;
        bytes.truncate(got);
        Some(bytes)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], frame].concat()
}

#[test]
fn frames_arrive_in_their_order_with_one_interrupt() {
    let mut bench = Bench::new(&USUAL);
    bench.give(16, 1536);
    for len in [60, 1514, 14] {
        bench.arrive(&pattern(len));
    }

    bench.wake(TAP).unwrap();

    for len in [60, 1514, 14] {
        let frame = bench.received(1536).unwrap();
        assert_eq!(frame[HEADER_BYTES..], pattern(len));
        assert_eq!(frame[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
    assert_eq!(bench.received(1536), None);
    assert_eq!(bench.rx.interrupts(), 1);
    assert_eq!(bench.metrics.rx_frames.get(), 3);
    assert_eq!(bench.metrics.rx_bytes.get(), 60 + 1514 + 14);
}

#[test]
fn a_large_frame_takes_several_buffers() {
    let mut bench = Bench::new(&USUAL);
    bench.give(64, 1536);
    bench.arrive(&pattern(MAX_FRAME_BYTES));
    bench.wake(TAP).unwrap();
    let frame = bench.received(1536).unwrap();
    assert_eq!(frame[HEADER_BYTES..], pattern(MAX_FRAME_BYTES));
    assert_eq!(frame[10..12], [43, 0], "65569 bytes in buffers of 1536");
}

#[test]
fn a_large_frame_waits_for_buffers_and_loses_nothing() {
    let mut bench = Bench::new(&USUAL);
    bench.give(2, 1536);
    bench.arrive(&pattern(40_000));
    bench.arrive(&pattern(100));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.received(1536), None);
    assert_eq!(bench.metrics.rx_starved.get(), 1);

    for _ in 0..26 {
        bench.give(1, 1536);
        bench.wake(RX_KICK).unwrap();
    }

    assert_eq!(bench.received(1536).unwrap()[HEADER_BYTES..], pattern(40_000));
    assert_eq!(bench.received(1536).unwrap()[HEADER_BYTES..], pattern(100));
    assert_eq!(bench.metrics.rx_dropped.get(), 0);
}

#[test]
fn a_frame_for_which_the_ring_is_too_small_is_dropped_and_the_next_one_arrives() {
    let mut bench = Bench::new(&Setup { size: 16, ..USUAL });
    bench.give(16, 1536);
    bench.arrive(&pattern(40_000));
    bench.arrive(&pattern(100));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.received(1536).unwrap()[HEADER_BYTES..], pattern(100));
    assert_eq!(bench.metrics.rx_dropped.get(), 1);
}

#[test]
fn without_mergeable_buffers_a_frame_is_in_one_chain_or_dropped() {
    let mut bench = Bench::new(&Setup {
        terms: RxTerms {
            mergeable: false,
            ..TERMS
        },
        ..USUAL
    });
    bench.give(4, 1526);
    for len in [1514, 1515, 60] {
        bench.arrive(&pattern(len));
    }
    bench.wake(TAP).unwrap();
    for len in [1514, 60] {
        let frame = bench.received(1526).unwrap();
        assert_eq!(
            (&frame[HEADER_BYTES..], &frame[10..12]),
            (&pattern(len)[..], &[1, 0][..])
        );
    }
    assert_eq!(bench.metrics.rx_dropped.get(), 1);
}

#[test]
fn receiving_without_buffers_waits_for_a_kick_and_asks_for_it() {
    let mut bench = Bench::new(&USUAL);
    bench.arrive(&pattern(60));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.rx.used_flags(), 0, "kicks are wanted");
    assert_eq!(bench.rx.interrupts(), 0);
    bench.give(4, 1536);
    bench.wake(RX_KICK).unwrap();
    assert_eq!(bench.received(1536).unwrap().len(), HEADER_BYTES + 60);
    assert_eq!(bench.rx.used_flags(), 1, "kicks are not wanted");
}

#[test]
fn a_header_may_be_split_over_buffers() {
    let mut bench = Bench::new(&USUAL);
    let parts = [3, 8, 0, 1, 1500];
    let mut at = RX_DATA;
    let bufs = parts.map(|len| {
        at += 64;
        Buf::In(at, len)
    });
    bench.rx.add(&bufs);
    bench.arrive(&pattern(60));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.rx.take_used(), Some((0, 72)));
    let second = bench.rx.read(RX_DATA + 128, 8);
    assert_eq!(
        (second[7], bench.rx.read(RX_DATA + 4 * 64, 1)[0]),
        (1, 0),
        "num_buffers"
    );
    assert_eq!(bench.rx.read(RX_DATA + 5 * 64, 60), pattern(60));
}

#[test]
fn chains_that_cannot_hold_a_header_go_back_unused() {
    let mut bench = Bench::new(&USUAL);
    bench.rx.add(&[Buf::In(RX_DATA, 11)]);
    bench.rx.add(&[Buf::Out(RX_DATA, 1536)]);
    bench.rx.add(&[Buf::In(RX_DATA, 1536)]);
    bench.arrive(&pattern(60));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.rx.take_used(), Some((0, 0)));
    assert_eq!(bench.rx.take_used(), Some((1, 0)));
    assert_eq!(bench.rx.take_used(), Some((2, 72)));
    assert_eq!(bench.metrics.rx_malformed.get(), 2);
}

#[test]
fn what_was_taken_and_not_used_is_the_rings_again_after_a_stop() {
    let mut bench = Bench::new(&USUAL);
    bench.give(64, 1536);
    bench.arrive(&pattern(2000));
    bench.wake(TAP).unwrap();
    let states = bench.stop();
    assert_eq!(states[0].queue.next_avail, 2, "one frame in two buffers");
    assert_eq!(states[1].queue.next_avail, 0);
}

#[test]
fn flags_are_for_a_driver_that_knows_of_checksums() {
    for checksums in [true, false] {
        let terms = RxTerms { checksums, ..TERMS };
        let mut bench = Bench::new(&Setup { terms, ..USUAL });
        bench.give(4, 1536);
        // The kernel has checked it (`VIRTIO_NET_HDR_F_DATA_VALID`).
        let header = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bench.wire.send(&[&header[..], &pattern(60)].concat()).unwrap();
        bench.wake(TAP).unwrap();
        assert_eq!(bench.received(1536).unwrap()[0], if checksums { 2 } else { 0 });
    }
}

#[test]
fn no_frame_is_longer_than_the_link_carries_unless_it_will_be_segmented() {
    let tagged = |tags: &[[u8; 2]], len: usize| {
        let mut frame = pattern(len);
        frame[12..14].copy_from_slice(&[8, 0]);
        for (at, tag) in tags.iter().enumerate() {
            frame[12 + 4 * at..14 + 4 * at].copy_from_slice(tag);
        }
        frame
    };
    let (inner, outer) = ([0x81, 0], [0x88, 0xa8]);
    for (gso, frame, passes) in [
        (0, tagged(&[], 1514), true),
        (0, tagged(&[], 1515), false),
        (0x80, tagged(&[], 1515), false),
        (1, tagged(&[], 4000), true),
        (0x81, tagged(&[], 4000), true),
        (5, tagged(&[], 4000), true),
        (0, tagged(&[inner], 1518), true),
        (0, tagged(&[inner], 1519), false),
        (0, tagged(&[outer, inner], 1522), true),
        (0, tagged(&[outer, inner], 1523), false),
    ] {
        // Buffers as small as they may be: a frame begins in one and goes on elsewhere.
        for buffer in [12, 1536] {
            let terms = RxTerms {
                mtu: Some(1500),
                ..TERMS
            };
            let mut bench = Bench::new(&Setup { terms, ..USUAL });
            bench.give(1, buffer);
            let header = [0, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bench.wire.send(&[&header[..], &frame].concat()).unwrap();
            bench.wake(TAP).unwrap();
            bench.give(8, 1536);
            bench.wake(RX_KICK).unwrap();
            let received = bench.received(1536).map(|bytes| bytes[HEADER_BYTES..].to_vec());
            assert_eq!(
                received,
                passes.then(|| frame.clone()),
                "{gso:#x}, {} bytes",
                frame.len()
            );
            assert_eq!(bench.metrics.rx_dropped.get(), u64::from(!passes));
            // What was not passed on is in nobody's way.
            bench.arrive(&pattern(60));
            bench.wake(TAP).unwrap();
            assert_eq!(bench.received(1536).unwrap()[HEADER_BYTES..], pattern(60));
        }
    }
}

/// Takes the second of the two regions out of guest memory; what was there, for as long as somebody has it.
fn remove_second_region(mem: &GuestMemory) -> Arc<GuestRegionMmap> {
    let (left, region) = mem.memory().remove_region(GuestAddress(SECOND), 0x10_0000).unwrap();
    mem.lock().unwrap().replace(left);
    region
}

#[test]
fn a_frame_does_not_go_where_memory_was_removed_though_there_is_room() {
    let mut bench = Bench::new(&USUAL);
    // More than any frame needs.
    for n in 0..48 {
        bench.rx.add(&[Buf::In(SECOND + n * 2048, 2048)]);
    }
    bench.wake(RX_KICK).unwrap();
    let region = remove_second_region(&bench.rx.mem);
    bench.arrive(&[7; 60]);

    let error = bench.wake(TAP).unwrap_err();

    assert!(
        matches!(
            error,
            HandlerError::Ring(RingError::OutsideMemory { what: "buffer", .. })
        ),
        "{error}"
    );
    let mut found = vec![1; 48 * 2048];
    region.read_slice(&mut found, MemoryRegionAddress(0)).unwrap();
    assert!(found.iter().all(|byte| *byte == 0), "nobody's any more");
    assert_eq!(bench.metrics.rx_frames.get(), 0);
}

#[test]
fn what_does_not_fit_goes_with_the_memory_that_its_beginning_is_in() {
    let mut bench = Bench::new(&USUAL);
    bench.rx.add(&[Buf::In(RX_DATA, 1536)]);
    bench.arrive(&pattern(2000));
    bench.wake(TAP).unwrap();
    drop(remove_second_region(&bench.rx.mem));
    bench.give(3, 1536);
    bench.arrive(&pattern(100));
    bench.wake(RX_KICK).unwrap();
    assert_eq!(bench.metrics.rx_dropped.get(), 1);
    assert_eq!(bench.received(1536).unwrap()[HEADER_BYTES..], pattern(100));
}

#[test]
fn memory_that_was_removed_is_let_go_of_though_no_frame_may_come() {
    for hindered in ["by nothing", "by the limiter", "by a tap that is gone"] {
        let ops = BucketConfig {
            size: 1,
            one_time_burst: 0,
            refill: Duration::from_secs(3600),
        };
        let limits = LimiterConfig {
            bandwidth: None,
            ops: Some(ops).filter(|_| hindered == "by the limiter"),
        };
        let mut bench = Bench::new(&Setup { limits, ..USUAL });
        bench.give(64, 1536);
        bench.arrive(&pattern(60));
        bench.wake(TAP).unwrap();
        if hindered == "by a tap that is gone" {
            bench.handler.as_ref().unwrap().port.set_down();
        }
        let region = remove_second_region(&bench.rx.mem);
        assert_eq!(Arc::strong_count(&region), 2, "the room keeps it");
        bench.wake(RX_KICK).unwrap();
        assert_eq!(Arc::strong_count(&region), 1, "hindered {hindered}");
    }
}

#[test]
fn frames_are_sent_from_buffers_of_any_shape() {
    for cuts in [&[][..], &[12], &[10, 2], &[1, 0, 13, 7], &[12, 14, 20, 20]] {
        let mut bench = Bench::new(&USUAL);
        let head = bench.send(&with_header(&pattern(1514)), cuts);
        bench.wake(TX_KICK).unwrap();
        assert_eq!(bench.left().unwrap(), with_header(&pattern(1514)), "{cuts:?}");
        assert_eq!(bench.tx.take_used(), Some((head.into(), 0)));
        assert_eq!(bench.tx.interrupts(), 1);
        assert_eq!((bench.metrics.tx_frames.get(), bench.metrics.tx_bytes.get()), (1, 1514));
    }
}

#[test]
fn the_header_sent_is_the_one_that_was_checked() {
    let mut bench = Bench::new(&USUAL);
    let mut frame = with_header(&pattern(3000));
    frame[..HEADER_BYTES].copy_from_slice(&[1 | 2, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 7, 7]);
    bench.send(&frame, &[]);
    bench.wake(TX_KICK).unwrap();
    let left = bench.left().unwrap();
    assert_eq!(left[..HEADER_BYTES], [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    assert_eq!(left[HEADER_BYTES..], pattern(3000));
}

#[test]
fn frames_that_make_no_sense_are_dropped_and_the_others_sent() {
    let mut bench = Bench::new(&USUAL);
    let headers: [[u8; HEADER_BYTES]; 5] = [
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 1, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        [0, 0x7f, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 59, 0, 0, 0, 0, 0],
    ];
    for header in headers {
        bench.send(&[&header[..], &pattern(60)].concat(), &[]);
    }
    // Too short for a header, for a frame; nothing at all; nothing to read; longer than any frame.
    for bufs in [
        &[Buf::Out(TX_DATA, 11)][..],
        &[Buf::Out(TX_DATA + 0x1000, 12 + 13)],
        &[Buf::Out(TX_DATA, 0)],
        &[Buf::In(TX_DATA, 100)],
        &[Buf::Out(TX_DATA + 0x1000, 70_000)],
    ] {
        bench.tx.add(bufs);
    }
    bench.wake(TX_KICK).unwrap();
    for _ in 0..10 {
        assert!(matches!(bench.tx.take_used(), Some((_, 0))));
    }
    bench.send(&with_header(&pattern(60)), &[]);
    bench.wake(TX_KICK).unwrap();
    assert_eq!(bench.left().unwrap(), with_header(&pattern(60)));
    assert_eq!(bench.left(), None);
    assert_eq!(bench.metrics.tx_malformed.get(), 10);
}

#[test]
fn a_frame_in_more_pieces_than_the_kernel_takes_is_dropped() {
    let mut bench = Bench::new(&Setup { size: 1024, ..USUAL });
    bench.tx.write(TX_DATA, &[0; 64]);
    bench.tx.add(&vec![Buf::Out(TX_DATA, 1); 1024]);
    bench.wake(TX_KICK).unwrap();
    // 12 of the 1024 pieces are the header, which is one: it goes through.
    assert_eq!(bench.left().map(|frame| frame.len()), Some(1024));
    assert_eq!(bench.metrics.tx_frames.get(), 1);

    // In a chain of buffers that all cross from one region of memory to the next there are twice as many pieces.
    bench.tx.add(&vec![Buf::Out(SECOND - 1, 2); 1024]);
    bench.wake(TX_KICK).unwrap();
    assert_eq!((bench.left(), bench.metrics.tx_malformed.get()), (None, 1));
}

#[test]
fn a_receive_chain_in_too_many_pieces_goes_back_unused() {
    let mut bench = Bench::new(&Setup { size: 1024, ..USUAL });
    bench.rx.add(&vec![Buf::In(SECOND - 1, 2); 1024]);
    bench.arrive(&pattern(60));
    bench.wake(TAP).unwrap();
    assert_eq!(bench.rx.take_used(), Some((0, 0)));
    assert_eq!(bench.metrics.rx_malformed.get(), 1);
}

#[test]
fn a_tap_without_room_holds_frames_back_until_it_has_some() {
    let mut bench = Bench::new(&USUAL);
    let mut sent = 0;
    while bench.metrics.tx_blocked.get() == 0 {
        bench.send(&with_header(&pattern(30_000)), &[]);
        sent += 1;
        bench.wake(TX_KICK).unwrap();
        assert!(sent < 200, "a socket takes less than 6 MB");
    }
    let mut arrived = 0;
    while bench.left().is_some() {
        arrived += 1;
    }
    assert_eq!(arrived, sent - 1);
    bench.wake(TAP).unwrap();
    assert_eq!(bench.left().unwrap().len(), HEADER_BYTES + 30_000);
}

/// Whoever opened the tap has the same open file description, and with it the flags.
#[test]
fn a_tap_that_another_holder_makes_blocking_is_never_waited_for() {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        for is_old in [false, true] {
            let (wire, tap) = UnixDatagram::pair().unwrap();
            let holder = tap.try_clone().unwrap();
            holder.set_nonblocking(true).unwrap();
            let tap = Tap::fake(OwnedFd::from(tap));
            let tap = if is_old { tap.on_an_old_kernel() } else { tap };
            let mut bench = Bench::over(wire, tap, &USUAL);
            bench.give(16, 1536);
            for is_nonblocking in [true, false] {
                holder.set_nonblocking(is_nonblocking).unwrap();
                bench.arrive(&pattern(60));
                bench.wake(TAP).unwrap();
                assert_eq!(bench.received(1536).unwrap().len(), HEADER_BYTES + 60);
                // There is none.
                bench.wake(TAP).unwrap();
            }
            for _ in 0..200 {
                bench.send(&with_header(&pattern(30_000)), &[]);
            }
            bench.wake(TX_KICK).unwrap();
            assert_eq!(bench.metrics.tx_blocked.get(), 1);
            let mut arrived = 0;
            while bench.left().is_some() {
                arrived += 1;
                bench.wake(TAP).unwrap();
                // Its turn may have been over before the tap was full.
                bench.wake(TX_KICK).unwrap();
            }
            assert_eq!(arrived, 200);
        }
        done.send(()).unwrap();
    });
    outcome.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_refused_frame_is_counted_and_does_not_stop_the_queue() {
    let mut bench = Bench::new(&USUAL);
    let (other, _) = UnixDatagram::pair().unwrap();
    drop(std::mem::replace(&mut bench.wire, other));
    for _ in 0..3 {
        bench.send(&with_header(&pattern(60)), &[]);
    }
    bench.wake(TX_KICK).unwrap();
    bench.wake(TAP).unwrap();
    assert_eq!(bench.metrics.tx_refused.get(), 3);
    assert!((0..3).all(|_| bench.tx.take_used().is_some()));
}

#[test]
fn errors_of_a_tap_are_told_apart() {
    let fault = |errno| TapFault::of(&io::Error::from_raw_os_error(errno));
    assert_eq!(fault(libc::EAGAIN), TapFault::Wait);
    assert_eq!(fault(libc::EBADFD), TapFault::Gone);
    for errno in [libc::EIO, libc::EINVAL, libc::ENOBUFS, libc::ENOMEM, libc::EMSGSIZE] {
        assert_eq!(fault(errno), TapFault::Frame);
    }
}

#[test]
fn a_lost_tap_takes_the_link_down_once_and_frames_with_it() {
    let mut bench = Bench::new(&USUAL);
    bench.give(4, 1536);
    let handler = bench.handler.as_ref().unwrap();
    handler.port.set_down();
    handler.port.set_down();
    bench.arrive(&pattern(60));
    bench.send(&with_header(&pattern(60)), &[]);
    for token in [TAP, RX_KICK, TX_KICK] {
        bench.wake(token).unwrap();
    }
    assert_eq!((bench.left(), bench.received(1536)), (None, None));
    assert!(bench.tx.take_used().is_some());
    assert_eq!(bench.metrics.tap_losses.get(), 1);
    assert_eq!(bench.metrics.tx_refused.get(), 1);
}

fn per_hour(frames: u64) -> LimiterConfig {
    LimiterConfig {
        ops: Some(BucketConfig {
            size: frames,
            one_time_burst: 0,
            refill: Duration::from_secs(3600),
        }),
        bandwidth: None,
    }
}

#[test]
fn a_rate_limiter_holds_both_directions_back_by_themselves() {
    let mut bench = Bench::new(&Setup {
        limits: per_hour(3),
        ..USUAL
    });
    bench.give(16, 1536);
    for _ in 0..5 {
        bench.arrive(&pattern(60));
        bench.send(&with_header(&pattern(60)), &[]);
    }
    bench.wake(TX_KICK).unwrap();
    bench.wake(TAP).unwrap();
    let left = std::iter::from_fn(|| bench.left()).count();
    assert_eq!((left, bench.metrics.rx_frames.get()), (3, 3));
    assert_eq!(
        (bench.metrics.tx_throttled.get(), bench.metrics.rx_throttled.get()),
        (1, 1)
    );
    assert_eq!(bench.tx.used_flags(), 1, "no kick can help");
    assert!(
        bench.handler.as_ref().unwrap().timer.as_ref().unwrap().at().is_some(),
        "the timer will ring"
    );
}

#[test]
fn a_rate_limiter_lets_go_on_when_its_timer_rings() {
    let limits = LimiterConfig {
        bandwidth: None,
        ops: Some(BucketConfig {
            size: 1,
            one_time_burst: 0,
            refill: Duration::from_millis(1),
        }),
    };
    let mut bench = Bench::new(&Setup { limits, ..USUAL });
    for _ in 0..5 {
        bench.send(&with_header(&pattern(60)), &[]);
    }
    bench.wake(TX_KICK).unwrap();
    while bench.metrics.tx_frames.get() < 5 {
        bench.await_timer();
        bench.wake(TIMER).unwrap();
    }
    assert_eq!(std::iter::from_fn(|| bench.left()).count(), 5);
}

#[test]
fn a_timer_that_rings_for_a_tap_that_is_gone_does_not_ring_again() {
    let limits = LimiterConfig {
        bandwidth: None,
        ops: Some(BucketConfig {
            size: 1,
            one_time_burst: 0,
            refill: Duration::from_millis(20),
        }),
    };
    let mut bench = Bench::new(&Setup { limits, ..USUAL });
    bench.give(4, 1536);
    bench.arrive(&pattern(60));
    bench.arrive(&pattern(60));
    bench.wake(TAP).unwrap();
    let timer = |bench: &Bench| bench.handler.as_ref().unwrap().timer.as_ref().unwrap().at();
    assert!(timer(&bench).is_some());
    bench.handler.as_ref().unwrap().port.set_down();
    bench.await_timer();
    bench.wake(TIMER).unwrap();
    assert_eq!(timer(&bench), None);
}

/// One wait reports the tap and the timer: what is done for the tap sets the timer to another moment.
#[test]
fn a_timer_that_was_set_anew_since_it_rang_is_not_waited_for() {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        for first in [TAP, RX_KICK, TX_KICK] {
            let mut bench = Bench::new(&Setup {
                limits: per_hour(1),
                ..USUAL
            });
            bench.give(4, 1536);
            for _ in 0..2 {
                bench.arrive(&pattern(60));
                bench.send(&with_header(&pattern(60)), &[]);
            }
            bench.wake(first).unwrap();
            bench.wake(TIMER).unwrap();
            assert!(bench.handler.as_ref().unwrap().timer.as_ref().unwrap().is_set());
        }
        done.send(()).unwrap();
    });
    outcome.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn chains_that_break_the_rules_end_the_handler_and_nothing_else() {
    for (name, abuse) in ABUSES {
        let mut bench = Bench::new(&USUAL);
        abuse(&bench.rx);
        assert!(
            matches!(bench.wake(TAP), Err(HandlerError::Ring(_))),
            "receiving: {name}"
        );
        assert_eq!(bench.stop().len(), 2);
        let mut bench = Bench::new(&USUAL);
        abuse(&bench.tx);
        assert!(
            matches!(bench.wake(TX_KICK), Err(HandlerError::Ring(_))),
            "sending: {name}"
        );
        assert_eq!(bench.stop().len(), 2);
    }
}

#[test]
fn a_receive_buffer_offered_twice_ends_the_handler() {
    let mut bench = Bench::new(&USUAL);
    bench.give(1, 1536);
    bench.rx.offer(0);
    assert!(matches!(bench.wake(TAP), Err(HandlerError::Ring(_))));
    assert_eq!(bench.stop().len(), 2);
}

#[test]
fn a_head_that_is_reused_while_a_frame_waits_is_found() {
    let mut bench = Bench::new(&USUAL);
    bench.give(2, 1536);
    bench.arrive(&pattern(40_000));
    bench.wake(TAP).unwrap();
    bench.rx.offer(0);
    let error = bench.wake(RX_KICK).unwrap_err();
    assert!(
        matches!(error, HandlerError::Ring(RingError::HeadInFlight { head: 0, .. })),
        "{error}"
    );
}

proptest! {
    #[test]
    fn frames_of_any_length_arrive_whole_in_buffers_of_any_length(
        buffers in proptest::collection::vec(12u32..5000, 100..140),
        frames in proptest::collection::vec(14usize..3000, 1..20),
        given_first in 0usize..100,
    ) {
        let mut bench = Bench::new(&USUAL);
        let (first, then) = buffers.split_at(given_first);
        for len in first {
            bench.give(1, *len);
        }
        for len in &frames {
            bench.arrive(&pattern(*len));
        }
        bench.wake(TAP).unwrap();
        for len in then {
            bench.give(1, *len);
            bench.wake(RX_KICK).unwrap();
        }
        let room: usize = buffers.iter().map(|len| *len as usize).sum();
        for len in &frames {
            match bench.received(5000) {
                Some(frame) => prop_assert_eq!(&frame[HEADER_BYTES..], &pattern(*len)[..]),
                None => {
                    prop_assert!(room < 100_000, "{room} bytes of room were not enough");
                    break;
                }
            }
        }
        prop_assert_eq!(bench.metrics.rx_dropped.get(), 0);
        prop_assert!(bench.stop()[0].queue.next_avail <= 140);
    }
}

#[test]
fn a_driver_that_is_always_at_work_does_not_keep_the_thread() {
    for token in [RX_KICK, TX_KICK, TAP, TIMER] {
        for (receive, send) in [(4, 12), (1536, 12), (4, 12 + 60), (1536, 12 + 60)] {
            let mut bench = Bench::new(&USUAL);
            bench.rx.add(&[Buf::In(RX_DATA, receive)]);
            bench.tx.add(&[Buf::Out(TX_DATA, send)]);
            let handler = bench.handler.as_mut().unwrap();
            handler.rx.ring().busy_driver = Some(bench.rx.busy(1));
            handler.tx.ring().busy_driver = Some(bench.tx.busy(1));
            let useless = receive < HEADER_BYTES as u32;
            for token in [token, RX_KICK, TX_KICK] {
                bench.arrive(&pattern(60));
                bench.wake(token).unwrap();
                if useless && token != TX_KICK {
                    assert!(bench.handler.as_mut().unwrap().rx.ring().is_spent());
                    assert!(bench.rx.kick.read().is_ok(), "it comes back by itself");
                }
                while bench.left().is_some() {}
            }
            assert!(bench.metrics.rx_malformed.get() <= 3 * 256);
            assert!(bench.metrics.tx_malformed.get() <= 3 * 256);
            assert_eq!(bench.metrics.rx_starved.get(), 0, "the driver has buffers");
        }
    }
}
