//! Users and groups of the host that have other numbers in the guest, as virtiofsd's `--translate-uid` has it:
//! `map:GUEST:HOST:COUNT` and five kinds more.

use crate::config::{IdKind, IdTranslation};

/// What stands between two ranges in a list.
const BETWEEN: char = '+';
/// What is allowed.
const FORMS: &str = "map, guest or squash-guest:GUEST:HOST:COUNT, host or squash-host:HOST:GUEST:COUNT, forbid-guest:GUEST:COUNT, \
                     with numbers of 32 bits";

/// Reads one range. As with virtiofsd, any character that is none of a kind's name may stand for the colon.
///
/// # Errors
/// What is allowed.
pub fn translation(text: &str) -> Result<IdTranslation, String> {
    read(text).ok_or_else(|| format!("allowed: {FORMS}"))
}

fn read(text: &str) -> Option<IdTranslation> {
    let of_name = |one: char| one.is_alphanumeric() || one == '-' || one == '_';
    let separator = text.chars().find(|one| !of_name(*one))?;
    let (name, rest) = text.split_once(separator)?;
    let numbers: Result<Vec<u32>, _> = rest.split(separator).map(str::parse).collect();
    let numbers = numbers.ok()?;
    let (_, kind) = IdKind::ALL
        .into_iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))?;
    let (guest, host, count) = match (kind, numbers.as_slice()) {
        (IdKind::ForbidGuest, &[guest, count]) => (guest, 0, count),
        (IdKind::ForbidGuest, _) => return None,
        (kind, &[host, guest, count]) if kind.is_from_host() => (guest, host, count),
        (_, &[guest, host, count]) => (guest, host, count),
        _ => return None,
    };
    Some(IdTranslation {
        kind,
        guest,
        host,
        count,
    })
}

/// Reads several, joined by `+`.
///
/// # Errors
/// What is allowed.
pub fn translations(text: &str) -> Result<Vec<IdTranslation>, String> {
    let ranges: Result<_, _> = text.split(BETWEEN).map(translation).collect();
    ranges.map_err(|allowed| format!("{allowed}; several are joined by {BETWEEN}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_and_written() {
        for text in [
            "map:0:1000:1",
            "guest:0:1000:65536",
            "host:1000:0:1",
            "squash-guest:0:1001:4294967295",
            "squash-host:0:65534:1000",
            "forbid-guest:1:4294967294",
        ] {
            assert_eq!(translation(text).unwrap().to_string(), text);
        }
        let host = translation("Squash-Host/1/2/3").unwrap();
        assert_eq!(
            (host.kind, host.host, host.guest, host.count),
            (IdKind::SquashHost, 1, 2, 3)
        );
        for text in [
            "",
            "map",
            "map:0:1",
            "map:0:1:2:3",
            "map:0:1:x",
            "0:1:2",
            "forbid-guest:0:1:2",
            "squash:0:1:2",
            "map:0/1:2",
        ] {
            assert_eq!(translation(text).unwrap_err(), format!("allowed: {FORMS}"), "{text}");
        }
    }
}
