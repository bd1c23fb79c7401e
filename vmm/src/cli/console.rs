//! The values of `--serial` and `--console`.

use crate::config::{ConsoleConfig, ConsoleMode};

/// Why a text names no place for output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// None of the words.
    #[error("allowed: stdio, file=PATH, null, off")]
    Unknown,
    /// `file=` alone.
    #[error("file= needs a path")]
    NoPath,
}

/// Reads `stdio`, `file=PATH`, `null` or `off`.
pub fn parse_console(text: &str) -> Result<ConsoleConfig, ConsoleError> {
    match (text, text.strip_prefix("file=")) {
        (_, Some("")) => Err(ConsoleError::NoPath),
        (_, Some(path)) => Ok(ConsoleConfig::file(path)),
        ("stdio", _) => Ok(ConsoleConfig::new(ConsoleMode::Tty)),
        ("null", _) => Ok(ConsoleConfig::new(ConsoleMode::Null)),
        ("off", _) => Ok(ConsoleConfig::new(ConsoleMode::Off)),
        _ => Err(ConsoleError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_mode() {
        for (text, mode) in [
            ("stdio", ConsoleMode::Tty),
            ("null", ConsoleMode::Null),
            ("off", ConsoleMode::Off),
        ] {
            assert_eq!(parse_console(text), Ok(ConsoleConfig::new(mode)));
        }
        assert_eq!(
            parse_console("file=a,b=c"),
            Ok(ConsoleConfig::file("a,b=c")),
            "the rest is the path"
        );
    }

    #[test]
    fn other_words_are_refused() {
        for text in ["", "tty", "file", "Stdio", "stdio,off"] {
            assert_eq!(parse_console(text), Err(ConsoleError::Unknown), "{text}");
        }
        assert_eq!(parse_console("file="), Err(ConsoleError::NoPath));
    }
}
