//! Users and groups of the host that have other numbers in the guest: `map:GUEST:HOST:COUNT`, as virtiofsd has it.

use crate::config::IdTranslation;

/// What stands between two ranges in a list.
const BETWEEN: char = '+';

/// Reads one range.
///
/// # Errors
/// What is allowed.
pub fn translation(text: &str) -> Result<IdTranslation, String> {
    let mut parts = text.split(':');
    let kind = parts.next().unwrap_or_default();
    let numbers: Vec<u32> = parts.map_while(|part| part.parse().ok()).collect();
    match (kind, numbers[..].as_ref(), text.split(':').count()) {
        ("map", &[guest, host, count], 4) => Ok(IdTranslation { guest, host, count }),
        ("guest" | "host" | "squash-guest" | "squash-host" | "forbid-guest", ..) => Err(format!(
            "{kind} is not supported, allowed: map:GUEST:HOST:COUNT, which maps one to one and both ways"
        )),
        _ => Err("allowed: map:GUEST:HOST:COUNT with numbers of 32 bits".into()),
    }
}

/// Reads several, joined by `+`.
///
/// # Errors
/// What is allowed.
pub fn translations(text: &str) -> Result<Vec<IdTranslation>, String> {
    let ranges: Result<_, _> = text.split(BETWEEN).map(translation).collect();
    ranges.map_err(|allowed| format!("{allowed}; several are joined by {BETWEEN}"))
}
