use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_IN as IN,
    VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use super::TIMER;
use crate::block::BlockConfig;
use crate::block::testing::{
    DATA, Guest, HEADER, KIB, OK, STATUS, config, counter, image, pattern, plain_reply, segment, with_both_engines,
};
use crate::rate_limit::{BucketConfig, LimiterConfig};
use crate::testing::Buf;

with_both_engines! {
    requests_beyond_the_rate_wait_in_the_ring
    requests_that_wait_go_on_when_the_timer_rings
    bytes_are_paid_for_after_the_request_that_moves_them
    zeroes_are_paid_for_and_discards_are_not
    a_timer_that_was_set_anew_since_it_rang_is_not_waited_for
}

fn bucket(size: u64, refill: Duration) -> Option<BucketConfig> {
    Some(BucketConfig {
        size,
        one_time_burst: 0,
        refill,
    })
}

fn disk(io_uring: bool, limits: LimiterConfig) -> (tempfile::NamedTempFile, Guest) {
    let file = image(&pattern(16 * KIB, 1));
    let config = BlockConfig {
        limits,
        ..config(file.path(), io_uring)
    };
    let guest = Guest::new(config, 64);
    (file, guest)
}

/// Makes `count` reads of a sector available, all at once.
fn offer_reads(guest: &mut Guest, count: u64) {
    guest.driver.write(HEADER, &Guest::header(IN, 0));
    for number in 0..count {
        guest.driver.add(&[
            Buf::Out(HEADER, 16),
            Buf::In(DATA + 512 * number, 512),
            Buf::In(STATUS, 1),
        ]);
    }
    guest.kick();
}

fn requests_beyond_the_rate_wait_in_the_ring(io_uring: bool) {
    let ops = bucket(3, Duration::from_secs(3600));
    let limits = LimiterConfig { ops, bandwidth: None };
    let (_file, mut guest) = disk(io_uring, limits);
    offer_reads(&mut guest, 5);
    assert_eq!(guest.settle(3).len(), 3);
    assert_eq!(guest.driver.used_flags(), 1, "no kick can help");
    assert_eq!(counter(&guest, "throttled_waits"), 1);
    let states = guest.stop();
    assert_eq!(states[0].queue.next_avail, 3, "the others are still the driver's");
}

fn requests_that_wait_go_on_when_the_timer_rings(io_uring: bool) {
    let ops = bucket(1, Duration::from_millis(1));
    let limits = LimiterConfig { ops, bandwidth: None };
    let (_file, mut guest) = disk(io_uring, limits);
    offer_reads(&mut guest, 5);
    assert_eq!(guest.settle(5).len(), 5);
    assert_eq!(guest.driver.read(STATUS, 1), [OK]);
}

fn bytes_are_paid_for_after_the_request_that_moves_them(io_uring: bool) {
    let bandwidth = bucket(512, Duration::from_secs(3600));
    let limits = LimiterConfig { bandwidth, ops: None };
    let (_file, mut guest) = disk(io_uring, limits);
    for _ in 0..20 {
        assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK), "it moves no bytes");
    }
    assert_eq!(guest.ask(IN, 0, &[], 4096).status, OK, "larger than the bucket");
    offer_reads(&mut guest, 1);
    guest.wake().unwrap();
    assert_eq!(guest.driver.take_used(), None);
    assert_eq!(counter(&guest, "throttled_waits"), 1);
}

fn zeroes_are_paid_for_and_discards_are_not(io_uring: bool) {
    // As many sectors as one request may have.
    const SECTORS: u32 = 1 << 16;
    let file = image(&[]);
    file.as_file().set_len(64 << 20).unwrap();
    let limits = LimiterConfig {
        bandwidth: bucket(1 << 20, Duration::from_secs(3600)),
        ops: None,
    };
    let config = BlockConfig {
        limits,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 64);
    for _ in 0..20 {
        let discarded = guest.ask(DISCARD, 0, &segment(0, SECTORS, 0), 0);
        assert_eq!(discarded, plain_reply(OK), "it moves no bytes");
    }
    let zeroes = segment(0, SECTORS, 0);
    assert_eq!(
        guest.ask(WRITE_ZEROES, 0, &zeroes, 0),
        plain_reply(OK),
        "larger than the bucket"
    );
    guest.driver.write(DATA, &zeroes);
    guest
        .driver
        .add(&[Buf::Out(HEADER, 16), Buf::Out(DATA, 16), Buf::In(STATUS, 1)]);
    guest.kick();
    guest.wake().unwrap();
    assert_eq!(guest.driver.take_used(), None);
    assert_eq!(counter(&guest, "throttled_waits"), 1);
    let states = guest.stop();
    assert_eq!(states[0].queue.next_avail, 21, "it is still the driver's");
    assert_eq!(
        (counter(&guest, "write_zeroes_requests"), counter(&guest, "write_bytes")),
        (1, 0)
    );
}

/// One wait reports the doorbell and the timer: what is done for the first sets the timer to another moment.
fn a_timer_that_was_set_anew_since_it_rang_is_not_waited_for(io_uring: bool) {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        let ops = bucket(1, Duration::from_secs(3600));
        let (_file, mut guest) = disk(io_uring, LimiterConfig { ops, bandwidth: None });
        offer_reads(&mut guest, 2);
        assert_eq!(guest.settle(1).len(), 1);
        guest.wake_for(TIMER);
        done.send(()).unwrap();
    });
    outcome.recv_timeout(Duration::from_secs(60)).unwrap();
}
