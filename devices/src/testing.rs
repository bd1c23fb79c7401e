//! What tests of several crates need: to wait for what another thread does, with an end, so that a
//! fault fails the test in place of hanging it; loop devices of the host; and the source, which
//! some compare with what is written about it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

/// How long a test waits for what happens at once on a machine that is not busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `done` again and again until it returns true.
///
/// # Panics
/// At the caller's line, when [`PATIENCE`] is over first.
#[track_caller]
pub fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it has not happened in {PATIENCE:?}");
        thread::yield_now();
    }
}

/// Waits until the thread of this process whose number is `id` sleeps, or has ended.
///
/// # Panics
/// As [`until`].
#[track_caller]
pub fn until_asleep(id: i32) {
    let stat = format!("/proc/self/task/{id}/stat");
    until(|| !fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") S ")));
}

/// A loop device, detached when dropped.
pub struct Loop(
    /// Its path, such as `/dev/loop0`.
    pub PathBuf,
);

impl Loop {
    /// One on `file`, with more options of losetup(8). `None`, and a word, where there is none to be had.
    pub fn attach(file: &Path, options: &[&str]) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).args(options).arg(file);
        let device = losetup.output().ok().filter(|attached| attached.status.success());
        if device.is_none() {
            println!("skipped: needs root, a loop device");
        }
        let device = String::from_utf8(device?.stdout).ok()?;
        Some(Self(device.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// The files below `folder` whose name ends with `end`, in order. Hidden files and what is built are left out.
///
/// # Panics
/// When a folder cannot be read.
pub fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&path, end));
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// As [`files`] of Rust, each with its text, less tests: files called `…_test.rs`, and what follows
/// the head of a module `tests`.
///
/// # Panics
/// As [`files`], and when one cannot be read.
pub fn shipped_sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut sources = Vec::new();
    for path in files(folder, ".rs") {
        if path.to_string_lossy().ends_with("_test.rs") {
            continue;
        }
        let mut text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Some(end) = text.find("\n#[cfg(test)]\nmod tests") {
            text.truncate(end);
        }
        sources.push((path, text));
    }
    sources
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn sources_are_found_in_order_and_without_their_tests() {
        let sources = shipped_sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
        assert!(sources.is_sorted() && sources.iter().any(|(path, _)| path.ends_with("pci/bar.rs")));
        let (_, own) = sources.iter().find(|(path, _)| path.ends_with("testing.rs")).unwrap();
        assert!(own.ends_with("    sources\n}\n"), "{own}");
        assert!(!sources.iter().any(|(path, _)| path.ends_with("bus_test.rs")));
    }

    #[test]
    fn what_happens_later_is_waited_for() {
        let mut looks = 0;
        until(|| {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_thread_that_waits_is_asleep_and_one_that_has_ended_is_not_waited_for() {
        let (name, id) = channel();
        let (go, wait) = channel::<()>();
        let thread = thread::spawn(move || {
            name.send(fs::read_link("/proc/thread-self").unwrap()).unwrap();
            let _ = wait.recv();
        });
        let link = id.recv().unwrap();
        let id = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
        until_asleep(id);
        drop(go);
        thread.join().unwrap();
        until_asleep(id);
    }
}
