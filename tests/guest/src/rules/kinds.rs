//! What calls say of a thing that is there and is of the wrong kind, or of the right one.

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::case::{
    Act, Cases, Did, Found, chmod, edit, file, file_of, folder, kind, name, names, node, open, said, stat, symlink,
    truncate,
};

/// Things that a call may find at `x`.
const THINGS: [Act; 8] = [
    ("nothing", || Ok(())),
    ("a file", || file_of("x", b"content")),
    ("an empty folder", || folder("x")),
    ("a folder with a file", || {
        folder("x")?;
        file("x/inner")
    }),
    ("a link to a file", || {
        file_of("target", b"content")?;
        symlink("target", "x")
    }),
    ("a link to a folder", || {
        folder("target")?;
        symlink("target", "x")
    }),
    ("a link to nothing", || symlink("target", "x")),
    ("a pipe", || node("x", FileType::Fifo, 0)),
];

/// A call on `x`, and what it says of each of [`THINGS`].
type Row = (&'static str, fn() -> Did, [&'static str; 8]);

const ENOENT: &str = "ENOENT";
const EEXIST: &str = "EEXIST";
const ENOTDIR: &str = "ENOTDIR";
const OK: &str = "ok";

fn opened(flags: OFlags) -> Did {
    open("x", flags).map(drop)
}

const ROWS: [Row; 17] = [
    (
        "mkdir",
        || folder("x"),
        [OK, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST],
    ),
    (
        "mkfifo",
        || node("x", FileType::Fifo, 0),
        [OK, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST],
    ),
    (
        "mknod of a socket",
        || node("x", FileType::Socket, 0),
        [OK, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST],
    ),
    (
        "symlink",
        || symlink("target", "x"),
        [OK, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST],
    ),
    (
        "rmdir",
        || rustix::fs::rmdir("x"),
        [ENOENT, ENOTDIR, OK, "ENOTEMPTY", ENOTDIR, ENOTDIR, ENOTDIR, ENOTDIR],
    ),
    (
        "unlink",
        || rustix::fs::unlink("x"),
        [ENOENT, OK, "EISDIR", "EISDIR", OK, OK, OK, OK],
    ),
    (
        "link",
        || rustix::fs::link("x", "y"),
        [ENOENT, OK, "EPERM", "EPERM", OK, OK, OK, OK],
    ),
    (
        "open O_RDONLY",
        || opened(OFlags::RDONLY | OFlags::NONBLOCK),
        [ENOENT, OK, OK, OK, OK, OK, ENOENT, OK],
    ),
    (
        "open O_WRONLY",
        || opened(OFlags::WRONLY | OFlags::NONBLOCK),
        [ENOENT, OK, "EISDIR", "EISDIR", OK, "EISDIR", ENOENT, "ENXIO"],
    ),
    (
        "open O_DIRECTORY",
        || opened(OFlags::DIRECTORY),
        [ENOENT, ENOTDIR, OK, OK, ENOTDIR, OK, ENOENT, ENOTDIR],
    ),
    (
        "open O_NOFOLLOW",
        || opened(OFlags::NOFOLLOW | OFlags::NONBLOCK),
        [ENOENT, OK, OK, OK, "ELOOP", "ELOOP", "ELOOP", OK],
    ),
    (
        "open O_CREAT",
        || opened(OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK),
        [OK, OK, "EISDIR", "EISDIR", OK, "EISDIR", OK, "ENXIO"],
    ),
    (
        "open O_CREAT O_EXCL",
        || opened(OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY),
        [OK, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST, EEXIST],
    ),
    (
        "open O_TRUNC",
        || opened(OFlags::TRUNC | OFlags::WRONLY | OFlags::NONBLOCK),
        [ENOENT, OK, "EISDIR", "EISDIR", OK, "EISDIR", ENOENT, "ENXIO"],
    ),
    (
        "truncate",
        || truncate("x", 3),
        [ENOENT, OK, "EISDIR", "EISDIR", OK, "EISDIR", ENOENT, "EINVAL"],
    ),
    (
        "readlink",
        || rustix::fs::readlink("x", Vec::new()).map(drop),
        [ENOENT, "EINVAL", "EINVAL", "EINVAL", OK, OK, OK, "EINVAL"],
    ),
    ("chmod", || chmod("x", 0o700), [ENOENT, OK, OK, OK, OK, OK, ENOENT, OK]),
];

pub fn add(cases: &mut Cases) {
    for (call, act, answers) in ROWS {
        for ((thing, prepare), answer) in THINGS.into_iter().zip(answers) {
            cases.add(format!("{call}: {thing}"), answer, move || {
                prepare()?;
                Ok(said(act()))
            });
        }
    }
    for (what, kind_of, device) in [
        ("pipe", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("character device", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("block device", FileType::BlockDevice, rustix::fs::makedev(7, 0)),
        ("file", FileType::RegularFile, 0),
    ] {
        cases.add(
            format!("mknod: makes a {what}"),
            format!("{what} 644 {device} 0"),
            move || {
                node("x", kind_of, device)?;
                let stat = stat("x")?;
                Ok(format!(
                    "{} {:o} {} {}",
                    kind("x")?,
                    stat.st_mode & 0o7777,
                    stat.st_rdev,
                    stat.st_size
                ))
            },
        );
    }
    cases.add("mknod: not a folder", "EPERM", || {
        Ok(said(node("x", FileType::Directory, 0)))
    });
    cases.add("open: a socket", "ENXIO", || {
        node("x", FileType::Socket, 0)?;
        Ok(said(opened(OFlags::RDONLY)))
    });
    cases.add("open: a device is the system's own", "ok", || {
        node("x", FileType::CharacterDevice, rustix::fs::makedev(1, 5))?;
        let mut bytes = [1; 4];
        let device = open("x", OFlags::RDONLY)?;
        rustix::io::read(&device, &mut bytes)?;
        Ok(if bytes == [0; 4] {
            "ok".into()
        } else {
            format!("{bytes:?}")
        })
    });
    cases.add(
        "open O_CREAT: through a link to nothing makes what it names",
        "file",
        || {
            symlink("target", "x")?;
            opened(OFlags::CREATE | OFlags::WRONLY)?;
            kind("target")
        },
    );
    cases.add("open O_CREAT: makes with the mode less the umask", "640", || {
        rustix::process::umask(Mode::from_raw_mode(0o027));
        rustix::fs::open("x", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o666))?;
        super::case::mode("x")
    });
    cases.add("open O_CREAT: leaves the mode of what is there", "600", || {
        super::case::create("x", 0o600)?;
        opened(OFlags::CREATE | OFlags::WRONLY)?;
        super::case::mode("x")
    });
    cases.add(
        "open O_CREAT: a mode without rights is no hindrance to its maker",
        "ok",
        || {
            let file = rustix::fs::open("x", OFlags::CREATE | OFlags::RDWR, Mode::empty())?;
            Ok(said(super::case::write(file, b"a")))
        },
    );
    cases.add("mkdir: with the mode less the umask", "1750", || {
        rustix::process::umask(Mode::from_raw_mode(0o027));
        rustix::fs::mkdir("x", Mode::from_raw_mode(0o1777))?;
        super::case::mode("x")
    });
    cases.add("mkdir: `.`", "EEXIST", || Ok(said(folder("."))));
    cases.add("mkdir: `..` of a folder", "EEXIST", || {
        folder("x")?;
        Ok(said(folder("x/..")))
    });
    cases.add("rmdir: `.`", "EINVAL", || Ok(said(rustix::fs::rmdir("."))));
    cases.add("rmdir: a folder's `..`", "ENOTEMPTY", || {
        folder("x")?;
        Ok(said(rustix::fs::rmdir("x/..")))
    });
    cases.add("rmdir: the working directory", "ok ENOENT", || {
        folder("x")?;
        rustix::process::chdir("x")?;
        let gone = said(rustix::fs::rmdir("../x"));
        Ok(format!("{gone} {}", said(file("new"))))
    });
    cases.add(
        "symlink: text that names nothing is kept to the byte",
        "a//b/../ ",
        || {
            symlink("a//b/../ ", "x")?;
            let target = rustix::fs::readlink("x", Vec::new())?;
            Ok(target.to_string_lossy().into_owned())
        },
    );
    cases.add("symlink: empty", "ENOENT", || Ok(said(symlink("", "x"))));
    cases.add(
        "symlink: its size is that of its text, its mode is all",
        "7 777",
        || {
            symlink("target!", "x")?;
            let stat = stat("x")?;
            Ok(format!("{} {:o}", stat.st_size, stat.st_mode & 0o7777))
        },
    );
    cases.add("symlink: 4095 bytes", "4095", || symlink_of(4095));
    cases.add("symlink: 4096 bytes", "ENAMETOOLONG", || symlink_of(4096));
    cases.add("folder: what is in it", "a b c d", || {
        file("c")?;
        folder("a")?;
        symlink("none", "d")?;
        node("b", FileType::Fifo, 0)?;
        names(".")
    });
    cases.add(
        "folder: the kinds that a listing tells",
        "a=Directory b=Fifo c=RegularFile d=Symlink",
        || {
            file("c")?;
            folder("a")?;
            symlink("none", "d")?;
            node("b", FileType::Fifo, 0)?;
            let mut found = Vec::new();
            for entry in rustix::fs::Dir::new(open(".", OFlags::DIRECTORY)?)? {
                let entry = entry?;
                found.push(format!(
                    "{}={:?}",
                    entry.file_name().to_string_lossy(),
                    entry.file_type()
                ));
            }
            found.retain(|entry| !entry.starts_with('.'));
            found.sort();
            Ok(found.join(" "))
        },
    );
    cases.add("folder: five hundred files are listed once each", "500", || {
        for number in 0..500 {
            file(&format!("a-name-of-some-length-{number}"))?;
        }
        let names = names(".")?;
        let names: std::collections::BTreeSet<_> = names.split(' ').collect();
        Ok(names.len().to_string())
    });
    cases.add(
        "folder: a file that comes while it is listed is seen by the next listing",
        "new x",
        || {
            file("x")?;
            let before = names(".")?;
            file("new")?;
            Ok(if before == "x" { names(".")? } else { before })
        },
    );
    cases.add("folder: cannot be read as a file", "EISDIR", || {
        Ok(said(rustix::io::read(open(".", OFlags::DIRECTORY)?, &mut [0; 8])))
    });
    cases.add("file: cannot be listed", "ENOTDIR", || {
        file("x")?;
        let mut listing = rustix::fs::Dir::new(edit("x")?)?;
        Ok(match listing.next() {
            Some(Err(errno)) => name(errno),
            other => format!("{other:?}"),
        })
    });
}

fn symlink_of(bytes: usize) -> Found {
    Ok(match symlink(&"s".repeat(bytes), "x") {
        Ok(()) => rustix::fs::readlinkat(CWD, "x", Vec::new())?.count_bytes().to_string(),
        Err(errno) => name(errno),
    })
}
