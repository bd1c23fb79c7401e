//! Random work on a tree by several processes at once: each in a folder of its own, where every
//! answer is known from the seed, and all in one that they share, where any of them may be faster.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::kernel::{self, Lock};
use crate::pattern::{self, Checksum};
use crate::rng::SeededRng;

/// The folder that all share, and the file in it that they count in.
pub const COMMON: &str = "common";
/// Below [`COMMON`].
pub const COUNTER: &str = "counter";

/// What a process did.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Of all answers to what it did in its own folder.
    pub answers: u64,
    /// What it added to the counter.
    pub counted: u64,
}

/// What may be said in a folder where others are at work.
const RACES: [Errno; 9] = [
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTEMPTY,
    Errno::ISDIR,
    Errno::NOTDIR,
    Errno::LOOP,
    Errno::INVAL,
    Errno::PERM,
    Errno::BUSY,
];

/// The folder of the process with `number` below `root`.
pub fn own(root: &Path, number: u64) -> PathBuf {
    root.join(format!("own{number}"))
}

/// Makes what the processes find in `root`, which is there.
///
/// # Errors
///
/// What the file system says.
pub fn prepare(root: &Path) -> std::io::Result<()> {
    fs::create_dir(root.join(COMMON))?;
    fs::write(root.join(COMMON).join(COUNTER), "0")
}

/// Does `steps` things each in the folder of the process with `number` and in the one of all.
///
/// # Errors
///
/// The file system says what it must not.
pub fn work(root: &Path, seed: u64, steps: u64, number: u64) -> Result<Done> {
    let mine = own(root, number);
    let common = root.join(COMMON);
    fs::create_dir(&mine)?;
    let mut here = SeededRng::new(seed.wrapping_add(number));
    let mut there = SeededRng::new(!seed.wrapping_add(number));
    let mut answers = Checksum::default();
    let mut counted = 0;
    for step in 0..steps {
        let (what, answer) = act(&mut here, &mine);
        answers.update(format!("{what} {answer:?}").as_bytes());
        let (what, answer) = act(&mut there, &common);
        if let Err(errno) = answer {
            ensure!(RACES.contains(&errno), "process {number}, step {step}: {what}: {errno}");
        }
        if step % 8 == 0 {
            count(&common.join(COUNTER)).with_context(|| format!("process {number}, step {step}"))?;
            counted += 1;
        }
    }
    let answers = answers.value();
    Ok(Done { answers, counted })
}

/// Some path of one to three names, of which there are few.
fn path(rng: &mut SeededRng, root: &Path) -> PathBuf {
    let mut path = root.to_path_buf();
    for _ in 0..=rng.below(3) {
        path.push(rng.one_of(&["a", "b", "c", "d", "e"]));
    }
    path
}

/// One call, in words, and what it answered.
fn act(rng: &mut SeededRng, root: &Path) -> (&'static str, Result<u64, Errno>) {
    let path = path(rng, root);
    let path = path.as_path();
    match rng.below(17) {
        0..3 => ("mkdir", rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map(|()| 0)),
        3..6 => ("write", write(rng, path)),
        6 => ("append", append(rng, path)),
        7 => {
            let bytes = rng.below(20_000) as u64;
            let opened = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            (
                "truncate",
                opened.and_then(|file| rustix::fs::ftruncate(file, bytes)).map(|()| 0),
            )
        }
        8 => ("unlink", rustix::fs::unlink(path).map(|()| 0)),
        9 => ("rmdir", rustix::fs::rmdir(path).map(|()| 0)),
        10 => {
            let target = rng.one_of(&["a", "b", "c/d"]);
            ("symlink", rustix::fs::symlink(target, path).map(|()| 0))
        }
        11 => ("link", rustix::fs::link(path, self::path(rng, root)).map(|()| 0)),
        12..14 => {
            let flags = rng.one_of(&[
                RenameFlags::empty(),
                RenameFlags::empty(),
                RenameFlags::NOREPLACE,
                RenameFlags::EXCHANGE,
            ]);
            let to = self::path(rng, root);
            (
                "rename",
                rustix::fs::renameat_with(CWD, path, CWD, &to, flags).map(|()| 0),
            )
        }
        14 => {
            // A mode that lets anybody at it: root or not, the answers are the same.
            let mode = rng.one_of(&[0o755, 0o700, 0o777]);
            ("chmod", rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map(|()| 0))
        }
        15 => ("read", read(path)),
        _ => ("list", list(path)),
    }
}

/// Puts a pattern in a file, there or not.
fn write(rng: &mut SeededRng, path: &Path) -> Result<u64, Errno> {
    let bytes = pattern::bytes(rng.below(1 << 20) as u64, rng.below(9000));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(&bytes).map_err(errno)?;
    Ok(0)
}

fn append(rng: &mut SeededRng, path: &Path) -> Result<u64, Errno> {
    let bytes = pattern::bytes(rng.below(1 << 20) as u64, rng.below(500));
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    File::from(file).write_all(&bytes).map_err(errno)?;
    Ok(0)
}

/// The checksum of a file.
fn read(path: &Path) -> Result<u64, Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(pattern::read(&mut File::from(file)).map_err(errno)?.1)
}

/// The checksum of the names in a folder.
fn list(path: &Path) -> Result<u64, Errno> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(errno)? {
        names.push(entry.map_err(errno)?.file_name());
    }
    names.sort();
    let mut checksum = Checksum::default();
    for name in names {
        checksum.update(name.as_bytes());
        checksum.update(b"/");
    }
    Ok(checksum.value())
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Adds one to the number in the file, under a lock of its range.
fn count(path: &Path) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(path)?;
    kernel::wait_for_range(&file, Lock::Exclusive, 0, 0).context("cannot lock")?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number: u64 = text.parse().with_context(|| format!("a torn number {text:?}"))?;
    file.rewind()?;
    file.write_all((number + 1).to_string().as_bytes())?;
    // Closing it would do; it is what is tested here.
    kernel::lock_range(&file, Lock::None, 0, 0).context("cannot unlock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Depth, survey};

    #[test]
    fn one_seed_is_one_tree_and_one_list_of_answers() {
        let [one, two] = [1, 2].map(|_| tempfile::tempdir().unwrap());
        let [first, second] = [one.path(), two.path()].map(|root| {
            prepare(root).unwrap();
            (
                work(root, 3, 800, 0).unwrap(),
                survey(&own(root, 0), Depth::Contents).unwrap(),
            )
        });
        assert_eq!(first, second);
        assert!(first.1.entries > 10, "{first:?}");
        let number = fs::read_to_string(one.path().join(COMMON).join(COUNTER)).unwrap();
        assert_eq!(number, first.0.counted.to_string());
        let other = tempfile::tempdir().unwrap();
        prepare(other.path()).unwrap();
        assert_ne!(work(other.path(), 4, 800, 0).unwrap().answers, first.0.answers);
    }
}
