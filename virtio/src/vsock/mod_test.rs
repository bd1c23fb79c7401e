use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::ring::Notify;
use crate::testing::{Driver, memory};
use crate::threads::UnconfinedThreads;

const DELAY_MAX: Duration = Duration::from_secs(20);

fn threads() -> Arc<dyn Threads> {
    Arc::new(UnconfinedThreads)
}

/// Whether a dial is sent away.
fn is_sent_away(path: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path) else {
        return false;
    };
    stream.set_read_timeout(Some(DELAY_MAX)).unwrap();
    let _ = stream.write_all(b"connect 1024\n");
    // An end, or an error if the line came after the close.
    !matches!(stream.read(&mut [0]), Ok(1..))
        && !matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn identity_is_that_of_the_specification() {
    let folder = tempfile::tempdir().unwrap();
    let vsock = Vsock::open(5, &folder.path().join("v"), &threads()).unwrap();
    let profile = vsock.profile();
    assert_eq!((profile.id, profile.features, profile.queue_sizes.len()), (19, 1, 3));
    let mut cid = [0xff; 10];
    vsock.config().lock().unwrap().read(0, &mut cid);
    assert_eq!(cid, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn reserved_contexts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    for cid in [0, 1, 2, u32::MAX] {
        let refused = Vsock::open(cid, &path, &threads()).err().unwrap();
        assert_eq!(refused.to_string(), format!("cid {cid}, allowed: 3 to 4294967294"));
    }
    assert!(!path.exists(), "nothing was made");
    for cid in [3, u32::MAX - 1] {
        Vsock::open(cid, &path, &threads()).unwrap();
    }
    assert!(!path.exists(), "nothing is left");
}

#[test]
fn without_a_driver_dials_are_sent_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let mut vsock = Vsock::open(3, &path, &threads()).unwrap();
    for _ in 0..100 {
        assert!(is_sent_away(&path));
    }
    assert_eq!(vsock.metrics().dials_without_driver.get(), 100);

    let mem = memory();
    let rings = [0x1000, 0x1_1000, 0x2_1000].map(|base| Driver::new(&mem, base, 16));
    let activation = Activation {
        mem,
        features: VIRTIO_VSOCK_F_STREAM,
        rings: rings.iter().map(|driver| Some(driver.ring())).collect(),
        config_changed: Notify::none(),
    };
    let handler = vsock.start(activation).unwrap().remove(0);
    let worker = Worker::spawn("io-vsock", handler, Box::new(|error| panic!("{error}"))).unwrap();
    // Until the idle listener has heard of the driver it closes dials; after that they wait for the guest, which does
    // not answer.
    let waits = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = stream.write_all(b"connect 1024\n");
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    };
    assert!((0..200).any(|_| waits()));
    assert_eq!(worker.join().len(), 3);
    assert!(is_sent_away(&path), "the driver has gone, the socket has not");
}

#[test]
fn a_driver_needs_both_data_queues() {
    let folder = tempfile::tempdir().unwrap();
    let mut vsock = Vsock::open(3, &folder.path().join("v"), &threads()).unwrap();
    let mem = memory();
    let driver = Driver::new(&mem, 0x1000, 16);
    let activation = Activation {
        mem,
        features: 0,
        rings: vec![Some(driver.ring()), None, None],
        config_changed: Notify::none(),
    };
    assert!(matches!(vsock.start(activation), Err(StartError::QueueMissing(1))));
}
