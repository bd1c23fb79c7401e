use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

fn notifier() -> (GedNotifier, EventFd) {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    (GedNotifier::new(Irq::new(event.try_clone().unwrap())), event)
}

fn read(ged: &mut Ged, offset: u64, width: usize) -> Vec<u8> {
    let mut data = vec![0x55; width];
    ged.read(offset, &mut data);
    data
}

#[test]
fn one_read_takes_every_event() {
    let (notifier, _) = notifier();
    let mut ged = Ged::new(notifier.clone());
    notifier.notify(GedEvent::Memory);
    notifier.notify(GedEvent::PowerButton);
    notifier.notify(GedEvent::Memory);
    assert_eq!(read(&mut ged, 0, 4), [0b1010, 0, 0, 0]);
    assert_eq!(read(&mut ged, 0, 4), [0; 4]);
}

#[test]
fn every_ring_raises_the_line() {
    let (notifier, line) = notifier();
    notifier.notify(GedEvent::Cpu);
    notifier.notify(GedEvent::Cpu);
    assert_eq!(line.read().unwrap(), 2);
}

#[test]
fn retriggering_raises_the_line_only_while_an_event_waits() {
    let (notifier, line) = notifier();
    let mut ged = Ged::new(notifier.clone());
    assert!(!notifier.retrigger());
    assert!(line.read().is_err());
    notifier.notify(GedEvent::Pci);
    assert!(notifier.retrigger());
    assert_eq!(line.read().unwrap(), 2);
    read(&mut ged, 0, 4);
    assert!(!notifier.retrigger());
}

#[test]
fn odd_accesses_take_nothing() {
    let (notifier, _) = notifier();
    let mut ged = Ged::new(notifier.clone());
    notifier.notify(GedEvent::Cpu);
    assert_eq!(read(&mut ged, 0, 1), [1]);
    assert_eq!(read(&mut ged, 0, 8), [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(read(&mut ged, 2, 4), [0, 0, 0xff, 0xff]);
    assert_eq!(read(&mut ged, u64::MAX, 4), [0xff; 4]);
    assert_eq!(ged.write(0, &[0xff; 4]), Effect::None);
    assert_eq!(read(&mut ged, 0, 4), [1, 0, 0, 0]);
}
