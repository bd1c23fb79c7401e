//! Where serial port and console lead.

use std::io::{self, Write};
use std::path::Path;

use super::build::BuildError;
use crate::config::{ConsoleConfig, ConsoleMode};
use crate::log::JOURNAL;
use crate::terminal::{BufferedOutput, Chardev, FileId, Journal, OutputTarget, PortOutput, ProcessOutputs};

/// The host's side of a port.
pub(super) struct Output {
    /// Takes what the guest prints, and never waits.
    pub output: Box<dyn Write + Send>,
    /// Brings what somebody types who attaches to it.
    pub chardev: Option<Chardev>,
    /// What waits for its reader, and is lost if that fails.
    pub backlog: Option<BufferedOutput>,
    /// The files that it goes to, as [`ConsoleConfig::files`] has them; `None` for what is no regular file.
    pub files: Vec<Option<FileId>>,
}

impl Output {
    fn to(output: impl Write + Send + 'static, backlog: Option<BufferedOutput>) -> Self {
        Self {
            output: Box::new(output),
            chardev: None,
            backlog,
            files: Vec::new(),
        }
    }

    fn to_port(port: PortOutput) -> Self {
        let (backlog, files) = (Some(port.buffered()), port.files().to_vec());
        Self {
            files,
            ..Self::to(port, backlog)
        }
    }
}

/// Opens the host's side of the port called `name`; `None` when there is to be no such port. Two
/// ports may have one file: it gets the writes of both, none over another.
///
/// # Errors
/// [`BuildError::Device`], with the path.
pub(super) fn open_output(
    name: &str,
    config: &ConsoleConfig,
    outputs: &ProcessOutputs,
) -> Result<Option<Output>, BuildError> {
    Ok(Some(match (config.mode, &config.file, &config.socket) {
        (ConsoleMode::Off, ..) => return Ok(None),
        (ConsoleMode::Null, ..) => Output::to(io::sink(), None),
        (ConsoleMode::Tty, ..) => Output::to(outputs.clone(), Some(outputs.stdout())),
        (ConsoleMode::File, Some(path), _) => {
            let output = match config.limit {
                Some(limit) => outputs.open_limited(path, limit, config.kept()),
                None => outputs.open(path),
            };
            Output::to_port(output.map_err(|e| BuildError::device(format!("{name} {}", path.display()), e))?)
        }
        (ConsoleMode::Journald, ..) => {
            let path = config.journal.as_deref().unwrap_or(Path::new(JOURNAL));
            let usual = || format!("{}-console", crate::log::tag());
            let identifier = config.identifier.clone().unwrap_or_else(usual);
            let output =
                Journal::open(path, &identifier, name).and_then(|journal| outputs.port(OutputTarget::Journal(journal)));
            Output::to_port(output.map_err(|e| BuildError::device(format!("{name} journald {}", path.display()), e))?)
        }
        (ConsoleMode::Socket, _, Some(path)) => {
            attached(Chardev::listen(path, outputs).map_err(|e| BuildError::device(name, e))?)
        }
        (ConsoleMode::Pty, ..) => {
            attached(Chardev::open_pty(outputs).map_err(|e| BuildError::device(format!("{name} pty"), e))?)
        }
        // Validated: none of these is ever configured.
        (ConsoleMode::File, None, _) | (ConsoleMode::Socket, _, None) => {
            return Err(BuildError::device(name, "its mode needs a file or a socket"));
        }
    }))
}

/// Checks, when both ports have been opened, that none empties a file that the other one writes to under another name.
/// `files` are those of the serial port and of the console, as they were opened: what their names lead to by now may be
/// another.
///
/// # Errors
/// [`BuildError::Device`], with the path.
pub(super) fn check_files(
    serial: &ConsoleConfig,
    console: &ConsoleConfig,
    files: [&[Option<FileId>]; 2],
) -> Result<(), BuildError> {
    if serial.limit.or(console.limit).is_none() {
        return Ok(());
    }
    let [taken, files] = files;
    let is_taken = |file: &Option<FileId>| file.is_some() && taken.contains(file);
    match console.files().iter().zip(files).find(|(_, file)| is_taken(file)) {
        Some((path, _)) => Err(BuildError::device(
            format!("console {}", path.display()),
            "it is the serial port's file too: with a limit only one of them can have it",
        )),
        None => Ok(()),
    }
}

fn attached((chardev, port): (Chardev, PortOutput)) -> Output {
    let chardev = Some(chardev);
    Output {
        chardev,
        ..Output::to_port(port)
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
