//! A share that is read-only: what would change something reaches no file system.

use rustix::io::Errno;

use super::catalogue::furnish;
use super::*;
use crate::fs::protocol::Opcode;

fn read_only() -> Rig {
    let mut share = ALL;
    share.readonly = true;
    let rig = Rig::with(share, LINUX_6_12);
    furnish(&rig.model);
    rig
}

#[test]
fn what_would_change_something_is_refused() {
    use Opcode::*;
    let changes = [
        Setattr,
        Symlink,
        Mknod,
        Mkdir,
        Unlink,
        Rmdir,
        Rename,
        Link,
        Write,
        Setxattr,
        Removexattr,
        Create,
        Fallocate,
        Rename2,
        CopyFileRange,
        Tmpfile,
    ];
    for case in catalogue() {
        // That one opens for writing, and this one asks whether it may.
        if matches!(case.opcode(), Open | Access) {
            continue;
        }
        let rig = read_only();
        let (_, reply) = rig.hand_in(&case.request.bytes(), 1 << 16, 1 << 20);
        let refused = reply.get(4..8) == Some(&(-Errno::ROFS.raw_os_error()).to_le_bytes()[..]);
        assert_eq!(refused, changes.contains(&case.opcode()), "{:?}", case.opcode());
        if refused {
            assert_eq!(rig.model.calls(), [""; 0], "{:?}", case.opcode());
        }
    }
}

#[test]
fn files_are_opened_for_reading_only() {
    let rig = read_only();
    for flags in [1, 2, 3, 0o1000, 0o1002] {
        assert_eq!(
            rig.ask(&request(14, 2, &[&u32s([flags, 0])])),
            failure(Errno::ROFS),
            "{flags:o}"
        );
    }
    assert_eq!(rig.ask(&request(34, 2, &[&u32s([2, 0])])), failure(Errno::ROFS));
    assert_eq!(rig.model.calls(), [""; 0]);
    assert_eq!(rig.ask(&request(14, 2, &[&u32s([0o2000, 0])])).error, 0);
    assert_eq!(rig.ask(&request(34, 2, &[&u32s([5, 0])])).error, 0);
}

#[test]
fn flags_that_mean_nothing_to_a_file_system_do_not_reach_it() {
    let rig = read_only();
    // O_CREAT, O_EXCL, O_NOCTTY, O_CLOEXEC, O_NOFOLLOW, FASYNC, the mark of an execution, the largest unknown one.
    let flags = 0o100 | 0o200 | 0o400 | 0o2_000_000 | 0o400_000 | 0o20_000 | 0o40 | 1 << 31;
    assert_eq!(rig.ask(&request(14, 2, &[&u32s([flags, 0])])).error, 0);
    assert_eq!(rig.model.calls(), [r#"open 1000 2 "0x0" false"#]);
    // Neither unnamed files nor descriptors without access.
    for flags in [0o20_200_000, 0o20_000_000, 0o10_000_000] {
        assert_eq!(
            rig.ask(&request(14, 2, &[&u32s([flags, 0])])),
            failure(Errno::INVAL),
            "{flags:o}"
        );
    }
    let kept = 0o2000 | 0o4000 | 0o10000 | 0o4_010_000 | 0o40000 | 0o1_000_000;
    assert_eq!(rig.ask(&request(14, 2, &[&u32s([kept, 0])])).error, 0);
    assert_eq!(rig.model.calls(), [format!(r#"open 1000 2 "{kept:#x}" false"#)]);
}
