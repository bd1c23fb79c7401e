//! Where serial port and console lead.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::extra_fields::ExtraFields;
use crate::terminal::numbered;

/// Files beside one with a limit, unless it is said: what the guest has said last is in one of the two.
const USUAL_KEEP: u32 = 1;
/// The least bytes of a file with a limit: some lines.
pub const MIN_LIMIT_BYTES: u64 = 4_096;
/// The most files beside one with a limit.
pub const MAX_KEEP: u32 = 99;

/// Where a serial port or console leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// What is at the other end.
    pub mode: ConsoleMode,
    /// The file of [`ConsoleMode::File`]. While a machine runs, `vm.info` has the terminal of
    /// [`ConsoleMode::Pty`] here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The most bytes of that file, or of each of several; husk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many files there are beside it, to be used in turn; husk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// The socket of [`ConsoleMode::Socket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// What journald calls the lines of [`ConsoleMode::Journald`]; husk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// Where journald listens, if not where it usually does; husk's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<PathBuf>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

impl ConsoleConfig {
    /// A port with `mode` at the other end and no file.
    pub fn new(mode: ConsoleMode) -> Self {
        Self {
            mode,
            file: None,
            limit: None,
            keep: None,
            socket: None,
            identifier: None,
            journal: None,
            extra: ExtraFields::default(),
        }
    }

    /// A port whose output goes to `file`.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self {
            file: Some(file.into()),
            ..Self::new(ConsoleMode::File)
        }
    }

    /// A port at `socket`, whose client has the other end.
    pub fn socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: Some(socket.into()),
            ..Self::new(ConsoleMode::Socket)
        }
    }

    /// How many files there are beside the one with a limit.
    pub fn kept(&self) -> u32 {
        self.keep.unwrap_or(USUAL_KEEP)
    }

    /// The files that the output goes to: the one, and those that take turns with it.
    pub fn files(&self) -> Vec<PathBuf> {
        let file = self.file.iter().filter(|_| self.mode == ConsoleMode::File);
        let beside = self.limit.map_or(0, |_| self.kept());
        file.flat_map(|file| (0..=beside).map(|number| numbered(file, number)))
            .collect()
    }

    pub(super) fn null() -> Self {
        Self::new(ConsoleMode::Null)
    }

    pub(super) fn tty() -> Self {
        Self::new(ConsoleMode::Tty)
    }

    /// What is sent, or for `null` what there is if nothing is sent: a serial port that leads nowhere.
    pub(super) fn or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_else(Self::null))
    }

    /// Likewise: a console on the terminal.
    pub(super) fn or_tty<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_else(Self::tty))
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
    /// journald receives the output, a line at a time; husk's own.
    Journald,
    /// A pseudo-terminal that husk makes.
    Pty,
    /// Whoever connects to a Unix socket.
    Socket,
}
