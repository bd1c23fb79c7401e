//! Names and what they name: counts of links, what is open without a name, numbers of files.

use rustix::fs::{AtFlags, CWD, OFlags};

use super::case::{
    Cases, Found, content, create, edit, file, file_of, folder, names, open, said, stat, symlink, text, write,
};

fn links(path: &str) -> Found {
    Ok(stat(path)?.st_nlink.to_string())
}

pub fn add(cases: &mut Cases) {
    cases.add("link: counts", "1 2 3 2", || {
        file("a")?;
        let mut counts = vec![links("a")?];
        for name in ["b", "c"] {
            rustix::fs::link("a", name)?;
            counts.push(links(name)?);
        }
        rustix::fs::unlink("b")?;
        counts.push(links("a")?);
        Ok(counts.join(" "))
    });
    cases.add("link: both names are one file", "same written", || {
        file("a")?;
        rustix::fs::link("a", "b")?;
        let same = stat("a")?.st_ino == stat("b")?.st_ino;
        write(edit("a")?, b"written")?;
        Ok(format!("{} {}", if same { "same" } else { "different" }, content("b")?))
    });
    cases.add("link: the first name can go", "content", || {
        file_of("a", b"content")?;
        rustix::fs::link("a", "b")?;
        rustix::fs::unlink("a")?;
        content("b")
    });
    cases.add("link: a mode that is set by one name is the other's", "600", || {
        file("a")?;
        rustix::fs::link("a", "b")?;
        super::case::chmod("a", 0o600)?;
        super::case::mode("b")
    });
    cases.add("link: onto what is there", "EEXIST", || {
        file("a")?;
        file("b")?;
        Ok(said(rustix::fs::link("a", "b")))
    });
    cases.add("link: of a symbolic link is one of the link", "link 2", || {
        symlink("nothing", "a")?;
        rustix::fs::linkat(CWD, "a", CWD, "b", AtFlags::empty())?;
        Ok(format!("{} {}", super::case::kind("b")?, links("b")?))
    });
    cases.add("link SYMLINK_FOLLOW: of what the link names", "file 2", || {
        file("target")?;
        symlink("target", "a")?;
        rustix::fs::linkat(CWD, "a", CWD, "b", AtFlags::SYMLINK_FOLLOW)?;
        Ok(format!("{} {}", super::case::kind("b")?, links("b")?))
    });
    cases.add("link: of an open file by its descriptor", "content 2", || {
        let file = create("a", 0o644)?;
        write(&file, b"content")?;
        let path = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, path, CWD, "b", AtFlags::SYMLINK_FOLLOW)?;
        Ok(format!("{} {}", content("b")?, links("b")?))
    });
    cases.add(
        "folder: a new one has two links, and each folder in it gives it one",
        "2 3 4 3",
        || {
            folder("d")?;
            let mut counts = vec![links("d")?];
            for name in ["d/a", "d/b"] {
                folder(name)?;
                counts.push(links("d")?);
            }
            rustix::fs::rmdir("d/a")?;
            counts.push(links("d")?);
            Ok(counts.join(" "))
        },
    );
    cases.add("folder: a file in it gives it none", "2", || {
        folder("d")?;
        file("d/x")?;
        links("d")
    });
    cases.add("unlink: an open file is read and written on", "0 content more", || {
        let file = create("a", 0o644)?;
        write(&file, b"content")?;
        rustix::fs::unlink("a")?;
        super::case::write_at(&file, b" more", 7)?;
        let links = rustix::fs::fstat(&file)?.st_nlink;
        Ok(format!("{links} {}", text(&file)?))
    });
    cases.add(
        "unlink: an open file can be cut, chmodded and given away",
        "ok ok ok 3",
        || {
            let file = create("a", 0o644)?;
            write(&file, b"content")?;
            rustix::fs::unlink("a")?;
            let cut = said(rustix::fs::ftruncate(&file, 3));
            let mode = said(rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600)));
            let owner = said(rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(7)), None));
            Ok(format!("{cut} {mode} {owner} {}", rustix::fs::fstat(&file)?.st_size))
        },
    );
    cases.add("unlink: another file may have the name meanwhile", "old new", || {
        let old = create("a", 0o644)?;
        write(&old, b"old")?;
        rustix::fs::unlink("a")?;
        file_of("a", b"new")?;
        Ok(format!("{} {}", text(&old)?, content("a")?))
    });
    cases.add("unlink: nothing is left of it in its folder", "", || {
        let _open = create("a", 0o644)?;
        rustix::fs::unlink("a")?;
        names(".")
    });
    cases.add("unlink: a folder by unlinkat REMOVEDIR", "ok", || {
        folder("d")?;
        Ok(said(rustix::fs::unlinkat(CWD, "d", AtFlags::REMOVEDIR)))
    });
    cases.add("O_TMPFILE: a file without a name", "0 written ", || {
        let file = open(".", OFlags::TMPFILE | OFlags::RDWR)?;
        write(&file, b"written")?;
        let links = rustix::fs::fstat(&file)?.st_nlink;
        Ok(format!("{links} {} {}", text(&file)?, names(".")?))
    });
    cases.add("O_TMPFILE: gets a name by a link", "1 written named", || {
        let file = open(".", OFlags::TMPFILE | OFlags::RDWR)?;
        write(&file, b"written")?;
        let path = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, path, CWD, "named", AtFlags::SYMLINK_FOLLOW)?;
        let links = rustix::fs::fstat(&file)?.st_nlink;
        Ok(format!("{links} {} {}", content("named")?, names(".")?))
    });
    cases.add("O_TMPFILE: with O_EXCL never gets one", "ENOENT", || {
        let file = open(".", OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL)?;
        let path = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        Ok(said(rustix::fs::linkat(
            CWD,
            path,
            CWD,
            "named",
            AtFlags::SYMLINK_FOLLOW,
        )))
    });
    cases.add("O_TMPFILE: to be read only", "EINVAL", || {
        Ok(said(open(".", OFlags::TMPFILE | OFlags::RDONLY)))
    });
    cases.add("O_TMPFILE: in a file", "ENOTDIR", || {
        file("a")?;
        Ok(said(open("a", OFlags::TMPFILE | OFlags::RDWR)))
    });
    cases.add("numbers: two files have two, and keep them", "kept", || {
        file("a")?;
        file("b")?;
        let before = [stat("a")?.st_ino, stat("b")?.st_ino];
        rustix::fs::rename("a", "c")?;
        let after = [stat("c")?.st_ino, stat("b")?.st_ino];
        Ok(if before == after && before[0] != before[1] {
            "kept".into()
        } else {
            format!("{before:?} {after:?}")
        })
    });
    cases.add("numbers: a listing has the number that the file has", "same", || {
        file("a")?;
        let mut listed = None;
        for entry in rustix::fs::Dir::new(open(".", OFlags::DIRECTORY)?)? {
            let entry = entry?;
            if entry.file_name() == c"a" {
                listed = Some(entry.ino());
            }
        }
        Ok(if listed == Some(stat("a")?.st_ino) {
            "same"
        } else {
            "another"
        }
        .into())
    });
    cases.add("numbers: `..` of a folder is where it is", "same", || {
        folder("a")?;
        folder("a/b")?;
        Ok(if stat("a/b/..")?.st_ino == stat("a")?.st_ino {
            "same"
        } else {
            "another"
        }
        .into())
    });
}
