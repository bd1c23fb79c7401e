//! One event as one line: in the form of Kata's shims, as JSON, as an entry of journald, as a message for the system's log.
//!
//! Everything here writes to whatever takes text and allocates nothing by itself, so that a signal handler can use it. What others
//! may have put into a message, a guest or a peer, makes neither a second line nor a second field, and moves no terminal's cursor.

use std::fmt::{self, Write};
use std::time::Duration;

use log::Level;

/// The most bytes of a message, as it is written. With what stands around it, a line fits into one write to a pipe (`PIPE_BUF`).
pub const MESSAGE_BYTES: usize = 3_072;
/// The identifier of lines without a tag.
pub const PROGRAM: &str = "husk";
/// Facility `user` (RFC 3164 §4.1.1).
const USER: u8 = 8;

/// How lines look on standard error and in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    #[value(help = "LEVEL: message, as Kata's shims read it")]
    /// The level's mark, and the message.
    Text,
    #[value(help = "an object a line: time, level, target, message, pid, tag")]
    /// An object a line.
    Json,
}

/// What is said.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// How grave it is.
    pub level: Level,
    /// The part of husk that says it.
    pub target: &'a str,
    /// Source file and line, if known.
    pub place: Option<(&'a str, u32)>,
    /// The text, without level, target and place.
    pub message: fmt::Arguments<'a>,
    /// What follows the message.
    pub remark: &'static str,
}

/// Which process speaks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Speaker<'a> {
    /// The process's id.
    pub pid: u32,
    /// Its name, if it was given one.
    pub tag: Option<&'a str>,
    /// Since the epoch.
    pub time: Duration,
}

/// Names of levels, as in the API, in the order in which `log` numbers them from 1 on.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The name of the level, or of the filter, of this number.
pub fn level_name(number: usize) -> &'static str {
    // Nothing here turns logging off.
    LEVELS.get(number.wrapping_sub(1)).copied().unwrap_or("off")
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

/// How grave a level is in the system's log (RFC 3164 §4.1.1) and in journald (`PRIORITY=`).
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `LEVEL: message`, and `end`.
///
/// # Errors
/// Those of `out`.
pub fn text(out: &mut dyn Write, entry: &Entry<'_>, end: &str) -> fmt::Result {
    out.write_str(mark(entry.level))?;
    if entry.level >= Level::Debug {
        write!(out, "{}: ", entry.target)?;
    }
    message(out, (entry.message, entry.remark), Quote::Plain)?;
    out.write_str(end)
}

/// An object, and `end`.
///
/// # Errors
/// Those of `out`.
pub fn json(out: &mut dyn Write, entry: &Entry<'_>, speaker: &Speaker<'_>, end: &str) -> fmt::Result {
    let level = level_name(entry.level as usize);
    out.write_str("{\"time\":\"")?;
    time(out, speaker.time)?;
    write!(out, "\",\"level\":\"{level}\",\"pid\":{}", speaker.pid)?;
    if let Some(tag) = speaker.tag {
        write!(out, ",\"tag\":\"{tag}\"")?;
    }
    write!(out, ",\"target\":\"{}\",\"message\":\"", entry.target)?;
    message(out, (entry.message, entry.remark), Quote::Json)?;
    out.write_str("\"}")?;
    out.write_str(end)
}

/// Fields of journald's native protocol, a line each. No value has a line's end in it, so that the form with a length is never needed.
///
/// # Errors
/// Those of `out`.
pub fn journal(out: &mut dyn Write, entry: &Entry<'_>, speaker: &Speaker<'_>) -> fmt::Result {
    let said = (entry.message, entry.remark);
    journal_head(out, said, entry.level, speaker.tag.unwrap_or(PROGRAM))?;
    if let Some((file, line)) = entry.place {
        write!(out, "CODE_FILE={file}\nCODE_LINE={line}\n")?;
    }
    writeln!(
        out,
        "HUSK_LEVEL={}\nHUSK_TARGET={}",
        level_name(entry.level as usize),
        entry.target
    )
}

/// The fields that every entry has: a message and what follows it, how grave it is, and whose it is.
///
/// # Errors
/// Those of `out`.
pub fn journal_head(
    out: &mut dyn Write,
    said: (fmt::Arguments<'_>, &str),
    level: Level,
    identifier: &str,
) -> fmt::Result {
    out.write_str("MESSAGE=")?;
    message(out, said, Quote::Plain)?;
    let priority = severity(level);
    write!(out, "\nPRIORITY={priority}\nSYSLOG_IDENTIFIER={identifier}\n")
}

/// `<PRI>TAG[pid]: message` (RFC 3164 §4.1; the daemon adds time and host).
///
/// # Errors
/// Those of `out`.
pub fn syslog(out: &mut dyn Write, entry: &Entry<'_>, speaker: &Speaker<'_>) -> fmt::Result {
    let priority = USER + severity(entry.level);
    write!(out, "<{priority}>{}[{}]: ", speaker.tag.unwrap_or(PROGRAM), speaker.pid)?;
    message(out, (entry.message, entry.remark), Quote::Plain)
}

fn message(out: &mut dyn Write, (said, remark): (fmt::Arguments<'_>, &str), quote: Quote) -> fmt::Result {
    let mut quoted = Quoted {
        out,
        quote,
        room: MESSAGE_BYTES,
        cut: false,
    };
    quoted.write_fmt(said)?;
    if quoted.cut {
        out.write_str("...")?;
    }
    out.write_str(remark)
}

/// What is done to a character that would do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quote {
    /// It becomes a space.
    Plain,
    /// It is escaped (RFC 8259 §7).
    Json,
}

/// Text on its way to `out`, quoted, and cut where it is too long.
struct Quoted<'a> {
    out: &'a mut dyn Write,
    quote: Quote,
    /// Bytes that may still come.
    room: usize,
    cut: bool,
}

impl Write for Quoted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|found| self.write_char(found))
    }

    fn write_char(&mut self, found: char) -> fmt::Result {
        let bytes = match (self.quote, found) {
            (Quote::Json, '"' | '\\') => 2,
            (Quote::Json, found) if found.is_control() => 6,
            (_, found) => found.len_utf8(),
        };
        self.cut = self.cut || bytes > self.room;
        if self.cut {
            return Ok(());
        }
        self.room = self.room.saturating_sub(bytes);
        match (self.quote, found) {
            (Quote::Json, '"') => self.out.write_str("\\\""),
            (Quote::Json, '\\') => self.out.write_str("\\\\"),
            (Quote::Json, found) if found.is_control() => write!(self.out, "\\u{:04x}", u32::from(found)),
            (Quote::Plain, found) if found.is_control() => self.out.write_char(' '),
            (_, found) => self.out.write_char(found),
        }
    }
}

/// Date and time in UTC, as lines of the log have it.
pub fn date_and_time(since_epoch: Duration) -> String {
    let mut text = String::new();
    // A `String` takes whatever is written to it.
    let _ = time(&mut text, since_epoch);
    text
}

/// Date and time in UTC, to the microsecond (RFC 3339 §5.6).
fn time(out: &mut dyn Write, since_epoch: Duration) -> fmt::Result {
    /// Days of 400 years, after which the calendar repeats itself.
    const CYCLE: u64 = 146_097;
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March of the year 0, so that a leap day is a year's last.
    let days = days.saturating_add(719_468);
    let (cycle, day) = (days / CYCLE, days % CYCLE);
    let year = (day - day / 1_460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = year + cycle * 400 + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let micros = since_epoch.subsec_micros();
    write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEAKER: Speaker<'_> = Speaker {
        pid: 4711,
        tag: Some("web"),
        time: Duration::new(1_709_164_799, 1_000),
    };

    fn with(level: Level, said: &str, write: impl Fn(&mut String, &Entry<'_>)) -> String {
        let mut out = String::new();
        let entry = Entry {
            level,
            target: "husk::x",
            place: Some(("vmm/src/x.rs", 7)),
            message: format_args!("{said}"),
            remark: "",
        };
        write(&mut out, &entry);
        out
    }

    fn text_of(level: Level, said: &str) -> String {
        with(level, said, |out, entry| text(out, entry, "\n").unwrap())
    }

    #[test]
    fn lines_carry_the_marks_that_the_shims_know() {
        assert_eq!(text_of(Level::Error, "disk gone"), "ERRO: disk gone\n");
        assert_eq!(text_of(Level::Warn, "w"), "WARN: w\n");
        assert_eq!(text_of(Level::Info, "i"), "INFO: i\n");
        assert_eq!(text_of(Level::Debug, "d"), "DEBG: husk::x: d\n");
        assert_eq!(text_of(Level::Trace, "t"), "TRCE: husk::x: t\n");
    }

    #[test]
    fn an_event_is_one_line_whatever_it_says() {
        assert_eq!(text_of(Level::Error, "a\r\nERRO: forged"), "ERRO: a  ERRO: forged\n");
        assert_eq!(text_of(Level::Error, "\u{1b}[2J\u{9b}K"), "ERRO:  [2J K\n");
    }

    #[test]
    fn json_says_the_same_and_is_json_whatever_it_says() {
        let said = "a \"quote\", a \\, a\nline, \u{1b}, é";
        let line = with(Level::Warn, said, |out, entry| {
            json(out, entry, &SPEAKER, "\n").unwrap()
        });
        assert_eq!(line.lines().count(), 1);
        let found: serde_json::Value = serde_json::from_str(&line).unwrap();
        let expected = serde_json::json!({
            "time": "2024-02-28T23:59:59.000001Z", "level": "warn", "pid": 4711, "tag": "web", "target": "husk::x", "message": said,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_message_makes_no_field_of_the_journal() {
        let entry = with(Level::Error, "a\nPRIORITY=0", |out, entry| {
            journal(out, entry, &Speaker { tag: None, ..SPEAKER }).unwrap();
        });
        let expected = "MESSAGE=a PRIORITY=0\nPRIORITY=3\nSYSLOG_IDENTIFIER=husk\nCODE_FILE=vmm/src/x.rs\nCODE_LINE=7\nHUSK_LEVEL=error\n\
                        HUSK_TARGET=husk::x\n";
        assert_eq!(entry, expected);
    }

    #[test]
    fn the_systems_log_is_told_how_grave_a_line_is() {
        let line = |level| with(level, "a\nb", |out, entry| syslog(out, entry, &SPEAKER).unwrap());
        assert_eq!(line(Level::Error), "<11>web[4711]: a b");
        assert_eq!(line(Level::Info), "<14>web[4711]: a b");
        assert_eq!(line(Level::Trace), "<15>web[4711]: a b");
    }

    #[test]
    fn a_long_message_is_cut_to_one_write_in_every_form() {
        for said in ["x".repeat(10_000), "\u{1b}".repeat(10_000), "é\"".repeat(10_000)] {
            let plain = text_of(Level::Info, &said);
            assert!(plain.ends_with("...\n") && plain.len() < 4_096, "{}", plain.len());
            let line = with(Level::Info, &said, |out, entry| {
                json(out, entry, &SPEAKER, "\n").unwrap()
            });
            assert!(line.len() < 4_096, "{}", line.len());
            let found: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(found["message"].as_str().unwrap().ends_with("..."));
        }
    }

    #[test]
    fn time_is_that_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut out = String::new();
            time(&mut out, Duration::from_secs(seconds)).unwrap();
            assert_eq!(out, expected);
        }
    }
}
