use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_IN as IN,
    VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use crate::block::testing::{DATA, Guest, HEADER, Reply, STATUS, UNANSWERED, image, pattern, with_both_engines};
use crate::block::{Block, BlockConfig};
use crate::device::HandlerError;
use crate::ring::RingError;
use crate::testing::Buf;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const KIB: usize = 1024;

fn config(path: &Path, io_uring: bool) -> BlockConfig {
    BlockConfig {
        io_uring,
        serial: "disk-1".into(),
        ..BlockConfig::new(path)
    }
}

/// The answer to a request that moved no data.
fn plain_reply(status: u8) -> Reply {
    Reply {
        status,
        used: 1,
        data: vec![],
    }
}

/// One segment of a discard or write-zeroes request.
fn segment(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn counter(guest: &Guest, name: &str) -> u64 {
    use husk_devices::metrics::Metered;
    let metrics = guest.metrics.metrics();
    metrics.into_iter().find(|(known, _)| *known == name).unwrap().1
}

with_both_engines! {
    what_is_written_is_read_back
    flush_is_answered
    identification_is_padded
    discarded_range_gives_space_back
    zeroed_range_reads_as_zeros
    request_may_be_cut_anywhere
    read_only_disk_is_not_written
    ranges_beyond_the_end_are_refused
    data_must_be_whole_sectors_in_the_right_direction
    unknown_requests_and_flags_are_unsupported
    chain_without_status_is_given_back
    last_sector_may_be_partial
    shrunken_image_is_an_error_and_not_zeros
    direct_io_takes_odd_buffers
    direct_io_takes_parts_of_a_block
    more_odd_requests_than_bounce_buffers
    more_requests_than_fit_in_flight
    more_buffers_than_one_call_takes
    write_through_writes_are_answered
    stop_leaves_guest_memory_alone
    stopped_queue_goes_on_where_it_was
    disk_behaves_like_an_array
}

fn what_is_written_is_read_back(io_uring: bool) {
    let file = image(&[0; 64 * KIB]);
    let mut guest = Guest::new(config(file.path(), io_uring), 8);
    let data = pattern(8 * KIB, 1);

    assert_eq!(guest.ask(OUT, 5, &data, 0), plain_reply(OK));
    let reply = guest.ask(IN, 5, &[], 8 * 1024);

    assert_eq!((reply.status, reply.used), (OK, 8 * 1024 + 1));
    assert_eq!(reply.data, data);
    let on_disk = fs::read(file.path()).unwrap();
    assert_eq!(on_disk.len(), 64 * KIB);
    assert_eq!(on_disk[5 * 512..][..data.len()], data);
    assert!(on_disk[..5 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(
        (counter(&guest, "read_bytes"), counter(&guest, "write_bytes")),
        (8192, 8192)
    );
    assert_eq!(
        (counter(&guest, "read_requests"), counter(&guest, "write_requests")),
        (1, 1)
    );
    assert!(guest.driver.interrupts() >= 2);
}

fn flush_is_answered(io_uring: bool) {
    let file = image(&[0; 512]);
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK));
    assert_eq!(counter(&guest, "flush_requests"), 1);
}

fn identification_is_padded(io_uring: bool) {
    let file = image(&[0; 512]);
    let mut guest = Guest::new(config(file.path(), io_uring), 4);

    let reply = guest.ask(GET_ID, 0, &[], 20);
    assert_eq!((reply.status, reply.used), (OK, 21));
    assert_eq!(reply.data, b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    assert_eq!(guest.ask(GET_ID, 0, &[], 19).status, IO_ERROR);
    let longer = guest.ask(GET_ID, 0, &[], 32);
    assert_eq!(
        (longer.status, longer.used),
        (OK, 20),
        "the status does not follow the data"
    );
}

fn discarded_range_gives_space_back(io_uring: bool) {
    let file = image(&pattern(256 * KIB, 1));
    file.as_file().sync_all().unwrap();
    let before = file.as_file().metadata().unwrap().blocks();
    let mut guest = Guest::new(config(file.path(), io_uring), 4);

    let ranges = [segment(0, 128, 0), segment(256, 0, 0), segment(384, 128, 0)].concat();
    assert_eq!(guest.ask(DISCARD, 0, &ranges, 0), plain_reply(OK));

    let after = file.as_file().metadata().unwrap();
    assert_eq!(after.len(), 256 * 1024);
    assert!(
        after.blocks() + 256 <= before,
        "{before} blocks became {}",
        after.blocks()
    );
    let mut expected = pattern(256 * KIB, 1);
    expected[..64 * KIB].fill(0);
    expected[192 * KIB..].fill(0);
    assert!(fs::read(file.path()).unwrap() == expected);
    assert_eq!(counter(&guest, "discard_requests"), 1);
}

fn zeroed_range_reads_as_zeros(io_uring: bool) {
    let file = image(&pattern(256 * KIB, 1));
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    let mut expected = pattern(256 * KIB, 1);

    for (sector, count, unmap) in [(1u64, 3u32, 0), (9, 100, 1), (505, 7, 0), (3, 0, 1)] {
        assert_eq!(
            guest.ask(WRITE_ZEROES, 0, &segment(sector, count, unmap), 0),
            plain_reply(OK)
        );
        expected[sector as usize * 512..][..count as usize * 512].fill(0);
        assert!(
            fs::read(file.path()).unwrap() == expected,
            "{count} sectors at {sector}"
        );
    }
}

fn request_may_be_cut_anywhere(io_uring: bool) {
    let file = image(&pattern(16 * KIB, 1));
    let mut guest = Guest::new(config(file.path(), io_uring), 16);
    let data = pattern(1024, 2);

    // Header in three parts, the last of them with the first of the data; data across two memory regions.
    let edge = crate::testing::SECOND - 700;
    let stream = [Guest::header(OUT, 3), data.clone()].concat();
    guest.driver.write(HEADER, &stream[..3]);
    guest.driver.write(HEADER + 0x100, &stream[3..9]);
    guest.driver.write(HEADER + 0x200, &stream[9..39]);
    guest.driver.write(edge, &stream[39..]);
    let parts = [
        Buf::Out(HEADER, 3),
        Buf::Out(HEADER + 0x100, 6),
        Buf::Out(DATA, 0),
        Buf::Out(HEADER + 0x200, 30),
        Buf::Out(edge, 1001),
        Buf::In(STATUS, 1),
    ];
    guest.driver.write(STATUS, &[UNANSWERED]);
    guest.driver.add(&parts);
    guest.kick();
    assert_eq!(guest.settle(1)[0].1, 1);
    assert_eq!(guest.driver.read(STATUS, 1), [OK]);
    assert_eq!(guest.ask(IN, 3, &[], 1024).data, data);

    // Read into three odd buffers, the last of which ends with the status.
    guest.driver.write(HEADER, &Guest::header(IN, 3));
    let ins = [Buf::In(DATA + 1, 100), Buf::In(edge, 900), Buf::In(DATA + 0x1000, 25)];
    guest.driver.add(&[&[Buf::Out(HEADER, 16)], &ins[..]].concat());
    guest.kick();
    assert_eq!(guest.settle(1)[0].1, 1025);
    let read = [
        guest.driver.read(DATA + 1, 100),
        guest.driver.read(edge, 900),
        guest.driver.read(DATA + 0x1000, 24),
    ];
    assert_eq!(read.concat(), data);
    assert_eq!(guest.driver.read(DATA + 0x1000 + 24, 1), [OK]);
}

fn read_only_disk_is_not_written(io_uring: bool) {
    let content = pattern(16 * KIB, 1);
    let file = image(&content);
    let readonly = BlockConfig {
        readonly: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(readonly, 4);

    assert_eq!(guest.ask(OUT, 0, &[7; 512], 0), plain_reply(IO_ERROR));
    assert_eq!(guest.ask(DISCARD, 0, &segment(0, 8, 0), 0), plain_reply(IO_ERROR));
    assert_eq!(guest.ask(WRITE_ZEROES, 0, &segment(0, 8, 0), 0), plain_reply(IO_ERROR));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK));
    assert_eq!(guest.ask(IN, 0, &[], 512).data, content[..512]);
    assert!(fs::read(file.path()).unwrap() == content);
    assert_eq!(counter(&guest, "failed_requests"), 3);
}

fn ranges_beyond_the_end_are_refused(io_uring: bool) {
    let content = pattern(16 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    for sector in [
        31,
        32,
        33,
        1 << 54,
        1 << 55,
        (1 << 55) - 1,
        u64::MAX / 512,
        u64::MAX - 1,
        u64::MAX,
    ] {
        let read = guest.ask(IN, sector, &[], 1024);
        assert_eq!((read.status, read.used), (IO_ERROR, 0), "read at {sector}");
        assert_eq!(
            guest.ask(OUT, sector, &[7; 1024], 0),
            plain_reply(IO_ERROR),
            "write at {sector}"
        );
        for kind in [DISCARD, WRITE_ZEROES] {
            let reply = guest.ask(kind, 0, &segment(sector, 2, 0), 0);
            assert_eq!(reply, plain_reply(IO_ERROR), "{kind} at {sector}");
        }
    }
    assert_eq!(guest.ask(IN, 30, &[], 1024).data, content[30 * 512..]);
    assert!(
        fs::read(file.path()).unwrap() == content,
        "nothing was written, and the file has its old length"
    );
}

fn data_must_be_whole_sectors_in_the_right_direction(io_uring: bool) {
    let content = pattern(4 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 8);
    assert_eq!(guest.ask(IN, 0, &[], 511).status, IO_ERROR);
    assert_eq!(guest.ask(OUT, 0, &[7; 513], 0).status, IO_ERROR);
    assert_eq!(
        guest.ask(IN, 0, &[7; 512], 512).status,
        IO_ERROR,
        "a read with data to write"
    );
    assert_eq!(
        guest.ask(OUT, 0, &[7; 512], 512).status,
        IO_ERROR,
        "a write with room for data"
    );
    assert_eq!(guest.ask(DISCARD, 0, &segment(0, 1, 0)[..15], 0).status, IO_ERROR);
    assert_eq!(
        guest.ask(DISCARD, 0, &segment(0, 1, 0).repeat(33), 0).status,
        IO_ERROR,
        "too many ranges"
    );
    assert_eq!(
        guest.ask(WRITE_ZEROES, 0, &segment(0, 1, 0).repeat(2), 0).status,
        IO_ERROR,
        "too many ranges"
    );
    assert_eq!(
        guest.ask(WRITE_ZEROES, 0, &segment(0, (1 << 16) + 1, 0), 0).status,
        IO_ERROR
    );

    guest.driver.write(HEADER, &Guest::header(IN, 0)[..15]);
    guest
        .driver
        .add(&[Buf::Out(HEADER, 15), Buf::In(DATA, 512), Buf::In(STATUS, 1)]);
    guest.kick();
    assert_eq!(guest.settle(1)[0].1, 0);
    assert_eq!(guest.driver.read(STATUS, 1), [IO_ERROR], "a short header");
    assert!(fs::read(file.path()).unwrap() == content);
}

fn unknown_requests_and_flags_are_unsupported(io_uring: bool) {
    let content = pattern(4 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 15, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.ask(kind, 0, &[], 0), plain_reply(UNSUPPORTED), "type {kind}");
    }
    assert_eq!(
        guest.ask(DISCARD, 0, &segment(0, 1, 1), 0),
        plain_reply(UNSUPPORTED),
        "unmap"
    );
    assert_eq!(guest.ask(DISCARD, 0, &segment(0, 1, 2), 0), plain_reply(UNSUPPORTED));
    assert_eq!(
        guest.ask(WRITE_ZEROES, 0, &segment(0, 1, 2), 0),
        plain_reply(UNSUPPORTED)
    );
    assert_eq!(counter(&guest, "unsupported_requests"), 15);
    drop(guest);

    let fixed = BlockConfig {
        discard: false,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(fixed, 4);
    assert_eq!(
        guest.ask(DISCARD, 0, &segment(0, 1, 0), 0),
        plain_reply(UNSUPPORTED),
        "not offered"
    );
    assert!(fs::read(file.path()).unwrap() == content);
}

fn chain_without_status_is_given_back(io_uring: bool) {
    let file = image(&[0; 4096]);
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    guest.driver.write(HEADER, &Guest::header(FLUSH, 0));
    let head = guest.driver.add(&[Buf::Out(HEADER, 16)]);
    let empty = guest.driver.add(&[Buf::Out(HEADER, 16), Buf::In(STATUS, 0)]);
    guest.kick();
    assert_eq!(guest.settle(2), [(head.into(), 0), (empty.into(), 0)]);
    assert_eq!(counter(&guest, "malformed_chains"), 2);
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK), "the queue goes on");
}

fn last_sector_may_be_partial(io_uring: bool) {
    for direct in [false, true] {
        let content = pattern(1000, 1);
        let file = image(&content);
        let config = BlockConfig {
            direct,
            ..config(file.path(), io_uring)
        };
        let mut guest = Guest::new(config, 4);

        let reply = guest.ask(IN, 0, &[], 1024);
        assert_eq!((reply.status, reply.used), (OK, 1025), "direct {direct}");
        assert_eq!(reply.data, [content.clone(), vec![0; 24]].concat());
        assert_eq!(guest.ask(IN, 1, &[], 512).data, reply.data[512..]);
        assert_eq!(guest.ask(IN, 2, &[], 512).status, IO_ERROR);

        let data = pattern(512, 9);
        assert_eq!(guest.ask(OUT, 1, &data, 0), plain_reply(OK));
        assert_eq!(guest.ask(IN, 1, &[], 512).data, data);
        assert_eq!(file.as_file().metadata().unwrap().len(), 1024);
    }
}

fn shrunken_image_is_an_error_and_not_zeros(io_uring: bool) {
    let file = image(&pattern(8192, 1));
    let mut guest = Guest::new(config(file.path(), io_uring), 4);
    file.as_file().set_len(4096).unwrap();

    let reply = guest.ask(IN, 0, &[], 8192);
    assert_eq!((reply.status, reply.used), (IO_ERROR, 4096), "the first half was read");
    assert_eq!(guest.ask(IN, 8, &[], 512).status, IO_ERROR);
    assert_eq!(guest.ask(IN, 7, &[], 512).status, OK);
}

fn direct_io_takes_odd_buffers(io_uring: bool) {
    let file = image(&[0; 512 * KIB]);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 16);
    let len = 300 * KIB as u32;
    let data = pattern(len as usize, 3);
    let cut = |at: u64| {
        [
            (at, 1u32),
            (at + 1, 4095),
            (at + 4096, len - 4096 - 7),
            (at + u64::from(len) - 7, 7),
        ]
    };

    for (sector, at) in [(8, DATA + 3), (9, DATA)] {
        guest.driver.write(HEADER, &Guest::header(OUT, sector));
        guest.driver.write(at, &data);
        let outs = cut(at).map(|(at, len)| Buf::Out(at, len));
        guest
            .driver
            .add(&[&[Buf::Out(HEADER, 16)], &outs[..], &[Buf::In(STATUS, 1)]].concat());
        guest.kick();
        guest.settle(1);
        assert_eq!(guest.driver.read(STATUS, 1), [OK]);
        assert!(fs::read(file.path()).unwrap()[sector as usize * 512..][..data.len()] == data);

        let at = at + 0x8_0000;
        guest.driver.write(HEADER, &Guest::header(IN, sector));
        guest.driver.write(at, &vec![UNANSWERED; len as usize]);
        let ins = cut(at).map(|(at, len)| Buf::In(at, len));
        guest
            .driver
            .add(&[&[Buf::Out(HEADER, 16)], &ins[..], &[Buf::In(STATUS, 1)]].concat());
        guest.kick();
        assert_eq!(guest.settle(1)[0].1, len + 1);
        assert!(guest.driver.read(at, len as usize) == data);
    }
    assert_eq!(counter(&guest, "bounced_requests"), 4);
    assert_eq!(guest.ask(IN, 8, &[], 4096).status, OK);
    assert_eq!(counter(&guest, "bounced_requests"), 4, "aligned buffers take no detour");
}

fn direct_io_takes_parts_of_a_block(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut block = Block::open(config).unwrap();
    block.assume_direct_unit(4096);
    let features = crate::device::VirtioDevice::profile(&block).features;
    let mut guest = Guest::start(&mut block, 8, features);
    let mut expected = content;

    for (sector, len) in [
        (0usize, 512usize),
        (9, 4096),
        (8, 8192),
        (16, 4096),
        (127, 512),
        (3, 30 * 512),
    ] {
        let data = pattern(len, sector as u8);
        assert_eq!(guest.ask(OUT, sector as u64, &data, 0), plain_reply(OK));
        expected[sector * 512..][..len].copy_from_slice(&data);
        let reply = guest.ask(IN, sector as u64, &[], len as u32);
        assert_eq!((reply.status, reply.data), (OK, data));
    }
    assert!(guest.ask(IN, 0, &[], 64 * 1024).data == expected);
    assert!(fs::read(file.path()).unwrap() == expected);
}

/// Sends `count` reads of `len` bytes into the buffers that `at` names, and gives the heads.
fn send_reads(guest: &mut Guest, count: u16, len: u32, at: impl Fn(u16) -> u64) -> Vec<u16> {
    let heads = (0..count).map(|n| {
        let header = HEADER + 16 * u64::from(n);
        guest.driver.write(header, &Guest::header(IN, u64::from(n)));
        guest.driver.write(STATUS + u64::from(n), &[UNANSWERED]);
        guest.driver.add(&[
            Buf::Out(header, 16),
            Buf::In(at(n), len),
            Buf::In(STATUS + u64::from(n), 1),
        ])
    });
    let heads = heads.collect();
    guest.kick();
    heads
}

fn more_odd_requests_than_bounce_buffers(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 256);
    let at = |n: u16| DATA + 1 + 0x1000 * u64::from(n);

    send_reads(&mut guest, 80, 1024, at);
    guest.settle(80);

    for n in 0..80 {
        assert_eq!(guest.driver.read(STATUS + u64::from(n), 1), [OK], "request {n}");
        assert_eq!(
            guest.driver.read(at(n), 1024),
            content[usize::from(n) * 512..][..1024],
            "request {n}"
        );
    }
}

fn more_requests_than_fit_in_flight(io_uring: bool) {
    let content = pattern(256 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 1024);
    let at = |n: u16| DATA + 0x200 * u64::from(n);

    let mut heads = send_reads(&mut guest, 340, 512, at);
    let mut used: Vec<_> = guest.settle(340).into_iter().map(|(head, _)| head as u16).collect();

    heads.sort_unstable();
    used.sort_unstable();
    assert_eq!(used, heads, "each came back once");
    assert!(guest.driver.read(DATA, 340 * 512) == content[..340 * 512]);
    assert!(guest.driver.read(STATUS, 340).iter().all(|status| *status == OK));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK), "kicks are wanted again");
}

fn more_buffers_than_one_call_takes(io_uring: bool) {
    let content = pattern(1024 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 2048);
    let (count, len) = (1600, 400);
    let mut bufs = vec![Buf::Out(HEADER, 16)];
    bufs.extend((0..count).map(|n| Buf::In(DATA + 0x200 * n, len)));
    bufs.push(Buf::In(STATUS, 1));
    guest.driver.write(HEADER, &Guest::header(IN, 7));
    guest.driver.add(&bufs);
    guest.kick();

    assert_eq!(guest.settle(1)[0].1, count as u32 * len + 1);

    let read: Vec<u8> = (0..count)
        .flat_map(|n| guest.driver.read(DATA + 0x200 * n, len as usize))
        .collect();
    assert!(read == content[7 * 512..][..read.len()]);
}

fn write_through_writes_are_answered(io_uring: bool) {
    let file = image(&[0; 64 * KIB]);
    let mut block = Block::open(config(file.path(), io_uring)).unwrap();
    let mut guest = Guest::start(&mut block, 8, 0);
    let data = pattern(4096, 4);
    assert_eq!(guest.ask(OUT, 1, &data, 0), plain_reply(OK));
    assert_eq!(guest.ask(WRITE_ZEROES, 0, &segment(2, 1, 0), 0), plain_reply(OK));
    let mut expected = data;
    expected[512..1024].fill(0);
    assert_eq!(guest.ask(IN, 1, &[], 4096).data, expected);
}

fn stop_leaves_guest_memory_alone(io_uring: bool) {
    let content = pattern(1024 * KIB, 1);
    let file = image(&content);
    file.as_file().sync_all().unwrap();
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 64);
    let (count, len) = (20, 64 * KIB as u32);
    let at = |n: u16| DATA + u64::from(len) * u64::from(n);
    send_reads(&mut guest, count, len, at);

    guest.wake().unwrap();
    let states = guest.stop();

    assert_eq!(states[0].queue.next_avail, count);
    assert_eq!(states[0].queue.next_used, count, "what was taken was answered");
    for n in 0..count {
        assert_eq!(guest.driver.read(STATUS + u64::from(n), 1), [OK]);
        assert!(guest.driver.read(at(n), len as usize) == content[usize::from(n) * 512..][..len as usize]);
    }
    let canary = vec![UNANSWERED; usize::from(count) * len as usize];
    guest.driver.write(DATA, &canary);
    std::thread::sleep(Duration::from_millis(50));
    assert!(guest.driver.read(DATA, canary.len()) == canary, "somebody still wrote");
}

fn stopped_queue_goes_on_where_it_was(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let mut block = Block::open(config(file.path(), io_uring)).unwrap();
    let features = crate::device::VirtioDevice::profile(&block).features;
    let mut guest = Guest::start(&mut block, 16, features);
    assert_eq!(guest.ask(IN, 3, &[], 512).status, OK);
    let state = guest.stop()[0];

    // Made available while nobody was there: the new handler looks without being kicked.
    let heads = send_reads(&mut guest, 4, 512, |n| DATA + 0x200 * u64::from(n));
    guest.driver.kick.read().unwrap();
    let mut guest = guest.resume(&mut block, state, features);

    let mut used: Vec<_> = guest.settle(4).into_iter().map(|(head, _)| head as u16).collect();
    used.sort_unstable();
    assert_eq!(used, heads);
    assert_eq!(guest.driver.read(DATA, 2048), content[..2048]);
}

#[derive(Clone, Debug)]
enum Action {
    Read(usize, usize),
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
}

const MODEL_SECTORS: usize = 96;

fn action() -> impl Strategy<Value = Action> {
    // Some reach beyond the end.
    let range = (0..MODEL_SECTORS + 2, 0..40usize);
    prop_oneof![
        range.clone().prop_map(|(at, len)| Action::Read(at, len)),
        (range.clone(), any::<u8>()).prop_map(|((at, len), seed)| Action::Write(at, len, seed)),
        (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Action::Zero(at, len, unmap)),
        range.prop_map(|(at, len)| Action::Discard(at, len)),
        Just(Action::Flush),
    ]
}

fn disk_behaves_like_an_array(io_uring: bool) {
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..40), direct: bool, seed: u8)| {
        compare_with_array(io_uring, direct, seed, &actions);
    });
}

fn compare_with_array(io_uring: bool, direct: bool, seed: u8, actions: &[Action]) {
    let mut model = pattern(MODEL_SECTORS * 512, seed);
    let file = image(&model);
    let config = BlockConfig {
        direct,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 8);
    for action in actions {
        let (at, len) = match *action {
            Action::Read(at, len) | Action::Write(at, len, _) => (at, len),
            Action::Zero(at, len, _) | Action::Discard(at, len) => (at, len),
            Action::Flush => (0, 0),
        };
        let expected = if at + len <= MODEL_SECTORS { OK } else { IO_ERROR };
        let range = at * 512..(at + len) * 512;
        let reply = match *action {
            Action::Read(..) => guest.ask(IN, at as u64, &[], len as u32 * 512),
            Action::Write(_, _, seed) => guest.ask(OUT, at as u64, &pattern(len * 512, seed), 0),
            Action::Zero(_, _, unmap) => guest.ask(WRITE_ZEROES, 0, &segment(at as u64, len as u32, unmap.into()), 0),
            Action::Discard(..) => guest.ask(DISCARD, 0, &segment(at as u64, len as u32, 0), 0),
            Action::Flush => guest.ask(FLUSH, 0, &[], 0),
        };
        assert_eq!(reply.status, expected, "{action:?}");
        if expected != OK {
            continue;
        }
        match *action {
            Action::Read(..) => assert_eq!(reply.data, model[range], "{action:?}"),
            Action::Write(_, _, seed) => model[range].copy_from_slice(&pattern(len * 512, seed)),
            Action::Zero(..) | Action::Discard(..) => model[range].fill(0),
            Action::Flush => {}
        }
    }
    let mut bytes = Vec::new();
    fs::File::open(file.path()).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == model);
}

#[test]
fn chain_offered_twice_while_in_flight_ends_the_queue_unharmed() {
    if !crate::block::testing::has_uring() {
        return;
    }
    let file = image(&pattern(64 * KIB, 1));
    let mut guest = Guest::new(config(file.path(), true), 8);
    let heads = send_reads(&mut guest, 1, 4096, |_| DATA);
    guest.driver.offer(heads[0]);

    let error = guest.wake().unwrap_err();

    let HandlerError::Ring(RingError::HeadInFlight { head, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(head, heads[0]);
    guest.stop();
    assert_eq!(
        guest.driver.take_used(),
        Some((heads[0].into(), 4097)),
        "the first one was carried out"
    );
    assert_eq!(guest.driver.take_used(), None);
}

#[test]
fn dropped_handler_waits_for_the_kernel() {
    if !crate::block::testing::has_uring() {
        return;
    }
    let file = image(&pattern(1024 * KIB, 1));
    file.as_file().sync_all().unwrap();
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), true)
    };
    let mut guest = Guest::new(config, 64);
    send_reads(&mut guest, 20, 64 * 1024, |n| DATA + 0x1_0000 * u64::from(n));
    guest.wake().unwrap();

    guest.abandon();

    let canary = vec![UNANSWERED; 20 * 64 * KIB];
    guest.driver.write(DATA, &canary);
    std::thread::sleep(Duration::from_millis(50));
    assert!(guest.driver.read(DATA, canary.len()) == canary, "somebody still wrote");
}
