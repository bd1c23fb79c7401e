//! The log: one line an event on standard error, in a file, with journald or the system's log. The text form is marked with its level
//! as Kata's shims look for it.
//!
//! A reader that stops reading must not stop the VM: a line for which there is no room, on a full file system too, is dropped, and the next
//! one that gets through is preceded by the number of those that did not. If only a part of a line was written, the
//! next one starts with a line end. Only a reader that has gone (`EPIPE`) misses nothing. What one place in the source
//! says too often is counted instead (`limiter.rs`).

mod limiter;
mod line;
mod target;

use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record, STATIC_MAX_LEVEL};

use crate::fatal::LineBuffer;
use crate::seccomp::Mode;
use crate::terminal::{
    self, LostLines, NonBlockingFile, OpenOutputError, PendingLines, ProtectedFiles, UnwrittenLines, WriteProgress,
};

use limiter::{Admission, CallSite, LogLimiter};
use line::{Entry, LEVELS, Speaker};
use target::Target;

pub(crate) use line::journal_head;
pub use line::{Format, date_and_time};
pub use target::{BadDestination, Destination, JOURNAL, Sent, connect, send};

/// How long a reader of the last words is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a thread that dies waits for one that writes to a file.
const LAST_PATIENCE: Duration = Duration::from_millis(100);

/// Follows the last line of a place that has said too much.
const ENOUGH: &str = " (more like this are only counted for some seconds)";

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

/// What a process is called where several have one log: 1 to 64 letters, digits and `_.-`, as the tools that look for it take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

/// Sockets that container runtimes call alike in every sandbox's folder, which is named after the sandbox.
const USUAL_NAMES: [&str; 4] = ["clh-api.sock", "ch-api.sock", "ch-vm.sock", "api.sock"];
/// Folders of such a socket that are no sandbox's.
const NAMELESS: [&str; 3] = ["tmp", "run", "root"];

impl Tag {
    /// The most bytes of a tag.
    const BYTES: usize = 64;

    /// What a husk with its API at `socket` is called, in its log and by whoever lists husks: after the sandbox in whose folder the socket is
    /// where it has a name that container runtimes give it, else after the socket. `None` where that says nothing.
    pub fn of_socket(socket: &Path) -> Option<Self> {
        let name = socket.file_name()?;
        let name = match USUAL_NAMES.iter().any(|usual| name == *usual) {
            true => {
                let folder = socket.parent()?.file_name()?;
                (!NAMELESS.iter().any(|nameless| folder == *nameless)).then_some(folder)?
            }
            false => socket.file_stem()?,
        };
        Self::like(&name.to_string_lossy())
    }

    /// The tag itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A tag that is like `text`, which has other characters perhaps, or too many.
    pub fn like(text: &str) -> Option<Self> {
        let plain = |found: char| if is_plain(found) { found } else { '_' };
        let tag: String = text.chars().map(plain).take(Self::BYTES).collect();
        (!tag.is_empty()).then_some(Self(tag))
    }
}

fn is_plain(found: char) -> bool {
    found.is_ascii_alphanumeric() || matches!(found, '_' | '.' | '-')
}

impl std::str::FromStr for Tag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if (1..=Self::BYTES).contains(&text.len()) && text.chars().all(is_plain) {
            return Ok(Self(text.into()));
        }
        Err("allowed: 1 to 64 letters, digits, _, . and -")
    }
}

/// The process's only logger.
struct Logger {
    /// Lines since the start, by level: error first.
    lines: [AtomicU64; LEVELS.len()],
    /// Those that were only counted, likewise.
    left_out: [AtomicU64; LEVELS.len()],
    /// Lines that did not get through, and have not been told of.
    lost_lines: LostLines,
    /// Lines that never got through.
    lost_ever: AtomicU64,
    /// Who said too much.
    limiter: LogLimiter,
    /// Standard error, unless it was closed.
    stderr: OnceLock<NonBlockingFile>,
    setup: OnceLock<Setup>,
    /// The daemon that lines went to has gone; standard error has them since.
    away: AtomicBool,
}

/// What was asked for, opened.
struct Setup {
    target: Target,
    destination: Destination,
    format: Format,
    tag: Option<Tag>,
}

static LOGGER: Logger = Logger {
    lines: [const { AtomicU64::new(0) }; LEVELS.len()],
    left_out: [const { AtomicU64::new(0) }; LEVELS.len()],
    lost_lines: LostLines::new(),
    lost_ever: AtomicU64::new(0),
    limiter: LogLimiter::new(),
    stderr: OnceLock::new(),
    setup: OnceLock::new(),
    away: AtomicBool::new(false),
};

/// Starts logging on standard error: errors and warnings, with `-v` also information, with `-vv` also what helps to debug. A second call
/// only changes the level.
pub fn init(verbosity: u8) {
    start();
    log::set_max_level(level(verbosity));
}

/// As [`init`], where and how `options` say. The first such call counts. Where nobody takes the lines of a daemon, standard error has
/// them, and says so: a pod does not want to be without its VM because a log is away.
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

/// The regular files that lines go to: the one of the log's own, and standard error.
pub fn protected_files() -> ProtectedFiles {
    let mut files = ProtectedFiles::default();
    if let Some(Target::File(file)) = LOGGER.setup.get().map(|setup| &setup.target) {
        files.add("husk's log", file.file_id());
    }
    let stderr = LOGGER.stderr.get();
    files.add("husk's standard error", stderr.and_then(NonBlockingFile::file_id));
    files
}

/// What this process is called in the log.
pub fn tag() -> &'static str {
    let tag = LOGGER.setup.get().and_then(|setup| setup.tag.as_ref());
    tag.map_or(line::PROGRAM, |tag| &tag.0)
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

/// Which lines are logged: those of this level, and graver ones.
pub fn current_level() -> &'static str {
    line::level_name(log::max_level() as usize)
}

/// From now on lines of `level` are logged, and graver ones. Any thread may call this.
///
/// # Errors
/// It is none of the names: `error`, `warn`, `info`, `debug`, `trace`.
pub fn set_level(level: &str) -> Result<(), UnknownLevel> {
    let found = LevelFilter::iter().skip(1).zip(LEVELS).find(|(_, name)| *name == level);
    let (filter, _) = found.ok_or_else(|| UnknownLevel { found: level.into() })?;
    log::set_max_level(filter);
    Ok(())
}

/// From now on one level more is logged, or one less, between errors alone and all that this program was built to say. The log says so
/// whatever the level is.
pub fn shift_level(more: bool) {
    log::set_max_level(next_level(log::max_level(), more));
    LOGGER.say(&Entry {
        level: Level::Info,
        target: module_path!(),
        place: Some((file!(), line!())),
        message: format_args!("log level: {}", current_level()),
        remark: "",
    });
}

fn next_level(now: LevelFilter, more: bool) -> LevelFilter {
    let mut levels = LevelFilter::iter().skip(1).filter(|level| *level <= STATIC_MAX_LEVEL);
    let next = match more {
        true => levels.find(|level| *level > now),
        false => levels.take_while(|level| *level < now).last(),
    };
    next.unwrap_or(now)
}

/// A level that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("level: '{}' is none, allowed: {}", .found.escape_debug(), LEVELS.join(", "))]
pub struct UnknownLevel {
    found: String,
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

fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now_ms = now_ms();
        let (counts, remark) = match self.limiter.admit(&CallSite::of(record), now_ms) {
            Admission::Admitted => (&self.lines, Some("")),
            Admission::Last => (&self.lines, Some(ENOUGH)),
            Admission::Suppressed => (&self.left_out, None),
        };
        if let Some(count) = counts.get((record.level() as usize).wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(remark) = remark else { return };
        self.tell_left_out(Some(now_ms));
        self.say(&Entry {
            level: record.level(),
            target: record.target(),
            place: record.file().zip(record.line()),
            message: *record.args(),
            remark,
        });
    }

    /// Tells what has only been counted so far. For the end.
    fn flush(&self) {
        self.tell_left_out(None);
        if self.lost_lines.lost() > 0 {
            self.say_maybe(None);
        }
    }
}

impl Logger {
    /// Whether lines go anywhere but to standard error.
    fn is_elsewhere(&self) -> bool {
        let setup = self.setup.get();
        setup.is_some_and(|setup| !matches!(setup.target, Target::Stderr)) && !self.away.load(Ordering::Relaxed)
    }

    /// What lines go to, datagrams aside.
    fn files(&self) -> Vec<&NonBlockingFile> {
        let file = match self.setup.get().map(|setup| &setup.target) {
            Some(Target::File(file)) => Some(file),
            _ => None,
        };
        file.into_iter().chain(self.stderr.get()).collect()
    }

    /// Waits for threads that write lines, up to `deadline`; whether all of them are written or lost.
    fn wait_written(&self, deadline: Instant) -> bool {
        let mut progress = self.files().into_iter().filter_map(NonBlockingFile::progress);
        progress.all(|progress| progress.wait(deadline))
    }

    /// Takes note of lines that a thread could not write; how many there were.
    fn take_unwritten(&self) -> u64 {
        let progress = self.files().into_iter().filter_map(NonBlockingFile::progress);
        progress.fold(0, |sum: u64, progress| {
            sum.saturating_add(self.take_unwritten_by(progress))
        })
    }

    fn take_unwritten_by(&self, progress: &WriteProgress) -> u64 {
        let UnwrittenLines { lines, untold } = progress.take_unwritten();
        self.lost_lines.lose(lines.saturating_add(untold));
        self.lost_ever.fetch_add(lines, Ordering::Relaxed);
        lines.saturating_add(untold)
    }

    fn tell_left_out(&self, now_ms: Option<u64>) {
        self.limiter.report(now_ms, |site, count| {
            self.say(&Entry {
                level: site.level,
                target: site.module,
                place: None,
                message: format_args!("... {count} more like this ({}:{})", site.module, site.line),
                remark: "",
            });
        });
    }

    fn say(&self, entry: &Entry<'_>) {
        self.say_maybe(Some(entry));
    }

    /// Says how many lines were lost, if any were, and `entry`.
    fn say_maybe(&self, entry: Option<&Entry<'_>>) {
        let setup = self.setup.get();
        let datagram = match setup.map(|setup| &setup.target) {
            Some(Target::Journal(socket) | Target::Syslog(socket)) if !self.away.load(Ordering::Relaxed) => socket,
            Some(Target::File(file)) => return self.write(entry, file, "\n"),
            _ => return self.say_on_stderr(entry),
        };
        match self.send_after_notice(entry, datagram) {
            Sent::Through => {}
            Sent::Full | Sent::Lost => self.lose(entry),
            Sent::Away => {
                if !self.away.swap(true, Ordering::Relaxed)
                    && let Some(destination) = setup.map(|setup| &setup.destination)
                {
                    let message = format_args!("{destination} takes no lines any more; standard error has them");
                    self.say_on_stderr(Some(&own_entry(message)));
                }
                self.say_on_stderr(entry);
            }
        }
    }

    /// Sends how many lines were lost, if any were, and then `entry`. What is not told is kept for later.
    fn send_after_notice(&self, entry: Option<&Entry<'_>>, socket: &File) -> Sent {
        let lost = self.lost_lines.take_lost();
        if lost > 0 {
            let sent = self.send(&own_entry(format_args!("{lost}{LOST}")), socket);
            if sent != Sent::Through {
                self.lost_lines.lose(lost);
                return sent;
            }
        }
        entry.map_or(Sent::Through, |entry| self.send(entry, socket))
    }

    fn say_on_stderr(&self, entry: Option<&Entry<'_>>) {
        if let Some(stderr) = self.stderr.get() {
            self.write(entry, stderr, terminal::line_end());
        }
    }

    fn send(&self, entry: &Entry<'_>, socket: &File) -> Sent {
        let mut text = String::with_capacity(256);
        let _ = self.datagram(&mut text, entry);
        send(socket, text.as_bytes())
    }

    /// An entry in the form of the daemon that has the log.
    fn datagram(&self, out: &mut dyn fmt::Write, entry: &Entry<'_>) -> fmt::Result {
        match self.setup.get().map(|setup| &setup.target) {
            Some(Target::Journal(_)) => line::journal(out, entry, &self.speaker()),
            _ => line::syslog(out, entry, &self.speaker()),
        }
    }

    /// An entry in the form of standard error and of files.
    fn line(&self, out: &mut dyn fmt::Write, entry: &Entry<'_>, end: &str) -> fmt::Result {
        match self.setup.get().map(|setup| setup.format) {
            Some(Format::Json) => line::json(out, entry, &self.speaker(), end),
            _ => line::text(out, entry, end),
        }
    }

    fn speaker(&self) -> Speaker<'_> {
        let tag = self.setup.get().and_then(|setup| setup.tag.as_ref());
        Speaker {
            pid: std::process::id(),
            tag: tag.map(|tag| tag.0.as_str()),
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    /// Writes how many lines were lost, if any were, and `entry`.
    fn write(&self, entry: Option<&Entry<'_>>, to: &NonBlockingFile, end: &str) {
        if let Some(progress) = to.progress() {
            self.take_unwritten_by(progress);
        }
        let loss = self.lost_lines.take();
        let (mut lines, mut text) = (PendingLines::default(), String::with_capacity(160));
        lines.end_torn(loss, end);
        if loss.lost > 0 {
            let _ = self.line(&mut text, &own_entry(format_args!("{}{LOST}", loss.lost)), end);
            lines.push_notice(text.as_bytes(), loss.lost);
        }
        if let Some(entry) = entry {
            text.clear();
            let _ = self.line(&mut text, entry, end);
            lines.push(text.as_bytes(), 0);
        }
        match lines.write_to(to) {
            Ok(()) => {
                if let Some(progress) = to.progress()
                    && loss.lost > 0
                {
                    progress.record_reported(loss.lost, 1);
                }
            }
            // When the reader has gone, nobody misses it.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(_) => {
                self.lost_lines.add(lines.take_unwritten());
                self.count_lost(entry);
            }
        }
    }

    /// `entry`, if it is one, did not get through.
    fn lose(&self, entry: Option<&Entry<'_>>) {
        if entry.is_some() {
            self.lost_lines.lose(1);
        }
        self.count_lost(entry);
    }

    fn count_lost(&self, entry: Option<&Entry<'_>>) {
        self.lost_ever.fetch_add(u64::from(entry.is_some()), Ordering::Relaxed);
    }

    /// Says it on standard error, which the parent reads, and where the log goes.
    fn die(&self, entry: &Entry<'_>) {
        let mut text = LineBuffer::<LAST_BYTES>::default();
        let target = self.setup.get().map(|setup| &setup.target);
        let has_file = matches!(target, Some(Target::File(_)));
        let torn = self.lost_lines.is_torn();
        if torn && !has_file {
            text.push(terminal::line_end().as_bytes());
        }
        let _ = self.line(&mut text, entry, terminal::line_end());
        if is_current(self.stderr.get()) {
            text.write_on_stderr();
        }
        text.clear();
        match target {
            Some(Target::Journal(socket) | Target::Syslog(socket)) => {
                let _ = self.datagram(&mut text, entry);
                send(socket, text.bytes());
            }
            Some(Target::File(file)) => {
                if torn {
                    text.push(b"\n");
                }
                let _ = self.line(&mut text, entry, "\n");
                if is_current(Some(file)) {
                    // When there is no room, nobody is waited for.
                    let _ = file.write_bypassing_thread(text.bytes());
                }
            }
            Some(Target::Stderr) | None => {}
        }
    }
}

/// Whether a thread that may write to `file` has written what it was given, or does so soon: then its file takes more.
fn is_current(file: Option<&NonBlockingFile>) -> bool {
    let progress = file.and_then(NonBlockingFile::progress);
    progress.is_none_or(|progress| progress.wait_unlocked(LAST_PATIENCE))
}

/// The most bytes of a last line with what is around it in any form: a message of [`LineBuffer`]'s usual length, each of its characters escaped.
const LAST_BYTES: usize = 1_024;
/// Follows the number of lines that were lost.
const LOST: &str = " log lines were dropped: nobody read them, or there was no room for them";

/// A warning of the log's own.
fn own_entry(message: fmt::Arguments<'_>) -> Entry<'_> {
    Entry {
        level: Level::Warn,
        target: module_path!(),
        place: None,
        message,
        remark: "",
    }
}

/// When the log began.
static BEGUN: OnceLock<Instant> = OnceLock::new();

/// Milliseconds since then.
fn now_ms() -> u64 {
    let elapsed = BEGUN.get().map_or(Duration::ZERO, Instant::elapsed);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
