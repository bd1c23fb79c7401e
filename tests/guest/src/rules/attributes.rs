//! Extended attributes, and access control lists, which are two of them.

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::case::{
    Cases, Did, Found, MEMBER, OTHER, OWNER, SUPPLEMENTARY, User, as_user, attribute, chmod, file, file_by, folder,
    folder_by, mode, node, open, said, set_attribute, symlink,
};

fn set(name: &str, value: &[u8], flags: XattrFlags) -> Did {
    rustix::fs::setxattr("x", name, value, flags)
}

/// The names of the attributes of `x` that users give.
fn names() -> Found {
    let mut bytes = [0; 4096];
    let count = rustix::fs::listxattr("x", &mut bytes[..])?;
    let mut names: Vec<_> = bytes
        .get(..count)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .filter(|name| name.starts_with("user."))
        .collect();
    names.sort();
    Ok(names.join(" "))
}

pub fn add(cases: &mut Cases) {
    cases.add("xattr: set and read", "value", || {
        file("x")?;
        set("user.a", b"value", XattrFlags::empty())?;
        attribute("x", "user.a")
    });
    cases.add("xattr: empty", "there: ''", || {
        file("x")?;
        set("user.a", b"", XattrFlags::empty())?;
        Ok(format!("there: '{}'", attribute("x", "user.a")?))
    });
    cases.add("xattr: replaced", "longer than before", || {
        file("x")?;
        set("user.a", b"short", XattrFlags::empty())?;
        set("user.a", b"longer than before", XattrFlags::empty())?;
        attribute("x", "user.a")
    });
    cases.add("xattr: listed", "user.a user.b", || {
        file("x")?;
        set("user.b", b"1", XattrFlags::empty())?;
        set("user.a", b"2", XattrFlags::empty())?;
        names()
    });
    cases.add("xattr: removed", "ok user.b", || {
        file("x")?;
        set("user.a", b"1", XattrFlags::empty())?;
        set("user.b", b"1", XattrFlags::empty())?;
        Ok(format!("{} {}", said(rustix::fs::removexattr("x", "user.a")), names()?))
    });
    for (name, there, flags, answer) in [
        ("CREATE of a new one", false, XattrFlags::CREATE, "ok"),
        ("CREATE of one that is there", true, XattrFlags::CREATE, "EEXIST"),
        ("REPLACE of one that is there", true, XattrFlags::REPLACE, "ok"),
        ("REPLACE of none", false, XattrFlags::REPLACE, "ENODATA"),
    ] {
        cases.add(format!("xattr: {name}"), answer, move || {
            file("x")?;
            if there {
                set("user.a", b"1", XattrFlags::empty())?;
            }
            Ok(said(set("user.a", b"2", flags)))
        });
    }
    cases.add("xattr: one that is not there", "ENODATA ENODATA", || {
        file("x")?;
        Ok(format!(
            "{} {}",
            said(attribute("x", "user.a")),
            said(rustix::fs::removexattr("x", "user.a"))
        ))
    });
    cases.add("xattr: asked for its length", "5 5", || {
        file("x")?;
        set("user.a", b"value", XattrFlags::empty())?;
        Ok(format!(
            "{} {}",
            rustix::fs::getxattr_query("x", "user.a")?,
            attribute("x", "user.a")?.len()
        ))
    });
    cases.add("xattr: too short a buffer", "ERANGE", || {
        file("x")?;
        set("user.a", b"value", XattrFlags::empty())?;
        Ok(said(rustix::fs::getxattr("x", "user.a", &mut [0; 4][..])))
    });
    cases.add("xattr: too short a buffer for the names", "ERANGE", || {
        file("x")?;
        set("user.a", b"value", XattrFlags::empty())?;
        Ok(said(rustix::fs::listxattr("x", &mut [0; 4][..])))
    });
    for (name, rule) in [
        ("system.none".to_string(), "EOPNOTSUPP"),
        ("none.a".into(), "EOPNOTSUPP"),
        ("none".into(), "EOPNOTSUPP"),
        ("user.".into(), "EINVAL"),
        (String::new(), "ERANGE"),
        (format!("user.{}", "n".repeat(250)), "ok"),
        (format!("user.{}", "n".repeat(251)), "ERANGE"),
    ] {
        let shown = if name.len() > 20 {
            format!("{} bytes", name.len())
        } else {
            format!("'{name}'")
        };
        cases.add(format!("xattr: the name of {shown}"), rule, move || {
            file("x")?;
            Ok(said(set(&name, b"value", XattrFlags::empty())))
        });
    }
    cases.add("xattr: more than 64 KiB", "E2BIG", || {
        file("x")?;
        Ok(said(set("user.a", &[1; 65537], XattrFlags::empty())))
    });
    cases.add("xattr: of a folder", "value", || {
        folder("x")?;
        set_attribute("x", "user.a", b"value")?;
        attribute("x", "user.a")
    });
    cases.add("xattr: by a descriptor, of a file without a name", "value", || {
        let file = super::case::create("x", 0o644)?;
        rustix::fs::unlink("x")?;
        rustix::fs::fsetxattr(&file, "user.a", b"value", XattrFlags::empty())?;
        let mut value = [0; 16];
        let count = rustix::fs::fgetxattr(&file, "user.a", &mut value[..])?;
        Ok(String::from_utf8_lossy(value.get(..count).unwrap_or_default()).into_owned())
    });
    cases.add("xattr: a user's of a link", "EPERM", || {
        symlink("nothing", "x")?;
        Ok(said(set_attribute("x", "user.a", b"value")))
    });
    cases.add("xattr: a user's of a pipe", "EPERM", || {
        node("x", rustix::fs::FileType::Fifo, 0)?;
        Ok(said(set_attribute("x", "user.a", b"value")))
    });
    cases.add("xattr: root's of a link", "value", || {
        symlink("nothing", "x")?;
        set_attribute("x", "trusted.a", b"value")?;
        attribute("x", "trusted.a")
    });
    cases.add("xattr: root's is not for users", "EPERM ENODATA", || {
        super::case::create("x", 0o666)?;
        set_attribute("x", "trusted.a", b"value")?;
        let set = said(as_user(OTHER, || set_attribute("x", "trusted.a", b"other")));
        Ok(format!(
            "{set} {}",
            said(as_user(OTHER, || attribute("x", "trusted.a")))
        ))
    });
    for (what, mode, set, read) in [
        ("he may write and read", 0o666, "ok", "ok"),
        ("he may read", 0o644, "EACCES", "ok"),
        ("he may write", 0o622, "ok", "EACCES"),
    ] {
        cases.add(
            format!("xattr: of a file that {what}"),
            format!("{set} {read}"),
            move || {
                super::case::create("x", mode)?;
                set_attribute("x", "user.a", b"value")?;
                let set = said(as_user(OTHER, || set_attribute("x", "user.a", b"other")));
                Ok(format!("{set} {}", said(as_user(OTHER, || attribute("x", "user.a")))))
            },
        );
    }
    cases.add("xattr: of somebody's sticky folder", "EPERM", || {
        folder_by(OWNER, "x", 0o1777)?;
        Ok(said(as_user(OTHER, || set_attribute("x", "user.a", b"other"))))
    });
    cases.add("xattr: stays with the file", "value", || {
        file("x")?;
        set_attribute("x", "user.a", b"value")?;
        rustix::fs::rename("x", "y")?;
        rustix::fs::link("y", "z")?;
        attribute("z", "user.a")
    });
    lists(cases);
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// Who an entry of a list is for (linux/posix_acl.h).
const OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const REST: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

type Entry = (u16, u16, u32);

/// A list as attributes have it: the version 2, then the entries (linux/posix_acl_xattr.h).
fn list(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// The list in an attribute, as text.
fn listed(path: &str, attribute: &str) -> Found {
    let mut value = [0; 512];
    let count = match rustix::fs::getxattr(path, attribute, &mut value[..]) {
        Err(errno) => return Ok(super::case::name(errno)),
        count => count?,
    };
    let entries = value.get(4..count).unwrap_or_default().chunks_exact(8);
    let words: Vec<_> = entries
        .map(|entry| {
            let half = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let who = match half(0) {
                OBJ => "u".into(),
                USER => format!("u{id}"),
                GROUP_OBJ => "g".into(),
                GROUP => format!("g{id}"),
                MASK => "m".into(),
                _ => "o".into(),
            };
            format!("{who}={}", half(2))
        })
        .collect();
    Ok(words.join(" "))
}

/// Nobody's but the owner's, with an entry for each of a user and a group.
const NAMED: [Entry; 6] = [
    (OBJ, 6, NOBODY),
    (USER, 4, 1002),
    (GROUP_OBJ, 0, NOBODY),
    (GROUP, 4, 1003),
    (MASK, 6, NOBODY),
    (REST, 0, NOBODY),
];

fn lists(cases: &mut Cases) {
    cases.add(
        "ACL: is the mode's group bits by its mask",
        "u=6 u1002=4 g=0 g1003=4 m=6 o=0, 660",
        || {
            file("x")?;
            set_attribute("x", ACCESS, &list(&NAMED))?;
            Ok(format!("{}, {}", listed("x", ACCESS)?, mode("x")?))
        },
    );
    let users: [(&str, User, &str, &str); 5] = [
        ("its owner", OWNER, "ok", "ok"),
        (
            "a user of it",
            User {
                uid: 1002,
                gid: 1002,
                groups: &[],
            },
            "ok",
            "EACCES",
        ),
        (
            "a member of a group of it",
            User {
                uid: 1005,
                ..SUPPLEMENTARY
            },
            "ok",
            "EACCES",
        ),
        (
            "a member of the file's group",
            User { uid: 1005, ..MEMBER },
            "EACCES",
            "EACCES",
        ),
        ("another", OTHER, "EACCES", "EACCES"),
    ];
    for (who, user, read, write) in users {
        cases.add(
            format!("ACL: {who} reads and writes"),
            format!("{read} {write}"),
            move || {
                file_by(OWNER, "x", 0o600)?;
                set_attribute("x", ACCESS, &list(&NAMED))?;
                let opened = |flags| said(as_user(user, || open("x", flags)));
                Ok(format!("{} {}", opened(OFlags::RDONLY), opened(OFlags::WRONLY)))
            },
        );
    }
    cases.add("ACL: the mask bounds a user of it", "EACCES", || {
        file_by(OWNER, "x", 0o600)?;
        let mut entries = NAMED;
        entries[4].1 = 2;
        set_attribute("x", ACCESS, &list(&entries))?;
        Ok(said(as_user(
            User {
                uid: 1002,
                gid: 1002,
                groups: &[],
            },
            || open("x", OFlags::RDONLY),
        )))
    });
    cases.add("ACL: chmod changes the mask", "u=6 u1002=4 g=0 g1003=4 m=4 o=4", || {
        file("x")?;
        set_attribute("x", ACCESS, &list(&NAMED))?;
        chmod("x", 0o644)?;
        listed("x", ACCESS)
    });
    cases.add(
        "ACL: one that says no more than a mode is a mode",
        "ENODATA 640",
        || {
            file("x")?;
            set_attribute(
                "x",
                ACCESS,
                &list(&[(OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (REST, 0, NOBODY)]),
            )?;
            Ok(format!("{} {}", listed("x", ACCESS)?, mode("x")?))
        },
    );
    cases.add("ACL: removed", "ok ENODATA", || {
        file("x")?;
        set_attribute("x", ACCESS, &list(&NAMED))?;
        Ok(format!(
            "{} {}",
            said(rustix::fs::removexattr("x", ACCESS)),
            listed("x", ACCESS)?
        ))
    });
    cases.add("ACL: set by who does not own the file", "EPERM", || {
        file_by(OWNER, "x", 0o666)?;
        Ok(said(as_user(OTHER, || set_attribute("x", ACCESS, &list(&NAMED)))))
    });
    cases.add("ACL: read by anybody", "ok", || {
        file_by(OWNER, "x", 0o600)?;
        set_attribute("x", ACCESS, &list(&NAMED))?;
        Ok(said(as_user(OTHER, || rustix::fs::getxattr_query("x", ACCESS))))
    });
    let broken: [(&str, Vec<u8>); 4] = [
        ("cut short", list(&NAMED)[..30].to_vec()),
        (
            "of another version",
            [&1_u32.to_le_bytes()[..], &list(&NAMED)[4..]].concat(),
        ),
        ("without the owner", list(&NAMED[1..])),
        (
            "with a user and no mask",
            list(&[
                (OBJ, 6, NOBODY),
                (USER, 4, 1002),
                (GROUP_OBJ, 0, NOBODY),
                (REST, 0, NOBODY),
            ]),
        ),
    ];
    for (what, value) in broken {
        let rule = if what == "of another version" {
            "EOPNOTSUPP"
        } else {
            "EINVAL"
        };
        cases.add(format!("ACL: {what}"), rule, move || {
            file("x")?;
            Ok(said(set_attribute("x", ACCESS, &value)))
        });
    }
    cases.add("ACL: a default one of a file", "EACCES", || {
        file("x")?;
        Ok(said(set_attribute("x", DEFAULT, &list(&NAMED))))
    });
    cases.add("ACL: of a link", "EOPNOTSUPP", || {
        symlink("nothing", "x")?;
        Ok(said(set_attribute("x", ACCESS, &list(&NAMED))))
    });
    let inherits = |make: fn() -> Did, what: fn() -> Found| {
        move || {
            folder("d")?;
            set_attribute("d", DEFAULT, &list(&NAMED))?;
            make()?;
            what()
        }
    };
    cases.add(
        "ACL: a new file has its folder's default, and not the umask",
        "u=6 u1002=4 g=0 g1003=4 m=6 o=0, 660",
        inherits(
            || {
                rustix::fs::open(
                    "d/x",
                    OFlags::CREATE | OFlags::WRONLY,
                    rustix::fs::Mode::from_raw_mode(0o666),
                )
                .map(drop)
            },
            || Ok(format!("{}, {}", listed("d/x", ACCESS)?, mode("d/x")?)),
        ),
    );
    cases.add(
        "ACL: a new file's mode bounds its list",
        "u=6 u1002=4 g=0 g1003=4 m=0 o=0, 600",
        inherits(
            || {
                rustix::fs::open(
                    "d/x",
                    OFlags::CREATE | OFlags::WRONLY,
                    rustix::fs::Mode::from_raw_mode(0o600),
                )
                .map(drop)
            },
            || Ok(format!("{}, {}", listed("d/x", ACCESS)?, mode("d/x")?)),
        ),
    );
    cases.add(
        "ACL: a new folder has the default as its own default",
        "u=6 u1002=4 g=0 g1003=4 m=6 o=0",
        inherits(|| folder("d/x"), || listed("d/x", DEFAULT)),
    );
    cases.add(
        "ACL: a new pipe has the list",
        "u=6 u1002=4 g=0 g1003=4 m=4 o=0",
        inherits(|| node("d/x", rustix::fs::FileType::Fifo, 0), || listed("d/x", ACCESS)),
    );
    cases.add(
        "ACL: a new link has none",
        "777",
        inherits(|| symlink("nothing", "d/x"), || mode("d/x")),
    );
    cases.add("ACL: a renamed file keeps its own", "ENODATA", || {
        folder("d")?;
        set_attribute("d", DEFAULT, &list(&NAMED))?;
        file("x")?;
        rustix::fs::rename("x", "d/x")?;
        listed("d/x", ACCESS)
    });
    cases.add(
        "ACL: set-group-ID goes as a member sets one who is not in the group",
        "660",
        || {
            file_by(OWNER, "x", 0o2660)?;
            as_user(User { gid: 1009, ..OWNER }, || {
                set_attribute("x", ACCESS, &list(&NAMED))
            })?;
            mode("x")
        },
    );
    cases.add("ACL: names are listed with the others", "there", || {
        file("x")?;
        set_attribute("x", ACCESS, &list(&NAMED))?;
        let mut bytes = [0; 4096];
        let count = rustix::fs::listxattr("x", &mut bytes[..])?;
        let names = bytes.get(..count).ok_or(Errno::IO)?;
        let there = names.split(|byte| *byte == 0).any(|name| name == ACCESS.as_bytes());
        Ok(if there { "there" } else { "not there" }.into())
    });
}
