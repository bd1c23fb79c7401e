//! Where serial port and console lead.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::rest::Rest;

/// Where a serial port or console leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// What is at the other end.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`].
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

impl ConsoleConfig {
    /// A port with `mode` at the other end and no file.
    pub fn new(mode: ConsoleMode) -> Self {
        Self {
            mode,
            file: None,
            rest: Rest::default(),
        }
    }

    /// A port whose output goes to `file`.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(file.into()),
            ..Self::new(ConsoleMode::File)
        }
    }

    pub(super) fn null() -> Self {
        Self::new(ConsoleMode::Null)
    }

    pub(super) fn tty() -> Self {
        Self::new(ConsoleMode::Tty)
    }
}

/// What is at the other end of a serial port or console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// The guest has no such device.
    Off,
    /// Nothing: output is dropped, and no input comes.
    Null,
    /// husk's own standard input and output.
    Tty,
    /// A file that receives the output.
    File,
    /// A pseudo-terminal that husk makes.
    Pty,
}
