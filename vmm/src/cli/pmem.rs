//! The value of `--pmem`.

use std::path::PathBuf;

use super::pairs::{PairsError, parse_pairs};
use super::size::{BadSize, size};
use super::switch::{BadSwitch, switch};
use crate::config::{ExtraFields, PmemConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 4] = ["file", "size", "discard_writes", "id"];

/// Why a text describes no persistent memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PmemArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// No file, or an empty name.
    #[error("file=FILE is missing")]
    NoFile,
    /// The value of a key that is a size does not parse.
    #[error(transparent)]
    Size(#[from] BadSize),
    /// The value of a key that is on or off does not parse.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
}

/// Reads `file=FILE,size=SIZE,…`.
pub fn parse_pmem(text: &str) -> Result<PmemConfig, PmemArgError> {
    let mut pmem = PmemConfig {
        file: PathBuf::new(),
        size: None,
        discard_writes: false,
        id: None,
        extra: ExtraFields::default(),
    };
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "file" => pmem.file = value.into(),
            "size" => pmem.size = Some(size(key, value)?),
            "discard_writes" => pmem.discard_writes = switch(key, value)?,
            _ => pmem.id = Some(value),
        }
    }
    if pmem.file.as_os_str().is_empty() {
        Err(PmemArgError::NoFile)
    } else {
        Ok(pmem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_sets_its_field() {
        let pmem = parse_pmem("file=/p,size=4M,discard_writes=on,id=store").unwrap();
        assert_eq!(
            (pmem.file, pmem.size, pmem.discard_writes, pmem.id.as_deref()),
            ("/p".into(), Some(4 << 20), true, Some("store"))
        );
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_pmem(text).unwrap_err().to_string();
        assert_eq!(message("size=2M"), "file=FILE is missing");
        assert!(message("file=/p,size=many").starts_with("size is 'many': a size is a whole number"));
        assert_eq!(
            message("file=/p,discard_writes=maybe"),
            "discard_writes is 'maybe', allowed: on, off"
        );
        assert_eq!(
            message("path=/p"),
            "unknown key 'path', allowed: file, size, discard_writes, id"
        );
    }
}
