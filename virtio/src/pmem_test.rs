use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;

use super::*;
use crate::ring::Notify;
use crate::testing::{ABUSES, Buf, Driver, LossyDevice, memory};

const REQUEST: u64 = 0x8_0000;
const RESPONSE: u64 = 0x9_0000;

struct Unwatched;

impl Watch for Unwatched {
    fn readable(&mut self, _: RawFd, _: u32) -> std::io::Result<()> {
        unreachable!("nothing new to wait for")
    }

    fn forget(&mut self, _: RawFd) -> std::io::Result<()> {
        unreachable!("nothing is dropped")
    }
}

fn pmem(file: Option<File>) -> Pmem {
    Pmem::new(0x1_2340_0000, 4 << 20, file, "a file", Box::new(()))
}

fn start(pmem: &mut Pmem, driver: &Driver) -> Box<dyn Handler> {
    let activation = Activation {
        mem: driver.mem.clone(),
        features: 0,
        rings: vec![Some(driver.ring())],
        config_changed: Notify::none(),
    };
    pmem.start(activation).unwrap().remove(0)
}

/// Sends one request and returns the used length and the answer.
fn ask(pmem: &mut Pmem, request: &[u8], buffers: &[Buf]) -> (u32, u32) {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    driver.write(REQUEST, request);
    driver.write(RESPONSE, &[0xee; 8]);
    driver.add(buffers);
    let mut handler = start(pmem, &driver);
    handler.wake(KICK, &mut Unwatched).unwrap();
    let (_, used) = driver.take_used().unwrap();
    assert_eq!(driver.take_used(), None);
    assert_eq!(handler.stop().len(), 1);
    (used, u32::from_le_bytes(driver.read(RESPONSE, 4).try_into().unwrap()))
}

const FLUSH: [Buf; 2] = [Buf::Out(REQUEST, 4), Buf::In(RESPONSE, 4)];

#[test]
fn the_configuration_says_where_and_how_much() {
    let config = pmem(None).config();
    let mut bytes = [0; 16];
    config.lock().unwrap().read(0, &mut bytes);
    assert_eq!(bytes[..8], 0x1_2340_0000_u64.to_le_bytes());
    assert_eq!(bytes[8..], (4_u64 << 20).to_le_bytes());
}

#[test]
fn a_flush_reaches_the_file() {
    let mut pmem = pmem(Some(tempfile::tempfile().unwrap()));
    assert_eq!(ask(&mut pmem, &[0; 4], &FLUSH), (4, RESPONSE_OK));
    assert_eq!(pmem.metrics().flushes.get(), 1);
}

#[test]
fn a_flush_of_what_is_not_kept_succeeds() {
    assert_eq!(ask(&mut pmem(None), &[0; 4], &FLUSH), (4, RESPONSE_OK));
}

#[test]
fn storage_that_refuses_is_an_error_of_the_request() {
    // A pipe has nothing to sync to.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut pmem = pmem(Some(File::from(std::os::fd::OwnedFd::from(writer))));
    assert_eq!(ask(&mut pmem, &[0; 4], &FLUSH), (4, RESPONSE_EIO));
    assert_eq!(
        (pmem.metrics().flushes.get(), pmem.metrics().flush_errors.get()),
        (0, 1)
    );
}

/// The kernel tells of lost data once: its next sync succeeds.
#[test]
fn no_flush_succeeds_once_the_storage_has_lost_data() {
    let Some(device) = LossyDevice::new() else { return };
    let file = File::options().read(true).write(true).open(device.path()).unwrap();
    file.write_all_at(&[1; 6 << 20], 0).unwrap();
    let mut lossy = pmem(Some(file));
    assert_eq!(ask(&mut lossy, &[0; 4], &FLUSH), (4, RESPONSE_EIO));
    // A driver that begins anew is told the same.
    assert_eq!(ask(&mut lossy, &[0; 4], &FLUSH), (4, RESPONSE_EIO));
    assert_eq!(
        (lossy.metrics().flushes.get(), lossy.metrics().flush_errors.get()),
        (0, 2)
    );
}

#[test]
fn what_is_no_request_is_counted_and_answered_where_it_can_be() {
    let mut pmem = pmem(Some(tempfile::tempfile().unwrap()));
    for (request, buffers, used, response) in [
        (&[1, 0, 0, 0][..], &FLUSH[..], 4, RESPONSE_EIO),
        (&[0; 4], &[Buf::Out(REQUEST, 3), Buf::In(RESPONSE, 4)], 4, RESPONSE_EIO),
        (&[0; 4], &[Buf::In(RESPONSE, 4)], 4, RESPONSE_EIO),
        (&[0; 4], &[Buf::Out(REQUEST, 4), Buf::In(RESPONSE, 3)], 0, 0xeeee_eeee),
        (&[0; 4], &[Buf::Out(REQUEST, 4)], 0, 0xeeee_eeee),
    ] {
        assert_eq!(ask(&mut pmem, request, buffers), (used, response), "{request:?}");
    }
    assert_eq!(
        (pmem.metrics().bad_requests.get(), pmem.metrics().flushes.get()),
        (5, 0)
    );
}

#[test]
fn the_mapping_goes_with_the_device() {
    let mapping = Arc::new(());
    let device = Pmem::new(0, 0, None, "a file", Box::new(mapping.clone()));
    assert_eq!(Arc::strong_count(&mapping), 2);
    drop(device);
    assert_eq!(Arc::strong_count(&mapping), 1);
}

#[test]
fn an_abused_ring_ends_its_handler_and_the_next_driver_is_served() {
    let mut pmem = pmem(Some(tempfile::tempfile().unwrap()));
    for (number, (name, abuse)) in (1..).zip(ABUSES) {
        let driver = Driver::new(&memory(), 0x1000, 8);
        let mut handler = start(&mut pmem, &driver);
        abuse(&driver);
        let end = handler.wake(KICK, &mut Unwatched);
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        assert_eq!(handler.stop().len(), 1);
        assert_eq!(ask(&mut pmem, &[0; 4], &FLUSH), (4, RESPONSE_OK), "after {name}");
        assert_eq!(
            (pmem.metrics().flushes.get(), pmem.metrics().bad_requests.get()),
            (number, 0)
        );
    }
}

#[test]
fn a_head_offered_again_and_again_is_a_request_each_time_and_no_more() {
    let mut pmem = pmem(None);
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let head = driver.add(&FLUSH);
    (1..8).for_each(|_| driver.offer(head));
    let mut handler = start(&mut pmem, &driver);
    handler.wake(KICK, &mut Unwatched).unwrap();
    let used: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
    assert_eq!(used, [(head.into(), 4); 8]);
    assert_eq!(pmem.metrics().flushes.get(), 8);
}

#[test]
fn a_driver_that_is_always_at_work_does_not_keep_the_thread() {
    let mut pmem = pmem(None);
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    driver.add(&FLUSH);
    driver.busy_heads = 1;
    let mut handler = start(&mut pmem, &driver);
    handler.wake(KICK, &mut Unwatched).unwrap();
    assert_eq!(
        pmem.metrics().flushes.get(),
        1,
        "a later request may be of a later store: the next turn has another flush for it"
    );
    assert!(driver.kick.read().is_ok(), "it comes back by itself");
}
