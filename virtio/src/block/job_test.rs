use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use libc::{FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

use super::*;
use crate::block::BlockConfig;
use crate::block::request::{Extent, ZeroExtent};
use crate::block::testing::{DATA, HEADER, STATUS, UNANSWERED, image};
use crate::testing::{Buf, Driver, memory};

/// What a job asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    // Offset and length.
    Read(u64, usize),
    Write(u64, usize),
    Sync,
    /// Mode without `KEEP_SIZE`, offset, length.
    Allocate(i32, u64, u64),
}

fn seen(op: Op<'_>) -> Asked {
    let bytes = |buffers: &Iovecs| buffers.as_slice().iter().map(|entry| entry.iov_len).sum();
    match op {
        Op::Read { buffers, offset, .. } => Asked::Read(offset, bytes(buffers)),
        Op::Write { buffers, offset, .. } => Asked::Write(offset, bytes(buffers)),
        Op::Sync { .. } => Asked::Sync,
        Op::Allocate { mode, offset, len, .. } => Asked::Allocate(mode & !libc::FALLOC_FL_KEEP_SIZE, offset, len),
    }
}

/// A host that answers what it is told to: bytes moved, or an error number.
fn run(request: Request, bufs: &[Buf], stable: bool, results: &[Result<usize, i32>]) -> (Vec<Asked>, u8, u32) {
    let file = image(&[0; 8192]);
    let image = Image::open(&BlockConfig::new(file.path())).unwrap();
    assert!(image.file().as_raw_fd() >= 0);
    run_on(&image, &Arc::default(), request, bufs, stable, results)
}

/// As [`run`], on an image that other requests may have had, whose `metrics` these are.
fn run_on(
    image: &Image,
    metrics: &Arc<BlockMetrics>,
    request: Request,
    bufs: &[Buf],
    stable: bool,
    results: &[Result<usize, i32>],
) -> (Vec<Asked>, u8, u32) {
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    driver.write(STATUS, &[UNANSWERED]);
    driver.add(bufs);
    let chain = driver.ring().pop().unwrap().unwrap();
    let mut job = Job::new(chain, request, image, stable, &[0; ID_BYTES]);
    let mut scratch = Scratch::new(metrics.clone());
    let mut results: VecDeque<_> = results.iter().copied().collect();
    let mut asked = Vec::new();
    let status = loop {
        match job.step(image, &mut scratch) {
            Step::Run(op) => asked.push(seen(op)),
            Step::Done(status) => break status,
            Step::Wait => panic!("nobody else has a bounce buffer"),
        }
        let result = results.pop_front().expect("no more than these operations");
        job.complete(image, result.map_err(io::Error::from_raw_os_error));
    };
    assert!(results.is_empty(), "{asked:?}");
    let answer = job.finish(status, &mut scratch, metrics);
    assert_eq!(driver.read(STATUS, 1)[0], status.byte());
    (asked, status.byte(), answer.written)
}

const READ: [Buf; 3] = [Buf::Out(HEADER, 16), Buf::In(DATA, 4096), Buf::In(STATUS, 1)];
const WRITE: [Buf; 3] = [Buf::Out(HEADER, 16), Buf::Out(DATA, 4096), Buf::In(STATUS, 1)];
const BARE: [Buf; 2] = [Buf::Out(HEADER, 16), Buf::In(STATUS, 1)];
const ALL: Extent = Extent {
    offset: 1024,
    len: 4096,
};

#[test]
fn rest_of_a_short_read_is_read_and_nothing_twice() {
    let (asked, status, written) = run(Request::Read(ALL), &READ, false, &[Ok(100), Ok(3000), Ok(996)]);
    assert_eq!(
        asked,
        [Asked::Read(1024, 4096), Asked::Read(1124, 3996), Asked::Read(4124, 996)]
    );
    assert_eq!((status, written), (0, 4097));
}

#[test]
fn rest_of_a_short_write_is_written_and_nothing_twice() {
    let (asked, status, written) = run(Request::Write(ALL), &WRITE, false, &[Ok(512), Ok(3584)]);
    assert_eq!(asked, [Asked::Write(1024, 4096), Asked::Write(1536, 3584)]);
    assert_eq!((status, written), (0, 1));
}

#[test]
fn stable_write_is_synced_after_its_last_byte() {
    let (asked, status, _) = run(Request::Write(ALL), &WRITE, true, &[Ok(512), Ok(3584), Ok(0)]);
    assert_eq!(asked, [Asked::Write(1024, 4096), Asked::Write(1536, 3584), Asked::Sync]);
    assert_eq!(status, 0);
    let (_, status, _) = run(Request::Write(ALL), &WRITE, true, &[Ok(4096), Err(libc::EIO)]);
    assert_eq!(status, 1);
}

#[test]
fn error_ends_the_request_at_once() {
    let (asked, status, written) = run(Request::Read(ALL), &READ, false, &[Ok(512), Err(libc::EIO)]);
    assert_eq!((asked.len(), status, written), (2, 1, 512));
    let (asked, status, written) = run(Request::Write(ALL), &WRITE, false, &[Err(libc::ENOSPC)]);
    assert_eq!((asked.len(), status, written), (1, 1, 1));
    let (asked, status, _) = run(Request::Flush, &BARE, false, &[Err(libc::EIO)]);
    assert_eq!((asked, status), (vec![Asked::Sync], 1));
}

/// The kernel tells of lost data once: it would call the second sync a success.
#[test]
fn nothing_is_called_stable_once_the_host_has_lost_data() {
    let file = image(&[0; 8192]);
    let eio = Err(libc::EIO);
    for (request, bufs, stable, results) in [
        (Request::Flush, &BARE[..], false, &[Err(libc::EINTR), eio][..]),
        (Request::Write(ALL), &WRITE, true, &[Ok(4096), eio]),
        (zeroes(false), &BARE, true, &[Ok(0), eio]),
    ] {
        let image = Image::open(&BlockConfig::new(file.path())).unwrap();
        let metrics = Arc::default();
        let ask = |request, bufs, stable, results| {
            let (asked, status, _) = run_on(&image, &metrics, request, bufs, stable, results);
            (asked, status)
        };
        assert_eq!(ask(request, bufs, stable, results).1, 1);
        assert_eq!(ask(Request::Flush, &BARE, false, &[]), (vec![], 1));
        assert_eq!(ask(Request::Write(ALL), &WRITE, true, &[]), (vec![], 1));
        assert_eq!(ask(zeroes(false), &BARE, true, &[]), (vec![], 1));
        // What is not promised to be stable goes on.
        assert_eq!(ask(Request::Write(ALL), &WRITE, false, &[Ok(4096)]).1, 0);
        assert_eq!(ask(Request::Read(ALL), &READ, false, &[Ok(4096)]).1, 0);
        assert_eq!(ask(zeroes(false), &BARE, false, &[Ok(0)]).1, 0);
        assert_eq!((metrics.flush_errors.get(), metrics.errors.get()), (1, 4));
    }
    // Opened anew it is as good as it is.
    assert_eq!(run(Request::Flush, &BARE, false, &[Ok(0)]), (vec![Asked::Sync], 0, 1));
}

#[test]
fn error_of_another_operation_says_nothing_of_what_is_stable() {
    let file = image(&[0; 8192]);
    let image = Image::open(&BlockConfig::new(file.path())).unwrap();
    let metrics = Arc::default();
    let ask = |request, bufs, results| run_on(&image, &metrics, request, bufs, true, results).1;
    assert_eq!(ask(Request::Write(ALL), &WRITE[..], &[Err(libc::ENOSPC)][..]), 1);
    assert_eq!(ask(zeroes(false), &BARE, &[Err(libc::EIO)]), 1);
    assert_eq!(ask(Request::Flush, &BARE, &[Ok(0)]), 0);
    assert_eq!(metrics.flush_errors.get(), 0);
}

#[test]
fn sync_that_succeeds_beside_one_that_fails_is_not_believed() {
    let file = image(&[0; 8192]);
    let image = Image::open(&BlockConfig::new(file.path())).unwrap();
    let mut scratch = Scratch::new(Arc::default());
    let mut driver = Driver::new(&memory(), 0x1000, 8);
    let mut ring = driver.ring();
    let mut flush = || {
        driver.add(&BARE);
        let chain = ring.pop().unwrap().unwrap();
        Job::new(chain, Request::Flush, &image, false, &[0; ID_BYTES])
    };
    let mut jobs = [flush(), flush()];
    for job in &mut jobs {
        assert!(matches!(job.step(&image, &mut scratch), Step::Run(Op::Sync { .. })));
    }
    let [one, other] = &mut jobs;
    other.complete(&image, Ok(0));
    one.complete(&image, Err(io::Error::from_raw_os_error(libc::EIO)));
    for job in &mut jobs {
        assert!(matches!(job.step(&image, &mut scratch), Step::Done(Status::IoError)));
    }
}

#[test]
fn write_that_writes_nothing_is_an_error() {
    let (_, status, _) = run(Request::Write(ALL), &WRITE, false, &[Ok(0)]);
    assert_eq!(status, 1);
}

#[test]
fn interrupted_operation_is_asked_for_again() {
    let (asked, status, _) = run(Request::Read(ALL), &READ, false, &[Err(libc::EINTR), Ok(4096)]);
    assert_eq!((asked, status), (vec![Asked::Read(1024, 4096); 2], 0));
}

#[test]
fn host_that_moves_more_than_asked_is_not_believed() {
    let (asked, status, written) = run(Request::Read(ALL), &READ, false, &[Ok(usize::MAX)]);
    assert_eq!((asked.len(), status, written), (1, 0, 4097));
}

fn zeroes(unmap: bool) -> Request {
    Request::WriteZeroes(vec![ZeroExtent { extent: ALL, unmap }])
}

#[test]
fn zeroes_take_the_first_way_that_the_host_has() {
    let punch = Asked::Allocate(FALLOC_FL_PUNCH_HOLE, 1024, 4096);
    let zero = Asked::Allocate(FALLOC_FL_ZERO_RANGE, 1024, 4096);
    let none = Err(libc::EOPNOTSUPP);

    let (asked, status, _) = run(zeroes(true), &BARE, false, &[Ok(0)]);
    assert_eq!((asked, status), (vec![punch], 0));
    let (asked, status, _) = run(zeroes(false), &BARE, false, &[Ok(0)]);
    assert_eq!((asked, status), (vec![zero], 0));
    let (asked, status, _) = run(zeroes(true), &BARE, false, &[none, none, Ok(1000), Ok(3096)]);
    let writes = [Asked::Write(1024, 4096), Asked::Write(2024, 3096)];
    assert_eq!((asked, status), ([&[punch, zero], &writes[..]].concat(), 0));
    let (asked, status, _) = run(zeroes(false), &BARE, false, &[Err(libc::EIO)]);
    assert_eq!((asked, status), (vec![zero], 1));
}

#[test]
fn stable_zeroes_are_synced_once() {
    let (asked, status, _) = run(zeroes(false), &BARE, true, &[Ok(0), Ok(0)]);
    assert_eq!((asked.last(), asked.len(), status), (Some(&Asked::Sync), 2, 0));
    let (_, status, _) = run(zeroes(false), &BARE, true, &[Ok(0), Err(libc::EIO)]);
    assert_eq!(status, 1);
}

#[test]
fn discard_that_the_host_cannot_do_is_unsupported() {
    let discard = || Request::Discard(vec![ALL, ALL]);
    let (asked, status, _) = run(discard(), &BARE, false, &[Ok(0), Ok(0)]);
    assert_eq!((asked.len(), status), (2, 0));
    let (asked, status, _) = run(discard(), &BARE, false, &[Err(libc::EOPNOTSUPP)]);
    assert_eq!((asked.len(), status), (1, 2));
    let (_, status, _) = run(discard(), &BARE, false, &[Ok(0), Err(libc::EIO)]);
    assert_eq!(status, 1);
}

#[test]
fn device_is_only_asked_to_discard_whole_blocks() {
    let file = image(&[0; 8192]);
    let mut image = Image::open(&BlockConfig::new(file.path())).unwrap();
    image.assume_device(4096);
    let mut scratch = Scratch::new(Arc::default());
    for (offset, len, expected) in [
        (0, 8192, Some((0, 8192))),
        (512, 7680, Some((4096, 4096))),
        (0, 4608, Some((0, 4096))),
        (512, 3584, None),
        (512, 4096, None),
        (4096, 0, None),
    ] {
        let mut zeroing = Zeroing::discard(&[Extent { offset, len }], &image);
        let asked = match zeroing.step(&image, &mut scratch, &mut Iovecs::default()) {
            Step::Run(Op::Allocate { offset, len, .. }) => Some((offset, len)),
            Step::Done(Status::Ok) => None,
            _ => panic!("{len} bytes at {offset}"),
        };
        assert_eq!(asked, expected, "{len} bytes at {offset}");
    }
}
