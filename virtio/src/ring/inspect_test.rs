use husk_devices::pci::MaskState;

use super::*;
use crate::ring::{Signal, Step};
use crate::testing::{Buf, Driver, SECOND, memory};

const DATA: u64 = 0x8_0000;

/// A queue that husk serves, and what looks at it.
fn served(driver: &Driver) -> (QueueProbe, crate::ring::Ring) {
    let probe = QueueProbe::default();
    probe.begin(3, driver.state().queue, driver.kick.clone(), Notify::none());
    let ring = driver.ring().with_counters(probe.counters().clone());
    (probe, ring)
}

fn status(probe: &QueueProbe, driver: &Driver) -> QueueStatus {
    probe.status(&driver.mem).unwrap()
}

#[test]
fn a_kick_that_nobody_has_looked_at_is_told_and_so_is_what_it_was_for() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let (probe, mut ring) = served(&driver);
    let told = status(&probe, &driver);
    assert_eq!((told.served_by, told.size, told.event_idx), (ServedBy::Husk, 8, false));
    assert_eq!((told.next_avail, told.kick_pending), (Some(0), Some(false)));
    driver.add(&[Buf::In(DATA, 8)]);
    driver.add(&[Buf::In(DATA, 8)]);
    driver.kick.write(1).unwrap();

    let told = status(&probe, &driver);
    assert_eq!((told.next_avail, told.kick_pending), (Some(0), Some(true)));
    assert_eq!(told.avail.unwrap().idx, 2, "available and not taken");
    assert!(driver.kick.read().is_ok(), "a look takes nothing");
    driver.kick.write(1).unwrap();

    // One is taken, and the next is put back.
    let mut first = true;
    ring.drain(|_, _| match std::mem::take(&mut first) {
        true => Ok(Step::Used(8)),
        false => Ok(Step::Later),
    })
    .unwrap();
    let told = status(&probe, &driver);
    assert_eq!((told.next_avail, told.kick_pending), (Some(1), Some(false)));
    assert_eq!((told.avail.unwrap().idx, told.used.unwrap().idx), (2, 1));
    assert_eq!(told.figures.map(|figures| figures.chains), Some(1));
    let chain = ring.pop().unwrap().unwrap();
    assert_eq!(status(&probe, &driver).next_avail, Some(2));
    assert_eq!(status(&probe, &driver).used.unwrap().idx, 1, "in flight");
    ring.push(chain.head(), 0).unwrap();
    assert_eq!(status(&probe, &driver).used.unwrap().idx, 2);
    ring.note_kick();
    assert_eq!(status(&probe, &driver).kick_pending, None, "the doorbell is not read");
}

#[test]
fn events_are_told_where_they_were_agreed_on_and_flags_always() {
    for event_idx in [false, true] {
        let mut driver = Driver::new(&memory(), 0x1000, 8);
        driver.event_idx = event_idx;
        driver.store(driver.avail, 1);
        driver.store(driver.avail + 4 + 2 * 8, 7);
        driver.store(driver.used + 4 + 8 * 8, 9);
        let (probe, _ring) = served(&driver);
        let (avail, used) = (
            status(&probe, &driver).avail.unwrap(),
            status(&probe, &driver).used.unwrap(),
        );
        assert_eq!((avail.flags, avail.event), (1, event_idx.then_some(7)));
        assert_eq!((used.flags, used.event), (0, event_idx.then_some(9)));
    }
}

#[test]
fn a_ring_that_is_not_in_guest_ram_is_told_as_such() {
    let driver = Driver::new(&memory(), SECOND, 8);
    let (probe, _ring) = served(&driver);
    assert!(status(&probe, &driver).used.is_ok());
    let less = driver.mem.memory().remove_region(GuestAddress(SECOND), 0x10_0000);
    driver.mem.lock().unwrap().replace(less.unwrap().0);
    let told = status(&probe, &driver);
    let error = told.avail.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "queue 3: available ring of 22 bytes at {:#x} is not all in guest RAM",
            driver.avail
        )
    );
    assert!(told.used.is_err());

    // Where a driver has put it that no device was started with, and where no access can be whole.
    let driver = Driver::new(&memory(), 0x1000, 8);
    let mut queue = driver.state().queue;
    (queue.avail_ring, queue.used_ring) = (u64::MAX, driver.used + 1);
    probe.begin(3, queue, driver.kick.clone(), Notify::none());
    let told = status(&probe, &driver);
    assert!(told.avail.unwrap_err().to_string().contains("is not all in guest RAM"));
    assert!(matches!(told.used, Err(RingError::Access { queue: 3, .. })));
}

#[test]
fn of_a_queue_that_others_serve_only_what_is_here_is_told() {
    let driver = Driver::new(&memory(), 0x1000, 8);
    let (probe, ring) = served(&driver);
    drop(ring.into_parts());
    let told = status(&probe, &driver);
    assert_eq!(
        (told.served_by, told.next_avail, told.kick_pending),
        (ServedBy::Kernel, None, None)
    );
    assert!(told.figures.is_none() && told.avail.is_ok());
    let doorbell = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    probe.lend(doorbell.clone());
    let told = status(&probe, &driver);
    assert_eq!(
        (told.served_by, told.next_avail, told.kick_pending),
        (ServedBy::BackEnd, None, Some(false))
    );
    doorbell.write(1).unwrap();
    assert_eq!(status(&probe, &driver).kick_pending, Some(true));
    probe.end();
    assert!(probe.status(&driver.mem).is_none(), "the driver is gone");
}

#[test]
fn what_holds_an_interrupt_back_is_told() {
    struct Masked;
    impl Signal for Masked {
        fn signal(&self) {}

        fn mask_state(&self) -> Option<MaskState> {
            Some(MaskState {
                masked: true,
                pending: true,
            })
        }
    }
    let driver = Driver::new(&memory(), 0x1000, 8);
    let (probe, _ring) = served(&driver);
    assert_eq!(status(&probe, &driver).interrupt, None);
    probe.begin(0, driver.state().queue, driver.kick.clone(), Notify::new(Masked));
    assert!(
        status(&probe, &driver)
            .interrupt
            .is_some_and(|told| told.masked && told.pending)
    );
}
