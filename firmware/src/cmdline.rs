//! The kernel command line, byte for byte as the user gave it.

use crate::layout::CMDLINE_MAX;

/// Why a command line cannot be passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Linux would cut it off.
    #[error("command line has {found} bytes; at most {} are allowed", CMDLINE_MAX - 1)]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// The guest would see it end there.
    #[error("command line has a NUL byte at offset {0}; none is allowed")]
    Nul(usize),
}

/// A command line that the guest will see unchanged: at most 2047 bytes, quotes and spaces included, and no NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine(Vec<u8>);

impl CommandLine {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// See [`CommandLineError`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, CommandLineError> {
        let bytes = bytes.into();
        if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
            return Err(CommandLineError::Nul(at));
        }
        if bytes.len() >= CMDLINE_MAX {
            return Err(CommandLineError::TooLong { found: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// The bytes without a NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes with the NUL that ends them.
    pub(crate) fn terminated(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_spaces_and_high_bytes_pass_unchanged() {
        let line = b"dm-mod.create=\"dm-verity,,,ro,0 1 \xff\"  quiet ";
        assert_eq!(CommandLine::new(&line[..]).unwrap().as_bytes(), line);
    }

    #[test]
    fn two_thousand_and_forty_seven_bytes_fit_and_one_more_does_not() {
        assert_eq!(CommandLine::new(vec![b'x'; 2047]).unwrap().terminated().len(), 2048);
        let error = CommandLine::new(vec![b'x'; 2048]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "command line has 2048 bytes; at most 2047 are allowed"
        );
    }

    #[test]
    fn a_nul_is_refused_where_it_stands() {
        assert_eq!(CommandLine::new(&b"ab\0c"[..]), Err(CommandLineError::Nul(2)));
    }
}
