//! What tests of several crates need: to wait for what another thread does, with an end, so that a fault fails the test in place of
//! hanging it; and loop devices of the host.

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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

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
