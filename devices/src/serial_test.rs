use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::lock;

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;
const RECEIVED_DATA: u8 = 1;
const FIFO: usize = 64;

/// A sink that takes a number of bytes and is full after that.
#[derive(Clone)]
struct Sink {
    taken: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut taken = lock(&self.taken);
        if taken.len() + data.len() > self.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        taken.extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Port {
    serial: Serial,
    irq: Irq,
    taken: Arc<Mutex<Vec<u8>>>,
}

fn port(room: usize) -> Port {
    let irq = Irq::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let taken = Arc::default();
    let serial = Serial::new(
        irq.clone(),
        Box::new(Sink {
            taken: Arc::clone(&taken),
            room,
        }),
    );
    Port { serial, irq, taken }
}

impl Port {
    fn get(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.serial.read(offset, &mut data);
        data[0]
    }

    fn put(&mut self, offset: u64, value: u8) {
        assert_eq!(self.serial.write(offset, &[value]), Effect::None);
    }

    fn raised(&self) -> bool {
        self.irq.event().read().is_ok()
    }

    fn drained_event(&mut self) -> EventFd {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        self.serial.set_drained_event(event.try_clone().unwrap());
        event
    }
}

#[test]
fn output_goes_to_the_sink_byte_by_byte() {
    let mut port = port(100);
    b"husk".iter().for_each(|byte| port.put(DATA, *byte));
    assert_eq!(*lock(&port.taken), b"husk");
    assert_eq!(port.serial.metrics().metrics()[1], ("tx_bytes", 4));
}

#[test]
fn output_that_the_sink_refuses_is_lost_and_counted_and_the_guest_goes_on() {
    let mut port = port(2);
    port.put(IER, 2);
    (0..5).for_each(|byte| port.put(DATA, byte));
    assert_eq!(*lock(&port.taken), [0, 1]);
    assert_eq!(
        port.serial.metrics().metrics(),
        [("rx_bytes", 0), ("tx_bytes", 2), ("tx_lost_bytes", 3)]
    );
    assert_eq!(port.get(LSR) & 0x60, 0x60, "the transmitter is empty");
    assert!(port.raised(), "and says so");
}

#[test]
fn input_raises_the_interrupt_and_is_read_in_order() {
    let mut port = port(0);
    port.put(IER, RECEIVED_DATA);
    assert_eq!(port.serial.enqueue(b"hi"), 2);
    assert!(port.raised());
    assert_eq!(port.get(IIR) & 0xf, 0x4, "received data available");
    assert_eq!((port.get(DATA), port.get(DATA), port.get(LSR) & 1), (b'h', b'i', 0));
}

#[test]
fn input_that_does_not_fit_is_left_and_asked_for_when_the_guest_has_read() {
    let mut port = port(0);
    let drained = port.drained_event();
    assert_eq!(port.serial.enqueue(&[7; FIFO + 1]), FIFO);
    (1..FIFO).for_each(|_| assert_eq!(port.get(DATA), 7));
    assert!(drained.read().is_err(), "one byte is left");
    port.get(DATA);
    assert_eq!(drained.read().unwrap(), 1);
    assert_eq!(port.serial.enqueue(&[8]), 1);
    port.get(DATA);
    assert!(drained.read().is_err(), "nobody waits");
}

#[test]
fn a_full_fifo_takes_nothing() {
    let mut port = port(0);
    assert_eq!(port.serial.enqueue(&[7; FIFO]), FIFO);
    assert_eq!(port.serial.enqueue(&[7]), 0);
}

#[test]
fn input_refused_in_loopback_mode_is_asked_for_when_it_ends() {
    let mut port = port(0);
    let drained = port.drained_event();
    port.put(MCR, LOOPBACK);
    assert_eq!(port.serial.enqueue(b"x"), 0);
    port.put(MCR, 0);
    assert_eq!(drained.read().unwrap(), 1);
    assert_eq!(port.serial.enqueue(b"x"), 1);
}

#[test]
fn a_wide_access_is_one_to_each_register() {
    let mut port = port(0);
    assert_eq!(port.serial.write(6, &[0, 0x5a, 0x77]), Effect::None);
    let mut data = [0; 3];
    port.serial.read(6, &mut data);
    assert_eq!(data[1..], [0x5a, 0xff], "the scratch register, and nothing");
}

#[test]
fn aml_has_the_ports_and_the_edge_triggered_interrupt() {
    let aml = Serial::aml(0x3f8, 4);
    let contains = |wanted: &[u8]| aml.windows(wanted.len()).any(|bytes| bytes == wanted);
    assert!(contains(b"COM1"));
    // EISA ID PNP0501 (ACPI 6.5 §6.1.5).
    assert!(contains(&[0x41, 0xd0, 0x05, 0x01]));
    // I/O port descriptor (ACPI 6.5 §6.4.2.5): decodes 16 bits, 0x3f8 to 0x3f8, alignment 1, 8 ports.
    assert!(contains(&[0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8]));
    // Extended interrupt descriptor (ACPI 6.5 §6.4.3.6): consumer, edge, active high, exclusive; one interrupt, 4.
    assert!(contains(&[0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0]));
}

proptest! {
    #[test]
    fn any_access_is_harmless(accesses in prop::collection::vec((any::<bool>(), 0_u64..12, prop::collection::vec(any::<u8>(), 1..9)), 1..200)) {
        let mut port = port(50);
        for (write, offset, mut data) in accesses {
            if write {
                prop_assert_eq!(port.serial.write(offset, &data), Effect::None);
            } else {
                port.serial.read(offset, &mut data);
            }
            prop_assert!(port.serial.enqueue(&[1, 2, 3]) <= 3);
        }
        let mut beyond = [0; 2];
        port.serial.read(u64::MAX, &mut beyond);
    }
}
