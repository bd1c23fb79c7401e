use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use husk_devices::memory::GuestRegionMmap;
use husk_devices::testing::{PATIENCE, until};
use vm_memory::GuestAddress;

use super::*;
use crate::device::MemoryListener;
use crate::testing::{Driver, SECOND, memory};
use crate::vhost::testing::{FEATURES, FakeKernel};
use crate::worker::Worker;

/// `VERSION_1` and `EVENT_IDX`, and one that is between the driver and the tap.
const AGREED: u64 = 1 << 32 | 1 << 29 | 1;

const STARTED: [&str; 5] = [
    "features 0x120000000",
    "memory of 2 regions",
    "ring 0 of 8 from 0",
    "ring 1 of 8 from 0",
    "run true",
];
const STOPPED: [&str; 3] = ["run false", "position of 0", "position of 1"];

/// A device with two rings on one handle.
struct Rig {
    kernel: Arc<FakeKernel>,
    handles: Arc<VhostHandles>,
    drivers: [Driver; 2],
    worker: Worker,
    failures: Receiver<String>,
}

impl Rig {
    fn new() -> Self {
        Self::refused(None)
    }

    /// With a kernel that refuses what begins so.
    fn refused(what: Option<&'static str>) -> Self {
        Self::with_rings(what, [0x1000, 0x1_1000])
    }

    /// The same, with its rings there.
    fn with_rings(what: Option<&'static str>, rings: [u64; 2]) -> Self {
        let mem = memory();
        let kernel = FakeKernel::new(FEATURES);
        what.into_iter().for_each(|what| kernel.refuse(what));
        let handles = FakeKernel::handles(std::slice::from_ref(&kernel), &mem);
        let drivers = rings.map(|base| Driver::new(&mem, base, 8));
        let group = Group::new(drivers.iter().map(Driver::ring)).unwrap();
        let handler = VhostHandler::new(handles.clone(), mem, AGREED, vec![group], None);
        let (said, failures) = channel();
        let on_failure = Box::new(move |error: HandlerError| said.send(error_chain(&error)).unwrap());
        let worker = Worker::spawn("io-vhost", Box::new(handler), on_failure).unwrap();
        Self {
            kernel,
            handles,
            drivers,
            worker,
            failures,
        }
    }

    /// Started, with what was asked on the way taken.
    fn started() -> Self {
        let rig = Self::new();
        until(|| rig.handles.metrics().starts.get() == 1);
        assert_eq!(rig.kernel.asked(), STARTED);
        rig
    }

    fn failure(&self) -> String {
        self.failures.recv_timeout(PATIENCE).unwrap()
    }
}

#[test]
fn rings_are_handed_over_and_come_back_where_the_kernel_left_them() {
    let rig = Rig::started();
    for number in [0, 1] {
        let rung = rig.kernel.with_events(number, |events| events.kick.read());
        assert_eq!(rung.unwrap(), 1, "for what is there already");
    }
    rig.kernel.go_to(0, 5);
    rig.kernel.go_to(1, 7);
    rig.drivers[0].store(rig.drivers[0].used + 2, 4);
    rig.drivers[1].store(rig.drivers[1].used + 2, 7);
    let states = rig.worker.join();
    assert_eq!(rig.kernel.asked(), STOPPED);
    let positions: Vec<_> = states
        .iter()
        .map(|state| (state.queue.next_avail, state.queue.next_used))
        .collect();
    assert_eq!(positions, [(5, 4), (7, 7)]);
}

#[test]
fn a_pause_takes_the_rings_back_and_they_go_on_where_they_stood() {
    let rig = Rig::started();
    rig.kernel.go_to(1, 65535);
    for _ in 0..3 {
        rig.worker.hold();
        until(|| rig.worker.is_held());
        assert_eq!(rig.kernel.asked(), STOPPED);
        let kick = |number| rig.kernel.with_events(number, |events| events.kick.read());
        let _ = (kick(0), kick(1));
        rig.worker.release();
        until(|| kick(1).is_ok());
        assert_eq!(
            rig.kernel.asked(),
            ["ring 0 of 8 from 0", "ring 1 of 8 from 65535", "run true"]
        );
    }
    assert_eq!(rig.handles.metrics().starts.get(), 1);
    rig.worker.join();
    assert!(rig.failures.try_recv().is_err());
}

#[test]
fn a_ring_that_the_kernel_cannot_follow_is_counted_and_comes_back() {
    let rig = Rig::started();
    rig.kernel.with_events(1, |events| events.fault.write(1)).unwrap();
    assert_eq!(
        rig.failure(),
        "the kernel cannot go on with a ring: queue 0: an address or a chain is not what the rules allow, or memory is gone"
    );
    assert_eq!(rig.worker.join().len(), 2);
    assert_eq!(rig.handles.metrics().ring_faults.get(), 1);
    assert_eq!(rig.kernel.asked(), STOPPED);
}

#[test]
fn what_the_kernel_refuses_is_told_and_leaves_it_without_rings() {
    for (refused, said) in [
        ("features", "set the features"),
        ("memory", "tell where memory is"),
        ("ring 1", "describe a ring"),
        ("run true", "have the rings served"),
    ] {
        let rig = Rig::refused(Some(refused));
        assert_eq!(
            rig.failure(),
            format!("the kernel does not serve the device: cannot {said}: Bad address (os error 14)")
        );
        assert_eq!(rig.worker.join().len(), 2, "{refused}");
        let asked = rig.kernel.asked();
        let described = asked.iter().any(|asked| asked.starts_with("ring"));
        assert_eq!(asked.ends_with(&STOPPED.map(String::from)), described, "{asked:?}");
        assert_eq!(rig.handles.metrics().starts.get(), 0);
    }
}

#[test]
fn rings_that_the_kernel_does_not_give_back_end_a_pause() {
    let rig = Rig::started();
    rig.kernel.refuse("position of 0");
    rig.drivers[0].store(rig.drivers[0].used + 2, 3);
    rig.worker.hold();
    assert!(rig.failure().contains("cannot take the rings back"));
    let states = rig.worker.join();
    assert_eq!(states[0].queue.next_avail, 3, "a guess: what was used was taken");
}

#[test]
fn an_interrupt_that_has_no_message_is_passed_on() {
    let rig = Rig::started();
    rig.kernel.with_events(1, |events| events.call.write(1)).unwrap();
    until(|| rig.drivers[1].interrupts() > 0);
    assert_eq!(rig.drivers[0].interrupts(), 0);
    rig.worker.join();
}

#[test]
fn memory_that_changes_is_told_whether_or_not_rings_are_served() {
    let rig = Rig::started();
    let tell = || rig.handles.memory_added(&memory(), Instant::now());
    tell().unwrap();
    assert_eq!(rig.kernel.asked(), ["memory of 2 regions"]);
    assert_eq!(rig.handles.metrics().memory_updates.get(), 1);
    rig.kernel.refuse("memory");
    assert_eq!(
        tell().unwrap_err().to_string(),
        "vhost: the kernel does not take memory: Bad address (os error 14)"
    );
    rig.worker.join();
    assert_eq!(rig.handles.metrics().memory_updates.get(), 1);
}

/// Takes the region at `gpa` out of the memory that the kernel is told of; what it was, for as long as somebody has it.
fn remove_region(rig: &Rig, gpa: u64) -> Arc<GuestRegionMmap> {
    let mem = &rig.drivers[0].mem;
    let (left, region) = mem.memory().remove_region(GuestAddress(gpa), 0x10_0000).unwrap();
    mem.lock().unwrap().replace(left);
    region
}

#[test]
fn a_ring_whose_memory_is_removed_is_left_alone_and_stays_mapped_until_then() {
    let rig = Rig::with_rings(None, [0x1000, SECOND + 0x1000]);
    until(|| rig.handles.metrics().starts.get() == 1);
    rig.kernel.asked();
    let region = remove_region(&rig, SECOND);
    assert_eq!(Arc::strong_count(&region), 5, "three parts of the ring, and the table");
    rig.handles.memory_removed(&rig.drivers[0].mem).unwrap();
    assert_eq!(rig.kernel.asked()[..2], ["memory of 1 regions", "run false"]);
    assert!(rig.failure().contains("memory is gone"));
    let handles = rig.handles.clone();
    rig.worker.join();
    assert_eq!(Arc::strong_count(&region), 1);
    drop(handles);
}

#[test]
fn rings_that_the_kernel_does_not_leave_alone_stay_mapped() {
    let rig = Rig::with_rings(None, [0x1000, SECOND + 0x1000]);
    until(|| rig.handles.metrics().starts.get() == 1);
    let region = remove_region(&rig, SECOND);
    rig.kernel.refuse("run false");
    rig.handles.memory_removed(&rig.drivers[0].mem).unwrap();
    let Rig { handles, worker, .. } = rig;
    worker.join();
    assert_eq!(Arc::strong_count(&region), 4);
    drop(handles);
    assert_eq!(Arc::strong_count(&region), 1, "it has closed the handle");
}

#[test]
fn memory_that_the_kernel_still_knows_stays_mapped_and_is_not_written() {
    let rig = Rig::started();
    let region = remove_region(&rig, SECOND);
    rig.kernel.refuse("memory");
    rig.handles.memory_removed(&rig.drivers[0].mem).unwrap_err();
    assert_eq!(rig.kernel.asked()[..2], ["memory of 1 regions", "run false"]);
    assert!(rig.failure().contains("memory is gone"));
    assert_eq!(Arc::strong_count(&region), 2);
    rig.kernel.refuse("nothing");
    rig.handles.memory_removed(&rig.drivers[0].mem).unwrap();
    assert_eq!(Arc::strong_count(&region), 1);
    rig.worker.join();
}

#[test]
fn one_handle_that_refuses_memory_keeps_no_other_from_hearing_of_it() {
    let mem = memory();
    let kernels = [FakeKernel::new(FEATURES), FakeKernel::new(FEATURES)];
    let handles = FakeKernel::handles(&kernels, &mem);
    kernels[0].refuse("memory");
    handles.memory_removed(&mem).unwrap_err();
    assert_eq!(kernels[1].asked(), ["memory of 2 regions"]);
}

#[test]
fn a_ring_over_the_end_of_a_region_is_refused() {
    // Its descriptor table begins 32 bytes before that.
    let rig = Rig::with_rings(None, [0x1000, SECOND - 32]);
    assert_eq!(
        rig.failure(),
        "the kernel does not serve the device: cannot describe a ring: descriptor table at 0xfffe0: it is not all in one region of guest RAM"
    );
    assert!(!rig.kernel.asked().contains(&"run true".into()));
    rig.worker.join();
}
