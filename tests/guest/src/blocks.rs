//! A disk that is measured: in which parts, and how large it is.

use std::fmt;
use std::str::FromStr;

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 64 << 20;

/// What one guest measures. Each has a guest of its own, as those of [`crate::folder::Part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reads from the start to the end.
    Read,
    /// Writes likewise.
    Write,
    /// Reads and writes in no order.
    Random,
    /// Small writes, each with a flush after it.
    Flush,
}

impl Part {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Random, Self::Flush];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Random => "random",
            Self::Flush => "flush",
        })
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = Self::ALL.into_iter().find(|part| part.to_string() == text);
        part.ok_or_else(|| format!("no such part: {text}"))
    }
}
