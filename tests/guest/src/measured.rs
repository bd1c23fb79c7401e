//! How fast a shared folder is, by the guest's monotonic clock: `/init folder DIR PART`, for the
//! steps `shell` and `script`.
//!
//! Prints a line for each figure, `NAME VALUE` or `no NAME: WHY`. One that cannot be had costs no other.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::folder::{
    DATA, DATA_BYTES, LISTED, LISTED_FILES, NAMED, NAMED_FILES, Part, RESTS_IDLE, RESTS_LISTED, WRITTEN, name,
};
use husk_guest::tree::{self, Plan};
// What the standard library has in its place asks for the time of birth as well. A server that
// knows it is asked once more for that, after each look-up.
use rustix::fs::lstat;

use crate::speed::{self, Buffer, Figure, LARGE, Places, SMALL, flags, mib_per_second};
use crate::sys;

/// For how long the guest rests while the host looks, which is some seconds later: husk gives back
/// what only the way there needed when a guest has rested for as long as that took.
const REST: Duration = Duration::from_secs(7);
/// Bytes of a transfer in small blocks each of which is a request.
const SMALL_BYTES: u64 = 1 << 20;
/// Random reads by one thread alone, and by each of several.
const RANDOM: u32 = 250;
const RANDOM_EACH: u32 = 20;
const THREADS: u32 = 16;
/// Files that come and go, one after the other.
const PASSING: u32 = 150;
/// What is packed, and unpacked into the folder.
const PACKED: Plan = Plan {
    seed: 3,
    files: 100,
    per_folder: 20,
    empty: false,
};

/// A folder, one that is not shared, and how the guest forgets what it knows of the first.
struct Folder {
    root: PathBuf,
    scratch: PathBuf,
    forget: fn() -> Result<()>,
}

/// The figures of a part.
fn figures(part: Part) -> &'static [Figure<Folder>] {
    match part {
        Part::Inodes => &[("readdirplus_entries_per_s", Folder::list)],
        Part::Names => &[
            ("lookup_us", Folder::lookup),
            ("create_stat_unlink_per_s", Folder::pass),
            ("untar_ms", Folder::unpack),
            ("unlink_tree_ms", Folder::remove),
        ],
        Part::Read => &[
            ("read_mib_s_1m_buffered", |folder| folder.read(LARGE, false)),
            ("read_mib_s_4k_buffered", |folder| folder.read(SMALL, false)),
            ("read_mib_s_1m_direct", |folder| folder.read(LARGE, true)),
            ("read_mib_s_4k_direct", |folder| folder.read(SMALL, true)),
            ("mmap_read_mib_s", Folder::map),
        ],
        Part::Random => &[
            ("random_4k_iops_1", |folder| folder.random(1, RANDOM)),
            ("random_4k_iops_16", |folder| folder.random(THREADS, RANDOM_EACH)),
        ],
        Part::Write => &[
            ("write_mib_s_1m_buffered", |folder| folder.write(LARGE, false)),
            ("write_mib_s_4k_buffered", |folder| folder.write(SMALL, false)),
            ("write_mib_s_1m_direct", |folder| folder.write(LARGE, true)),
            ("write_mib_s_4k_direct", |folder| folder.write(SMALL, true)),
        ],
    }
}

/// Carries out `words`; what there is to print.
///
/// # Errors
///
/// They make no sense. What cannot be measured is a line.
pub fn perform(words: &[String]) -> Result<String> {
    let [root, part] = words else {
        bail!("cannot do {words:?}");
    };
    let part = part.parse().map_err(anyhow::Error::msg)?;
    let folder = Folder {
        root: root.into(),
        scratch: "/tmp".into(),
        forget: || fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches"),
    };
    Ok(folder.measure(part, REST))
}

impl Folder {
    /// The figures of `part`, a line each. Where memory is looked at, with a rest before them and one after.
    fn measure(&self, part: Part, rest: Duration) -> String {
        let rest = |told| (part == Part::Inodes).then(|| self.rest(told, rest)).flatten();
        let mut lines = Vec::from_iter(rest(RESTS_IDLE));
        lines.extend(speed::lines(self, figures(part)));
        lines.extend(rest(RESTS_LISTED));
        lines.join("\n")
    }

    /// Tells the host by a file that the guest rests, and rests; what went wrong.
    fn rest(&self, told: &str, rest: Duration) -> Option<String> {
        match File::create(self.root.join(told)) {
            Ok(_) => thread::sleep(rest),
            Err(error) => return Some(format!("no {told}: {error}")),
        }
        None
    }

    fn open(&self, direct: bool) -> Result<File> {
        (self.forget)()?;
        let path = self.root.join(DATA);
        Ok(OpenOptions::new().read(true).custom_flags(flags(direct)).open(path)?)
    }

    /// MiB a second of a file read from its start.
    fn read(&self, block: usize, direct: bool) -> Result<f64> {
        let (mut file, mut buffer) = (self.open(direct)?, Buffer::new(block));
        let bytes = if direct && block == SMALL {
            SMALL_BYTES
        } else {
            DATA_BYTES
        };
        let (start, mut left) = (Instant::now(), bytes);
        while left > 0 {
            let count = file.read(buffer.bytes())?;
            ensure!(count > 0, "the file ends {left} bytes early");
            left = left.saturating_sub(count as u64);
        }
        Ok(mib_per_second(bytes, start))
    }

    /// MiB a second of a new file.
    fn write(&self, block: usize, direct: bool) -> Result<f64> {
        (self.forget)()?;
        let path = self.root.join(WRITTEN).join("file");
        let mut buffer = Buffer::new(block);
        buffer.bytes().fill(0x5a);
        let bytes = if block == SMALL { SMALL_BYTES } else { DATA_BYTES };
        let start = Instant::now();
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(flags(direct))
            .open(&path)?;
        let written = (0..bytes / block as u64).try_for_each(|_| file.write_all(buffer.bytes()));
        drop(file);
        let rate = mib_per_second(bytes, start);
        fs::remove_file(path)?;
        written.map(|()| rate).map_err(Into::into)
    }

    /// Reads of 4 KiB anywhere in the file a second, past the guest's cache.
    fn random(&self, threads: u32, each: u32) -> Result<f64> {
        let file = self.open(true)?;
        let start = Instant::now();
        speed::at_once(threads, |thread| {
            let (mut buffer, mut places) = (Buffer::new(SMALL), Places::new(thread));
            for _ in 0..each {
                let block = places.below(DATA_BYTES / SMALL as u64);
                file.read_exact_at(buffer.bytes(), block * SMALL as u64)?;
            }
            Ok(())
        })?;
        Ok(f64::from(threads * each) / start.elapsed().as_secs_f64())
    }

    /// MiB a second of a file that is mapped and read page by page.
    fn map(&self) -> Result<f64> {
        let file = self.open(false)?;
        let start = Instant::now();
        sys::touch_mapped(&file, usize::try_from(DATA_BYTES)?)?;
        Ok(mib_per_second(DATA_BYTES, start))
    }

    /// Microseconds to find a file that the guest has not heard of.
    fn lookup(&self) -> Result<f64> {
        let paths = many(&self.root.join(NAMED), NAMED_FILES);
        let start = Instant::now();
        for path in &paths {
            lstat(path)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(NAMED_FILES))
    }

    /// Entries a second of a folder listed as `ls -l` does it.
    fn list(&self) -> Result<f64> {
        let (start, mut count) = (Instant::now(), 0);
        for entry in fs::read_dir(self.root.join(LISTED))? {
            lstat(entry?.path())?;
            count += 1;
        }
        ensure!(count == LISTED_FILES, "{count} entries");
        Ok(f64::from(count) / start.elapsed().as_secs_f64())
    }

    /// Files a second that are made, looked at and removed.
    fn pass(&self) -> Result<f64> {
        let paths = many(&self.root.join(WRITTEN), PASSING);
        let start = Instant::now();
        for path in &paths {
            File::create_new(path)?;
            lstat(path)?;
            fs::remove_file(path)?;
        }
        Ok(f64::from(PASSING) / start.elapsed().as_secs_f64())
    }

    /// Milliseconds to unpack an archive of small files into the folder.
    fn unpack(&self) -> Result<f64> {
        let source = self.scratch.join("packed");
        tree::plant(&source, &PACKED).context("cannot plant a tree")?;
        let archive = self.scratch.join("packed.tar");
        tar("-cf", &archive, &source)?;
        let target = self.root.join(WRITTEN).join("tree");
        fs::create_dir(&target)?;
        let start = Instant::now();
        tar("-xf", &archive, &target)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Milliseconds to remove what was unpacked.
    fn remove(&self) -> Result<f64> {
        let start = Instant::now();
        fs::remove_dir_all(self.root.join(WRITTEN).join("tree"))?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// Packs all of `folder` into `archive`, or unpacks it there.
fn tar(what: &str, archive: &Path, folder: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg(what).arg(archive).arg("-C").arg(folder).arg(".");
    let ran = command.output().context("cannot start tar")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "tar: {}", said.trim());
    Ok(())
}

fn many(folder: &Path, count: u32) -> Vec<PathBuf> {
    (0..count).map(|number| folder.join(name(number))).collect()
}

#[cfg(test)]
mod tests {
    use husk_guest::folder::prepare;

    use super::*;

    #[test]
    fn every_figure_is_had_or_told_and_nothing_is_left_behind() {
        for &part in Part::ALL {
            let root = tempfile::tempdir().unwrap();
            prepare(root.path(), part).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let folder = Folder {
                root: root.path().into(),
                scratch: scratch.path().into(),
                forget: || Ok(()),
            };
            let said = folder.measure(part, Duration::ZERO);
            for (figure, _) in figures(part) {
                let line = said.lines().find_map(|line| line.strip_prefix(&format!("{figure} ")));
                // Not every file system of a host has O_DIRECT, nor every host tar.
                let told = said.contains(&format!("no {figure}: "));
                let needy = ["direct", "random", "tar", "tree"]
                    .iter()
                    .any(|word| figure.contains(word));
                match line {
                    Some(value) => assert!(value.parse::<f64>().unwrap() > 0.0, "{figure} {value}"),
                    None => assert!(told && needy, "{said}"),
                }
            }
            let rested = [RESTS_IDLE, RESTS_LISTED].map(|sign| root.path().join(sign).exists());
            assert_eq!(rested, [part == Part::Inodes; 2]);
            let written = fs::read_dir(root.path().join(WRITTEN)).map_or(0, Iterator::count);
            assert_eq!(written, 0, "{part}");
        }
    }
}
