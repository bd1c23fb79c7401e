//! What is in files: reading, writing, sizes, holes, copies, mappings.

use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite, read};

use super::case::{
    Cases, Did, Found, content, create, edit, file, file_of, name, open, said, stat, text, truncate, write, write_at,
};
use crate::kernel::Mapping;

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
/// A block of every file system that there is.
const BLOCK: u64 = 65536;
const BLOCK_BYTES: usize = 65536;

/// What fallocate says and what size is there then, of a file of four blocks.
type Allocation = (&'static str, FallocateFlags, u64, u64, &'static str);

const ALLOCATIONS: [Allocation; 17] = [
    ("inside", FallocateFlags::empty(), 0, BLOCK, "ok 262144"),
    ("beyond the end", FallocateFlags::empty(), 4 * BLOCK, BLOCK, "ok 327680"),
    (
        "far beyond the end",
        FallocateFlags::empty(),
        9 * BLOCK,
        BLOCK,
        "ok 655360",
    ),
    ("KEEP_SIZE beyond the end", KEEP, 4 * BLOCK, BLOCK, "ok 262144"),
    ("of nothing", FallocateFlags::empty(), 0, 0, "EINVAL 262144"),
    (
        "PUNCH_HOLE",
        FallocateFlags::PUNCH_HOLE.union(KEEP),
        BLOCK,
        BLOCK,
        "ok 262144",
    ),
    (
        "PUNCH_HOLE beyond the end",
        FallocateFlags::PUNCH_HOLE.union(KEEP),
        8 * BLOCK,
        BLOCK,
        "ok 262144",
    ),
    (
        "PUNCH_HOLE without KEEP_SIZE",
        FallocateFlags::PUNCH_HOLE,
        BLOCK,
        BLOCK,
        "EOPNOTSUPP 262144",
    ),
    ("ZERO_RANGE", FallocateFlags::ZERO_RANGE, BLOCK, BLOCK, "ok 262144"),
    (
        "ZERO_RANGE beyond the end",
        FallocateFlags::ZERO_RANGE,
        3 * BLOCK,
        2 * BLOCK,
        "ok 327680",
    ),
    (
        "ZERO_RANGE KEEP_SIZE beyond the end",
        FallocateFlags::ZERO_RANGE.union(KEEP),
        3 * BLOCK,
        2 * BLOCK,
        "ok 262144",
    ),
    (
        "COLLAPSE_RANGE",
        FallocateFlags::COLLAPSE_RANGE,
        BLOCK,
        BLOCK,
        "ok 196608",
    ),
    (
        "COLLAPSE_RANGE of half a block",
        FallocateFlags::COLLAPSE_RANGE,
        512,
        512,
        "EINVAL 262144",
    ),
    (
        "COLLAPSE_RANGE at the end",
        FallocateFlags::COLLAPSE_RANGE,
        3 * BLOCK,
        BLOCK,
        "EINVAL 262144",
    ),
    ("INSERT_RANGE", FallocateFlags::INSERT_RANGE, BLOCK, BLOCK, "ok 327680"),
    (
        "INSERT_RANGE at the end",
        FallocateFlags::INSERT_RANGE,
        4 * BLOCK,
        BLOCK,
        "EINVAL 262144",
    ),
    (
        "PUNCH_HOLE and ZERO_RANGE at once",
        FallocateFlags::PUNCH_HOLE.union(FallocateFlags::ZERO_RANGE),
        0,
        BLOCK,
        "EOPNOTSUPP 262144",
    ),
];

/// A file of four blocks, each of one letter.
fn four_blocks() -> Result<std::os::fd::OwnedFd, Errno> {
    let file = create("x", 0o644)?;
    for (block, letter) in (0..).zip(*b"abcd") {
        write_at(&file, &[letter; BLOCK_BYTES], block * BLOCK)?;
    }
    Ok(file)
}

/// The first letter of each block, a dot for a zero.
fn letters(file: &std::os::fd::OwnedFd) -> Found {
    let blocks = rustix::fs::fstat(file)?.st_size.unsigned_abs() / BLOCK;
    let mut letters = String::new();
    for block in 0..blocks {
        let mut byte = [0];
        pread(file, &mut byte, block * BLOCK)?;
        letters.push(if byte == [0] { '.' } else { char::from(byte[0]) });
    }
    Ok(letters)
}

pub fn add(cases: &mut Cases) {
    for (name, mode, offset, bytes, rule) in ALLOCATIONS {
        cases.add(format!("fallocate: {name}"), rule, move || {
            let file = four_blocks()?;
            let answer = said(fallocate(&file, mode, offset, bytes));
            Ok(format!("{answer} {}", stat("x")?.st_size))
        });
    }
    for (name, mode, rule) in [
        ("PUNCH_HOLE", FallocateFlags::PUNCH_HOLE | KEEP, "a.cd"),
        ("ZERO_RANGE", FallocateFlags::ZERO_RANGE, "a.cd"),
        ("COLLAPSE_RANGE", FallocateFlags::COLLAPSE_RANGE, "acd"),
        ("INSERT_RANGE", FallocateFlags::INSERT_RANGE, "a.bcd"),
        ("nothing but space", FallocateFlags::empty(), "abcd"),
    ] {
        cases.add(format!("fallocate: what {name} leaves"), rule, move || {
            let file = four_blocks()?;
            match fallocate(&file, mode, BLOCK, BLOCK) {
                Ok(()) => letters(&file),
                Err(errno) => Ok(super::case::name(errno)),
            }
        });
    }
    cases.add("fallocate: of a file that is open to read", "EBADF", || {
        file("x")?;
        Ok(said(fallocate(
            open("x", OFlags::RDONLY)?,
            FallocateFlags::empty(),
            0,
            1,
        )))
    });
    cases.add("fallocate: a hole takes no space", "less", || {
        let file = four_blocks()?;
        rustix::fs::fsync(&file)?;
        let before = stat("x")?.st_blocks;
        fallocate(&file, FallocateFlags::PUNCH_HOLE | KEEP, 0, 4 * BLOCK)?;
        let after = stat("x")?.st_blocks;
        Ok(if after < before {
            "less".into()
        } else {
            format!("{before} {after}")
        })
    });
    opening(cases);
    sizes(cases);
    seeking(cases);
    copying(cases);
    mapping(cases);
}

fn opening(cases: &mut Cases) {
    cases.add("write: to a file that is open to read", "EBADF", || {
        file("x")?;
        Ok(said(pwrite(open("x", OFlags::RDONLY)?, b"a", 0)))
    });
    cases.add("read: from a file that is open to write", "EBADF", || {
        file("x")?;
        Ok(said(pread(open("x", OFlags::WRONLY)?, &mut [0], 0)))
    });
    cases.add("read: at and beyond the end", "0 0", || {
        file_of("x", b"abc")?;
        let file = edit("x")?;
        Ok(format!(
            "{} {}",
            pread(&file, &mut [0; 4], 3)?,
            pread(&file, &mut [0; 4], 1 << 40)?
        ))
    });
    cases.add("read: what is left before the end", "2", || {
        file_of("x", b"abc")?;
        Ok(pread(edit("x")?, &mut [0; 4], 1)?.to_string())
    });
    cases.add("write: beyond the end leaves zeroes", "ab...c 6", || {
        file_of("x", b"ab")?;
        write_at(edit("x")?, b"c", 5)?;
        Ok(format!("{} {}", content("x")?, stat("x")?.st_size))
    });
    cases.add("write: two descriptors see each other", "xyc", || {
        file_of("x", b"abc")?;
        let (first, second) = (edit("x")?, edit("x")?);
        write(&first, b"x")?;
        write_at(&second, b"y", 1)?;
        text(&first)
    });
    cases.add("write: over the limit of sizes", "EFBIG", || {
        file("x")?;
        Ok(said(pwrite(edit("x")?, b"a", i64::MAX as u64 - 1)))
    });
    cases.add(
        "O_APPEND: each write goes to the end, wherever it was to go",
        "abcdef",
        || {
            file_of("x", b"ab")?;
            let file = open("x", OFlags::RDWR | OFlags::APPEND)?;
            rustix::io::write(&file, b"cd")?;
            rustix::fs::seek(&file, SeekFrom::Start(0))?;
            rustix::io::write(&file, b"ef")?;
            content("x")
        },
    );
    cases.add("O_APPEND: by two descriptors", "abcd", || {
        file("x")?;
        let [first, second] = [
            open("x", OFlags::WRONLY | OFlags::APPEND)?,
            open("x", OFlags::WRONLY | OFlags::APPEND)?,
        ];
        for (file, letter) in [(&first, b"a"), (&second, b"b"), (&first, b"c"), (&second, b"d")] {
            rustix::io::write(file, letter)?;
        }
        content("x")
    });
    cases.add("O_APPEND: set on an open file", "abc", || {
        file_of("x", b"ab")?;
        let file = edit("x")?;
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
        rustix::io::write(&file, b"c")?;
        content("x")
    });
    cases.add("O_APPEND: taken from an open file", "xbc", || {
        file_of("x", b"abc")?;
        let file = open("x", OFlags::WRONLY | OFlags::APPEND)?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        write(&file, b"x")?;
        forget(&file)?;
        content("x")
    });
    cases.add("O_TRUNC: nothing is left", "0", || {
        file_of("x", b"abc")?;
        open("x", OFlags::WRONLY | OFlags::TRUNC)?;
        Ok(stat("x")?.st_size.to_string())
    });
    cases.add("O_TRUNC: who has it open sees it", "0", || {
        file_of("x", b"abc")?;
        let before = edit("x")?;
        open("x", OFlags::WRONLY | OFlags::TRUNC)?;
        Ok(pread(&before, &mut [0; 4], 0)?.to_string())
    });
    cases.add("O_SYNC: writes", "abc", || {
        file("x")?;
        write(open("x", OFlags::WRONLY | OFlags::SYNC)?, b"abc")?;
        content("x")
    });
    cases.add("O_DIRECT: whole blocks pass", "65536", || {
        file("x")?;
        let file = match open("x", OFlags::RDWR | OFlags::DIRECT) {
            Err(errno) => return Ok(name(errno)),
            file => file?,
        };
        // Direct access wants memory that begins at a page.
        let whole = vec![b'a'; 2 * BLOCK_BYTES];
        let start = whole.as_ptr().align_offset(4096);
        let block = whole.get(start..start + BLOCK_BYTES).ok_or(Errno::INVAL)?;
        Ok(pwrite(&file, block, 0)?.to_string())
    });
    cases.add("O_PATH: cannot be read", "EBADF", || {
        file("x")?;
        Ok(said(read(open("x", OFlags::PATH)?, &mut [0])))
    });
    cases.add("O_EXCL without O_CREAT: is nothing", "ok", || {
        file("x")?;
        Ok(said(open("x", OFlags::EXCL | OFlags::RDONLY)))
    });
    cases.add("fsync: of file and folder", "ok ok ok", || {
        file_of("x", b"abc")?;
        let folder = open(".", OFlags::DIRECTORY)?;
        let synced = [
            rustix::fs::fsync(edit("x")?),
            rustix::fs::fdatasync(edit("x")?),
            rustix::fs::fsync(&folder),
        ];
        Ok(synced.map(said).join(" "))
    });
    cases.add("syncfs: of the file system", "ok", || {
        file_of("x", b"abc")?;
        Ok(said(rustix::fs::syncfs(edit("x")?)))
    });
    cases.add("run: a program that somebody has open to write", "ETXTBSY", || {
        let _writer = script()?;
        Ok(run())
    });
    cases.add("run: a program of a share", "ok", || {
        drop(script()?);
        Ok(run())
    });
    cases.add("run: without the right to", "EACCES", || {
        drop(script()?);
        super::case::chmod("x", 0o644)?;
        Ok(run())
    });
}

/// Makes a program `x`; it is open still.
fn script() -> Result<std::os::fd::OwnedFd, Errno> {
    let file = create("x", 0o755)?;
    write(&file, b"#!/bin/sh\nexit 0\n")?;
    Ok(file)
}

/// Whether `x` can be started.
fn run() -> String {
    match std::process::Command::new("./x").status() {
        Ok(status) if status.success() => "ok".into(),
        Ok(status) => status.to_string(),
        Err(error) => name(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

fn sizes(cases: &mut Cases) {
    cases.add("truncate: to less, then to more", "ab... 5", || {
        file_of("x", b"abcd")?;
        truncate("x", 2)?;
        truncate("x", 5)?;
        Ok(format!("{} {}", content("x")?, stat("x")?.st_size))
    });
    cases.add("truncate: to less than nothing", "EINVAL", || {
        file("x")?;
        Ok(said(truncate("x", -1)))
    });
    cases.add("truncate: over the limit of sizes", "EFBIG", || {
        file("x")?;
        Ok(said(truncate("x", i64::MAX)))
    });
    cases.add("truncate: to more than 4 GiB", "5368709120 a", || {
        file("x")?;
        truncate("x", 5 << 30)?;
        write_at(edit("x")?, b"a", (5 << 30) - 1)?;
        let mut byte = [0];
        pread(edit("x")?, &mut byte, (5 << 30) - 1)?;
        Ok(format!("{} {}", stat("x")?.st_size, char::from(byte[0])))
    });
    cases.add("ftruncate: of a file that is open to read", "EINVAL", || {
        file("x")?;
        Ok(said(ftruncate(open("x", OFlags::RDONLY)?, 0)))
    });
    cases.add("ftruncate: of a folder", "EINVAL", || {
        Ok(said(ftruncate(open(".", OFlags::DIRECTORY)?, 0)))
    });
    cases.add("ftruncate: by who has lost the right to write", "ok", || {
        super::case::file_by(super::case::OWNER, "x", 0o600)?;
        Ok(said(super::case::as_user(super::case::OWNER, || {
            let file = edit("x")?;
            super::case::chmod("x", 0)?;
            ftruncate(&file, 3)
        })))
    });
    cases.add("stat: blocks of 512 bytes are counted", "some", || {
        let file = create("x", 0o644)?;
        write(&file, &[1; 40_000])?;
        rustix::fs::fsync(&file)?;
        Ok(if stat("x")?.st_blocks >= 78 {
            "some".into()
        } else {
            stat("x")?.st_blocks.to_string()
        })
    });
    cases.add("stat: a file of holes has none", "0", || {
        file("x")?;
        truncate("x", 1 << 30)?;
        Ok(stat("x")?.st_blocks.to_string())
    });
}

fn seeking(cases: &mut Cases) {
    let prepare = || -> Result<std::os::fd::OwnedFd, Errno> {
        let file = create("x", 0o644)?;
        ftruncate(&file, 4 * BLOCK)?;
        write_at(&file, &[b'a'; BLOCK_BYTES], BLOCK)?;
        rustix::fs::fsync(&file)?;
        Ok(file)
    };
    for (name, from, rule) in [
        ("data from the beginning", SeekFrom::Data(0), "65536"),
        ("data from where it is", SeekFrom::Data(BLOCK + 5), "65541"),
        ("data behind the last", SeekFrom::Data(3 * BLOCK), "ENXIO"),
        ("data beyond the end", SeekFrom::Data(5 * BLOCK), "ENXIO"),
        ("a hole from the beginning", SeekFrom::Hole(0), "0"),
        ("a hole from data", SeekFrom::Hole(BLOCK), "131072"),
        ("a hole beyond the end", SeekFrom::Hole(5 * BLOCK), "ENXIO"),
        ("the end", SeekFrom::End(-1), "262143"),
        ("beyond the end", SeekFrom::End(1), "262145"),
        ("before the beginning", SeekFrom::End(-300_000), "EINVAL"),
    ] {
        cases.add(format!("lseek: {name}"), rule, move || {
            let file = prepare()?;
            Ok(rustix::fs::seek(&file, from).map_or_else(super::case::name, |place| place.to_string()))
        });
    }
    cases.add("lseek: of a pipe", "ESPIPE", || {
        super::case::node("x", rustix::fs::FileType::Fifo, 0)?;
        Ok(said(rustix::fs::seek(open("x", OFlags::RDWR)?, SeekFrom::Start(0))))
    });
    cases.add("pipe: what one end takes the other gives", "abc", || {
        super::case::node("x", rustix::fs::FileType::Fifo, 0)?;
        let both = open("x", OFlags::RDWR)?;
        rustix::io::write(&both, b"abc")?;
        let mut bytes = [0; 3];
        read(&both, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
}

fn copying(cases: &mut Cases) {
    let copy = |from: u64, to: u64, bytes: usize| -> Result<usize, Errno> {
        let (mut from, mut to) = (from, to);
        rustix::fs::copy_file_range(edit("x")?, Some(&mut from), edit("y")?, Some(&mut to), bytes)
    };
    cases.add("copy_file_range: between files", "3 .bcd", move || {
        file_of("x", b"abcdef")?;
        file("y")?;
        Ok(format!("{} {}", copy(1, 1, 3)?, content("y")?))
    });
    cases.add("copy_file_range: as much as there is", "2", move || {
        file_of("x", b"abcdef")?;
        file("y")?;
        Ok(copy(4, 0, 100)?.to_string())
    });
    cases.add("copy_file_range: nothing beyond the end", "0", move || {
        file_of("x", b"abcdef")?;
        file("y")?;
        Ok(copy(9, 0, 100)?.to_string())
    });
    cases.add("copy_file_range: within a file", "abcabc", || {
        file_of("x", b"abc")?;
        rustix::fs::copy_file_range(edit("x")?, Some(&mut 0), edit("x")?, Some(&mut 3), 3)?;
        content("x")
    });
    cases.add("copy_file_range: onto itself", "EINVAL", || {
        file_of("x", b"abcdef")?;
        Ok(said(rustix::fs::copy_file_range(
            edit("x")?,
            Some(&mut 0),
            edit("x")?,
            Some(&mut 1),
            3,
        )))
    });
    cases.add("copy_file_range: from one that is open to write", "EBADF", || {
        file_of("x", b"abcdef")?;
        file("y")?;
        Ok(said(rustix::fs::copy_file_range(
            open("x", OFlags::WRONLY)?,
            None,
            edit("y")?,
            None,
            3,
        )))
    });
    cases.add("copy_file_range: to one that appends", "EBADF", || {
        file_of("x", b"abcdef")?;
        file("y")?;
        Ok(said(rustix::fs::copy_file_range(
            edit("x")?,
            None,
            open("y", OFlags::WRONLY | OFlags::APPEND)?,
            None,
            3,
        )))
    });
    cases.add("copy_file_range: to a folder", "EISDIR", || {
        file_of("x", b"abcdef")?;
        Ok(said(rustix::fs::copy_file_range(
            edit("x")?,
            None,
            open(".", OFlags::DIRECTORY)?,
            None,
            3,
        )))
    });
    cases.add("copy_file_range: a megabyte", "the same", || {
        let bytes = crate::pattern::bytes(3, 1 << 20);
        let (from, to) = (create("x", 0o644)?, create("y", 0o644)?);
        write(&from, &bytes)?;
        let (mut at, mut to_at) = (0, 0);
        while at < 1 << 20 {
            let count = rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut to_at), 1 << 20)?;
            if count == 0 {
                break;
            }
        }
        let copied = std::fs::read("y").map_err(|_| Errno::IO)?;
        Ok(if copied == bytes { "the same" } else { "something else" }.into())
    });
    cases.add(
        "copy_file_range: what was written just before is copied",
        "new",
        move || {
            file_of("x", b"old")?;
            file("y")?;
            write(edit("x")?, b"new")?;
            copy(0, 0, 3)?;
            content("y")
        },
    );
}

/// Has the kernel read the file anew from wherever it comes from.
fn forget(file: impl AsFd) -> Did {
    rustix::fs::fsync(&file)?;
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
}

fn mapping(cases: &mut Cases) {
    let mapped = |shared: bool| -> Result<(std::os::fd::OwnedFd, Mapping), Errno> {
        let file = create("x", 0o644)?;
        write(&file, &[b'a'; 5000])?;
        let mapping =
            Mapping::new(&file, 5000, shared).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok((file, mapping))
    };
    let letter = |mapping: &Mapping, at: usize| {
        let mut byte = [0];
        mapping.read(at, &mut byte);
        if byte[0] == 0 { '.' } else { char::from(byte[0]) }
    };
    cases.add("mmap: shared, what is written there is in the file", "b a", move || {
        let (file, mut mapping) = mapped(true)?;
        mapping.write(4500, b"b");
        let mut bytes = [0; 2];
        pread(&file, &mut bytes, 4500)?;
        Ok(format!("{} {}", char::from(bytes[0]), char::from(bytes[1])))
    });
    cases.add("mmap: shared, of a file that appends", "5000 b", || {
        file_of("x", &[b'a'; 5000])?;
        let file = open("x", OFlags::RDWR | OFlags::APPEND)?;
        let mut mapping = Mapping::new(&file, 5000, true).map_err(|_| Errno::IO)?;
        mapping.write(4500, b"b");
        drop(mapping);
        forget(&file)?;
        let mut byte = [0];
        pread(&file, &mut byte, 4500)?;
        Ok(format!("{} {}", stat("x")?.st_size, char::from(byte[0])))
    });
    cases.add("mmap: shared, what the file gets is there", "b", move || {
        let (file, mapping) = mapped(true)?;
        write_at(&file, b"b", 100)?;
        Ok(letter(&mapping, 100).to_string())
    });
    cases.add(
        "mmap: private, what is written there is not in the file",
        "a b",
        move || {
            let (file, mut mapping) = mapped(false)?;
            mapping.write(100, b"b");
            let mut byte = [0];
            pread(&file, &mut byte, 100)?;
            Ok(format!("{} {}", char::from(byte[0]), letter(&mapping, 100)))
        },
    );
    cases.add("mmap: the file lives on without name and descriptor", "a", move || {
        let (file, mapping) = mapped(true)?;
        rustix::fs::unlink("x")?;
        drop(file);
        Ok(letter(&mapping, 4999).to_string())
    });
    cases.add("mmap: zeroes behind the end of the file in its last page", ".", || {
        let file = create("x", 0o644)?;
        write(&file, b"abc")?;
        let mapping = Mapping::new(&file, 4096, true).map_err(|_| Errno::IO)?;
        let mut byte = [1];
        mapping.read(100, &mut byte);
        Ok(if byte == [0] { ".".into() } else { format!("{byte:?}") })
    });
    cases.add(
        "mmap: what a larger file shows of a smaller one's last page",
        "ab..",
        || {
            file_of("x", b"abcd")?;
            let file = edit("x")?;
            let mapping = Mapping::new(&file, 4096, true).map_err(|_| Errno::IO)?;
            let mut bytes = [0; 4];
            mapping.read(0, &mut bytes);
            ftruncate(&file, 2)?;
            ftruncate(&file, 4)?;
            mapping.read(0, &mut bytes);
            Ok(bytes
                .map(|byte| if byte == 0 { '.' } else { char::from(byte) })
                .iter()
                .collect())
        },
    );
    cases.add(
        "mmap: shared and to be written, of a file that is open to read",
        "EACCES",
        || {
            let done: Did = (|| {
                file_of("x", b"abc")?;
                let file = open("x", OFlags::RDONLY)?;
                Mapping::new(&file, 3, true)
                    .map(drop)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })();
            Ok(said(done))
        },
    );
}
