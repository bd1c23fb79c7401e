//! What a driver asks and what it is told.

use std::fs;
use std::os::unix::fs::MetadataExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_IN as IN,
    VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use crate::block::testing::{
    DATA, Guest, HEADER, IO_ERROR, KIB, OK, STATUS, UNANSWERED, UNSUPPORTED, config, counter, image, pattern,
    plain_reply, segment, with_both_engines,
};
use crate::block::{Block, BlockConfig};
use crate::testing::{Buf, LossyDevice};

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
    write_through_writes_are_answered
    no_flush_succeeds_once_the_storage_has_lost_data
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

/// The kernel tells of lost data once: its next sync succeeds.
fn no_flush_succeeds_once_the_storage_has_lost_data(io_uring: bool) {
    let Some(device) = LossyDevice::new() else { return };
    let mut guest = Guest::new(config(device.path(), io_uring), 8);
    let data = pattern(512 * KIB, 1);
    for number in 0..12 {
        assert_eq!(guest.ask(OUT, number * 1024, &data, 0), plain_reply(OK));
    }
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(IO_ERROR));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(IO_ERROR));
    assert_eq!(
        (counter(&guest, "flush_errors"), counter(&guest, "flush_requests")),
        (1, 0)
    );
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
