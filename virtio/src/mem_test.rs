use std::os::fd::RawFd;
use std::sync::atomic::AtomicUsize;

use super::handler::{
    KICK, REQ_PLUG, REQ_STATE, REQ_UNPLUG, REQ_UNPLUG_ALL, RESP_ACK, RESP_BUSY, RESP_ERROR, RESP_NACK, STATE_MIXED,
    STATE_PLUGGED, STATE_UNPLUGGED, STEP_BYTES,
};
use super::*;
use crate::device::{HandlerError, Watch};
use crate::testing::{ABUSES, Buf, Driver, memory};

const UNIT: u64 = 2 << 20;
const BASE: u64 = 0x1_4000_0000;
const BLOCKS: u64 = 64;
const REQUEST: u64 = 0x8_0000;
const RESPONSE: u64 = 0x9_0000;

struct Unwatched;

impl Watch for Unwatched {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        unreachable!("nothing new to wait for")
    }

    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        unreachable!("nothing is dropped")
    }
}

/// What the machine was asked for: plugged or not, offset and length in blocks. It can be told to fail.
#[derive(Clone, Default)]
struct Host {
    log: Arc<Mutex<Vec<(bool, u64, u64)>>>,
    broken: Arc<AtomicBool>,
}

impl Host {
    fn act(&self, plugged: bool, offset: u64, bytes: u64) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.log.lock().unwrap().push((plugged, offset / UNIT, bytes / UNIT));
        Ok(())
    }

    fn done(&self) -> Vec<(bool, u64, u64)> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Backing for Host {
    fn plug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.act(true, offset, bytes)
    }

    fn unplug(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.act(false, offset, bytes)
    }
}

/// A device, its driver, and what either of them was told.
struct Bench {
    device: Mem,
    host: Host,
    driver: Driver,
    handler: Option<Box<dyn Handler>>,
    changes: Arc<AtomicUsize>,
    interrupts: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        Self::of(BLOCKS)
    }

    fn of(blocks: u64) -> Self {
        let (host, changes) = (Host::default(), Arc::new(AtomicUsize::new(0)));
        let seen = changes.clone();
        let config = MemConfig {
            base: BASE,
            region_bytes: blocks * UNIT,
            block_bytes: UNIT,
        };
        let device = Mem::new(config, host.clone(), move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let mut bench = Self {
            device: device.unwrap(),
            host,
            driver: Driver::new(&memory(), 0x1000, 8),
            handler: None,
            changes,
            interrupts: Arc::default(),
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        self.driver = Driver::new(&memory(), 0x1000, 8);
        self.handler = Some(activate(&mut self.device, &self.driver, 2, &self.interrupts).unwrap());
    }

    fn reset(&mut self) {
        assert_eq!(self.handler.take().unwrap().stop().len(), 1);
    }

    fn wake(&mut self) -> Result<(), HandlerError> {
        self.handler.as_mut().unwrap().wake(KICK, &mut Unwatched)
    }

    /// Sends one request; returns the response type and the state.
    fn ask(&mut self, kind: u16, addr: u64, count: u16) -> (u16, u16) {
        self.send(kind, addr, count);
        self.wake().unwrap();
        self.answer().unwrap()
    }

    fn send(&mut self, kind: u16, addr: u64, count: u16) {
        let mut request = [0; 24];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&addr.to_le_bytes());
        request[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.write(REQUEST, &request);
        self.driver.add(&[Buf::Out(REQUEST, 24), Buf::In(RESPONSE, 10)]);
    }

    /// The response type and the state, if there is an answer.
    fn answer(&mut self) -> Option<(u16, u16)> {
        let (_, bytes) = self.driver.take_used()?;
        assert_eq!(bytes, 10);
        let word = |at| u16::from_le_bytes(self.driver.read(RESPONSE + at, 2).try_into().unwrap());
        Some((word(0), word(8)))
    }

    /// Wakes the handler once, which has rung for more of a request; what the host was asked for then.
    fn next_step(&mut self) -> Vec<(bool, u64, u64)> {
        assert_eq!(self.answer(), None);
        assert!(self.driver.kick.read().is_ok(), "nobody would go on");
        self.host.done();
        self.wake().unwrap();
        self.host.done()
    }

    fn interrupts(&self) -> usize {
        self.interrupts.swap(0, Ordering::Relaxed)
    }

    fn config(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.config().lock().unwrap().read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn activate(
    device: &mut Mem,
    driver: &Driver,
    features: u64,
    interrupts: &Arc<AtomicUsize>,
) -> Result<Box<dyn Handler>, StartError> {
    let told = interrupts.clone();
    let activation = Activation {
        mem: driver.mem.clone(),
        features,
        rings: vec![Some(driver.ring())],
        config_changed: Notify::new(move || {
            told.fetch_add(1, Ordering::Relaxed);
        }),
    };
    device.start(activation).map(|mut handlers| handlers.remove(0))
}

fn at(block: u64) -> u64 {
    BASE + block * UNIT
}

#[test]
fn a_wish_reaches_the_driver_and_its_answer_the_host() {
    let mut bench = Bench::new();
    bench.changes.store(0, Ordering::Relaxed);
    let handle = bench.device.handle();
    handle.request(8 * UNIT).unwrap();
    assert_eq!((bench.interrupts(), bench.config(0x30)), (1, 8 * UNIT));
    assert_eq!(bench.ask(REQ_PLUG, at(0), 5), (RESP_ACK, 0));
    assert_eq!(bench.ask(REQ_PLUG, at(60), 3), (RESP_ACK, 0));
    assert_eq!(bench.host.done(), [(true, 0, 5), (true, 60, 3)]);
    assert_eq!((handle.size().plugged_bytes, bench.config(0x28)), (8 * UNIT, 8 * UNIT));
    assert_eq!(bench.changes.load(Ordering::Relaxed), 2);
    assert_eq!(bench.interrupts(), 1, "it has all: is it done with it?");
    handle.request(0).unwrap();
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(bench.ask(REQ_UNPLUG, at(1), 4), (RESP_ACK, 0));
    assert_eq!(bench.ask(REQ_UNPLUG_ALL, 0, 0), (RESP_ACK, 0));
    assert_eq!(bench.host.done(), [(false, 1, 4), (false, 0, 1), (false, 60, 3)]);
    assert_eq!(handle.size().plugged_bytes, 0);
    assert_eq!(bench.device.metrics().requests.get(), 4);
}

#[test]
fn a_driver_that_looks_again_is_done_with_what_it_has_plugged() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    handle.request(2 * UNIT).unwrap();
    bench.config(0x30);
    assert!(handle.size().settled, "it has plugged nothing yet");
    bench.interrupts();
    bench.ask(REQ_PLUG, at(0), 1);
    assert_eq!(
        (bench.interrupts(), handle.size().settled),
        (0, false),
        "more is to come"
    );
    bench.ask(REQ_PLUG, at(1), 1);
    assert_eq!((bench.interrupts(), handle.size().settled), (1, false));
    bench.changes.store(0, Ordering::Relaxed);
    assert_eq!((bench.config(0x28), handle.size().settled), (2 * UNIT, false));
    assert_eq!((bench.config(0x30), handle.size().settled), (2 * UNIT, true));
    bench.config(0x30);
    assert_eq!(bench.changes.load(Ordering::Relaxed), 1, "told once");
    bench.ask(REQ_UNPLUG, at(1), 1);
    assert!(handle.size().settled, "what has gone is gone");
    bench.ask(REQ_PLUG, at(1), 1);
    bench.reset();
    assert!(handle.size().settled, "there is nobody to wait for");
}

#[test]
fn a_wish_that_no_device_can_have_changes_nothing() {
    let bench = Bench::new();
    let handle = bench.device.handle();
    handle.request(UNIT).unwrap();
    bench.interrupts();
    for bytes in [UNIT + 1, (BLOCKS + 1) * UNIT, u64::MAX, !(UNIT - 1)] {
        let error = handle.request(bytes).unwrap_err().to_string();
        assert!(error.contains("2097152 bytes, 134217728 bytes at most"), "{error}");
    }
    assert_eq!((bench.interrupts(), handle.size().requested_bytes), (0, UNIT));
}

#[test]
fn more_than_is_wished_for_is_not_acknowledged_and_may_be_tried_again() {
    let mut bench = Bench::new();
    bench.device.handle().request(2 * UNIT).unwrap();
    assert_eq!(bench.ask(REQ_PLUG, at(0), 3), (RESP_NACK, 0));
    assert_eq!((bench.host.done(), bench.device.metrics().nacks.get()), (vec![], 1));
    assert_eq!(bench.ask(REQ_PLUG, at(0), 2), (RESP_ACK, 0));
}

#[test]
fn a_host_that_cannot_makes_the_driver_wait_until_it_is_told() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    handle.request(4 * UNIT).unwrap();
    assert_eq!(bench.ask(REQ_PLUG, at(0), 2), (RESP_ACK, 0));
    bench.host.broken.store(true, Ordering::Relaxed);
    assert_eq!(bench.ask(REQ_PLUG, at(2), 2), (RESP_BUSY, 0));
    assert_eq!(bench.ask(REQ_UNPLUG, at(0), 1), (RESP_BUSY, 0));
    assert_eq!(bench.ask(REQ_UNPLUG_ALL, 0, 0), (RESP_BUSY, 0));
    assert_eq!(
        (handle.size().plugged_bytes, bench.device.metrics().busy.get()),
        (2 * UNIT, 3)
    );
    bench.host.broken.store(false, Ordering::Relaxed);
    bench.interrupts();
    handle.retry();
    assert_eq!(bench.interrupts(), 1);
    assert_eq!(bench.ask(REQ_PLUG, at(2), 2), (RESP_ACK, 0));
}

#[test]
fn requests_that_make_no_sense_are_errors_and_touch_nothing() {
    let mut bench = Bench::new();
    bench.device.handle().request(BLOCKS * UNIT).unwrap();
    assert_eq!(bench.ask(REQ_PLUG, at(4), 4), (RESP_ACK, 0));
    bench.host.done();
    for (kind, addr, count) in [
        (REQ_PLUG, at(4), 1),
        (REQ_PLUG, at(3), 2),
        (REQ_PLUG, at(0), 0),
        (REQ_PLUG, at(63), 2),
        (REQ_PLUG, at(0) + 4096, 1),
        (REQ_PLUG, 0, 1),
        (REQ_PLUG, u64::MAX, u16::MAX),
        (REQ_UNPLUG, at(0), 1),
        (REQ_UNPLUG, at(7), 2),
        (REQ_STATE, at(64), 1),
        (4, at(0), 1),
        (u16::MAX, at(0), 1),
    ] {
        assert_eq!(
            bench.ask(kind, addr, count),
            (RESP_ERROR, 0),
            "{kind} {addr:#x} {count}"
        );
    }
    assert_eq!(
        (bench.host.done(), bench.device.metrics().bad_requests.get()),
        (vec![], 12)
    );
}

#[test]
fn the_state_of_blocks_can_be_asked() {
    let mut bench = Bench::new();
    bench.device.handle().request(4 * UNIT).unwrap();
    bench.ask(REQ_PLUG, at(2), 2);
    assert_eq!(bench.ask(REQ_STATE, at(2), 2), (RESP_ACK, STATE_PLUGGED));
    assert_eq!(bench.ask(REQ_STATE, at(4), 60), (RESP_ACK, STATE_UNPLUGGED));
    assert_eq!(bench.ask(REQ_STATE, at(0), 3), (RESP_ACK, STATE_MIXED));
}

#[test]
fn a_reset_keeps_the_memory_and_wishes_wait_for_the_next_driver() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    handle.request(3 * UNIT).unwrap();
    bench.ask(REQ_PLUG, at(0), 3);
    bench.reset();
    assert!(!handle.size().driver);
    bench.interrupts();
    handle.request(UNIT).unwrap();
    assert_eq!((bench.interrupts(), bench.config(0x30)), (0, UNIT));
    bench.start();
    assert_eq!((handle.size().driver, handle.size().plugged_bytes), (true, 3 * UNIT));
    assert_eq!(bench.ask(REQ_UNPLUG_ALL, 0, 0), (RESP_ACK, 0));
    assert_eq!(bench.ask(REQ_PLUG, at(0), 1), (RESP_ACK, 0));
}

#[test]
fn a_driver_that_would_read_what_is_not_plugged_is_not_served() {
    let mut bench = Bench::new();
    bench.reset();
    let driver = Driver::new(&memory(), 0x1000, 8);
    let refused = activate(&mut bench.device, &driver, 0, &bench.interrupts);
    assert!(matches!(refused, Err(StartError::Host { .. })));
    assert!(!bench.device.handle().size().driver);
}

#[test]
fn an_answer_goes_only_where_there_is_room_for_it() {
    let mut bench = Bench::new();
    bench.device.handle().request(UNIT).unwrap();
    let mut plug = [0; 24];
    plug[8..16].copy_from_slice(&BASE.to_le_bytes());
    plug[16] = 1;
    bench.driver.write(REQUEST, &plug);
    bench.driver.write(RESPONSE, &[0xee; 16]);
    for (buffers, used) in [
        (vec![Buf::Out(REQUEST, 24), Buf::In(RESPONSE, 9)], 0),
        (vec![Buf::Out(REQUEST, 24)], 0),
        (vec![Buf::In(RESPONSE, 10)], 10),
        (vec![Buf::Out(REQUEST, 23), Buf::In(RESPONSE, 16)], 10),
    ] {
        bench.driver.add(&buffers);
        bench.wake().unwrap();
        assert_eq!(bench.driver.take_used().unwrap().1, used);
    }
    assert_eq!(
        (bench.host.done(), bench.device.metrics().bad_requests.get()),
        (vec![], 4)
    );
    assert_eq!(bench.driver.read(RESPONSE + 10, 6), [0xee; 6]);
}

#[test]
fn an_abused_ring_ends_its_handler_and_the_next_driver_is_served() {
    let mut bench = Bench::new();
    bench.device.handle().request(UNIT).unwrap();
    for (name, abuse) in ABUSES {
        bench.reset();
        bench.start();
        abuse(&bench.driver);
        let end = bench.wake();
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        bench.reset();
        bench.start();
        assert_eq!(bench.ask(REQ_PLUG, at(0), 1), (RESP_ACK, 0), "after {name}");
        assert_eq!(bench.ask(REQ_UNPLUG, at(0), 1), (RESP_ACK, 0), "after {name}");
    }
}

#[test]
fn the_counters_tell_the_sizes() {
    let mut bench = Bench::new();
    bench.device.handle().request(2 * UNIT).unwrap();
    bench.ask(REQ_PLUG, at(0), 1);
    let counters = bench.device.counters();
    let of = |name| {
        counters
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    };
    assert_eq!(of("plugged_bytes"), Some(UNIT));
    assert_eq!(of("requested_bytes"), Some(2 * UNIT));
    assert_eq!(of("usable_bytes"), Some(BLOCKS * UNIT));
    assert_eq!(of("requests"), Some(1));
}

/// Blocks of a step.
const STEP: u64 = STEP_BYTES / UNIT;

#[test]
fn a_long_request_is_carried_out_in_steps_and_answered_after_the_last() {
    let mut bench = Bench::of(4 * STEP);
    let handle = bench.device.handle();
    handle.request(4 * STEP_BYTES).unwrap();
    let all = u16::try_from(4 * STEP).unwrap();
    bench.send(REQ_PLUG, at(0), all);
    bench.wake().unwrap();
    assert_eq!(bench.host.done(), [(true, 0, STEP)]);
    assert_eq!(handle.size().plugged_bytes, STEP_BYTES);
    // Whatever the driver writes over it meanwhile.
    bench.driver.write(REQUEST, &[0xee; 24]);
    for step in 1..4 {
        assert_eq!(bench.next_step(), [(true, step * STEP, STEP)]);
    }
    assert_eq!(bench.answer(), Some((RESP_ACK, 0)));
    assert!(bench.driver.kick.read().is_err(), "that was all");
    assert_eq!(bench.ask(REQ_UNPLUG, at(1), 1), (RESP_ACK, 0));
    bench.host.done();
    // Two runs, of which the first ends within a step.
    bench.send(REQ_UNPLUG_ALL, 0, 0);
    bench.wake().unwrap();
    assert_eq!(bench.host.done(), [(false, 0, 1), (false, 2, STEP - 1)]);
    assert_eq!(bench.next_step(), [(false, STEP + 1, STEP)]);
    assert_eq!(bench.next_step(), [(false, 2 * STEP + 1, STEP)]);
    assert_eq!(bench.next_step(), [(false, 3 * STEP + 1, STEP - 1)]);
    assert_eq!(bench.answer(), Some((RESP_ACK, 0)));
    assert_eq!((handle.size().plugged_bytes, bench.config(0x28)), (0, 0));
    assert_eq!(bench.device.metrics().requests.get(), 3);
}

#[test]
fn several_requests_together_are_no_more_than_a_step() {
    let mut bench = Bench::of(2 * STEP);
    bench.device.handle().request(2 * STEP_BYTES).unwrap();
    let blocks = u16::try_from(STEP).unwrap();
    bench.send(REQ_PLUG, at(0), blocks);
    let mut request = [0; 24];
    request[8..16].copy_from_slice(&at(STEP).to_le_bytes());
    request[16..18].copy_from_slice(&blocks.to_le_bytes());
    bench.driver.write(REQUEST + 0x100, &request);
    bench
        .driver
        .add(&[Buf::Out(REQUEST + 0x100, 24), Buf::In(RESPONSE + 0x100, 10)]);
    bench.wake().unwrap();
    assert_eq!(bench.answer(), Some((RESP_ACK, 0)));
    assert_eq!(bench.host.done(), [(true, 0, STEP)]);
    assert_eq!(bench.next_step(), [(true, STEP, STEP)]);
    assert!(bench.driver.take_used().is_some());
}

#[test]
fn what_the_host_refuses_half_way_is_undone_before_the_driver_is_told() {
    for (kind, plugged) in [(REQ_PLUG, true), (REQ_UNPLUG, false)] {
        let mut bench = Bench::of(4 * STEP);
        let handle = bench.device.handle();
        handle.request(4 * STEP_BYTES).unwrap();
        let all = u16::try_from(4 * STEP).unwrap();
        if !plugged {
            bench.send(REQ_PLUG, at(0), all);
            (0..4).for_each(|_| bench.wake().unwrap());
            assert_eq!(bench.answer(), Some((RESP_ACK, 0)));
        }
        let before = handle.size().plugged_bytes;
        bench.host.done();
        bench.send(kind, at(0), all);
        bench.wake().unwrap();
        assert_eq!(bench.next_step(), [(plugged, STEP, STEP)]);
        bench.host.broken.store(true, Ordering::Relaxed);
        assert_eq!(bench.next_step(), []);
        bench.host.broken.store(false, Ordering::Relaxed);
        assert_ne!(handle.size().plugged_bytes, before);
        assert_eq!(bench.next_step(), [(!plugged, 0, STEP)]);
        assert_eq!(bench.next_step(), [(!plugged, STEP, STEP)]);
        assert_eq!(bench.answer(), Some((RESP_BUSY, 0)));
        assert_eq!(handle.size().plugged_bytes, before);
        assert_eq!(bench.device.metrics().busy.get(), 1);
    }
}

#[test]
fn a_reset_between_two_steps_leaves_blocks_as_they_are_and_the_next_driver_is_told() {
    let mut bench = Bench::of(4 * STEP);
    let handle = bench.device.handle();
    handle.request(4 * STEP_BYTES).unwrap();
    bench.send(REQ_PLUG, at(0), u16::try_from(4 * STEP).unwrap());
    bench.wake().unwrap();
    bench.next_step();
    bench.reset();
    assert_eq!(handle.size().plugged_bytes, 2 * STEP_BYTES);
    bench.start();
    let half = u16::try_from(2 * STEP).unwrap();
    assert_eq!(bench.ask(REQ_STATE, at(0), half), (RESP_ACK, STATE_PLUGGED));
    assert_eq!(bench.ask(REQ_STATE, at(2 * STEP), half), (RESP_ACK, STATE_UNPLUGGED));
}
