//! The values of `--serial` and `--console`.

use super::size::{BadSize, size};
use crate::config::{ConsoleConfig, ConsoleMode, MAX_KEEP};

/// Why a text names no place for output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// None of the words.
    #[error(
        "allowed: stdio, file=PATH[,limit=SIZE[,keep=N]], socket=PATH, pty, journald[=NAME][,journal=SOCKET], null, off"
    )]
    Unknown,
    /// `file=` or `socket=` alone.
    #[error("{0}= needs a path")]
    NoPath(&'static str),
    /// No size.
    #[error(transparent)]
    Limit(#[from] BadSize),
    /// No number of files.
    #[error("keep is '{0}', allowed: 0 to {MAX_KEEP}")]
    Keep(String),
    /// Files of what is not limited.
    #[error("keep= needs limit=SIZE: a file without a limit is never full")]
    KeepWithoutLimit,
}

/// Reads `stdio`, `file=PATH` with its limit, `socket=PATH`, `pty`, `journald` with its name, `null` or `off`.
pub fn parse_console(text: &str) -> Result<ConsoleConfig, ConsoleError> {
    match text {
        "stdio" => return Ok(ConsoleConfig::new(ConsoleMode::Tty)),
        "null" => return Ok(ConsoleConfig::new(ConsoleMode::Null)),
        "off" => return Ok(ConsoleConfig::new(ConsoleMode::Off)),
        "pty" => return Ok(ConsoleConfig::new(ConsoleMode::Pty)),
        "socket=" => return Err(ConsoleError::NoPath("socket")),
        _ => {}
    }
    if let Some(file) = text.strip_prefix("file=") {
        return parse_file(file);
    }
    if let Some(socket) = text.strip_prefix("socket=") {
        return Ok(ConsoleConfig::socket(socket));
    }
    let (word, journal) = text
        .split_once(",journal=")
        .map_or((text, None), |(word, path)| (word, Some(path)));
    let identifier = match word.split_once('=') {
        None if word == "journald" => None,
        Some(("journald", name)) => Some(name.to_owned()),
        _ => return Err(ConsoleError::Unknown),
    };
    Ok(ConsoleConfig {
        identifier,
        journal: journal.map(Into::into),
        ..ConsoleConfig::new(ConsoleMode::Journald)
    })
}

/// A path, and behind it `,limit=SIZE` and `,keep=N` in either order. Any other comma is the path's.
fn parse_file(text: &str) -> Result<ConsoleConfig, ConsoleError> {
    let (mut path, mut limit, mut keep) = (text, None, None);
    while let Some((rest, last)) = path.rsplit_once(',') {
        match last.split_once('=') {
            Some(("limit", value)) if limit.is_none() => limit = Some(size("limit", value.to_owned())?),
            Some(("keep", value)) if keep.is_none() => {
                let number = value.parse().map_err(|_| ConsoleError::Keep(value.to_owned()))?;
                keep = Some(number);
            }
            _ => break,
        }
        path = rest;
    }
    match (path, limit, keep) {
        ("", ..) => Err(ConsoleError::NoPath("file")),
        (_, None, Some(_)) => Err(ConsoleError::KeepWithoutLimit),
        _ => Ok(ConsoleConfig {
            limit,
            keep,
            ..ConsoleConfig::file(path)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_mode() {
        for (text, mode) in [
            ("stdio", ConsoleMode::Tty),
            ("journald", ConsoleMode::Journald),
            ("null", ConsoleMode::Null),
            ("off", ConsoleMode::Off),
            ("pty", ConsoleMode::Pty),
        ] {
            assert_eq!(parse_console(text), Ok(ConsoleConfig::new(mode)));
        }
        assert_eq!(
            parse_console("file=a,b=c"),
            Ok(ConsoleConfig::file("a,b=c")),
            "the rest is the path"
        );
        assert_eq!(parse_console("socket=/a,b=c"), Ok(ConsoleConfig::socket("/a,b=c")));
    }

    #[test]
    fn a_file_has_a_limit_and_others_beside_it() {
        let limited = |path: &str, keep| {
            Ok(ConsoleConfig {
                limit: Some(1 << 20),
                keep,
                ..ConsoleConfig::file(path)
            })
        };
        assert_eq!(parse_console("file=/a,b,limit=1M"), limited("/a,b", None));
        assert_eq!(parse_console("file=/a,limit=1M,keep=3"), limited("/a", Some(3)));
        assert_eq!(parse_console("file=/a,keep=0,limit=1M"), limited("/a", Some(0)));
        assert_eq!(parse_console("file=/a,keep=3"), Err(ConsoleError::KeepWithoutLimit));
        assert_eq!(
            parse_console("file=/a,limit=1M,keep=x"),
            Err(ConsoleError::Keep("x".into()))
        );
        assert!(matches!(
            parse_console("file=/a,limit=much"),
            Err(ConsoleError::Limit(_))
        ));
        assert_eq!(
            parse_console("file=limit=1M"),
            Ok(ConsoleConfig::file("limit=1M")),
            "a path"
        );
    }

    #[test]
    fn the_journal_has_a_name_for_it_and_may_be_elsewhere() {
        let found = parse_console("journald=web,journal=/run/j").unwrap();
        assert_eq!(
            (found.identifier.as_deref(), found.journal),
            (Some("web"), Some("/run/j".into()))
        );
        let found = parse_console("journald,journal=/run/j").unwrap();
        assert_eq!((found.identifier, found.journal), (None, Some("/run/j".into())));
    }

    #[test]
    fn other_words_are_refused() {
        for text in [
            "",
            "tty",
            "file",
            "Stdio",
            "stdio,off",
            "journal",
            "journald,x=y",
            "pty=/dev/pts/1",
            "socket",
            "syslog=a",
        ] {
            assert_eq!(parse_console(text), Err(ConsoleError::Unknown), "{text}");
        }
        assert_eq!(parse_console("file="), Err(ConsoleError::NoPath("file")));
        assert_eq!(parse_console("socket="), Err(ConsoleError::NoPath("socket")));
    }
}
