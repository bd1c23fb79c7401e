//! The log: one line an event on standard error, in a file, with journald or the system's log. The
//! text form is marked with its level as Kata's shims look for it.
//!
//! A reader that stops reading must not stop the VM: a line for which there is no room, on a full
//! file system too, is dropped, and the next one that gets through is preceded by the number of
//! those that did not. If only a part of a line was written, the next one starts with a line end.
//! Only a reader that has gone (`EPIPE`) misses nothing. What one place in the source says too
//! often is counted instead (`limiter.rs`).

mod level;
mod limiter;
mod line;
mod logger;
mod tag;
mod target;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;

use crate::seccomp::Mode;
use crate::terminal::{NonBlockingFile, OpenOutputError, ProtectedFiles};

use line::{Entry, LEVELS};
use logger::{BEGUN, LOGGER, Setup};
use target::Target;

pub use level::{UnknownLevel, current_level, set_level, shift_level};
pub(crate) use line::journal_head;
pub use line::{Format, date_and_time};
pub use tag::Tag;
pub use target::{BadDestination, Destination, JOURNAL, Sent, connect, send};

/// What lines of the log's own name as the part of husk that says them.
const TARGET: &str = module_path!();

/// How long a reader of the last words is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Where the log goes, and how it looks.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where lines go: standard error, a file, journald or the system's log.
    pub destination: Destination,
    /// How, on standard error and in a file.
    pub format: Format,
    /// What this process is called where several have one log: the pod's name.
    pub tag: Option<Tag>,
}

/// Starts logging on standard error: errors and warnings, with `-v` also information, with `-vv`
/// also what helps to debug. A second call only changes the level.
pub fn init(verbosity: u8) {
    start();
    log::set_max_level(level::level(verbosity));
}

/// As [`init`], where and how `options` say. The first such call counts. Where nobody takes the
/// lines of a daemon, standard error has them, and says so: a pod does not want to be without its
/// VM because a log is away.
///
/// # Errors
/// A file cannot be written to.
pub fn init_with(verbosity: u8, options: &Options) -> Result<(), OpenOutputError> {
    let destination = &options.destination;
    let (target, away) = match (Target::open(destination), destination) {
        (Ok(target), _) => (target, None),
        (Err(OpenOutputError::Open(error)), Destination::Journal(_) | Destination::Syslog(_)) => {
            (Target::Stderr, Some(error))
        }
        (Err(error), _) => return Err(error),
    };
    // Fails only when there is one already.
    let _ = LOGGER.setup.set(Setup {
        target,
        destination: destination.clone(),
        format: options.format,
        tag: options.tag.clone(),
    });
    init(verbosity);
    if let Some(error) = away {
        log::warn!("{destination} takes no lines: {error}; standard error has them");
    }
    Ok(())
}

fn start() {
    // Fails only when it has been set, by an earlier call.
    let _ = BEGUN.set(Instant::now());
    if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
        // Fails only when there is one already.
        let _ = LOGGER.stderr.set(NonBlockingFile::inherit(File::from(stderr)));
    }
    // Fails only when the logger has been set, by an earlier call.
    let _ = log::set_logger(&LOGGER);
}

/// Writes `text` on standard error for whoever started this process, and gives them a moment to make room for it.
pub fn tell(text: &str) {
    // When nobody hears it, there is nobody else to tell.
    let _ = match LOGGER.stderr.get() {
        Some(stderr) => stderr.write_all_within(text.as_bytes(), PATIENCE),
        None => io::stderr().write_all(text.as_bytes()),
    };
}

/// Why the process ends with an error, for whoever started it, and for the log if that is elsewhere.
pub fn tell_failure(why: &str) {
    tell(&format!("error: {why}\n"));
    if LOGGER.is_elsewhere() {
        log::error!("{why}; husk ends here");
    }
}

/// The last line of a process that dies, in every place where somebody may look for it. For a signal handler: no
/// allocation, no lock. A thread that writes to a file has 100 ms for the lines before it; if it needs more,
/// the file does without this one.
pub fn tell_death(message: &str) {
    LOGGER.die(&Entry {
        level: Level::Error,
        target: "husk",
        place: None,
        message: format_args!("{message}"),
        remark: "",
    });
}

/// The regular files that lines go to, the one of the log's own and standard error, and standard output.
pub fn protected_files() -> ProtectedFiles {
    let mut files = ProtectedFiles::of_process();
    if let Some(Target::File(file)) = LOGGER.setup.get().map(|setup| &setup.target) {
        files.add("husk's log", file.file_id());
    }
    files
}

/// What this process is called in the log.
pub fn tag() -> &'static str {
    let tag = LOGGER.setup.get().and_then(|setup| setup.tag.as_ref());
    tag.map_or(line::PROGRAM, Tag::as_str)
}

/// From now on threads, confined as `seccomp` says, write to the regular files that lines go to: nobody else waits for
/// their file systems.
///
/// # Errors
/// The host has no thread or descriptor left.
pub fn start_writers(seccomp: Mode) -> io::Result<()> {
    LOGGER
        .files()
        .into_iter()
        .try_for_each(|file| file.start_writer(seccomp))
}

/// Tells what was only counted so far, and gives the last lines some time to be written. For the end of the process.
pub fn finish() {
    let deadline = Instant::now() + PATIENCE;
    log::logger().flush();
    if LOGGER.wait_written(deadline) && LOGGER.take_unwritten() > 0 {
        log::logger().flush();
        LOGGER.wait_written(deadline);
    }
}

/// Lines that were logged, by level.
pub fn lines() -> [(&'static str, u64); LEVELS.len()] {
    by_level(&LOGGER.lines)
}

/// Lines that were only counted, because their place in the source had said enough, by level.
pub fn left_out_lines() -> [(&'static str, u64); LEVELS.len()] {
    by_level(&LOGGER.left_out)
}

fn by_level(counts: &[AtomicU64; LEVELS.len()]) -> [(&'static str, u64); LEVELS.len()] {
    let mut counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    LEVELS.map(|level| (level, counts.next().unwrap_or_default()))
}

/// Lines for which there was no room.
pub fn lost_lines() -> u64 {
    LOGGER.take_unwritten();
    LOGGER.lost_ever.load(Ordering::Relaxed)
}
