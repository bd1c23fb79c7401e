//! The bits above the permissions: set-user-ID, set-group-ID and sticky, and what takes them away.

use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::case::{
    Cases, Did, Found, MEMBER, OTHER, OWNER, User, as_user, chmod, chown, create, file_by, folder_by, mode, open,
    truncate, write,
};

/// Root, of no group but his own.
const ROOT: User = User {
    uid: 0,
    gid: 0,
    groups: &[],
};
const IN_TWO: User = User {
    groups: &[2001],
    ..OWNER
};

/// What is done to the file `x`.
type Act = fn() -> Did;

const WRITE: Act = || write(open("x", OFlags::WRONLY)?, b"new");
const APPEND: Act = || rustix::io::write(open("x", OFlags::WRONLY | OFlags::APPEND)?, b"new").map(drop);
const TRUNCATE: Act = || truncate("x", 2);
const TRUNCATE_OPEN: Act = || open("x", OFlags::WRONLY | OFlags::TRUNC).map(drop);
const FTRUNCATE: Act = || rustix::fs::ftruncate(open("x", OFlags::WRONLY)?, 2);
const ALLOCATE: Act = || rustix::fs::fallocate(open("x", OFlags::WRONLY)?, FallocateFlags::empty(), 0, 9000);
const OPEN: Act = || open("x", OFlags::RDWR).map(drop);
const NOTHING: Act = || write(open("x", OFlags::WRONLY)?, b"");

/// What each writer leaves of a mode: user or root, act, before, after.
const WRITES: [(&str, User, Act, u32, &str); 22] = [
    ("a write by a user", OTHER, WRITE, 0o6777, "777"),
    ("a write by a user", OTHER, WRITE, 0o4767, "767"),
    // Without the right to execute for the group, the bit goes only if the writer is not in the group.
    ("a write by a user", OTHER, WRITE, 0o2767, "767"),
    ("a write by a member of its group", MEMBER, WRITE, 0o2767, "2767"),
    ("a write by a user", OTHER, WRITE, 0o2777, "777"),
    ("a write by a user", OTHER, WRITE, 0o1777, "1777"),
    ("a write by its owner", OWNER, WRITE, 0o6755, "755"),
    ("an append by a user", OTHER, APPEND, 0o6777, "777"),
    ("a write of nothing by a user", OTHER, NOTHING, 0o6777, "6777"),
    ("a write by root", ROOT, WRITE, 0o6777, "6777"),
    ("a truncation by a user", OTHER, TRUNCATE, 0o6777, "777"),
    ("a truncation by a user", OTHER, TRUNCATE, 0o2767, "767"),
    ("a truncation by its owner", OWNER, FTRUNCATE, 0o4755, "755"),
    ("a truncation by root", ROOT, TRUNCATE, 0o6777, "6777"),
    ("ftruncate by a user", OTHER, FTRUNCATE, 0o6777, "777"),
    ("O_TRUNC by a user", OTHER, TRUNCATE_OPEN, 0o6777, "777"),
    ("O_TRUNC by root", ROOT, TRUNCATE_OPEN, 0o6777, "6777"),
    ("fallocate by a user", OTHER, ALLOCATE, 0o6777, "777"),
    ("fallocate by root", ROOT, ALLOCATE, 0o6777, "6777"),
    ("an opening by a user", OTHER, OPEN, 0o6777, "6777"),
    ("a write by a member of its group", MEMBER, WRITE, 0o6777, "777"),
    ("a write by a member of its group", MEMBER, WRITE, 0o2777, "777"),
];

type Given = (&'static str, User, Option<u32>, Option<u32>, u32, &'static str);

/// What is left of a mode by a change of the owner.
const GIVEN: [Given; 9] = [
    ("chown by root", ROOT, Some(7), None, 0o6777, "777"),
    ("chown by root", ROOT, Some(7), None, 0o2767, "2767"),
    ("chown by root", ROOT, Some(7), None, 0o1777, "1777"),
    ("chown by root to the same", ROOT, Some(1001), None, 0o6777, "777"),
    ("chgrp by root", ROOT, None, Some(7), 0o6777, "777"),
    ("chgrp by its owner", IN_TWO, None, Some(2001), 0o6777, "777"),
    ("chgrp by its owner", IN_TWO, None, Some(2001), 0o2767, "2767"),
    ("chown to nobody by root", ROOT, None, None, 0o6777, "777"),
    ("chown to nobody by its owner", OWNER, None, None, 0o6777, "777"),
];

/// What is left of a mode that somebody sets on something of the group 1001.
const SET: [(&str, User, u32, &str); 6] = [
    ("its owner, who is in its group", OWNER, 0o6755, "6755"),
    ("its owner, who is in its group", OWNER, 0o1755, "1755"),
    (
        "its owner, who is not in its group",
        User { gid: 1009, ..OWNER },
        0o6755,
        "4755",
    ),
    (
        "its owner, who is not in its group",
        User { gid: 1009, ..OWNER },
        0o2745,
        "745",
    ),
    (
        "its owner, whose supplementary group it is",
        User {
            gid: 1009,
            groups: &[1001],
            ..OWNER
        },
        0o6755,
        "6755",
    ),
    ("root", ROOT, 0o7777, "7777"),
];

pub fn add(cases: &mut Cases) {
    for (what, user, act, before, after) in WRITES {
        cases.add(format!("bits: {what} of {before:o}"), after, move || {
            file_by(OWNER, "x", 0o600)?;
            write(open("x", OFlags::WRONLY)?, b"content")?;
            chmod("x", before)?;
            by(user, act)?;
            mode("x")
        });
    }
    for (what, user, uid, gid, before, after) in GIVEN {
        cases.add(format!("bits: {what} of {before:o}"), after, move || {
            file_by(OWNER, "x", before)?;
            by(user, || chown("x", uid, gid))?;
            mode("x")
        });
    }
    cases.add("bits: chown of a folder keeps them", "7777", || {
        folder_by(OWNER, "x", 0o7777)?;
        chown("x", Some(7), Some(7))?;
        mode("x")
    });
    for (who, user, wanted, left) in SET {
        cases.add(format!("bits: chmod {wanted:o} of a file by {who}"), left, move || {
            file_by(OWNER, "x", 0o644)?;
            by(user, || chmod("x", wanted))?;
            mode("x")
        });
    }
    cases.add(
        "bits: chmod of a folder by its owner, who is not in its group",
        "1755",
        || {
            folder_by(OWNER, "x", 0o755)?;
            as_user(User { gid: 1009, ..OWNER }, || chmod("x", 0o3755))?;
            mode("x")
        },
    );
    cases.add("bits: a file is made with them", "6755", || {
        rustix::process::umask(Mode::empty());
        rustix::fs::open("x", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o6755))?;
        mode("x")
    });
    cases.add(
        "bits: made with set-group-ID in somebody's set-group-ID folder by who is not of its group",
        "755",
        || {
            folder_by(OWNER, "d", 0o2777)?;
            made_by(OTHER)
        },
    );
    cases.add(
        "bits: made with set-group-ID in somebody's set-group-ID folder by who is of its group",
        "2755",
        || {
            folder_by(OWNER, "d", 0o2777)?;
            made_by(MEMBER)
        },
    );
    cases.add("bits: a write through an old descriptor takes new ones", "777", || {
        file_by(OTHER, "x", 0o777)?;
        let file = as_user(OTHER, || open("x", OFlags::WRONLY))?;
        chmod("x", 0o6777)?;
        as_user(OTHER, || write(&file, b"new"))?;
        mode("x")
    });
    cases.add("bits: capabilities of a program go with a write", "ENODATA", || {
        with_capability()?;
        as_user(OTHER, WRITE)?;
        Ok(super::case::said(rustix::fs::getxattr_query("x", CAPABILITY)))
    });
    cases.add(
        "bits: capabilities of a program go with a write of root's",
        "ENODATA",
        || {
            with_capability()?;
            WRITE()?;
            Ok(super::case::said(rustix::fs::getxattr_query("x", CAPABILITY)))
        },
    );
    cases.add(
        "bits: capabilities of a program go with a truncation",
        "ENODATA",
        || {
            with_capability()?;
            as_user(OTHER, TRUNCATE)?;
            Ok(super::case::said(rustix::fs::getxattr_query("x", CAPABILITY)))
        },
    );
    cases.add("bits: capabilities of a program go with a new owner", "ENODATA", || {
        with_capability()?;
        chown("x", Some(7), None)?;
        Ok(super::case::said(rustix::fs::getxattr_query("x", CAPABILITY)))
    });
    cases.add("bits: capabilities of a program stay with a new mode", "ok", || {
        with_capability()?;
        chmod("x", 0o700)?;
        Ok(super::case::said(rustix::fs::getxattr_query("x", CAPABILITY)))
    });
}

const CAPABILITY: &str = "security.capability";

/// A file that anybody may write and that has a capability: `CAP_NET_RAW` permitted (`struct
/// vfs_cap_data`, linux/capability.h).
fn with_capability() -> Did {
    create("x", 0o777)?;
    let mut value = [0; 20];
    value[3] = 2;
    value[5] = 0x20;
    super::case::set_attribute("x", CAPABILITY, &value)
}

fn by(user: User, act: impl FnOnce() -> Did + Send) -> Did {
    if user.uid == 0 { act() } else { as_user(user, act) }
}

fn made_by(user: User) -> Found {
    as_user(user, || {
        rustix::process::umask(Mode::empty());
        rustix::fs::open("d/x", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o2755)).map(drop)
    })?;
    mode("d/x")
}
