//! What Linux tells of the threads of a process that runs on meanwhile (proc(5), `/proc/PID/task`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::PATIENCE;

/// The file `name` of each thread of the process `pid`. One that has ended meanwhile has none:
/// those that must be there are for the caller to look for.
///
/// # Panics
///
/// There is no such process, or a file cannot be read for another reason.
pub fn each(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.unwrap_or_else(|error| panic!("the threads of {pid}: {error}"));
    tasks
        .filter_map(|task| unless_gone(task.and_then(|task| read(&task.path(), name))))
        .collect()
}

fn read(task: &Path, name: &str) -> io::Result<String> {
    fs::read_to_string(task.join(name))
}

/// `None` if the thread has ended: before its file was opened, or before that was read.
fn unless_gone(text: io::Result<String>) -> Option<String> {
    let gone = [libc::ENOENT, libc::ESRCH];
    match text {
        Err(error) if error.raw_os_error().is_some_and(|errno| gone.contains(&errno)) => None,
        text => Some(text.unwrap_or_else(|error| panic!("a thread's file: {error}"))),
    }
}

/// How many threads of the process `pid` have each name.
pub fn names(pid: u32) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for name in each(pid, "comm") {
        *names.entry(name.trim_end().to_owned()).or_default() += 1;
    }
    names
}

/// The vCPU threads of a process, in their order, found as the shims find them.
///
/// # Errors
///
/// There is no such process, or a thread whose name a shim would take for a vCPU's and cannot read.
pub fn vcpu_threads(pid: u32) -> Result<Vec<u32>> {
    let mut vcpus = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = fs::read_to_string(task?.path().join("comm"))?;
        if let Some(number) = name.trim_end().strip_prefix("vcpu") {
            vcpus.push(number.parse().with_context(|| format!("a thread named {name:?}"))?);
        }
    }
    vcpus.sort_unstable();
    Ok(vcpus)
}

/// Whether the thread `name` of the process `pid` is ever seen asleep. One that spins never is.
pub fn sleeps(pid: u32, name: &str) -> bool {
    let (start, of_thread) = (Instant::now(), format!("({name}) S "));
    while start.elapsed() < PATIENCE {
        if each(pid, "stat").iter().any(|stat| stat.contains(&of_thread)) {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Waits until every program that this process has begun to start is executed, or is given up:
/// until then its process has all the descriptors that this one had when it was forked.
pub fn wait_for_exec() {
    let own = fs::read_link("/proc/self/exe").ok();
    let started = each(std::process::id(), "children");
    let start = Instant::now();
    for child in started.iter().flat_map(|list| list.split_whitespace()) {
        let program = || fs::read_link(format!("/proc/{child}/exe")).ok();
        while own.is_some() && program() == own && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_ended_meanwhile_is_left_out() {
        let error = |errno| Err(io::Error::from_raw_os_error(errno));
        assert_eq!(unless_gone(error(libc::ENOENT)), None);
        assert_eq!(unless_gone(error(libc::ESRCH)), None);
        assert_eq!(unless_gone(Ok("text".into())), Some("text".into()));
        let refused = std::panic::catch_unwind(|| unless_gone(error(libc::EACCES)));
        assert!(refused.is_err());
    }

    #[test]
    fn threads_that_come_and_go_do_not_matter_to_those_that_stay() {
        let pid = std::process::id();
        let (stop, told) = std::sync::mpsc::channel::<()>();
        let stays = thread::Builder::new().name("stays-here".into());
        let stays = stays.spawn(move || told.recv()).unwrap();
        for _ in 0..200 {
            let goes = thread::spawn(|| ());
            // It gives itself its name, and the kernel may end a list early at a thread that goes.
            let start = Instant::now();
            while names(pid).get("stays-here") != Some(&1) {
                assert!(start.elapsed() < PATIENCE);
            }
            goes.join().unwrap();
        }
        assert!(sleeps(pid, "stays-here"));
        drop(stop);
        // Nothing was sent.
        stays.join().unwrap().unwrap_err();
    }

    /// Not a test by itself: run by the one below, in a process of its own.
    #[test]
    fn ends_with_its_input() {
        if std::env::var_os(WAITS).is_some() {
            io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
        }
    }

    const WAITS: &str = "HUSK_TEST_WAITS";

    /// A process that runs what this one does looks like one that is not executed yet.
    #[test]
    fn a_program_that_is_being_started_is_waited_for_and_no_other() {
        use std::process::{Command, Stdio};
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let mut same = Command::new(std::env::current_exe().unwrap());
        same.args(["--exact", "threads::tests::ends_with_its_input"])
            .env(WAITS, "1");
        let mut same = same.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let program = format!("/proc/{}/exe", same.id());
        let waits = thread::spawn(move || {
            wait_for_exec();
            fs::read_link(program)
        });
        thread::sleep(Duration::from_millis(100));
        drop(same.stdin.take());
        let program = waits.join().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(same.wait().unwrap().success());
        // One that ends has no program any more, some time before it is a zombie.
        assert!(program.is_err(), "it had not ended: {program:?}");
    }
}
