//! Who may read, write, search and remove: by each class of a mode, and in folders with the sticky bit.

use rustix::fs::{Access, AtFlags, CWD, OFlags};

use super::case::{
    Act, Cases, Did, MEMBER, OTHER, OWNER, SUPPLEMENTARY, User, as_user, create, file_by, folder_by, give, names, open,
    said, stat, truncate,
};

const CLASSES: [(&str, User, u32); 4] = [
    ("the owner", OWNER, 6),
    ("a member of the group", MEMBER, 3),
    ("somebody with the group as a supplementary one", SUPPLEMENTARY, 3),
    ("another", OTHER, 0),
];

const READ: u32 = 4;
const WRITE: u32 = 2;
const SEARCH: u32 = 1;

/// A call that takes a right of the file `x` itself.
type OnFile = (&'static str, u32, fn() -> Did);

const ON_FILES: [OnFile; 6] = [
    ("open to read", READ, || open("x", OFlags::RDONLY).map(drop)),
    ("open to write", WRITE, || open("x", OFlags::WRONLY).map(drop)),
    ("truncate", WRITE, || truncate("x", 0)),
    ("access R_OK", READ, || rustix::fs::access("x", Access::READ_OK)),
    ("access W_OK", WRITE, || rustix::fs::access("x", Access::WRITE_OK)),
    ("access X_OK", SEARCH, || rustix::fs::access("x", Access::EXEC_OK)),
];

/// A call that takes rights of the folder `d`, which has a file `x` of the caller's.
type InFolder = (&'static str, u32, fn() -> Did);

const IN_FOLDERS: [InFolder; 8] = [
    ("list", READ, || names("d").map(drop)),
    ("find a name in", SEARCH, || stat("d/x").map(drop)),
    ("make a file in", WRITE | SEARCH, || super::case::file("d/new")),
    ("make a folder in", WRITE | SEARCH, || super::case::folder("d/new")),
    ("link in", WRITE | SEARCH, || rustix::fs::link("mine", "d/new")),
    ("unlink in", WRITE | SEARCH, || rustix::fs::unlink("d/x")),
    ("rename out of", WRITE | SEARCH, || rustix::fs::rename("d/x", "new")),
    ("rename into", WRITE | SEARCH, || rustix::fs::rename("mine", "d/new")),
];

pub fn add(cases: &mut Cases) {
    for (who, user, shift) in CLASSES {
        for (what, right, act) in ON_FILES {
            // Its own class decides, whatever the others may.
            for (given, answer, mode) in [
                ("granted", "ok", right << shift),
                ("denied", "EACCES", 0o777 & !(right << shift)),
            ] {
                cases.add(format!("{what}: {given} to {who}"), answer, move || {
                    file_by(OWNER, "x", mode)?;
                    Ok(said(as_user(user, act)))
                });
            }
        }
        for (what, right, act) in IN_FOLDERS {
            for (given, answer, mode) in [
                ("granted", "ok", right << shift),
                ("denied", "EACCES", 0o777 & !(right << shift)),
            ] {
                cases.add(format!("{what} a folder: {given} to {who}"), answer, move || {
                    give(user, ".", 0o777)?;
                    folder_by(OWNER, "d", 0o755)?;
                    file_by(user, "d/x", 0o644)?;
                    file_by(user, "mine", 0o644)?;
                    super::case::chmod("d", mode)?;
                    Ok(said(as_user(user, act)))
                });
            }
        }
    }
    root(cases);
    sticky(cases);
    cases.add("open: a descriptor keeps what its mode lost", "read", || {
        file_by(OWNER, "x", 0o600)?;
        as_user(OWNER, || {
            let file = open("x", OFlags::RDWR)?;
            super::case::write(&file, b"read")?;
            super::case::chmod("x", 0)?;
            super::case::text(file)
        })
    });
    cases.add("open: a new mode counts for the next to open", "EACCES ok", || {
        file_by(OWNER, "x", 0o600)?;
        let before = said(as_user(OTHER, || open("x", OFlags::RDONLY)));
        super::case::chmod("x", 0o604)?;
        Ok(format!(
            "{before} {}",
            said(as_user(OTHER, || open("x", OFlags::RDONLY)))
        ))
    });
    cases.add("unlink: a file that he may not read, in his own folder", "ok", || {
        folder_by(OWNER, "d", 0o755)?;
        file_by(OTHER, "d/x", 0o600)?;
        Ok(said(as_user(OWNER, || rustix::fs::unlink("d/x"))))
    });
    cases.add("rmdir: somebody's folder in his own", "ok", || {
        folder_by(OWNER, "d", 0o755)?;
        folder_by(OTHER, "d/x", 0o700)?;
        Ok(said(as_user(OWNER, || rustix::fs::rmdir("d/x"))))
    });
    cases.add(
        "rename: somebody's folder, whose `..` changes, takes a right to write it",
        "EACCES",
        || {
            folder_by(OWNER, "d", 0o755)?;
            folder_by(OWNER, "e", 0o755)?;
            folder_by(OTHER, "d/x", 0o755)?;
            Ok(said(as_user(OWNER, || rustix::fs::rename("d/x", "e/x"))))
        },
    );
    cases.add("mknod: a device is root's to make", "EPERM", || {
        folder_by(OWNER, "d", 0o755)?;
        let zero = rustix::fs::makedev(1, 5);
        Ok(said(as_user(OWNER, || {
            super::case::node("d/x", rustix::fs::FileType::CharacterDevice, zero)
        })))
    });
    cases.add("mknod: a pipe is anybody's to make", "ok", || {
        folder_by(OWNER, "d", 0o755)?;
        Ok(said(as_user(OWNER, || {
            super::case::node("d/x", rustix::fs::FileType::Fifo, 0)
        })))
    });
}

fn root(cases: &mut Cases) {
    cases.add("root: opens what nobody may", "ok ok", || {
        file_by(OWNER, "x", 0)?;
        Ok(format!("{} {}", said(open("x", OFlags::RDWR)), said(truncate("x", 1))))
    });
    cases.add("root: searches and lists what nobody may", "ok ok", || {
        folder_by(OWNER, "d", 0)?;
        Ok(format!("{} {}", said(super::case::file("d/x")), said(names("d"))))
    });
    for (mode, answer) in [(0o666, "EACCES"), (0o601, "ok"), (0o610, "ok")] {
        cases.add(
            format!("root: access X_OK of a file with the mode {mode:o}"),
            answer,
            move || {
                create("x", mode)?;
                Ok(said(rustix::fs::access("x", Access::EXEC_OK)))
            },
        );
    }
    cases.add("access: of the effective user", "EACCES ok", || {
        file_by(OWNER, "x", 0o600)?;
        let asked = |user| {
            said(as_user(user, || {
                rustix::fs::accessat(CWD, "x", Access::READ_OK, AtFlags::EACCESS)
            }))
        };
        Ok(format!("{} {}", asked(OTHER), asked(OWNER)))
    });
}

fn sticky(cases: &mut Cases) {
    let acts: [Act; 3] = [
        ("unlink", || rustix::fs::unlink("d/x")),
        ("rename", || rustix::fs::rename("d/x", "d/y")),
        ("rename onto", || rustix::fs::rename("d/z", "d/x")),
    ];
    for (folder_of, holder) in [("his own", OWNER), ("somebody's", OTHER)] {
        for (file_of, file_owner) in [("his own", OWNER), ("somebody's", MEMBER)] {
            for (what, act) in acts {
                let answer = if folder_of == "his own" || file_of == "his own" {
                    "ok"
                } else {
                    "EPERM"
                };
                cases.add(
                    format!("sticky: {what} {file_of} file in {folder_of} folder"),
                    answer,
                    move || {
                        folder_by(holder, "d", 0o1777)?;
                        file_by(file_owner, "d/x", 0o666)?;
                        file_by(OWNER, "d/z", 0o666)?;
                        Ok(said(as_user(OWNER, act)))
                    },
                );
            }
        }
    }
    cases.add("sticky: rmdir of somebody's folder in somebody's", "EPERM", || {
        folder_by(OTHER, "d", 0o1777)?;
        folder_by(MEMBER, "d/x", 0o777)?;
        Ok(said(as_user(OWNER, || rustix::fs::rmdir("d/x"))))
    });
    cases.add("sticky: anybody may write a file that he may write", "ok", || {
        folder_by(OTHER, "d", 0o1777)?;
        file_by(MEMBER, "d/x", 0o666)?;
        Ok(said(as_user(OWNER, || open("d/x", OFlags::WRONLY))))
    });
    cases.add("sticky: root may remove anything", "ok", || {
        folder_by(OTHER, "d", 0o1777)?;
        file_by(MEMBER, "d/x", 0o666)?;
        Ok(said(rustix::fs::unlink("d/x")))
    });
}
