use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use super::*;
use crate::testing::{Buf, Driver, memory};

const DATA: u64 = 0x8_0000;
const ACK: u64 = 0x9_0000;
const ALL: u64 = u64::MAX;

/// Notes what it is told, and refuses on request.
#[derive(Default)]
struct Notebook {
    offloads: AtomicU32,
    pairs: AtomicU16,
    refuses: AtomicBool,
}

impl Notebook {
    fn answer(&self) -> io::Result<()> {
        match self.refuses.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }
}

impl TapControl for Notebook {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        self.offloads.store(offloads, Ordering::SeqCst);
        self.answer()
    }

    fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        self.pairs.store(pairs, Ordering::SeqCst);
        self.answer()
    }
}

struct Bench {
    driver: Driver,
    control: Control,
    notes: Arc<Notebook>,
}

fn bench(features: u64) -> Bench {
    let driver = Driver::new(&memory(), 0x1000, 8);
    let notes = Arc::new(Notebook::default());
    let commands = CommandContext {
        features,
        pairs: 4,
        space: Arc::new(Mutex::new(ConfigBytes::new([0; 12]))),
        tap_control: notes.clone(),
        metrics: Arc::default(),
    };
    let control = Control::new(driver.ring(), commands);
    Bench { driver, control, notes }
}

impl Bench {
    /// Sends a command and returns the answer.
    fn ask(&mut self, command: &[u8]) -> u8 {
        self.driver.write(DATA, command);
        self.driver.write(ACK, &[0x55]);
        let (head, tail) = command.split_at(command.len().min(2));
        let (head, tail) = (head.len() as u32, tail.len() as u32);
        self.driver.add(&[
            Buf::Out(DATA, head),
            Buf::Out(DATA + u64::from(head), tail),
            Buf::In(ACK, 1),
        ]);
        self.control.run().unwrap();
        assert_eq!(self.driver.take_used().map(|(_, len)| len), Some(1));
        self.driver.read(ACK, 1)[0]
    }

    fn refused(&self) -> u64 {
        self.control.commands.metrics.control_refused.get()
    }
}

#[test]
fn the_host_uses_as_many_queues_as_the_driver_says() {
    let mut bench = bench(ALL);
    assert_eq!(bench.ask(&[4, 0, 3, 0]), 0);
    assert_eq!(bench.notes.pairs.load(Ordering::SeqCst), 3);
    for pairs in [[0, 0], [5, 0], [0xff, 0xff]] {
        assert_eq!(bench.ask(&[4, 0, pairs[0], pairs[1]]), 1);
    }
    assert_eq!(bench.notes.pairs.load(Ordering::SeqCst), 3, "nothing else was tried");
    assert_eq!(bench.refused(), 3);
}

#[test]
fn offloads_are_some_of_those_agreed_on() {
    let (csum, tso4, uso4) = (1u64 << 1, 1u64 << 7, 1u64 << 54);
    let mut bench = bench(csum | tso4 | 1 << 2);
    let set = |offloads: u64| [[5, 0].as_slice(), &offloads.to_le_bytes()].concat();
    assert_eq!(bench.ask(&set(csum | tso4)), 0);
    assert_eq!(
        bench.notes.offloads.load(Ordering::SeqCst),
        libc::TUN_F_CSUM | libc::TUN_F_TSO4
    );
    assert_eq!(bench.ask(&set(0)), 0);
    assert_eq!(bench.notes.offloads.load(Ordering::SeqCst), 0);
    for offloads in [uso4, csum | 1 << 8, u64::MAX, 1 << 2] {
        assert_eq!(bench.ask(&set(offloads)), 1, "{offloads:#x}");
    }
    assert_eq!(bench.notes.offloads.load(Ordering::SeqCst), 0);
}

#[test]
fn the_drivers_address_is_in_the_configuration_space() {
    let mut bench = bench(ALL);
    assert_eq!(bench.ask(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    let mut address = [0; 6];
    let space = bench.control.commands.space.lock().unwrap();
    crate::device::ConfigAccess::read(&*space, 0, &mut address);
    assert_eq!(address, [2, 0, 0, 0, 0, 9]);
}

#[test]
fn what_the_host_refuses_is_an_error() {
    let mut bench = bench(ALL);
    bench.notes.refuses.store(true, Ordering::SeqCst);
    assert_eq!(bench.ask(&[4, 0, 1, 0]), 1);
}

#[test]
fn a_command_without_its_feature_is_refused() {
    let mut bench = bench(0);
    for command in [
        &[4, 0, 1, 0][..],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(bench.ask(command), 1);
    }
}

#[test]
fn nonsense_is_answered_or_at_least_taken() {
    let mut bench = bench(ALL);
    for command in [
        &[][..],
        &[4],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[1, 0, 0, 0, 0, 0],
        &[0, 0, 1],
        &[255, 255, 255],
        &[0; 200],
    ] {
        assert_eq!(bench.ask(command), 1, "{command:?}");
    }
    // Without room for an answer.
    bench.driver.add(&[Buf::Out(DATA, 4)]);
    bench.control.run().unwrap();
    assert_eq!(bench.driver.take_used().map(|(_, len)| len), Some(0));
    assert_eq!(bench.refused(), 10);
}

#[test]
fn a_driver_that_is_always_at_work_does_not_keep_the_thread() {
    let mut bench = bench(ALL);
    bench.driver.add(&[Buf::In(ACK, 1)]);
    bench.control.ring.busy_driver = Some(bench.driver.busy(1));
    bench.control.run().unwrap();
    assert_eq!(bench.refused(), 8);
    assert!(bench.driver.kick.read().is_ok(), "it comes back by itself");
}
