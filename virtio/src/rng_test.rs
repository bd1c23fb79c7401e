use std::collections::BTreeSet;
use std::os::fd::RawFd;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::ring::Notify;
use crate::testing::{ABUSES, Buf, Driver, END, SECOND, make_fifo, memory};

const DATA: u64 = 0x8_0000;

/// Remembers what is watched.
#[derive(Default)]
struct Watched(BTreeSet<(RawFd, u32)>);

impl Watch for Watched {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        assert!(self.0.insert((fd, token)), "watched twice");
        Ok(())
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.retain(|(watched, _)| *watched != fd);
        Ok(())
    }
}

fn start(rng: &mut Rng, driver: &Driver) -> Box<dyn Handler> {
    let activation = Activation {
        mem: driver.mem.clone(),
        features: 0,
        rings: vec![Some(driver.ring())],
        config_changed: Notify::none(),
    };
    rng.start(activation).unwrap().remove(0)
}

#[test]
fn requests_are_filled_from_the_source() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut handler = start(&mut rng, &driver);
    driver.add(&[Buf::In(DATA, 32), Buf::In(DATA + 64, 32)]);

    handler.wake(KICK, &mut Watched::default()).unwrap();

    assert_eq!(driver.take_used(), Some((0, 64)));
    let (first, second) = (driver.read(DATA, 32), driver.read(DATA + 64, 32));
    assert!(first != [0; 32] && second != [0; 32] && first != second);
    assert_eq!((rng.metrics.requests.get(), rng.metrics.bytes.get()), (1, 64));
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn one_request_gets_no_more_than_the_cap() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(Path::new("/dev/zero")).unwrap();
    let mut handler = start(&mut rng, &driver);
    let size = u32::try_from(REQUEST_BYTES_MAX).unwrap();
    driver.write(DATA + u64::from(size), b"beyond");
    driver.add(&[Buf::In(DATA, size - 1), Buf::In(DATA + u64::from(size) - 1, 0x1000)]);
    handler.wake(KICK, &mut Watched::default()).unwrap();
    assert_eq!(driver.take_used(), Some((0, size)));
    assert_eq!(driver.read(DATA + u64::from(size), 6), b"beyond");
}

#[test]
fn request_without_writable_buffers_is_used_empty() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    driver.add(&[Buf::Out(DATA, 32)]);
    start(&mut rng, &driver).wake(KICK, &mut Watched::default()).unwrap();
    assert_eq!(driver.take_used(), Some((0, 0)));
}

#[test]
fn dry_source_leaves_the_request_and_is_tried_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(file.path()).unwrap();
    let mut handler = start(&mut rng, &driver);
    let mut watched = Watched::default();
    driver.add(&[Buf::In(DATA, 8)]);

    for kicks in 1..=3 {
        driver.kick.write(1).unwrap();
        handler.wake(KICK, &mut watched).unwrap();
        assert_eq!((driver.take_used(), driver.interrupts()), (None, 0));
        assert_eq!(rng.metrics.source_errors.get(), kicks);
        assert!(driver.kick.read().is_err(), "nothing that would spin is left readable");
    }
    assert_eq!(watched.0.iter().map(|(_, token)| *token).collect::<Vec<_>>(), [TIMER]);

    std::fs::write(file.path(), b"entropy!").unwrap();
    handler.wake(TIMER, &mut watched).unwrap();
    assert_eq!(driver.take_used(), Some((0, 8)));
    assert_eq!(driver.read(DATA, 8), b"entropy!");
}

#[test]
fn a_fifo_may_have_no_writer_yet_and_is_read_when_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    make_fifo(&path);
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(&path).unwrap();
    let mut handler = start(&mut rng, &driver);
    let mut watched = Watched::default();
    driver.add(&[Buf::In(DATA, 8)]);
    handler.wake(KICK, &mut watched).unwrap();
    assert_eq!(driver.take_used(), None);

    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    handler.wake(TIMER, &mut watched).unwrap();
    assert_eq!(driver.take_used(), None, "a writer that has nothing yet");
    io::Write::write_all(&mut writer, b"entropy!").unwrap();
    handler.wake(TIMER, &mut watched).unwrap();
    assert_eq!(driver.take_used(), Some((0, 8)));
    assert_eq!(driver.read(DATA, 8), b"entropy!");
}

#[test]
fn what_nothing_can_be_read_of_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, kind) in [(folder.path(), "directory"), (&socket, "socket")] {
        let error = Rng::open(path).err().unwrap().to_string();
        assert_eq!(error, format!("it is a {kind}, nothing can be read of it"));
    }
}

#[test]
fn device_needs_its_queue() {
    let mem = memory();
    let activation = Activation {
        mem,
        features: 0,
        rings: vec![None],
        config_changed: Notify::none(),
    };
    let mut rng = Rng::open(Path::new("/dev/zero")).unwrap();
    assert!(matches!(rng.start(activation), Err(StartError::QueueMissing(0))));
}

#[test]
fn an_abused_ring_ends_its_handler_and_the_next_driver_is_served() {
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    for (number, (name, abuse)) in (1..).zip(ABUSES) {
        let driver = Driver::new(&memory(), 0x1000, 8);
        let mut handler = start(&mut rng, &driver);
        abuse(&driver);
        let end = handler.wake(KICK, &mut Watched::default());
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
        assert_eq!(handler.stop().len(), 1);
        assert_eq!(rng.metrics.requests.get(), number - 1, "{name} is no request");

        let mut next = Driver::new(&memory(), 0x1000, 8);
        next.add(&[Buf::In(DATA, 16)]);
        start(&mut rng, &next).wake(KICK, &mut Watched::default()).unwrap();
        assert_eq!(next.take_used(), Some((0, 16)), "after {name}");
        assert_eq!(rng.metrics.requests.get(), number);
    }
}

#[test]
fn a_reset_leaves_a_request_that_waits_for_the_source_to_the_next_driver() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(file.path()).unwrap();
    let mut handler = start(&mut rng, &driver);
    driver.add(&[Buf::In(DATA, 8)]);
    handler.wake(KICK, &mut Watched::default()).unwrap();
    // The source has something now, and nobody may write it to the old driver's buffer any more.
    std::fs::write(file.path(), b"entropy!").unwrap();
    let states = handler.stop();
    assert_eq!(states[0].queue.next_avail, 0, "the request is the ring's");
    assert_eq!((driver.take_used(), driver.read(DATA, 8)), (None, vec![0; 8]));
    assert_eq!(rng.metrics.bytes.get(), 0);
}

#[test]
fn a_driver_that_is_always_at_work_does_not_keep_the_thread() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(Path::new("/dev/zero")).unwrap();
    driver.add(&[Buf::In(DATA, 0)]);
    driver.busy_heads = 1;
    let mut handler = start(&mut rng, &driver);
    handler.wake(KICK, &mut Watched::default()).unwrap();
    assert_eq!(rng.metrics.requests.get(), 8);
    assert!(driver.kick.read().is_ok(), "it comes back by itself");
}

/// RAM without its second part, which is unplugged.
fn unplug_second(driver: &Driver) {
    let less = driver.mem.memory().remove_region(GuestAddress(SECOND), END - SECOND);
    driver.mem.lock().unwrap().replace(less.unwrap().0);
}

#[test]
fn a_descriptor_into_memory_that_was_unplugged_meanwhile_ends_the_handler_and_reaches_nothing() {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut handler = start(&mut rng, &driver);
    driver.add(&[Buf::In(SECOND, 64)]);
    handler.wake(KICK, &mut Watched::default()).unwrap();
    assert_eq!(driver.take_used(), Some((0, 64)));
    // Made available before, looked at after; wholly, and in part.
    for buffers in [[Buf::In(SECOND, 64)], [Buf::In(SECOND - 32, 64)]] {
        let whole = memory();
        let mut driver = Driver::new(&whole, 0x1000, 8);
        let mut handler = start(&mut rng, &driver);
        driver.add(&buffers);
        driver.write(SECOND - 32, &[0; 64]);
        let before = whole.memory().clone();
        unplug_second(&driver);
        let end = handler.wake(KICK, &mut Watched::default());
        assert!(matches!(end, Err(HandlerError::Ring(_))), "{end:?}");
        assert_eq!(driver.take_used(), None);
        let mut found = [1; 64];
        before.read_slice(&mut found, GuestAddress(SECOND - 32)).unwrap();
        assert_eq!(found, [0; 64]);
        handler.stop();
    }
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut handler = start(&mut rng, &driver);
    driver.add(&[Buf::In(DATA, 8)]);
    handler.wake(KICK, &mut Watched::default()).unwrap();
    assert_eq!(driver.take_used(), Some((0, 8)), "the next driver is served");
}

#[test]
fn a_ring_in_memory_that_was_unplugged_ends_its_handler() {
    let driver = Driver::new(&memory(), SECOND, 8);
    let mut rng = Rng::open(Path::new("/dev/urandom")).unwrap();
    let mut handler = start(&mut rng, &driver);
    unplug_second(&driver);
    let end = handler.wake(KICK, &mut Watched::default());
    assert!(matches!(end, Err(HandlerError::Ring(_))), "{end:?}");
    assert_eq!(handler.stop().len(), 1);
}
