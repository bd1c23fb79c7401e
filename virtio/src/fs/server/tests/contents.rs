//! Reading and writing: between guest memory and the file system without a copy, and to the byte.

use rustix::io::Errno;

use super::*;
use crate::fs::serve::Outcome;

/// Creates and opens `f`, which is node 2 with handle 103.
fn with_file(contents: &[u8]) -> Rig {
    let rig = Rig::new();
    let created = rig.ask(&request(35, 1, &[&u32s([2, 0o100_644, 0o22, 0]), b"f\0"]));
    assert_eq!(created.error, 0);
    assert_eq!(created.body[128..136], 103_u64.to_le_bytes());
    if !contents.is_empty() {
        let written = rig.ask(&write(0, contents));
        assert_eq!(written, success(u32s([contents.len().try_into().unwrap(), 0])));
    }
    rig.model.calls();
    rig
}

fn write(offset: u64, contents: &[u8]) -> Request {
    let size = contents.len().try_into().unwrap();
    let head = [u64s([103, offset]), u32s([size, 0]), u64s([0, 0])].concat();
    request(16, 2, &[&head, contents])
}

fn read(offset: u64, size: u32) -> Request {
    request(15, 2, &[&u64s([103, offset]), &u32s([size, 0]), &u64s([0, 0])])
}

#[test]
fn what_was_written_is_read_in_pieces_of_any_size() {
    let contents: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let rig = with_file(&contents);
    for piece in [1, 3, 7, 16, 17, 512, 4096, 1 << 20] {
        let (outcome, bytes) = rig.hand_in(&read(10, 4096).bytes(), 16 + 4096, piece);
        assert_eq!(outcome, Outcome::Done(16 + 4096), "pieces of {piece}");
        assert_eq!(bytes[16..], contents[10..4106], "pieces of {piece}");
        let changed: Vec<u8> = contents.iter().rev().copied().collect();
        let (_, bytes) = rig.hand_in(&write(0, &changed).bytes(), 24, piece);
        assert_eq!(bytes[16..], [u32s([5000, 0])].concat(), "pieces of {piece}");
        assert_eq!(rig.ask(&read(0, 6000)), success(changed), "pieces of {piece}");
        rig.ask(&write(0, &contents));
    }
}

#[test]
fn a_list_longer_than_a_call_takes_is_carried_out_in_several() {
    let contents: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let rig = with_file(&contents);
    let (_, bytes) = rig.hand_in(&read(0, 3000).bytes(), 16 + 3000, 1);
    assert_eq!(bytes[16..], contents);
    assert_eq!(
        rig.model.calls(),
        ["read 2 103 0 1024", "read 2 103 1024 1024", "read 2 103 2048 952"]
    );
    rig.hand_in(&write(7, &contents).bytes(), 24, 1);
    let calls = rig.model.calls();
    assert_eq!(
        calls[1..],
        ["write 1000 2 103 1031 1024 false", "write 1000 2 103 2055 952 false"]
    );
    assert_eq!(rig.count("read_bytes"), 3000);
}

#[test]
fn the_end_of_the_file_ends_a_read() {
    let rig = with_file(b"abcdef");
    assert_eq!(rig.ask(&read(4, 100)), success(*b"ef"));
    assert_eq!(rig.ask(&read(6, 100)), success([]));
    assert_eq!(rig.ask(&read(1 << 62, 100)), success([]));
    assert_eq!(rig.ask(&read((1 << 63) - 1, 100)), success([]));
    assert_eq!(rig.ask(&read(1 << 63, 100)), failure(Errno::INVAL));
    assert_eq!(rig.ask(&read(0, 0)), success([]));
    assert_eq!(rig.count("short_replies"), 0);
}

#[test]
fn a_read_is_cut_to_the_room_for_its_reply() {
    let rig = with_file(b"abcdef");
    for room in 0..6 {
        assert_eq!(rig.ask_in(&read(0, 6), room), success(&b"abcdef"[..room]));
    }
    assert_eq!(rig.count("short_replies"), 6);
    for room in 0..16 {
        let (outcome, _) = rig.hand_in(&read(0, 6).bytes(), room, 64);
        assert_eq!(outcome, Outcome::Done(0));
    }
    assert_eq!(rig.count("short_replies"), 6 + 16);
}

#[test]
fn a_write_says_how_much_it_brings() {
    let rig = with_file(b"");
    for size in [0_u32, 1, 3, 5, u32::MAX] {
        let mut wrong = write(0, b"abcd");
        wrong.body[16..20].copy_from_slice(&size.to_le_bytes());
        assert_eq!(rig.ask(&wrong), failure(Errno::INVAL));
    }
    assert_eq!(rig.ask(&write((1 << 63) - 3, b"abcd")), failure(Errno::FBIG));
    assert_eq!(rig.ask(&write(1 << 63, b"abcd")), failure(Errno::INVAL));
    assert_eq!(rig.model.calls(), [""; 0]);
    assert_eq!(rig.ask(&write(0, b"")), success(u32s([0, 0])));
}

#[test]
fn a_write_appends_if_its_file_does_and_it_is_not_from_the_cache() {
    const O_APPEND: u32 = 0o2000;
    let rig = with_file(b"");
    for (flags, from_cache, expected) in [(O_APPEND, 0, "append"), (O_APPEND, 1, "write"), (0, 0, "write")] {
        let mut wanted = write(0, b"abcd");
        wanted.body[20] = from_cache;
        wanted.body[32..36].copy_from_slice(&flags.to_le_bytes());
        assert_eq!(rig.ask(&wanted).error, 0);
        assert_eq!(rig.model.calls(), [format!("{expected} 1000 2 103 0 1 false")]);
    }
}

#[test]
fn no_request_is_for_more_than_was_agreed_on() {
    let rig = with_file(b"abcdef");
    const MOST: usize = 1 << 20;
    let all = vec![7; MOST + 1];
    assert_eq!(rig.ask(&write(0, &all[..MOST])), success(u32s([1 << 20, 0])));
    assert_eq!(rig.ask(&write(0, &all)), failure(Errno::INVAL));
    assert_eq!(rig.ask(&read(6, 1 << 20)).error, 0);
    assert_eq!(rig.ask(&read(6, (1 << 20) + 1)), failure(Errno::INVAL));
    let forgets = |count: u32| request(42, 0, &[&u32s([count, 0]), &vec![0; 16 * count as usize]]);
    let malformed = rig.count("malformed_requests");
    rig.hand_in(&forgets(65_536).bytes(), 0, 4096);
    assert_eq!(rig.count("malformed_requests"), malformed);
    rig.hand_in(&forgets(65_539).bytes(), 0, 4096);
    assert_eq!(rig.count("malformed_requests"), malformed + 1);
}

#[test]
fn a_write_that_should_clear_privileges_says_so() {
    let rig = with_file(b"");
    let mut kill = write(0, b"abcd");
    kill.body[20] = 1 << 2;
    assert_eq!(rig.ask(&kill).error, 0);
    assert_eq!(rig.model.calls(), ["write 1000 2 103 0 1 true"]);
}

#[test]
fn a_write_on_a_full_disk_is_a_failure_if_it_comes_from_the_cache_and_short_if_not() {
    const WRITE_CACHE: u8 = 1;
    for piece in [1, 3, 4096] {
        let rig = with_file(b"");
        rig.model.fill_up(2000);
        let ask = |offset, from_cache| {
            let mut wanted = write(offset, &[7; 3000]);
            wanted.body[20] = from_cache;
            let (_, bytes) = rig.hand_in(&wanted.bytes(), 24, piece);
            (
                i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
                bytes[16..].to_vec(),
            )
        };
        let enospc = -Errno::NOSPC.raw_os_error();
        assert_eq!(ask(500, 0), (0, u32s([1500, 0])), "in pieces of {piece}");
        assert_eq!(ask(500, WRITE_CACHE).0, enospc, "in pieces of {piece}");
        assert_eq!(ask(2000, 0).0, enospc, "in pieces of {piece}");
        assert_eq!(rig.ask(&read(0, 4096)), success([vec![0; 500], vec![7; 1500]].concat()));
    }
}

#[test]
fn past_caches_goes_what_says_so_and_does_not_come_from_the_guests() {
    const O_RDWR_DIRECT: u32 = 0o40002;
    let rig = with_file(b"contents");
    let written = |write_flags, flags| {
        let head = [u64s([103, 0]), u32s([2, write_flags]), u64s([0]), u32s([flags, 0])].concat();
        assert_eq!(rig.ask(&request(16, 2, &[&head, b"xy"])).error, 0);
        rig.model.calls().join(", ")
    };
    let read = |flags| {
        let head = [u64s([103, 0]), u32s([2, 0]), u64s([0]), u32s([flags, 0])].concat();
        assert_eq!(rig.ask(&request(15, 2, &[&head])).error, 0);
        rig.model.calls().join(", ")
    };
    assert_eq!(written(0, O_RDWR_DIRECT), "write past caches 1000 2 103 0 1 false");
    assert_eq!(written(1, O_RDWR_DIRECT), "write 1000 2 103 0 1 false");
    assert_eq!(written(0, 2), "write 1000 2 103 0 1 false");
    assert_eq!(read(O_RDWR_DIRECT), "read past caches 2 103 0 1");
    assert_eq!(read(2), "read 2 103 0 1");
}
