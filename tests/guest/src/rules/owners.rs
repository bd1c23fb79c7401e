//! Who may change owner, group, mode and times, and whose new things are.

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::case::{
    Act, Cases, Did, MEMBER, OTHER, OWNER, SUPPLEMENTARY, User, as_user, chmod, chown, file, file_by, folder,
    folder_by, node, open, owner, said, symlink,
};

/// An owner who is in another group as well.
const IN_TWO: User = User {
    groups: &[2001],
    ..OWNER
};

type Row = (&'static str, User, Option<u32>, Option<u32>, &'static str, &'static str);

/// A call of chown on a file 1001:1001 with the mode 0644; what it answers, and whose the file is then.
const CHOWN: [Row; 12] = [
    (
        "the owner gives it away",
        OWNER,
        Some(1004),
        None,
        "EPERM",
        "1001:1001 644",
    ),
    (
        "the owner gives it to himself",
        OWNER,
        Some(1001),
        None,
        "ok",
        "1001:1001 644",
    ),
    (
        "the owner gives his own group",
        OWNER,
        None,
        Some(1001),
        "ok",
        "1001:1001 644",
    ),
    (
        "the owner gives a group that he is in",
        IN_TWO,
        None,
        Some(2001),
        "ok",
        "1001:2001 644",
    ),
    (
        "the owner gives a group that he is in, and himself",
        IN_TWO,
        Some(1001),
        Some(2001),
        "ok",
        "1001:2001 644",
    ),
    (
        "the owner gives a group that he is not in",
        OWNER,
        None,
        Some(2001),
        "EPERM",
        "1001:1001 644",
    ),
    (
        "the owner gives it away with a group that he is in",
        IN_TWO,
        Some(1004),
        Some(2001),
        "EPERM",
        "1001:1001 644",
    ),
    (
        "a member of its group takes it",
        MEMBER,
        Some(1002),
        None,
        "EPERM",
        "1001:1001 644",
    ),
    (
        "a member gives its own group",
        MEMBER,
        None,
        Some(1001),
        "EPERM",
        "1001:1001 644",
    ),
    (
        "another takes it",
        OTHER,
        Some(1004),
        Some(1004),
        "EPERM",
        "1001:1001 644",
    ),
    ("another changes nothing", OTHER, None, None, "ok", "1001:1001 644"),
    (
        "a supplementary member gives his group",
        SUPPLEMENTARY,
        None,
        Some(1003),
        "EPERM",
        "1001:1001 644",
    ),
];

fn stamps(access: (i64, i64), modification: (i64, i64)) -> Timestamps {
    let stamp = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: stamp(access),
        last_modification: stamp(modification),
    }
}

fn utimens(access: (i64, i64), modification: (i64, i64)) -> Did {
    rustix::fs::utimensat(CWD, "x", &stamps(access, modification), AtFlags::empty())
}

const NOW: (i64, i64) = (0, UTIME_NOW);
const OMIT: (i64, i64) = (0, UTIME_OMIT);
const THEN: (i64, i64) = (1000, 5);

type Stamps = (&'static str, [(i64, i64); 2], [&'static str; 3]);

/// What is set by utimensat on a file with the mode 0642, and what the owner, a member of the
/// group, who may read, and another, who may write, are answered.
const UTIMENS: [Stamps; 5] = [
    ("both to now", [NOW, NOW], ["ok", "EACCES", "ok"]),
    ("both to a time", [THEN, THEN], ["ok", "EPERM", "EPERM"]),
    ("one to now", [NOW, OMIT], ["ok", "EPERM", "EPERM"]),
    ("one to a time", [OMIT, THEN], ["ok", "EPERM", "EPERM"]),
    ("none", [OMIT, OMIT], ["ok", "ok", "ok"]),
];

pub fn add(cases: &mut Cases) {
    for (name, user, uid, gid, answer, after) in CHOWN {
        cases.add(format!("chown: {name}"), format!("{answer}, {after}"), move || {
            file_by(OWNER, "x", 0o644)?;
            let answer = said(as_user(user, || chown("x", uid, gid)));
            Ok(format!("{answer}, {}", owner("x")?))
        });
    }
    for (name, [access, modification], answers) in UTIMENS {
        for ((who, user), answer) in [("the owner", OWNER), ("a reader", MEMBER), ("a writer", OTHER)]
            .into_iter()
            .zip(answers)
        {
            cases.add(format!("utimensat: {name}, by {who}"), answer, move || {
                file_by(OWNER, "x", 0o642)?;
                Ok(said(as_user(user, || utimens(access, modification))))
            });
        }
    }
    for (who, user, answer) in [
        ("the owner", OWNER, "ok"),
        ("a member of its group", MEMBER, "EPERM"),
        ("another", OTHER, "EPERM"),
    ] {
        cases.add(format!("chmod: by {who}"), answer, move || {
            file_by(OWNER, "x", 0o666)?;
            Ok(said(as_user(user, || chmod("x", 0o600))))
        });
        cases.add(format!("fchmod: by {who}, who has it open"), answer, move || {
            file_by(OWNER, "x", 0o666)?;
            Ok(said(as_user(user, || {
                let file = open("x", OFlags::RDWR)?;
                rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o600))
            })))
        });
    }
    cases.add("chown: root gives owner and group", "7:8 644", || {
        file("x")?;
        chown("x", Some(7), Some(8))?;
        owner("x")
    });
    cases.add("chown: of a large number", "4294967294:4000000000 644", || {
        file("x")?;
        chown("x", Some(u32::MAX - 1), Some(4_000_000_000))?;
        owner("x")
    });
    cases.add(
        "chown: through a link gives what it names",
        "link 0:0, target 7:7",
        || {
            file("target")?;
            symlink("target", "x")?;
            chown("x", Some(7), Some(7))?;
            owners_of_link()
        },
    );
    cases.add("lchown: gives the link", "link 7:7, target 0:0", || {
        file("target")?;
        symlink("target", "x")?;
        let seven = (rustix::fs::Uid::from_raw(7), rustix::fs::Gid::from_raw(7));
        rustix::fs::chownat(CWD, "x", Some(seven.0), Some(seven.1), AtFlags::SYMLINK_NOFOLLOW)?;
        owners_of_link()
    });
    let makers: [Act; 5] = [
        ("a file", || file("d/x")),
        ("a folder", || folder("d/x")),
        ("a link", || symlink("nothing", "d/x")),
        ("a pipe", || node("d/x", FileType::Fifo, 0)),
        ("a socket", || node("d/x", FileType::Socket, 0)),
    ];
    for (what, make) in makers {
        cases.add(
            format!("new: {what} is its maker's and his group's"),
            "1003:1003",
            move || {
                folder_by(OWNER, "d", 0o777)?;
                as_user(SUPPLEMENTARY, make)?;
                ids("d/x")
            },
        );
        cases.add(
            format!("new: {what} in a folder with the set-group-ID bit is of the folder's group"),
            "1004:1001",
            move || {
                folder_by(OWNER, "d", 0o2777)?;
                as_user(OTHER, make)?;
                ids("d/x")
            },
        );
    }
    cases.add(
        "new: a folder in one with the set-group-ID bit has the bit",
        "2755",
        || {
            folder_by(OWNER, "d", 0o2777)?;
            as_user(OTHER, || folder("d/x"))?;
            super::case::mode("d/x")
        },
    );
    cases.add("new: a file in one with the set-group-ID bit has it not", "644", || {
        folder_by(OWNER, "d", 0o2777)?;
        as_user(OTHER, || file("d/x"))?;
        super::case::mode("d/x")
    });
}

fn ids(path: &str) -> super::case::Found {
    let stat = super::case::stat(path)?;
    Ok(format!("{}:{}", stat.st_uid, stat.st_gid))
}

fn owners_of_link() -> super::case::Found {
    Ok(format!("link {}, target {}", ids("x")?, ids("target")?))
}
