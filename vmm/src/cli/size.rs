//! Sizes as people write them: a number and a binary unit.

use crate::config::PAGE_BYTES;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number in front.
    #[error("a size is a whole number and a unit, such as 512M, 2G or 1536MiB")]
    Number,
    /// A unit that is none, or is not binary.
    #[error("unknown unit '{0}', allowed: K, M, G, T (or KiB, MiB, GiB, TiB), none for bytes")]
    Unit(String),
    /// More bytes than 64 bits count.
    #[error("more bytes than 2^64")]
    Overflow,
    /// So few bytes that a unit was forgotten.
    #[error("{0} bytes are less than a page: a unit is meant, such as {0}M or {0}G")]
    NoUnit(u64),
}

/// A value that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is '{found}': {why}")]
pub struct BadSize {
    /// The key.
    key: &'static str,
    /// Its value.
    found: String,
    /// Why it is none.
    why: SizeError,
}

/// Bytes in the value of `key`.
///
/// # Errors
/// It is no size.
pub(super) fn size(key: &'static str, found: String) -> Result<u64, BadSize> {
    parse_size(&found).map_err(|why| BadSize { key, found, why })
}

/// As [`size`], of memory that is 0 or at least a page.
///
/// # Errors
/// It is no size, or so small that its unit was forgotten.
pub(super) fn memory_size(key: &'static str, found: String) -> Result<u64, BadSize> {
    match size(key, found.clone())? {
        bytes @ 1..PAGE_BYTES => Err(BadSize {
            key,
            found,
            why: SizeError::NoUnit(bytes),
        }),
        bytes => Ok(bytes),
    }
}

/// Bytes in `text`. K, M, G and T are powers of 1024, with or without `iB`; no unit means bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() || unit.starts_with('.') {
        return Err(SizeError::Number);
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(SizeError::Unit(unit.to_string())),
    };
    let number: u64 = number.parse().map_err(|_| SizeError::Overflow)?;
    number.checked_mul(1 << shift).ok_or(SizeError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("1536MiB", 1536 << 20),
            ("2G", 2 << 30),
            ("2gib", 2 << 30),
            ("1T", 1 << 40),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in ["", "M", "-1", " 1M", "1.5G", "0x10", "١M"] {
            assert!(
                matches!(parse_size(text), Err(SizeError::Number | SizeError::Unit(_))),
                "{text}"
            );
        }
        for unit in ["MB", "GB", "Mi", "X", " M", "M "] {
            assert_eq!(parse_size(&format!("1{unit}")), Err(SizeError::Unit(unit.into())));
        }
        for text in ["16777216T", "18446744073709551616", "99999999999999999999999G"] {
            assert_eq!(parse_size(text), Err(SizeError::Overflow), "{text}");
        }
    }

    #[test]
    fn whoever_prints_the_chain_of_a_bad_value_has_the_reason_once() {
        let error = size("limit", "1X".into()).unwrap_err();
        let line = "limit is '1X': unknown unit 'X', allowed: K, M, G, T (or KiB, MiB, GiB, TiB), none for bytes";
        assert_eq!(error.to_string(), line);
        assert_eq!(husk_devices::error_chain(&error).to_string(), line);
    }
}
