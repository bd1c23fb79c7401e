//! Switches, in options that are lists of `key=value`.

/// A switch with a third position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is '{found}', allowed: on, off")]
pub struct BadSwitch {
    /// The key.
    key: &'static str,
    /// Its value.
    found: String,
}

/// `on`, `true`, `off` or `false`.
///
/// # Errors
/// Anything else.
pub(super) fn switch(key: &'static str, found: String) -> Result<bool, BadSwitch> {
    match found.as_str() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(BadSwitch { key, found }),
    }
}
