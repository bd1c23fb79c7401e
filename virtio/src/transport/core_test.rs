use std::sync::atomic::{AtomicUsize, Ordering};

use husk_devices::testing::until;
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::*;
use crate::testing::{Buf, Driver, END, Echo, EchoControl, memory};

const DATA: u64 = 0x8_0000;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// A core, the driver's rings and how often each source has interrupted.
struct Bench {
    core: Core,
    control: Arc<EchoControl>,
    drivers: Vec<Driver>,
    interrupts: Arc<[AtomicUsize; 3]>,
}

fn bench() -> Bench {
    let mem = memory();
    let echo = Echo::new();
    let control = echo.control.clone();
    let profile = echo.profile();
    let core = Core::new(Box::new(echo), profile, "echo".into(), mem.clone());
    let drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    Bench {
        core,
        control,
        drivers,
        interrupts: Arc::default(),
    }
}

impl Bench {
    fn status(&mut self, value: u8) -> u8 {
        let interrupts = self.interrupts.clone();
        self.core.set_status(value, |source| {
            let interrupts = interrupts.clone();
            let slot = match source {
                InterruptSource::Config => 0,
                InterruptSource::Queue(queue) => 1 + usize::from(queue),
            };
            Notify::new(move || {
                interrupts[slot].fetch_add(1, Ordering::SeqCst);
            })
        });
        self.core.status()
    }

    fn features(&mut self, features: u64) {
        for half in 0..2 {
            self.core.set_driver_feature(half, words::get(features, half));
        }
    }

    fn negotiate(&mut self) {
        assert_eq!(self.status(ACKNOWLEDGE), 1);
        assert_eq!(self.status(ACKNOWLEDGE | DRIVER), 3);
        self.features(VERSION_1 | 1);
        assert_eq!(self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK), 11);
    }

    fn set_up(&mut self, queue: u16) {
        let driver = &self.drivers[usize::from(queue)];
        self.core.set_queue_size(queue, driver.size);
        let parts = [QueuePart::Descriptors, QueuePart::Available, QueuePart::Used];
        for (part, address) in parts.into_iter().zip([driver.desc, driver.avail, driver.used]) {
            for half in 0..2 {
                self.core
                    .set_queue_address(queue, part, half, words::get(address, half));
            }
        }
        self.core.enable_queue(queue);
    }

    fn go(&mut self) -> u8 {
        self.status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    }

    fn bring_up(&mut self) {
        self.negotiate();
        self.set_up(0);
        self.set_up(1);
        assert_eq!(self.go(), 15);
    }

    fn interrupted(&self, slot: usize) -> usize {
        self.interrupts[slot].load(Ordering::SeqCst)
    }

    /// One request through `queue`, answered by the I/O thread.
    fn echo(&mut self, queue: u16) {
        let kick = self.core.kick(queue).unwrap().clone();
        let driver = &mut self.drivers[usize::from(queue)];
        driver.write(DATA, b"ping");
        driver.write(DATA + 64, &[0; 4]);
        let head = driver.add(&[Buf::Out(DATA, 4), Buf::In(DATA + 64, 4)]);
        kick.write(1).unwrap();
        let mut used = None;
        until(|| {
            used = driver.take_used();
            used.is_some()
        });
        assert_eq!(used, Some((head.into(), 4)));
        assert_eq!(driver.read(DATA + 64, 4), b"ping");
    }
}

/// A failed assertion must not leave an I/O thread waiting.
impl Drop for Bench {
    fn drop(&mut self) {
        self.control.hold_stop.store(false, Ordering::SeqCst);
    }
}

#[test]
fn driver_negotiates_starts_and_gets_answers() {
    let mut bench = bench();
    bench.bring_up();
    assert_eq!(*bench.control.features.lock().unwrap(), VERSION_1 | 1);
    bench.echo(0);
    bench.echo(1);
    until(|| bench.interrupted(1) == 1 && bench.interrupted(2) == 1);
    assert_eq!(bench.interrupted(0), 0);
}

#[test]
fn chains_offered_before_driver_ok_are_served_without_a_kick() {
    let mut bench = bench();
    bench.negotiate();
    bench.set_up(0);
    bench.drivers[0].add(&[Buf::In(DATA, 4)]);
    bench.go();
    until(|| bench.drivers[0].take_used().is_some());
}

#[test]
fn offered_features_are_the_devices_and_the_transports() {
    let bench = bench();
    assert_eq!(bench.core.device_feature(0), 0b101 | 1 << 28 | 1 << 29);
    assert_eq!(bench.core.device_feature(1), 1);
    assert_eq!(bench.core.device_feature(2), 0);
}

#[test]
fn features_that_do_not_fit_are_refused_and_may_be_corrected() {
    for wrong in [0, 1, VERSION_1 | 2, VERSION_1 | 1 << 63] {
        let mut bench = bench();
        bench.status(1);
        bench.status(3);
        bench.features(wrong);
        assert_eq!(bench.status(11), 3, "features {wrong:#x}");
        assert_eq!(bench.go(), 3, "DRIVER_OK needs FEATURES_OK");
        bench.features(VERSION_1);
        assert_eq!(bench.status(11), 11);
    }
}

#[test]
fn steps_cannot_be_skipped_undone_or_done_out_of_order() {
    let mut bench = bench();
    assert_eq!(bench.status(DRIVER), 0);
    assert_eq!(bench.status(DRIVER_OK), 0);
    bench.features(VERSION_1);
    assert_eq!(bench.core.driver_feature(1), 0, "features wait for DRIVER");
    bench.negotiate();
    bench.features(0);
    assert_eq!(bench.core.driver_feature(1), 1, "features are frozen by FEATURES_OK");
    assert_eq!(bench.status(ACKNOWLEDGE), 11, "bits cannot be cleared");
    assert_eq!(bench.status(11 | NEEDS_RESET | 0x30), 11, "not the driver's bits");
    assert_eq!(bench.status(11 | FAILED), 0x8b);
    assert_eq!(bench.status(15 | FAILED), 0x8b, "a driver that gave up cannot start");
    assert_eq!(bench.status(0), 0);
}

#[test]
fn queue_registers_are_checked_and_frozen() {
    let mut bench = bench();
    assert_eq!(
        (
            bench.core.queue_size(0),
            bench.core.queue_size(1),
            bench.core.queue_size(2)
        ),
        (8, 16, 0)
    );
    bench.core.set_queue_size(0, 4);
    assert_eq!(bench.core.queue_size(0), 8, "not before FEATURES_OK");
    bench.negotiate();
    for wrong in [0, 3, 16, 0x8000, 0xffff] {
        bench.core.set_queue_size(0, wrong);
        assert_eq!(bench.core.queue_size(0), 8);
    }
    bench.set_up(0);
    bench.core.set_queue_size(0, 2);
    bench.core.set_queue_address(0, QueuePart::Used, 0, 0);
    assert_eq!(bench.core.queue_size(0), 8, "an enabled queue is frozen");
    assert_eq!(
        u64::from(bench.core.queue_address(0, QueuePart::Used, 0)),
        bench.drivers[0].used
    );
    bench.core.enable_queue(999);
    bench.core.set_queue_size(999, 1);
    bench.go();
    bench.core.set_queue_size(1, 2);
    bench.core.enable_queue(1);
    assert_eq!(
        (bench.core.queue_size(1), bench.core.queue_enabled(1)),
        (16, false),
        "DRIVER_OK freezes the others"
    );
}

#[test]
fn device_that_cannot_start_needs_a_reset_and_may_be_tried_again() {
    let mut bench = bench();
    bench.control.fail_start.store(true, Ordering::SeqCst);
    bench.negotiate();
    bench.set_up(0);
    assert_eq!(bench.go(), 15 | NEEDS_RESET);
    assert_eq!((bench.interrupted(0), bench.core.failures().get()), (1, 1));

    bench.control.fail_start.store(false, Ordering::SeqCst);
    assert_eq!(bench.status(0), 0);
    bench.bring_up();
    bench.echo(0);
}

#[test]
fn ring_outside_ram_needs_a_reset() {
    let mut bench = bench();
    bench.negotiate();
    bench
        .core
        .set_queue_address(0, QueuePart::Descriptors, 0, words::get(END, 0));
    bench.core.enable_queue(0);
    assert_eq!(bench.go(), 15 | NEEDS_RESET);
    assert_eq!(bench.control.starts.load(Ordering::SeqCst), 0);
}

#[test]
fn driver_that_breaks_a_ring_needs_a_reset_and_recovers() {
    let mut bench = bench();
    bench.bring_up();
    bench.drivers[0].offer(77);
    bench.core.kick(0).unwrap().write(1).unwrap();
    until(|| bench.core.status() == 15 | NEEDS_RESET);
    until(|| bench.interrupted(0) == 1);

    bench.status(0);
    until(|| bench.core.status() == 0);
    let mem = bench.core.mem.clone();
    bench.drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    bench.bring_up();
    bench.echo(0);
}

#[test]
fn reset_waits_for_io_without_blocking_the_vcpu() {
    let mut bench = bench();
    bench.bring_up();
    bench.control.hold_stop.store(true, Ordering::SeqCst);

    assert_eq!(bench.status(0), 15, "returns at once, and the status says not yet");
    assert_eq!(bench.status(ACKNOWLEDGE), 15, "nothing else is taken meanwhile");
    bench.core.set_queue_size(0, 2);
    assert_eq!(bench.core.queue_size(0), 8);
    assert_eq!(bench.control.alive.load(Ordering::SeqCst), 2);

    bench.control.hold_stop.store(false, Ordering::SeqCst);
    until(|| bench.core.status() == 0);
    assert_eq!(bench.control.alive.load(Ordering::SeqCst), 0);
    assert!(!bench.core.queue_enabled(0));
    assert_eq!((bench.core.queue_size(1), bench.core.driver_feature(1)), (16, 0));
}

#[test]
fn device_serves_one_driver_after_the_other() {
    let mut bench = bench();
    let mem = bench.core.mem.clone();
    for round in 1..=3 {
        bench.bring_up();
        bench.echo(0);
        bench.echo(1);
        bench.status(0);
        until(|| bench.core.status() == 0);
        assert_eq!(bench.control.starts.load(Ordering::SeqCst), round);
        bench.drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    }
}

#[test]
fn shutdown_stops_the_threads_and_tells_where_the_rings_stood() {
    let mut bench = bench();
    bench.bring_up();
    bench.echo(1);
    let states = bench.core.shutdown();
    let positions: Vec<_> = states
        .iter()
        .map(|state| (state.index, state.queue.next_used))
        .collect();
    assert_eq!(positions, [(0, 0), (1, 1)]);
    assert_eq!(bench.control.alive.load(Ordering::SeqCst), 0);
}

/// What a driver may do, in any order.
#[derive(Clone, Debug)]
enum Act {
    Status(u8),
    Feature(u32, u32),
    Size(u16, u16),
    Address(u16, u8, u32, u32),
    Enable(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let status = prop_oneof![Just(0), Just(1), Just(3), Just(11), Just(15), any::<u8>()];
    let feature = prop_oneof![Just(0), Just(1), any::<u32>()];
    prop_oneof![
        4 => status.prop_map(Act::Status),
        2 => (0u32..3, feature).prop_map(|(select, value)| Act::Feature(select, value)),
        1 => (0u16..4, any::<u16>()).prop_map(|(queue, size)| Act::Size(queue, size)),
        2 => (0u16..4, 0u8..3, 0u32..3, 0u32..0x30_0000).prop_map(|(q, p, h, v)| Act::Address(q, p, h, v)),
        1 => (0u16..4).prop_map(Act::Enable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_order_of_writes_breaks_the_status_machine(acts in prop::collection::vec(act(), 1..60)) {
        let mut bench = bench();
        for act in acts {
            let before = bench.core.status();
            let sizes = [0, 1].map(|queue| bench.core.queue_size(queue));
            match act {
                Act::Status(value) => drop(bench.status(value)),
                Act::Feature(select, value) => bench.core.set_driver_feature(select, value),
                Act::Size(queue, size) => bench.core.set_queue_size(queue, size),
                Act::Address(queue, part, half, value) => {
                    let parts = [QueuePart::Descriptors, QueuePart::Available, QueuePart::Used];
                    bench.core.set_queue_address(queue, parts[usize::from(part)], half, value);
                }
                Act::Enable(queue) => bench.core.enable_queue(queue),
            }
            let after = bench.core.status();
            let steps = after & 0xf;
            prop_assert!([0, 1, 3, 11, 15].contains(&steps), "{before:#x} -> {after:#x}");
            if before & DRIVER_OK != 0 && after & DRIVER_OK != 0 {
                prop_assert_eq!(sizes, [0, 1].map(|queue| bench.core.queue_size(queue)), "frozen after DRIVER_OK");
            }
            prop_assert!([0, 1].iter().all(|queue| bench.core.queue_size(*queue).is_power_of_two()));
            prop_assert!(after & DRIVER_OK == 0 || bench.core.features.acceptable());
        }
    }
}

#[test]
fn a_retired_device_cannot_be_started_again() {
    let mut bench = bench();
    bench.negotiate();
    bench.set_up(0);
    bench.go();
    bench.core.workers().retire();
    until(|| bench.core.workers().is_stopped());
    bench.status(0);
    assert_eq!(bench.status(ACKNOWLEDGE), 0);
    assert!(!bench.core.is_live());
    assert!(bench.core.workers().is_stopped());
    assert_eq!(bench.core.shutdown().len(), 0, "a reset has collected them");
}

/// As a vCPU may be anywhere in `DRIVER_OK` when a control thread, which does not wait for it, retires the device.
#[test]
fn a_device_that_is_retired_in_the_middle_of_its_start_stops() {
    let mut bench = bench();
    bench.negotiate();
    bench.set_up(0);
    let workers = bench.core.workers().clone();
    bench
        .core
        .set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, |_| {
            workers.retire();
            Notify::new(|| ())
        });
    assert_eq!(bench.control.starts.load(Ordering::SeqCst), 1);
    until(|| workers.is_stopped());
    assert_eq!(bench.core.shutdown().len(), 1, "it had a thread");
}

#[test]
fn a_device_that_goes_for_good_is_told_before_its_threads_are_waited_for() {
    let mut bench = bench();
    bench.bring_up();
    bench.control.hold_stop.store(true, Ordering::SeqCst);
    bench.status(0);
    assert!(!bench.control.retired.load(Ordering::SeqCst), "a reset is no end");
    bench.core.workers().retire();
    assert!(bench.control.retired.load(Ordering::SeqCst));
    bench.control.hold_stop.store(false, Ordering::SeqCst);
    bench.core.shutdown();
}

#[test]
fn a_kick_that_a_held_device_does_not_look_at_is_told_of_its_queue() {
    let mut bench = bench();
    let probes = bench.core.queue_probes();
    let status = |bench: &Bench| probes[0].status(&bench.drivers[0].mem).unwrap();
    assert!(
        probes[0].status(&bench.drivers[0].mem).is_none(),
        "no driver has set it up"
    );
    bench.bring_up();
    bench.echo(0);
    let told = status(&bench);
    assert_eq!((told.size, told.next_avail), (8, Some(1)));
    assert_eq!((told.avail.unwrap().idx, told.used.unwrap().idx), (1, 1));
    until(|| status(&bench).kick_pending == Some(false));

    bench.core.workers().hold();
    until(|| bench.core.workers().is_held());
    bench.drivers[0].add(&[Buf::Out(DATA, 4), Buf::In(DATA + 64, 4)]);
    bench.core.kick(0).unwrap().write(1).unwrap();
    let told = status(&bench);
    assert_eq!((told.kick_pending, told.next_avail), (Some(true), Some(1)));
    assert_eq!((told.avail.unwrap().idx, told.used.unwrap().idx), (2, 1));
    bench.core.workers().release();
    until(|| status(&bench).used.unwrap().idx == 2);

    bench.status(0);
    until(|| bench.core.status() == 0);
    assert!(
        probes[0].status(&bench.drivers[0].mem).is_none(),
        "the driver has reset it"
    );
}

#[test]
fn a_ring_that_a_driver_has_put_nowhere_is_told_as_such() {
    let mut bench = bench();
    bench.negotiate();
    bench.drivers[0].avail = END;
    bench.set_up(0);
    assert_eq!(bench.go() & NEEDS_RESET, NEEDS_RESET);
    let told = bench.core.queue_probes()[0].status(&bench.drivers[0].mem).unwrap();
    let error = told.avail.unwrap_err().to_string();
    assert!(
        error.contains("available ring") && error.contains("not all in guest RAM"),
        "{error}"
    );
    assert!(told.used.is_ok());
}
