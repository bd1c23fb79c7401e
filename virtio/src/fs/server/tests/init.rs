//! Sessions: what is agreed on with whom.

use rustix::io::Errno;

use super::*;
use crate::fs::filesystem::Abilities;
use crate::fs::protocol::flags::init::*;
use crate::fs::serve::Serve;

/// What is always agreed on with Linux 6.1.
const ALWAYS: u64 = ASYNC_READ | ATOMIC_O_TRUNC | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | INIT_EXT;

fn answer(flags: u64, pages: u16) -> Reply {
    let max_write = if pages == 0 { 32 * 4096 } else { 1 << 20 };
    success(
        [
            &u32s([7, 39, 0x2_0000, u32::try_from(flags & 0xffff_ffff).unwrap()])[..],
            &256_u16.to_le_bytes(),
            &192_u16.to_le_bytes(),
            &u32s([max_write, 1]),
            &pages.to_le_bytes(),
            &[0; 2],
            &u32s([u32::try_from(flags >> 32).unwrap()]),
            &[0; 28],
        ]
        .concat(),
    )
}

#[test]
fn a_plain_share_agrees_on_what_needs_nothing() {
    for (offered, agreed) in [(LINUX_6_1, ALWAYS), (LINUX_6_12, ALWAYS | CREATE_SUPP_GROUP)] {
        let rig = Rig::before_init(Abilities::default());
        let reply = rig.ask(&init_request(7, 41, offered));
        assert_eq!(reply, answer(agreed | AUTO_INVAL_DATA, 256));
        assert_eq!(rig.model.agreed(), Some(Abilities::default()));
    }
}

#[test]
fn each_ability_adds_its_flags_if_the_guest_has_them() {
    let none = Abilities::default();
    let abilities = [
        (Abilities { xattr: true, ..none }, SETXATTR_EXT),
        (Abilities { locks: true, ..none }, POSIX_LOCKS | FLOCK_LOCKS),
        (Abilities { killpriv: true, ..none }, HANDLE_KILLPRIV_V2),
        (
            Abilities {
                submounts: true,
                ..none
            },
            SUBMOUNTS,
        ),
        (
            Abilities {
                writeback: true,
                ..none
            },
            WRITEBACK_CACHE,
        ),
        (
            Abilities {
                security_context: true,
                ..none
            },
            SECURITY_CTX,
        ),
        (
            Abilities {
                readdirplus: true,
                ..none
            },
            DO_READDIRPLUS | READDIRPLUS_AUTO,
        ),
    ];
    for (ability, flags) in abilities {
        let rig = Rig::before_init(ability);
        let common = ALWAYS | AUTO_INVAL_DATA;
        assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)), answer(common | flags, 256));
        assert_eq!(rig.model.agreed(), Some(ability));
        let without = LINUX_6_1 & !flags;
        assert_eq!(
            rig.ask(&init_request(7, 37, without)),
            answer(common, 256),
            "{ability:?}"
        );
        let agreed = Abilities {
            xattr: ability.xattr,
            ..none
        };
        assert_eq!(rig.model.agreed(), Some(agreed), "{ability:?}");
    }
}

#[test]
fn files_that_are_not_cached_can_be_mapped_if_both_sides_say_so() {
    let mapped = Abilities {
        direct_mmap: true,
        ..Abilities::default()
    };
    let common = ALWAYS | AUTO_INVAL_DATA;
    let rig = Rig::before_init(mapped);
    let flags = common | CREATE_SUPP_GROUP | DIRECT_IO_ALLOW_MMAP;
    assert_eq!(rig.ask(&init_request(7, 41, LINUX_6_12)), answer(flags, 256));
    assert_eq!(rig.model.agreed(), Some(mapped));
    assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)), answer(common, 256));
    assert_eq!(rig.model.agreed(), Some(Abilities::default()));
}

#[test]
fn access_control_lists_need_attributes_and_both_flags() {
    let flags = POSIX_ACL | DONT_MASK;
    let acl = Abilities {
        xattr: true,
        posix_acl: true,
        ..Abilities::default()
    };
    let common = ALWAYS | AUTO_INVAL_DATA | SETXATTR_EXT;
    let rig = Rig::before_init(acl);
    assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)), answer(common | flags, 256));
    assert_eq!(rig.model.agreed(), Some(acl));
    for flag in [POSIX_ACL, DONT_MASK] {
        assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1 & !flag)), answer(common, 256));
        assert!(!rig.model.agreed().unwrap().posix_acl);
    }
    let rig = Rig::before_init(Abilities { xattr: false, ..acl });
    let common = ALWAYS | AUTO_INVAL_DATA;
    assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)), answer(common, 256));
}

#[test]
fn a_tree_of_nobody_else_is_kept_by_the_guest() {
    let rig = Rig::before_init(Abilities {
        unshared: true,
        ..Abilities::default()
    });
    let flags = ALWAYS | EXPLICIT_INVAL_DATA | CACHE_SYMLINKS;
    assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)), answer(flags, 256));
}

#[test]
fn a_guest_of_few_words_gets_few() {
    let rig = Rig::before_init(ALL);
    assert_eq!(rig.ask(&init_request(7, 27, 0)), answer(0, 0));
    assert_eq!(rig.ask(&init_request(7, 31, BIG_WRITES)), answer(BIG_WRITES, 0));
    // Labels are agreed on in words that this one does not have.
    let rig = Rig::before_init(ALL);
    rig.ask(&init_request(7, 31, LINUX_6_12 & !INIT_EXT));
    assert!(!rig.model.agreed().unwrap().security_context);
}

#[test]
fn other_versions_get_no_session() {
    let rig = Rig::before_init(ALL);
    let mut told = answer(0, 0);
    told.body[8..12].fill(0);
    assert_eq!(rig.ask(&init_request(8, 0, LINUX_6_12)), told);
    for (major, minor) in [(6, 40), (0, 0), (7, 26), (7, 0)] {
        assert_eq!(rig.ask(&init_request(major, minor, LINUX_6_12)), failure(Errno::PROTO));
    }
    assert_eq!(rig.model.agreed(), None);
    assert_eq!(rig.ask(&request(3, 1, &[&[0; 16]])), failure(Errno::NOTCONN));
    assert_eq!((rig.count("sessions"), rig.count("malformed_requests")), (0, 5));
}

#[test]
fn nothing_is_done_outside_of_a_session() {
    let rig = Rig::before_init(ALL);
    let getattr = request(3, 1, &[&[0; 16]]);
    assert_eq!(rig.ask(&getattr), failure(Errno::NOTCONN));
    assert_eq!(rig.model.calls(), [""; 0]);
    rig.ask(&init_request(7, 41, LINUX_6_12));
    assert_eq!(rig.ask(&getattr).error, 0);
    assert_eq!(rig.ask(&request(38, 0, &[])), success([]));
    assert_eq!(rig.ask(&getattr), failure(Errno::NOTCONN));
    assert_eq!(rig.model.agreed(), None);
    assert_eq!(rig.model.calls(), ["reset", "getattr 1 None", "reset"]);
    rig.ask(&init_request(7, 41, LINUX_6_12));
    rig.server.reset();
    assert_eq!(rig.ask(&getattr), failure(Errno::NOTCONN));
}

#[test]
fn a_second_init_begins_anew() {
    let rig = Rig::new();
    assert_eq!(rig.ask(&request(1, 1, &[b"none\0"])), failure(Errno::NOENT));
    rig.ask(&request(9, 1, &[&u32s([0o755, 0]), b"d\0"]));
    assert_eq!(rig.model.lookups(), 1);
    let before = rig.server.generation();
    assert_eq!(rig.ask(&init_request(7, 37, LINUX_6_1)).error, 0);
    assert_eq!(rig.model.lookups(), 0);
    assert_ne!(rig.server.generation(), before);
    assert_eq!(rig.count("sessions"), 2);
}
