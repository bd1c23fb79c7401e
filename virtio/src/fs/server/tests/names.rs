//! Names: those that are none reach no file system, whatever they are for.

use rustix::io::Errno;

use super::catalogue::furnished;
use super::*;
use crate::fs::protocol::flags::init::DONT_MASK;

/// Bodies of every kind of request that takes names, with `name` in each place for one.
fn requests_with(name: &[u8]) -> Vec<Request> {
    let name = &[name, b"\0"].concat();
    let good: &[u8] = b"good\0";
    vec![
        request(1, 1, &[name]),
        request(6, 1, &[name, b"target\0"]),
        request(8, 1, &[&u32s([0o100_644, 0, 0, 0]), name]),
        request(9, 1, &[&u32s([0o755, 0]), name]),
        request(10, 1, &[name]),
        request(11, 1, &[name]),
        request(12, 1, &[&u64s([4]), name, good]),
        request(12, 1, &[&u64s([4]), good, name]),
        request(13, 1, &[&u64s([2]), name]),
        request(35, 1, &[&u32s([2, 0o100_644, 0, 0]), name]),
        request(45, 1, &[&u64s([4, 0]), name, good]),
        request(45, 1, &[&u64s([4, 0]), good, name]),
    ]
}

#[test]
fn what_is_no_name_reaches_no_file_system() {
    let rig = furnished();
    for name in [
        &b""[..],
        b".",
        b"..",
        b"/",
        b"a/b",
        b"/etc/passwd",
        b"../f",
        b"f/",
        b"./f",
    ] {
        for request in requests_with(name) {
            assert_eq!(rig.ask(&request), failure(Errno::INVAL), "{request:?}");
        }
    }
    assert_eq!(rig.count("malformed_requests"), 9 * 12);
    // A NUL ends a name, and what follows is no name.
    for request in requests_with(b"f\0/etc/passwd") {
        assert_ne!(rig.ask(&request).error, 0, "{request:?}");
    }
    // A name without an end.
    for mut request in requests_with(b"f") {
        request.body.retain(|byte| *byte != 0);
        request.body.splice(0..0, [1; 16]);
        assert_ne!(rig.ask(&request).error, 0, "{request:?}");
    }
    let calls = rig.model.calls();
    assert!(calls.is_empty(), "{calls:?}");
}

#[test]
fn a_name_that_is_too_long_is_told_so() {
    let rig = furnished();
    for len in [1025, 2048, 4096] {
        for request in requests_with(&vec![b'x'; len]) {
            assert_eq!(rig.ask(&request), failure(Errno::NAMETOOLONG), "{len}");
        }
    }
    assert_eq!((rig.model.calls().len(), rig.count("malformed_requests")), (0, 0));
    // Bytes are not characters, of which a host may have 255: how many there may be it says itself.
    for len in [255, 256, 1024] {
        for request in requests_with(&vec![b'x'; len]) {
            rig.ask(&request);
        }
        assert_eq!(rig.model.calls().len(), 12, "{len}");
    }
    // More than there is room for before it is looked at.
    let endless = request(1, 1, &[&vec![b'x'; 80_000]]);
    assert_eq!(rig.ask(&endless), failure(Errno::NAMETOOLONG));
    assert_eq!(rig.count("malformed_requests"), 1);
}

#[test]
fn names_of_any_bytes_are_names() {
    let rig = furnished();
    for name in [
        &b"..."[..],
        b"..f",
        b" ",
        b"\n",
        b"\\",
        b"\xff\xfe",
        b"-",
        b"f\x01",
        b"a.b",
    ] {
        assert_eq!(
            rig.ask(&request(1, 1, &[name, b"\0"])),
            failure(Errno::NOENT),
            "{name:?}"
        );
    }
    assert_eq!(rig.model.calls().len(), 9);
}

#[test]
fn every_opcode_that_takes_a_name_was_tried() {
    let tried: Vec<_> = requests_with(b"x").iter().map(|request| request.opcode).collect();
    let mut takers = 0;
    for case in catalogue() {
        // Names of attributes have tests of their own, and that of an unnamed file is not used.
        let names = [&b"f\0"[..], b"d\0", b"g\0", b"new\0", b"..\0"];
        let has_name = names.iter().any(|name| case.request.body.ends_with(name));
        if has_name {
            assert!(tried.contains(&case.request.opcode), "{:?}", case.opcode());
            takers += 1;
        }
    }
    assert_eq!(takers, 10);
}

#[test]
fn a_link_leads_anywhere() {
    let rig = furnished();
    for target in [&b"/etc/passwd"[..], b"../../..", b".", b"\xff"] {
        let made = rig.ask(&request(6, 1, &[b"new\0", target, b"\0"]));
        let node = u64::from_le_bytes(made.body[..8].try_into().unwrap());
        assert_eq!(rig.ask(&request(5, node, &[])), success(target));
        assert_eq!(rig.ask(&request(10, 1, &[b"new\0"])), success([]));
    }
    rig.model.calls();
    assert_eq!(rig.ask(&request(6, 1, &[b"new\0", b"\0"])), failure(Errno::NOENT));
    let long = request(6, 1, &[b"new\0", &[b'x'; 4096], b"\0"]);
    assert_eq!(rig.ask(&long), failure(Errno::NAMETOOLONG));
    assert_eq!(rig.model.calls().len(), 0);
    let longest = request(6, 1, &[b"new\0", &[b'x'; 4095], b"\0"]);
    assert_eq!(rig.ask(&longest).error, 0);
}

#[test]
fn what_cannot_be_made_is_refused_before() {
    let rig = furnished();
    for mode in [0, 0o644, 0o040_755, 0o120_777, 0o170_000] {
        let mknod = request(8, 1, &[&u32s([mode, 0, 0, 0]), b"new\0"]);
        assert_eq!(rig.ask(&mknod), failure(Errno::INVAL), "{mode:o}");
    }
    for mode in [0o040_755, 0o020_644, 0o120_777, 1 << 31] {
        let create = request(35, 1, &[&u32s([2, mode, 0, 0]), b"new\0"]);
        assert_eq!(rig.ask(&create), failure(Errno::INVAL), "{mode:o}");
    }
    for flags in [8, 1 << 31] {
        let rename = request(45, 1, &[&u64s([4]), &u32s([flags, 0]), b"f\0g\0"]);
        assert_eq!(rig.ask(&rename), failure(Errno::INVAL));
    }
    assert_eq!(rig.model.calls().len(), 0);
}

#[test]
fn a_list_of_what_is_forgotten_may_be_long_and_must_be_whole() {
    let rig = furnished();
    let list: Vec<u8> = (0..5000_u64).flat_map(|node| u64s([node, 1])).collect();
    let whole = request(42, 0, &[&u32s([5000, 0]), &list]);
    rig.hand_in(&whole.bytes(), 0, 4096);
    assert_eq!(rig.model.calls().len(), 5000);
    for count in [0, 4999, 5001, u32::MAX] {
        let wrong = request(42, 0, &[&u32s([count, 0]), &list]);
        rig.hand_in(&wrong.bytes(), 0, 4096);
    }
    assert_eq!((rig.model.calls().len(), rig.count("malformed_requests")), (0, 4));
}

#[test]
fn a_umask_that_the_guest_has_applied_is_not_applied_again() {
    for (flags, umask) in [(LINUX_6_12, 0o027), (LINUX_6_12 & !DONT_MASK, 0)] {
        let rig = Rig::with(ALL, flags);
        let made = [
            request(9, 1, &[&u32s([0o750, 0o027]), b"folder\0"]),
            request(8, 1, &[&u32s([0o010_640, 0, 0o027, 0]), b"fifo\0"]),
            request(35, 1, &[&u32s([0, 0o100_640, 0o027, 0]), b"file\0"]),
        ];
        for request in made {
            assert_eq!(rig.ask(&request).error, 0, "{request:?}");
        }
        let calls = rig.model.calls();
        let expected = format!("umask: {umask},");
        assert!(
            calls.len() == 3 && calls.iter().all(|call| call.contains(&expected)),
            "{calls:?}"
        );
    }
}
