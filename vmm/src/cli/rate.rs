//! How fast a device may be used, as `--disk` and `--net` say it.

use crate::config::TokenBucketConfig;

/// Not a number of things a second.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is '{found}', allowed: how many a second, 1 or more")]
pub struct BadRate {
    /// The key.
    key: &'static str,
    /// Its value.
    found: String,
}

/// A bucket that holds a second's worth.
///
/// # Errors
/// Zero, or no number.
pub(super) fn per_second(key: &'static str, found: String) -> Result<TokenBucketConfig, BadRate> {
    match found.parse() {
        Ok(size) if size > 0 => Ok(TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time: 1000,
        }),
        _ => Err(BadRate { key, found }),
    }
}
