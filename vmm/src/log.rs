//! The log: one line an event on standard error or in a file, marked with its level in the form that Kata's shims look for.
//!
//! A reader that stops reading must not stop the VM: a line for which standard error has no room is dropped, and the next one that
//! gets through is preceded by the number of those that did not. Errors of writing (`EPIPE` after the reader has gone) are ignored.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::terminal::{self, Outlet, OutletError};

/// Permissions of a log file that is made.
const MODE: u32 = 0o600;
/// How long a reader of the last words is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Levels as `log` numbers them, from 1 on.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The process's only logger.
struct Logger {
    /// Lines since the start, by level: error first.
    lines: [AtomicU64; LEVELS.len()],
    /// Lines since the last one that got through.
    lost: AtomicU64,
    /// Lines that never got through.
    lost_ever: AtomicU64,
    /// Standard error, unless it was closed.
    stderr: OnceLock<Outlet>,
    /// Where lines go in place of it.
    file: OnceLock<Outlet>,
    /// The system's log, in place of both.
    system: OnceLock<UnixDatagram>,
}

static LOGGER: Logger = Logger {
    lines: [const { AtomicU64::new(0) }; LEVELS.len()],
    lost: AtomicU64::new(0),
    lost_ever: AtomicU64::new(0),
    stderr: OnceLock::new(),
    file: OnceLock::new(),
    system: OnceLock::new(),
};

/// Starts logging: errors and warnings, with `-v` also information, with `-vv` also what helps to debug. A second call only
/// changes the level.
pub fn init(verbosity: u8) {
    if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
        // Fails only when there is one already.
        let _ = LOGGER.stderr.set(Outlet::inherit(File::from(stderr)));
    }
    // Fails only when the logger has been set, by an earlier call.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level(verbosity));
}

/// As [`init`], and lines are appended to the file at `path`, which is made if need be. The first file counts.
///
/// # Errors
/// Nothing can be written there.
pub fn init_to_file(verbosity: u8, path: &Path) -> Result<(), OutletError> {
    // Fails only when there is one already.
    let _ = LOGGER.file.set(Outlet::append(path, MODE)?);
    init(verbosity);
    Ok(())
}

/// From now on lines go to the system's log (RFC 3164 §4.1, on the socket `/dev/log`).
///
/// # Errors
/// Nobody listens there.
pub fn to_syslog() -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    socket.set_nonblocking(true)?;
    // Fails only when there is one already.
    let _ = LOGGER.system.set(socket);
    Ok(())
}

/// Writes `text` on standard error for whoever started this process, and gives them a moment to make room for it.
pub fn tell(text: &str) {
    // When nobody hears it, there is nobody else to tell.
    let _ = match LOGGER.stderr.get() {
        Some(stderr) => stderr.write_all_within(text.as_bytes(), PATIENCE),
        None => io::stderr().write_all(text.as_bytes()),
    };
}

/// Which lines are logged: those of this level, and graver ones.
pub fn current_level() -> &'static str {
    let number = log::max_level() as usize;
    // Nothing here turns logging off.
    LEVELS.get(number.wrapping_sub(1)).copied().unwrap_or("off")
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

/// A level that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("level: '{}' is none, allowed: {}", .found.escape_debug(), LEVELS.join(", "))]
pub struct UnknownLevel {
    found: String,
}

/// Lines that were logged, by level.
pub fn lines() -> [(&'static str, u64); LEVELS.len()] {
    let mut counts = LOGGER.lines.iter().map(|count| count.load(Ordering::Relaxed));
    LEVELS.map(|level| (level, counts.next().unwrap_or_default()))
}

/// Lines for which there was no room.
pub fn lost_lines() -> u64 {
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

/// The marks that Kata's Rust shim turns back into levels.
fn mark(level: Level) -> &'static str {
    match level {
        Level::Error => "ERRO: ",
        Level::Warn => "WARN: ",
        Level::Info => "INFO: ",
        Level::Debug => "DEBG: ",
        Level::Trace => "TRCE: ",
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
        if let Some(count) = self.lines.get((record.level() as usize).wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(system) = self.system.get() {
            // What it has no room for is lost, as from everybody.
            let _ = system.send(syslog_line(record).as_bytes());
            return;
        }
        match (self.file.get(), self.stderr.get()) {
            (Some(file), _) => self.say(record, file, "\n"),
            (None, Some(stderr)) => self.say(record, stderr, terminal::line_end()),
            (None, None) => {}
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn say(&self, record: &Record<'_>, to: &Outlet, end: &str) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let text = compose(record, lost, end);
        // One write a line, so that lines of two threads do not mix. When the reader has gone, nobody misses it.
        if to
            .write(text.as_bytes())
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        {
            self.lost.fetch_add(lost.saturating_add(1), Ordering::Relaxed);
            self.lost_ever.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Facility `user`, and the severity that a level is (RFC 3164 §4.1.1).
fn syslog_line(record: &Record<'_>) -> String {
    let severity = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let message = record.args().to_string();
    format!(
        "<{}>husk[{}]: {}",
        8 + severity,
        std::process::id(),
        message.replace(['\n', '\r'], " ")
    )
}

fn compose(record: &Record<'_>, lost: u64, line_end: &str) -> String {
    let mut text = String::with_capacity(120);
    if lost > 0 {
        let _ = write!(
            text,
            "{}{lost} log lines were dropped because nobody read them{line_end}",
            mark(Level::Warn)
        );
    }
    text.push_str(mark(record.level()));
    if record.level() >= Level::Debug {
        let _ = write!(text, "{}: ", record.target());
    }
    // A guest's or a peer's words may end up in a message; they must not make a second line.
    let message = record.args().to_string();
    let _ = write!(text, "{}{line_end}", message.replace(['\n', '\r'], " "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, message: &str, lost: u64) -> String {
        compose(
            &Record::builder()
                .level(level)
                .target("husk::x")
                .args(format_args!("{message}"))
                .build(),
            lost,
            "\n",
        )
    }

    #[test]
    fn lines_carry_the_marks_that_the_shims_know() {
        assert_eq!(line(Level::Error, "disk gone", 0), "ERRO: disk gone\n");
        assert_eq!(line(Level::Warn, "w", 0), "WARN: w\n");
        assert_eq!(line(Level::Info, "i", 0), "INFO: i\n");
        assert_eq!(line(Level::Debug, "d", 0), "DEBG: husk::x: d\n");
        assert_eq!(line(Level::Trace, "t", 0), "TRCE: husk::x: t\n");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        assert_eq!(line(Level::Error, "a\r\nERRO: forged", 0), "ERRO: a  ERRO: forged\n");
    }

    #[test]
    fn the_systems_log_is_told_how_grave_a_line_is() {
        let line = |level| {
            let record = Record::builder().level(level).args(format_args!("a\nb")).build();
            syslog_line(&record)
        };
        let process = std::process::id();
        assert_eq!(line(Level::Error), format!("<11>husk[{process}]: a b"));
        assert_eq!(line(Level::Info), format!("<14>husk[{process}]: a b"));
        assert_eq!(line(Level::Trace), format!("<15>husk[{process}]: a b"));
    }

    #[test]
    fn lost_lines_are_counted_on_the_next_one() {
        assert_eq!(
            line(Level::Info, "i", 3),
            "WARN: 3 log lines were dropped because nobody read them\nINFO: i\n"
        );
    }

    #[test]
    fn each_v_shows_more() {
        assert_eq!(
            [0, 1, 2, 9].map(level),
            [
                LevelFilter::Warn,
                LevelFilter::Info,
                LevelFilter::Debug,
                LevelFilter::Trace
            ]
        );
    }
}
