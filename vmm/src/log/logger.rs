//! What is done with a line: whether it is said, where, and what becomes of it if nobody takes it.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{Level, Log, Metadata, Record};

use super::limiter::{Admission, CallSite, LogLimiter};
use super::line::{self, Entry, Format, LEVELS, Speaker};
use super::target::{Destination, Sent, Target, send};
use super::{TARGET, Tag};
use crate::fatal::LineBuffer;
use crate::terminal::{self, LostLines, NonBlockingFile, PendingLines, UnwrittenLines, WriteProgress};

/// How long a thread that dies waits for one that writes to a file.
const LAST_PATIENCE: Duration = Duration::from_millis(100);

/// Follows the last line of a place that has said too much.
const ENOUGH: &str = " (more like this are only counted for some seconds)";

/// The process's only logger.
pub(super) struct Logger {
    /// Lines since the start, by level: error first.
    pub(super) lines: [AtomicU64; LEVELS.len()],
    /// Those that were only counted, likewise.
    pub(super) left_out: [AtomicU64; LEVELS.len()],
    /// Lines that did not get through, and have not been told of.
    lost_lines: LostLines,
    /// Lines that never got through.
    pub(super) lost_ever: AtomicU64,
    /// Who said too much.
    limiter: LogLimiter,
    /// Standard error, unless it was closed.
    pub(super) stderr: OnceLock<NonBlockingFile>,
    pub(super) setup: OnceLock<Setup>,
    /// The daemon that lines went to has gone; standard error has them since.
    away: AtomicBool,
}

/// What was asked for, opened.
pub(super) struct Setup {
    pub(super) target: Target,
    pub(super) destination: Destination,
    pub(super) format: Format,
    pub(super) tag: Option<Tag>,
}

pub(super) static LOGGER: Logger = Logger {
    lines: [const { AtomicU64::new(0) }; LEVELS.len()],
    left_out: [const { AtomicU64::new(0) }; LEVELS.len()],
    lost_lines: LostLines::new(),
    lost_ever: AtomicU64::new(0),
    limiter: LogLimiter::new(),
    stderr: OnceLock::new(),
    setup: OnceLock::new(),
    away: AtomicBool::new(false),
};

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
    pub(super) fn is_elsewhere(&self) -> bool {
        let setup = self.setup.get();
        setup.is_some_and(|setup| !matches!(setup.target, Target::Stderr)) && !self.away.load(Ordering::Relaxed)
    }

    /// What lines go to, datagrams aside.
    pub(super) fn files(&self) -> Vec<&NonBlockingFile> {
        let file = match self.setup.get().map(|setup| &setup.target) {
            Some(Target::File(file)) => Some(file),
            _ => None,
        };
        file.into_iter().chain(self.stderr.get()).collect()
    }

    /// Waits for threads that write lines, up to `deadline`; whether all of them are written or lost.
    pub(super) fn wait_written(&self, deadline: Instant) -> bool {
        let mut progress = self.files().into_iter().filter_map(NonBlockingFile::progress);
        progress.all(|progress| progress.wait(deadline))
    }

    /// Takes note of lines that a thread could not write; how many there were.
    pub(super) fn take_unwritten(&self) -> u64 {
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

    pub(super) fn say(&self, entry: &Entry<'_>) {
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
            tag: tag.map(Tag::as_str),
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
    pub(super) fn die(&self, entry: &Entry<'_>) {
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

/// The most bytes of a last line with what is around it in any form: a message of [`LineBuffer`]'s
/// usual length, each of its characters escaped.
const LAST_BYTES: usize = 1_024;
/// Follows the number of lines that were lost.
const LOST: &str = " log lines were dropped: nobody read them, or there was no room for them";

/// A warning of the log's own.
fn own_entry(message: fmt::Arguments<'_>) -> Entry<'_> {
    Entry {
        level: Level::Warn,
        target: TARGET,
        place: None,
        message,
        remark: "",
    }
}

/// When the log began.
pub(super) static BEGUN: OnceLock<Instant> = OnceLock::new();

/// Milliseconds since then.
fn now_ms() -> u64 {
    let elapsed = BEGUN.get().map_or(Duration::ZERO, Instant::elapsed);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "logger_test.rs"]
mod tests;
