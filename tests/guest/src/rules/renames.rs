//! Renaming: over each kind of thing, into itself, exchanging, and leaving a whiteout.

use rustix::fs::{CWD, RenameFlags};

use super::case::{Cases, Did, Found, content, file, file_of, folder, kind, names, open, said, stat, symlink};

/// What is renamed, and what has its new name.
const KINDS: [&str; 5] = ["nothing", "file", "folder", "full folder", "link"];

/// What a plain rename of each kind (rows) onto each (columns) says.
const PLAIN: [[&str; 5]; 5] = [
    ["ENOENT", "ENOENT", "ENOENT", "ENOENT", "ENOENT"],
    ["ok", "ok", "EISDIR", "EISDIR", "ok"],
    ["ok", "ENOTDIR", "ok", "ENOTEMPTY", "ENOTDIR"],
    ["ok", "ENOTDIR", "ok", "ENOTEMPTY", "ENOTDIR"],
    ["ok", "ok", "EISDIR", "EISDIR", "ok"],
];

fn make(kind: &str, path: &str) -> Did {
    match kind {
        "file" => file_of(path, path.as_bytes()),
        "folder" => folder(path),
        "full folder" => {
            folder(path)?;
            file(&format!("{path}/inner"))
        }
        "link" => symlink("elsewhere", path),
        _ => Ok(()),
    }
}

fn rename(from: &str, to: &str, flags: RenameFlags) -> Did {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

pub fn add(cases: &mut Cases) {
    for (from, answers) in KINDS.into_iter().zip(PLAIN) {
        for (to, answer) in KINDS.into_iter().zip(answers) {
            cases.add(format!("rename: {from} onto {to}"), answer, move || {
                make(from, "from")?;
                make(to, "to")?;
                let before = stat("from").map(|stat| stat.st_ino).ok();
                let done = rename("from", "to", RenameFlags::empty());
                let moved = done.is_err() || stat("to")?.st_ino == before.unwrap_or_default();
                Ok(if moved {
                    said(done)
                } else {
                    "another thing is there".into()
                })
            });
            let there = to != "nothing";
            let answer = match (from, there) {
                ("nothing", _) => "ENOENT",
                (_, true) => "EEXIST",
                (_, false) => "ok",
            };
            cases.add(format!("rename NOREPLACE: {from} onto {to}"), answer, move || {
                make(from, "from")?;
                make(to, "to")?;
                Ok(said(rename("from", "to", RenameFlags::NOREPLACE)))
            });
            let exchanged = if from == "nothing" || !there { "ENOENT" } else { "ok" };
            cases.add(format!("rename EXCHANGE: {from} and {to}"), exchanged, move || {
                make(from, "from")?;
                make(to, "to")?;
                let before = [stat("from"), stat("to")].map(|stat| stat.map(|stat| stat.st_ino).ok());
                let done = rename("from", "to", RenameFlags::EXCHANGE);
                let mut after = [stat("from"), stat("to")].map(|stat| stat.map(|stat| stat.st_ino).ok());
                if done.is_ok() {
                    after.reverse();
                }
                Ok(if before == after {
                    said(done)
                } else {
                    format!("{before:?} became {after:?}")
                })
            });
        }
    }
    whiteouts(cases);
    cases.add("rename: a folder into itself", "EINVAL", || {
        folder("x")?;
        Ok(said(rename("x", "x/y", RenameFlags::empty())))
    });
    cases.add("rename: a folder far into itself", "EINVAL", || {
        folder("x")?;
        folder("x/y")?;
        Ok(said(rename("x", "x/y/z", RenameFlags::empty())))
    });
    cases.add("rename: a folder onto its parent", "ENOTEMPTY", || {
        folder("x")?;
        folder("x/y")?;
        Ok(said(rename("x/y", "x", RenameFlags::empty())))
    });
    cases.add("rename EXCHANGE: a folder and its parent", "EINVAL", || {
        folder("x")?;
        folder("x/y")?;
        Ok(said(rename("x/y", "x", RenameFlags::EXCHANGE)))
    });
    cases.add("rename: onto itself", "ok file", || {
        file("x")?;
        Ok(format!(
            "{} {}",
            said(rename("x", "x", RenameFlags::empty())),
            kind("x")?
        ))
    });
    cases.add("rename: a hard link onto the other leaves both", "ok x y", || {
        file("x")?;
        rustix::fs::link("x", "y")?;
        Ok(format!(
            "{} {}",
            said(rename("x", "y", RenameFlags::empty())),
            names(".")?
        ))
    });
    cases.add("rename: `.`", "EBUSY", || {
        Ok(said(rename(".", "x", RenameFlags::empty())))
    });
    cases.add("rename: onto `..`", "EBUSY", || {
        folder("x")?;
        Ok(said(rename("x", "..", RenameFlags::empty())))
    });
    cases.add("rename: NOREPLACE and EXCHANGE at once", "EINVAL", || {
        file("x")?;
        file("y")?;
        Ok(said(rename("x", "y", RenameFlags::NOREPLACE | RenameFlags::EXCHANGE)))
    });
    cases.add("rename: a folder takes its content along", "inner", || {
        make("full folder", "x")?;
        rename("x", "y", RenameFlags::empty())?;
        names("y")
    });
    cases.add("rename: between folders", "a: , b: x", || {
        folder("a")?;
        folder("b")?;
        file("a/x")?;
        rename("a/x", "b/x", RenameFlags::empty())?;
        Ok(format!("a: {}, b: {}", names("a")?, names("b")?))
    });
    cases.add(
        "rename: a folder between folders moves a link to its parent",
        "a 2, b 3",
        || {
            folder("a")?;
            folder("b")?;
            folder("a/x")?;
            rename("a/x", "b/x", RenameFlags::empty())?;
            Ok(format!("a {}, b {}", stat("a")?.st_nlink, stat("b")?.st_nlink))
        },
    );
    cases.add("rename: an open file goes on under its new name", "written", || {
        let open = super::case::create("x", 0o644)?;
        rename("x", "y", RenameFlags::empty())?;
        super::case::write(open, b"written")?;
        content("y")
    });
    cases.add("rename: what is replaced stays for who has it open", "old new", || {
        file_of("old", b"old")?;
        file_of("new", b"new")?;
        let open = open("old", rustix::fs::OFlags::RDONLY)?;
        rename("new", "old", RenameFlags::empty())?;
        Ok(format!("{} {}", super::case::text(open)?, content("old")?))
    });
    cases.add("rename: the other name is gone at once", "ENOENT", || {
        file("x")?;
        rename("x", "y", RenameFlags::empty())?;
        Ok(said(stat("x")))
    });
}

fn whiteouts(cases: &mut Cases) {
    let whiteout = |path: &str| -> Found {
        let stat = stat(path)?;
        Ok(format!("{} {}", kind(path)?, stat.st_rdev))
    };
    cases.add(
        "rename WHITEOUT: leaves a device 0/0",
        "character device 0",
        move || {
            file("x")?;
            rename("x", "y", RenameFlags::WHITEOUT)?;
            whiteout("x")
        },
    );
    cases.add("rename WHITEOUT: replaces", "character device 0, new", move || {
        file_of("x", b"new")?;
        file_of("y", b"old")?;
        rename("x", "y", RenameFlags::WHITEOUT)?;
        Ok(format!("{}, {}", whiteout("x")?, content("y")?))
    });
    cases.add("rename WHITEOUT: and NOREPLACE", "EEXIST", || {
        file("x")?;
        file("y")?;
        Ok(said(rename("x", "y", RenameFlags::WHITEOUT | RenameFlags::NOREPLACE)))
    });
    cases.add("rename WHITEOUT: and EXCHANGE", "EINVAL", || {
        file("x")?;
        file("y")?;
        Ok(said(rename("x", "y", RenameFlags::WHITEOUT | RenameFlags::EXCHANGE)))
    });
    cases.add("rename WHITEOUT: a folder", "character device 0, inner", move || {
        make("full folder", "x")?;
        rename("x", "y", RenameFlags::WHITEOUT)?;
        Ok(format!("{}, {}", whiteout("x")?, names("y")?))
    });
    cases.add("rename WHITEOUT: by a user", "ok character device 0", move || {
        super::case::folder_by(super::case::OWNER, "d", 0o755)?;
        super::case::file_by(super::case::OWNER, "d/x", 0o644)?;
        let done = super::case::as_user(super::case::OWNER, || rename("d/x", "d/y", RenameFlags::WHITEOUT));
        Ok(format!("{} {}", said(done), whiteout("d/x")?))
    });
}
