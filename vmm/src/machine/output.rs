//! Where the output of serial port and console goes.

use std::io::{self, Write};
use std::path::Path;

use super::build::BuildError;
use crate::config::{ConsoleConfig, ConsoleMode};
use crate::log::JOURNAL;
use crate::terminal::{Journal, StdoutSink, Way};

/// Takes the output of the port called `name`, and never waits; `None` when there is to be no such port. Two ports may have one file: it
/// gets the writes of both, none over another.
///
/// # Errors
/// [`BuildError::Device`], with the path.
pub(super) fn output(
    name: &str,
    config: &ConsoleConfig,
    stdout: &StdoutSink,
) -> Result<Option<Box<dyn Write + Send>>, BuildError> {
    Ok(Some(match (config.mode, &config.file) {
        (ConsoleMode::Off, _) => return Ok(None),
        (ConsoleMode::Null, _) => Box::new(io::sink()),
        (ConsoleMode::Tty, _) => Box::new(stdout.clone()),
        (ConsoleMode::File, Some(path)) => {
            let sink = match config.limit {
                Some(limit) => stdout.open_limited(path, limit, config.kept()),
                None => stdout.open(path),
            };
            Box::new(sink.map_err(|e| BuildError::device(format!("{name} {}", path.display()), e))?)
        }
        (ConsoleMode::Journald, _) => {
            let path = config.journal.as_deref().unwrap_or(Path::new(JOURNAL));
            let usual = || format!("{}-console", crate::log::tag());
            let identifier = config.identifier.clone().unwrap_or_else(usual);
            let sink = Journal::open(path, &identifier, name).and_then(|journal| stdout.port(Way::Journal(journal)));
            Box::new(sink.map_err(|e| BuildError::device(format!("{name} journald {}", path.display()), e))?)
        }
        // Validated: neither is ever configured.
        (ConsoleMode::File, None) | (ConsoleMode::Pty, _) => {
            return Err(BuildError::device(
                name,
                "allowed: Tty, File with a file, Journald, Null, Off",
            ));
        }
    }))
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
