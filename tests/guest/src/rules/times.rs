//! Which times a call changes, and to what.

use std::thread;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};

use super::case::{
    Cases, Did, Found, chmod, chown, edit, file, file_of, folder, node, open, set_attribute, stat, symlink, truncate,
    write,
};

/// Longer than the clock of any file system takes for a tick (10 ms).
const TICK: Duration = Duration::from_millis(12);

/// What a time is set to before it is looked at.
const OLD: i64 = 1_000_000_000;

fn set(path: &str, access: (i64, i64), modification: (i64, i64)) -> Did {
    let stamp = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let stamps = Timestamps {
        last_access: stamp(access),
        last_modification: stamp(modification),
    };
    rustix::fs::utimensat(CWD, path, &stamps, AtFlags::SYMLINK_NOFOLLOW)
}

/// Which times of `paths` change by `act`: `m` for the contents', `c` for the attributes'.
fn changes(paths: &[&str], act: impl FnOnce() -> Did) -> Found {
    let mut before = Vec::new();
    for path in paths {
        set(path, (OLD, 0), (OLD, 0))?;
        let stat = stat(path)?;
        before.push((stat.st_ctime, stat.st_ctime_nsec));
    }
    thread::sleep(TICK);
    act()?;
    let mut found = Vec::new();
    for (path, before) in paths.iter().zip(before) {
        let Ok(stat) = stat(path) else {
            found.push(format!("{path} gone"));
            continue;
        };
        let modified = if stat.st_mtime == OLD { "" } else { "m" };
        let changed = if (stat.st_ctime, stat.st_ctime_nsec) == before {
            ""
        } else {
            "c"
        };
        found.push(format!("{path} {modified}{changed}").trim_end().to_string());
    }
    Ok(found.join(", "))
}

/// What is prepared, looked at and done, and what changes by it.
type Row = (
    &'static str,
    fn() -> Did,
    &'static [&'static str],
    fn() -> Did,
    &'static str,
);

fn with_file() -> Did {
    folder("d")?;
    file_of("d/x", b"some content")
}

fn two_folders() -> Did {
    with_file()?;
    folder("e")
}

const ROWS: [Row; 34] = [
    ("a new file", || folder("d"), &["d"], || file("d/x"), "d mc"),
    ("a new folder", || folder("d"), &["d"], || folder("d/x"), "d mc"),
    (
        "a new link",
        || folder("d"),
        &["d"],
        || symlink("nothing", "d/x"),
        "d mc",
    ),
    (
        "a new pipe",
        || folder("d"),
        &["d"],
        || node("d/x", rustix::fs::FileType::Fifo, 0),
        "d mc",
    ),
    (
        "O_CREAT of what is there",
        with_file,
        &["d", "d/x"],
        || open("d/x", OFlags::CREATE | OFlags::WRONLY).map(drop),
        "d, d/x",
    ),
    (
        "link",
        with_file,
        &["d", "d/x"],
        || rustix::fs::link("d/x", "d/y"),
        "d mc, d/x c",
    ),
    ("unlink", with_file, &["d"], || rustix::fs::unlink("d/x"), "d mc"),
    (
        "unlink of one of two names",
        || {
            with_file()?;
            rustix::fs::link("d/x", "y")
        },
        &["d", "y"],
        || rustix::fs::unlink("d/x"),
        "d mc, y c",
    ),
    ("rmdir", two_folders, &["."], || rustix::fs::rmdir("e"), ". mc"),
    (
        "rename in a folder",
        with_file,
        &["d"],
        || rustix::fs::rename("d/x", "d/y"),
        "d mc",
    ),
    (
        "rename between folders",
        two_folders,
        &["d", "e"],
        || rustix::fs::rename("d/x", "e/x"),
        "d mc, e mc",
    ),
    (
        "rename onto a file with two names",
        || {
            two_folders()?;
            file("e/x")?;
            rustix::fs::link("e/x", "y")
        },
        &["e", "y"],
        || rustix::fs::rename("d/x", "e/x"),
        "e mc, y c",
    ),
    (
        "rename EXCHANGE",
        || {
            two_folders()?;
            file("e/x")
        },
        &["d", "e"],
        || rustix::fs::renameat_with(CWD, "d/x", CWD, "e/x", RenameFlags::EXCHANGE),
        "d mc, e mc",
    ),
    (
        "a rename that fails",
        || {
            two_folders()?;
            folder("e/x")
        },
        &["d", "e"],
        || {
            let _ = rustix::fs::rename("d/x", "e/x");
            Ok(())
        },
        "d, e",
    ),
    (
        "a file that is there already",
        with_file,
        &["d"],
        || {
            let _ = open("d/x", OFlags::CREATE | OFlags::EXCL);
            Ok(())
        },
        "d",
    ),
    (
        "an opening to read",
        with_file,
        &["d/x"],
        || open("d/x", OFlags::RDONLY).map(drop),
        "d/x",
    ),
    (
        "a write",
        with_file,
        &["d", "d/x"],
        || write(edit("d/x")?, b"new"),
        "d, d/x mc",
    ),
    (
        "a write of nothing",
        with_file,
        &["d/x"],
        || write(edit("d/x")?, b""),
        "d/x",
    ),
    ("truncate to less", with_file, &["d/x"], || truncate("d/x", 3), "d/x mc"),
    (
        "truncate to more",
        with_file,
        &["d/x"],
        || truncate("d/x", 300),
        "d/x mc",
    ),
    (
        "truncate to the same",
        with_file,
        &["d/x"],
        || truncate("d/x", 12),
        "d/x mc",
    ),
    (
        "ftruncate",
        with_file,
        &["d/x"],
        || rustix::fs::ftruncate(edit("d/x")?, 3),
        "d/x mc",
    ),
    (
        "O_TRUNC",
        with_file,
        &["d/x"],
        || open("d/x", OFlags::WRONLY | OFlags::TRUNC).map(drop),
        "d/x mc",
    ),
    (
        "O_TRUNC of an empty file",
        || {
            folder("d")?;
            file("d/x")
        },
        &["d/x"],
        || open("d/x", OFlags::WRONLY | OFlags::TRUNC).map(drop),
        "d/x mc",
    ),
    (
        "fallocate",
        with_file,
        &["d/x"],
        || rustix::fs::fallocate(edit("d/x")?, FallocateFlags::empty(), 0, 9000),
        "d/x mc",
    ),
    (
        "fallocate PUNCH_HOLE",
        with_file,
        &["d/x"],
        || {
            rustix::fs::fallocate(
                edit("d/x")?,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                4096,
            )
        },
        "d/x mc",
    ),
    (
        "copy_file_range",
        || {
            with_file()?;
            file("d/y")
        },
        &["d/x", "d/y"],
        || rustix::fs::copy_file_range(edit("d/x")?, None, edit("d/y")?, None, 5).map(drop),
        "d/x, d/y mc",
    ),
    ("chmod", with_file, &["d", "d/x"], || chmod("d/x", 0o600), "d, d/x c"),
    (
        "chmod of a folder",
        with_file,
        &[".", "d"],
        || chmod("d", 0o700),
        "., d c",
    ),
    ("chown", with_file, &["d/x"], || chown("d/x", Some(7), Some(7)), "d/x c"),
    (
        "lchown of a link",
        || symlink("nothing", "x"),
        &["x"],
        || {
            rustix::fs::chownat(
                CWD,
                "x",
                Some(rustix::fs::Uid::from_raw(7)),
                None,
                AtFlags::SYMLINK_NOFOLLOW,
            )
        },
        "x c",
    ),
    (
        "setxattr",
        with_file,
        &["d/x"],
        || set_attribute("d/x", "user.a", b"value"),
        "d/x c",
    ),
    (
        "removexattr",
        || {
            with_file()?;
            set_attribute("d/x", "user.a", b"value")
        },
        &["d/x"],
        || rustix::fs::removexattr("d/x", "user.a"),
        "d/x c",
    ),
    (
        "utimensat of the access only",
        with_file,
        &["d/x"],
        || set("d/x", (5, 0), (0, UTIME_OMIT)),
        "d/x c",
    ),
];

type Stamps = (&'static str, [(i64, i64); 2], &'static str);

/// Times that utimensat is asked for, and those that are there then; `o` is the old one, `n` a new one.
const STAMPS: [Stamps; 8] = [
    (
        "to the nanosecond",
        [(1234, 567_891_234), (4321, 999_999_999)],
        "1234.567891234 4321.999999999",
    ),
    ("to the epoch", [(0, 0), (0, 0)], "0.0 0.0"),
    (
        "before the epoch",
        [(-1, 0), (-86400, 500_000_000)],
        "-1.0 -86400.500000000",
    ),
    (
        "beyond 2038",
        [(2_147_483_648, 1), (4_294_967_296, 2)],
        "2147483648.1 4294967296.2",
    ),
    ("the access only", [(77, 0), (0, UTIME_OMIT)], "77.0 1000000000.0"),
    ("the modification only", [(0, UTIME_OMIT), (77, 0)], "1000000000.0 77.0"),
    (
        "nothing",
        [(0, UTIME_OMIT), (0, UTIME_OMIT)],
        "1000000000.0 1000000000.0",
    ),
    (
        "an access to now",
        [(0, UTIME_NOW), (0, UTIME_OMIT)],
        "now 1000000000.0",
    ),
];

pub fn add(cases: &mut Cases) {
    for (name, prepare, paths, act, changed) in ROWS {
        cases.add(format!("times: {name}"), changed, move || {
            prepare()?;
            changes(paths, act)
        });
    }
    for (name, [access, modification], rule) in STAMPS {
        for (what, make) in [
            ("a file", file as fn(&str) -> Did),
            ("a folder", folder),
            ("a link", |path| symlink("nothing", path)),
        ] {
            cases.add(format!("times: {what} set {name}"), rule, move || {
                make("x")?;
                set("x", (OLD, 0), (OLD, 0))?;
                set("x", access, modification)?;
                let stat = stat("x")?;
                let time = |seconds: i64, nanos: u64| {
                    if seconds > 1_500_000_000 && nanos > 2 {
                        "now".into()
                    } else {
                        format!("{seconds}.{nanos}")
                    }
                };
                Ok(format!(
                    "{} {}",
                    time(stat.st_atime, stat.st_atime_nsec),
                    time(stat.st_mtime, stat.st_mtime_nsec)
                ))
            });
        }
    }
    cases.add("times: an impossible part of a second", "EINVAL", || {
        file("x")?;
        Ok(super::case::said(set("x", (0, 1_000_000_000), (0, 0))))
    });
    cases.add("times: futimens of an open file without a name", "77", || {
        let file = super::case::create("x", 0o644)?;
        rustix::fs::unlink("x")?;
        let stamp = Timespec { tv_sec: 77, tv_nsec: 0 };
        rustix::fs::futimens(
            &file,
            &Timestamps {
                last_access: stamp,
                last_modification: stamp,
            },
        )?;
        Ok(rustix::fs::fstat(&file)?.st_mtime.to_string())
    });
    cases.add("times: a new file has one time", "same", || {
        open("x", OFlags::CREATE | OFlags::WRONLY)?;
        let stat = stat("x")?;
        let times = [
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
            (stat.st_ctime, stat.st_ctime_nsec),
        ];
        Ok(if times[0] == times[1] && times[1] == times[2] {
            "same".into()
        } else {
            format!("{times:?}")
        })
    });
    cases.add(
        "times: set ones stay while the file is renamed, linked and chmodded",
        "77",
        || {
            file("x")?;
            set("x", (77, 0), (77, 0))?;
            rustix::fs::rename("x", "y")?;
            rustix::fs::link("y", "z")?;
            chmod("z", 0o600)?;
            Ok(stat("y")?.st_mtime.to_string())
        },
    );
    cases.add(
        "times: set ones stay when an open file that was written is closed",
        "77",
        || {
            let file = super::case::create("x", 0o644)?;
            write(&file, b"written")?;
            set("x", (77, 0), (77, 0))?;
            drop(file);
            Ok(stat("x")?.st_mtime.to_string())
        },
    );
    cases.add(
        "times: statx has the time of birth, which stays",
        "there and kept",
        || {
            file("x")?;
            let birth = || {
                let found = rustix::fs::statx(CWD, "x", AtFlags::empty(), StatxFlags::BTIME)?;
                let there = found.stx_mask & StatxFlags::BTIME.bits() != 0;
                Ok::<_, rustix::io::Errno>(there.then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)))
            };
            let first = birth()?;
            thread::sleep(TICK);
            write(edit("x")?, b"written")?;
            set("x", (77, 0), (77, 0))?;
            Ok(match first {
                None => "none".into(),
                Some(_) if birth()? == first => "there and kept".into(),
                Some(_) => "there and lost".into(),
            })
        },
    );
}
