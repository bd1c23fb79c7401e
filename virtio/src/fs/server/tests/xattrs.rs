//! Extended attributes, and what else depends on the share or on numbers.

use rustix::io::Errno;

use super::catalogue::{FILE, OPEN_FILE, furnish, furnished};
use super::*;

fn set(name: &[u8], value: &[u8], flags: u32) -> Request {
    let size = u32::try_from(value.len()).unwrap();
    request(21, FILE, &[&u32s([size, flags, 0, 0]), name, b"\0", value])
}

fn get(name: &[u8], size: u32) -> Request {
    request(22, FILE, &[&u32s([size, 0]), name, b"\0"])
}

#[test]
fn lengths_are_told_when_no_room_is_asked_for() {
    let rig = furnished();
    assert_eq!(rig.ask(&get(b"user.a", 0)), success(u32s([5, 0])));
    assert_eq!(rig.ask(&request(23, FILE, &[&u32s([0, 0])])), success(u32s([7, 0])));
    for room in 0..8 {
        assert_eq!(rig.ask_in(&get(b"user.a", 0), room), failure(Errno::IO));
    }
    assert_eq!(rig.count("short_replies"), 8);
    assert_eq!(rig.ask(&get(b"user.a", 4)), failure(Errno::RANGE));
    assert_eq!(rig.ask_in(&get(b"user.a", 100), 4), failure(Errno::RANGE));
    assert_eq!(rig.ask(&request(23, FILE, &[&u32s([6, 0])])), failure(Errno::RANGE));
    assert_eq!(rig.ask(&get(b"user.b", 4)), failure(Errno::NODATA));
}

#[test]
fn a_value_has_64_kib_at_most() {
    let rig = furnished();
    assert_eq!(rig.ask(&set(b"user.b", &[7; 65536], 0)), success([]));
    assert_eq!(rig.ask(&set(b"user.b", &[7; 65537], 0)), failure(Errno::TOOBIG));
    let mut liar = set(b"user.b", b"abc", 0);
    for size in [0, 2, 4, 65536, u32::MAX] {
        liar.body[..4].copy_from_slice(&u32::to_le_bytes(size));
        assert_ne!(rig.ask(&liar).error, 0, "{size}");
    }
    assert_eq!(rig.ask_in(&get(b"user.b", u32::MAX), 80_000), success([7; 65536]));
    assert_eq!(
        rig.model.calls(),
        [
            r#"setxattr 1000 2 "user.b" 65536 0 false"#,
            r#"getxattr 2 "user.b" 65536"#
        ]
    );
}

#[test]
fn what_is_no_name_of_an_attribute_reaches_no_file_system() {
    let rig = furnished();
    let long = [&b"user."[..], &[b'x'; 251]].concat();
    let names = [
        (&b""[..], Errno::INVAL),
        (b"user.", Errno::INVAL),
        (b"a", Errno::OPNOTSUPP),
        (b"userx.a", Errno::OPNOTSUPP),
        (b"btrfs.compression", Errno::OPNOTSUPP),
        (&long, Errno::RANGE),
    ];
    for (name, errno) in names {
        assert_eq!(rig.ask(&set(name, b"abc", 0)), failure(errno), "{name:?}");
        assert_eq!(rig.ask(&get(name, 10)), failure(errno), "{name:?}");
        assert_eq!(rig.ask(&get(name, 0)), failure(errno), "{name:?}");
        assert_eq!(rig.ask(&request(24, FILE, &[name, b"\0"])), failure(errno), "{name:?}");
    }
    for flags in [4, 1 << 31] {
        assert_eq!(rig.ask(&set(b"user.b", b"abc", flags)), failure(Errno::INVAL));
    }
    assert_eq!(rig.model.calls(), [""; 0]);
    for name in [&long[..255], b"security.x", b"system.x", b"trusted.x", b"user.a/../b"] {
        assert_eq!(rig.ask(&set(name, b"abc", 0)), success([]), "{name:?}");
    }
}

#[test]
fn a_share_without_attributes_says_so_once_and_for_all() {
    let mut share = ALL;
    share.xattr = false;
    let rig = Rig::with(share, LINUX_6_12);
    furnish(&rig.model);
    let all = [
        set(b"user.b", b"abc", 0),
        get(b"user.a", 0),
        request(23, FILE, &[&u32s([9, 0])]),
        request(24, FILE, &[b"user.a\0"]),
    ];
    for request in all {
        assert_eq!(rig.ask(&request), failure(Errno::NOSYS));
    }
    assert_eq!(rig.model.calls(), [""; 0]);
}

#[test]
fn access_control_lists_need_an_agreement() {
    for (posix_acl, expected) in [(true, Errno::NODATA), (false, Errno::OPNOTSUPP)] {
        let mut share = ALL;
        share.posix_acl = posix_acl;
        let rig = Rig::with(share, LINUX_6_12);
        furnish(&rig.model);
        for name in [b"system.posix_acl_access" as &[u8], b"system.posix_acl_default"] {
            assert_eq!(rig.ask(&get(name, 10)), failure(expected));
            assert_eq!(rig.ask(&request(24, FILE, &[name, b"\0"])), failure(expected));
            assert_eq!(rig.ask(&set(name, b"", 0)).error == 0, posix_acl);
        }
    }
}

#[test]
fn a_guest_without_the_longer_structure_sends_the_shorter() {
    let mut request = set(b"user.b", b"abc", 1);
    request.body.drain(8..16);
    let rig = Rig::with(ALL, LINUX_6_12 & !(1 << 29));
    furnish(&rig.model);
    assert_eq!(rig.ask(&request), success([]));
    assert_eq!(rig.model.calls(), [r#"setxattr 1000 2 "user.b" 3 1 false"#]);
    assert_ne!(furnished().ask(&request).error, 0);
}

/// `SETATTR` with `valid` and numbers in the other fields.
fn setattr(valid: u32, size: u64, nsec: u32, owner: u32) -> Request {
    let body = [
        u32s([valid, 0]),
        u64s([OPEN_FILE, size, 0, 1, 2, 3]),
        u32s([nsec, nsec, nsec, 0o7_777_777, 0, owner, owner, 0]),
    ]
    .concat();
    request(4, FILE, &[&body])
}

#[test]
fn only_what_is_valid_is_changed() {
    let rig = furnished();
    assert_eq!(rig.ask(&setattr(0, u64::MAX, u32::MAX, u32::MAX)).error, 0);
    let none = "Change { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, kill_priv: false }";
    assert_eq!(rig.model.calls(), [format!("setattr 1000 2 None {none}")]);
    assert_eq!(rig.ask(&setattr(1, 0, 0, 0)).error, 0);
    assert_eq!(
        rig.model.calls(),
        [format!("setattr 1000 2 None {none}").replace("mode: None", "mode: Some(4095)")]
    );
}

#[test]
fn numbers_that_no_file_can_have_are_refused() {
    let rig = furnished();
    for wrong in [
        setattr(1 << 1, 0, 0, u32::MAX),
        setattr(1 << 2, 0, 0, u32::MAX),
        setattr(1 << 3, 1 << 63, 0, 0),
        setattr(1 << 4, 0, 1_000_000_000, 0),
        setattr(1 << 5, 0, u32::MAX, 0),
        request(34, FILE, &[&u32s([8, 0])]),
        request(46, FILE, &[&u64s([OPEN_FILE, 1 << 63]), &u32s([3, 0])]),
        request(46, FILE, &[&u64s([OPEN_FILE, 0]), &u32s([0, 0])]),
        request(46, FILE, &[&u64s([OPEN_FILE, 0]), &u32s([5, 0])]),
        request(43, FILE, &[&u64s([OPEN_FILE, 1 << 63, 1, 0])]),
        request(47, FILE, &[&u64s([OPEN_FILE, 1 << 63, FILE, OPEN_FILE, 0, 1, 0])]),
        request(47, FILE, &[&u64s([OPEN_FILE, 0, FILE, OPEN_FILE, u64::MAX, 1, 0])]),
    ] {
        assert_eq!(rig.ask(&wrong), failure(Errno::INVAL), "{wrong:?}");
    }
    for wrong in [
        request(43, FILE, &[&u64s([OPEN_FILE, 1, (1 << 63) - 1, 0])]),
        request(43, FILE, &[&u64s([OPEN_FILE, 1, u64::MAX, 0])]),
        request(47, FILE, &[&u64s([OPEN_FILE, (1 << 63) - 1, FILE, OPEN_FILE, 0, 1, 0])]),
    ] {
        assert_eq!(rig.ask(&wrong), failure(Errno::FBIG), "{wrong:?}");
    }
    assert_eq!(rig.model.calls(), [""; 0]);
    // Whatever is asked for, no copy is longer than its answer can tell.
    let copy = request(47, FILE, &[&u64s([OPEN_FILE, 0, FILE, OPEN_FILE, 0, u64::MAX, 0])]);
    assert_eq!(rig.ask(&copy), success(u32s([11, 0])));
    assert!(rig.model.calls()[0].ends_with(" 2147479552 0"));
}
