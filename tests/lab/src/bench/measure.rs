//! One run of one subject: spawn, mark, exit; and what its memory holds in between.
//!
//! The clock is `CLOCK_MONOTONIC` of the process that spawns. The same code runs on the development
//! machine and inside the emulated host, where, in deterministic mode, that clock counts guest
//! instructions.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use husk_benches::MARK;

use super::broken::GuestFailure;
use crate::command::typed;
use crate::sys;

/// Bytes of output that are kept: a kernel's last words, and those of one that came after it.
const KEPT: usize = 64 << 10;

/// How long output may stay open when its process has ended.
const GRACE: Duration = Duration::from_secs(1);

/// A command that has not been started, and where it may complain.
#[derive(Debug)]
pub struct Start {
    /// The command.
    pub command: Command,
    /// A file for its standard error.
    pub complaints: PathBuf,
}

/// A run of one subject from spawn to exit.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Spawn to mark.
    pub mark: Duration,
    /// Spawn to exit.
    pub exit: Duration,
}

/// Runs `start` until it exits by itself.
///
/// # Errors
///
/// It cannot be spawned, ends without having passed the mark on, or takes longer than `limit`.
pub fn life(start: Start, limit: Duration) -> Result<Life> {
    observe(start, limit, |run| {
        let mark = run.mark()?;
        Ok(Life {
            mark,
            exit: run.exit()?,
        })
    })
}

/// Runs `start` until its mark, lets it settle, and takes a `look` at its folder below `/proc`. The
/// process is killed afterwards.
///
/// # Errors
///
/// As [`life`], or `look` fails.
pub fn at_rest<T>(start: Start, settle: Duration, limit: Duration, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    observe(start, limit, |run| {
        run.mark()?;
        thread::sleep(settle);
        look(Path::new(&format!("/proc/{}", run.child.id())))
    })
}

/// Runs `start` as long as `look` takes. The process is killed afterwards.
///
/// # Errors
///
/// It cannot be spawned, or `look` fails; its last words are added.
pub fn during<T>(start: Start, limit: Duration, look: impl FnOnce() -> Result<T>) -> Result<T> {
    observe(start, limit, |_| look())
}

struct Run {
    child: Child,
    start: Instant,
    limit: Duration,
    marks: Receiver<Instant>,
}

fn observe<T>(start: Start, limit: Duration, look: impl FnOnce(&mut Run) -> Result<T>) -> Result<T> {
    let Start {
        mut command,
        complaints,
    } = start;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&complaints)?);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", typed(&command)))?;
    let (mark, marks) = mpsc::channel();
    let output = child.stdout.take();
    let reader = thread::spawn(move || output.map_or_else(Vec::new, |output| watch(output, &mark)));
    let mut run = Run {
        child,
        start,
        limit,
        marks,
    };
    let seen = look(&mut run);
    end(&mut run.child);
    let said = collected(reader);
    // A VMM may boot its guest again, and all is well as far as it knows.
    let seen = match GuestFailure::find(&String::from_utf8_lossy(&said)) {
        Some(panicked) => Err(panicked.into()),
        None => seen,
    };
    let complained = fs::read(&complaints).unwrap_or_default();
    seen.map_err(|error| {
        let words = last_words(&[complained, said]);
        match error.is::<GuestFailure>() {
            true => error,
            false => anyhow!("{error:#}{words}"),
        }
    })
}

/// Ends `child` and all that it has started: who is left would hold its output open.
pub fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(None)) {
        sys::kill_tree(child.id());
    }
    let _ = child.wait();
}

/// What `reader` has read, or nothing if an orphan of the process that has ended holds its output open.
pub fn collected(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let end = Instant::now() + GRACE;
    while !reader.is_finished() {
        if Instant::now() > end {
            return Vec::new();
        }
        thread::sleep(Duration::from_micros(50));
    }
    reader.join().unwrap_or_default()
}

impl Run {
    /// Waits for the guest's mark.
    fn mark(&self) -> Result<Duration> {
        match self.marks.recv_timeout(self.left()) {
            Ok(time) => Ok(time.duration_since(self.start)),
            Err(RecvTimeoutError::Timeout) => bail!("no mark of the guest within {} s", self.limit.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("ended without the guest's mark"),
        }
    }

    /// Waits for the exit. Its output ends a moment before.
    fn exit(&mut self) -> Result<Duration> {
        while self.marks.recv_timeout(self.left()).is_ok() {}
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(self.start.elapsed());
            }
            ensure!(
                self.start.elapsed() < self.limit,
                "still running after {} s",
                self.limit.as_secs()
            );
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }
}

/// Reads to the end, so that nobody waits for a full pipe, and tells when the first mark came. The
/// last bytes read, at most [`KEPT`] and what came with them.
fn watch(mut output: ChildStdout, mark: &Sender<Instant>) -> Vec<u8> {
    let (mut chunk, mut last) = ([0; 4096], Vec::new());
    let mut marked = false;
    loop {
        let got = match output.read(&mut chunk) {
            Ok(0) => return last,
            Ok(got) => chunk.get(..got).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return last,
        };
        if !marked && got.contains(&MARK) {
            marked = true;
            let _ = mark.send(Instant::now());
        }
        last.drain(..last.len().saturating_sub(KEPT));
        last.extend_from_slice(got);
    }
}

/// The last line of the first text that has one.
fn last_words(texts: &[Vec<u8>]) -> String {
    let line = |text: &Vec<u8>| {
        let text = String::from_utf8_lossy(text);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(format!("; its last words: {line}"))
    };
    texts.iter().find_map(line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(script: &str, folder: &Path) -> Start {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Start {
            command,
            complaints: folder.join("complaints"),
        }
    }

    #[test]
    fn mark_and_exit_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let life = life(shell("printf 'noise\\002'; sleep 0.2", folder.path()), LIMIT).unwrap();
        assert!(life.exit - life.mark >= Duration::from_millis(190), "{life:?}");
    }

    #[test]
    fn an_end_without_a_mark_is_an_error_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let error = life(shell("echo hello; echo no such disk >&2", folder.path()), LIMIT).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("ended without the guest's mark; its last words: no such disk"),
            "{error}"
        );
    }

    #[test]
    fn a_guest_that_panicked_counts_for_nothing_even_if_another_one_marks() {
        let folder = tempfile::tempdir().unwrap();
        let panic = "echo '[ 1.5] Kernel panic - not syncing: Fatal exception in interrupt'; echo booting again";
        for script in [panic.to_string(), format!("{panic}; printf '\\002'")] {
            let error = life(shell(&script, folder.path()), LIMIT).unwrap_err();
            let panicked = error.downcast_ref::<GuestFailure>().expect("a panic");
            assert!(
                panicked
                    .to_string()
                    .ends_with("not syncing: Fatal exception in interrupt"),
                "{panicked}"
            );
        }
    }

    #[test]
    fn who_hangs_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(100);
        let before = Instant::now();
        for script in ["exec sleep 1000", "printf '\\002'; sleep 1000; true"] {
            assert!(life(shell(script, folder.path()), limit).is_err());
        }
        assert!(before.elapsed() < LIMIT);
    }

    #[test]
    fn an_orphan_that_holds_the_output_open_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let error = during(shell("sleep 30 & exit 3", folder.path()), LIMIT, || {
            thread::sleep(Duration::from_millis(100));
            bail!("nobody answers")
        });
        let error: Result<()> = error;
        assert_eq!(error.unwrap_err().to_string(), "nobody answers");
    }

    #[test]
    fn a_footprint_is_taken_between_mark_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let start = shell("printf '\\002'; exec sleep 60", folder.path());
        let look = |process: &Path| crate::bench::footprint::read(process, 512);
        let footprint = at_rest(start, Duration::from_millis(50), LIMIT, look).unwrap();
        assert!(
            footprint.private_kib > 0 && footprint.page_table_kib > 0,
            "{footprint:?}"
        );
    }
}
