//! What every call that takes a path says of one that leads nowhere.

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW};

use super::case::{
    Cases, Did, OTHER, as_user, chmod, chown, file, folder, node, open, said, set_attribute, stat, symlink, truncate,
};

/// A call on a path, beside a file `there` and a folder `folder`.
struct Call {
    name: &'static str,
    make: fn(&str) -> Did,
    /// It makes the path. Else it wants it to be there.
    makes: bool,
    /// What it says of a name with a slash behind it where there is nothing, and where there is a file.
    slash: [&'static str; 2],
}

const fn call(name: &'static str, make: fn(&str) -> Did) -> Call {
    let (makes, slash) = (false, ["ENOENT", "ENOTDIR"]);
    Call {
        name,
        make,
        makes,
        slash,
    }
}

const fn maker(name: &'static str, make: fn(&str) -> Did, slash: [&'static str; 2]) -> Call {
    Call {
        name,
        make,
        makes: true,
        slash,
    }
}

const NOW: Timestamps = {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    Timestamps {
        last_access: now,
        last_modification: now,
    }
};

const CALLS: [Call; 27] = [
    call("open", |path| open(path, OFlags::RDONLY).map(drop)),
    call("open O_PATH", |path| open(path, OFlags::PATH).map(drop)),
    call("open O_DIRECTORY", |path| open(path, OFlags::DIRECTORY).map(drop)),
    maker(
        "open O_CREAT",
        |path| open(path, OFlags::CREATE).map(drop),
        ["EISDIR", "EISDIR"],
    ),
    maker("mkdir", folder, ["ok", "EEXIST"]),
    call("rmdir", |path| rustix::fs::rmdir(path)),
    call("unlink", |path| rustix::fs::unlink(path)),
    call("link from", |path| rustix::fs::link(path, "new")),
    maker("link to", |path| rustix::fs::link("there", path), ["ENOENT", "EEXIST"]),
    maker("symlink", |path| symlink("target", path), ["ENOENT", "EEXIST"]),
    call("rename from", |path| rustix::fs::rename(path, "new")),
    maker(
        "rename to",
        |path| rustix::fs::rename("there", path),
        ["ENOTDIR", "ENOTDIR"],
    ),
    maker(
        "rename a folder to",
        |path| rustix::fs::rename("folder", path),
        ["ok", "ENOTDIR"],
    ),
    call("chmod", |path| chmod(path, 0o700)),
    call("chown", |path| chown(path, Some(0), Some(0))),
    call("lchown", |path| {
        rustix::fs::chownat(CWD, path, None, None, AtFlags::SYMLINK_NOFOLLOW)
    }),
    call("truncate", |path| truncate(path, 0)),
    call("utimensat", |path| {
        rustix::fs::utimensat(CWD, path, &NOW, AtFlags::empty())
    }),
    maker("mkfifo", |path| node(path, FileType::Fifo, 0), ["ENOENT", "EEXIST"]),
    maker(
        "mknod",
        |path| node(path, FileType::RegularFile, 0),
        ["ENOENT", "EEXIST"],
    ),
    call("access", |path| rustix::fs::access(path, Access::EXISTS)),
    call("lstat", |path| stat(path).map(drop)),
    call("statx", |path| {
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).map(drop)
    }),
    call("statfs", |path| rustix::fs::statfs(path).map(drop)),
    call("getxattr", |path| {
        rustix::fs::getxattr_query(path, "user.none").map(drop)
    }),
    call("setxattr", |path| set_attribute(path, "user.some", b"value")),
    call("chdir", |path| rustix::process::chdir(path)),
];

/// A path that cannot be walked, and why.
struct Fault {
    name: &'static str,
    path: fn() -> String,
    answer: &'static str,
}

const FAULTS: [Fault; 7] = [
    Fault {
        name: "below nothing",
        path: || "absent/x".into(),
        answer: "ENOENT",
    },
    Fault {
        name: "below a file",
        path: || "there/x".into(),
        answer: "ENOTDIR",
    },
    Fault {
        name: "below a link to a file",
        path: || "to-file/x".into(),
        answer: "ENOTDIR",
    },
    Fault {
        name: "below a link to nothing",
        path: || "to-nothing/x".into(),
        answer: "ENOENT",
    },
    Fault {
        name: "below a link to itself",
        path: || "loop/x".into(),
        answer: "ELOOP",
    },
    Fault {
        name: "a name of 256 bytes",
        path: || "n".repeat(256),
        answer: "ENAMETOOLONG",
    },
    Fault {
        name: "below a name of 256 bytes",
        path: || format!("{}/x", "n".repeat(256)),
        answer: "ENAMETOOLONG",
    },
];

fn prepare() -> Did {
    file("there")?;
    folder("folder")?;
    symlink("there", "to-file")?;
    symlink("absent", "to-nothing")?;
    symlink("loop", "loop")
}

pub fn add(cases: &mut Cases) {
    for call in &CALLS {
        let make = call.make;
        for fault in &FAULTS {
            cases.add(format!("{}: {}", call.name, fault.name), fault.answer, move || {
                prepare()?;
                Ok(said(make(&(fault.path)())))
            });
        }
        cases.add(
            format!("{}: below a folder that he may not search", call.name),
            "EACCES",
            move || {
                prepare()?;
                file("folder/x")?;
                chmod("folder", 0o766)?;
                Ok(said(as_user(OTHER, || make("folder/x"))))
            },
        );
        let [absent, present] = call.slash;
        cases.add(format!("{}: a slash behind nothing", call.name), absent, move || {
            prepare()?;
            Ok(said(make("x/")))
        });
        cases.add(format!("{}: a slash behind a file", call.name), present, move || {
            prepare()?;
            file("x")?;
            Ok(said(make("x/")))
        });
        if call.makes {
            cases.add(format!("{}: a name of 255 bytes", call.name), "ok", move || {
                prepare()?;
                Ok(said(make(&"n".repeat(255))))
            });
        } else {
            cases.add(
                format!("{}: a name that is not there", call.name),
                "ENOENT",
                move || {
                    prepare()?;
                    Ok(said(make("x")))
                },
            );
        }
    }
    for (name, bytes) in [
        ("a quote and a line end", "a'\n\"b"),
        ("dots and dashes", "..."),
        ("letters of many bytes", "größe-ß-漢字-🦀"),
    ] {
        cases.add(format!("names: {name}"), bytes, move || {
            file(bytes)?;
            super::case::names(".")
        });
    }
    cases.add("names: any byte but two", "254", || {
        for byte in 1..=255_u8 {
            if byte != b'/' && byte != b'.' {
                let name = [b'n', byte];
                rustix::fs::open(&name[..], OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644))?;
            }
        }
        let count = rustix::fs::Dir::new(open(".", OFlags::DIRECTORY)?)?.count();
        // Itself and its parent, and none for `/` and `.`.
        Ok((count - 2 + 1).to_string())
    });
    cases.add("paths: forty folders deep", "forty", || {
        let mut path = String::from("d");
        for _ in 0..40 {
            folder(&path)?;
            path.push_str("/d");
        }
        super::case::file_of(&path, b"forty")?;
        super::case::content(&path)
    });
    cases.add("paths: a chain of forty links", "ok", || chain(40));
    cases.add("paths: a chain of forty-one links", "ELOOP", || chain(41));
}

/// Whether a file is found behind as many links.
fn chain(links: usize) -> super::case::Found {
    file("0")?;
    for link in 1..=links {
        symlink(&(link - 1).to_string(), &link.to_string())?;
    }
    Ok(said(open(&links.to_string(), OFlags::RDONLY)))
}
