//! Users and groups who have one number in the guest and another on the host.

use std::fmt;

use husk_virtio::fs::share::{IdMap, IdMapKind};
use serde::{Deserialize, Serialize};

/// The most ranges of users, or of groups: as many as a user namespace has (user_namespaces(7)).
pub const MAX_RANGES: usize = 340;
/// Nobody: -1 of chown(2).
const NOBODY: u64 = u32::MAX as u64;

/// A range of numbers, as virtiofsd's `--translate-uid` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct IdTranslation {
    /// What is done with them.
    pub kind: IdKind,
    /// First number in the guest.
    pub guest: u32,
    /// First number on the host; 0 with [`IdKind::ForbidGuest`].
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// What is done with a range of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdKind {
    /// Each number of the guest is one of the host, in both directions.
    #[default]
    Map,
    /// The same, from the guest to the host only.
    Guest,
    /// The same, from the host to the guest only.
    Host,
    /// All numbers of the guest are one of the host.
    SquashGuest,
    /// All numbers of the host are one of the guest.
    SquashHost,
    /// The guest may make nothing with these numbers, and give nothing to them.
    ForbidGuest,
}

impl IdKind {
    /// Each, with the name that it has in the API and at the command line.
    pub const ALL: [(&'static str, Self); 6] = [
        ("map", Self::Map),
        ("guest", Self::Guest),
        ("host", Self::Host),
        ("squash-guest", Self::SquashGuest),
        ("squash-host", Self::SquashHost),
        ("forbid-guest", Self::ForbidGuest),
    ];

    /// It says what numbers of the host are in the guest, and nothing of the other direction.
    pub fn is_from_host(self) -> bool {
        matches!(self, Self::Host | Self::SquashHost)
    }
}

/// A range in the API.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename = "IdTranslation")]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<IdKind>,
    guest: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host: Option<u32>,
    count: u32,
}

impl TryFrom<Wire> for IdTranslation {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let kind = wire.kind.unwrap_or_default();
        let host = match (kind, wire.host) {
            (IdKind::ForbidGuest, None) => 0,
            (IdKind::ForbidGuest, Some(_)) => return Err("forbid-guest has no host"),
            (_, Some(host)) => host,
            (_, None) => return Err("missing field `host`"),
        };
        let Wire { guest, count, .. } = wire;
        Ok(Self {
            kind,
            guest,
            host,
            count,
        })
    }
}

impl From<IdTranslation> for Wire {
    fn from(range: IdTranslation) -> Self {
        Self {
            kind: Some(range.kind).filter(|kind| *kind != IdKind::Map),
            guest: range.guest,
            host: Some(range.host).filter(|_| range.kind != IdKind::ForbidGuest),
            count: range.count,
        }
    }
}

/// As it is written at the command line.
impl fmt::Display for IdTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            guest,
            host,
            count,
        } = self;
        let found = IdKind::ALL.into_iter().find(|(_, known)| known == kind);
        let name = found.map_or("", |(name, _)| name);
        match kind {
            IdKind::ForbidGuest => write!(f, "{name}:{guest}:{count}"),
            kind if kind.is_from_host() => write!(f, "{name}:{host}:{guest}:{count}"),
            _ => write!(f, "{name}:{guest}:{host}:{count}"),
        }
    }
}

impl From<IdTranslation> for IdMap {
    fn from(range: IdTranslation) -> Self {
        let IdTranslation {
            kind,
            guest,
            host,
            count,
        } = range;
        let kind = match kind {
            IdKind::Map => IdMapKind::Map,
            IdKind::Guest => IdMapKind::Guest,
            IdKind::Host => IdMapKind::Host,
            IdKind::SquashGuest => IdMapKind::SquashGuest,
            IdKind::SquashHost => IdMapKind::SquashHost,
            IdKind::ForbidGuest => IdMapKind::ForbidGuest,
        };
        Self {
            kind,
            guest,
            host,
            count,
        }
    }
}

impl IdTranslation {
    /// A range that is mapped in both directions.
    pub const fn both_ways(guest: u32, host: u32, count: u32) -> Self {
        let kind = IdKind::Map;
        Self {
            kind,
            guest,
            host,
            count,
        }
    }

    /// Whether a number of the side that both come from is in both.
    fn meets(&self, other: &Self) -> bool {
        let meet = |one: u32, another: u32| {
            let end = |start: u32, count: u32| u64::from(start) + u64::from(count);
            u64::from(one) < end(another, other.count) && u64::from(another) < end(one, self.count)
        };
        let (one, another) = (self.kind, other.kind);
        let of_guest = !one.is_from_host() && !another.is_from_host();
        let says_of_host = |kind: IdKind| kind == IdKind::Map || kind.is_from_host();
        let of_host = says_of_host(one) && says_of_host(another);
        of_guest && meet(self.guest, other.guest) || of_host && meet(self.host, other.host)
    }

    /// Whether a number of it is beyond the last that there is.
    fn goes_beyond(&self) -> bool {
        let beyond = |first: u32, count: u32| u64::from(first) + u64::from(count) > NOBODY;
        let (guest, host) = match self.kind {
            IdKind::SquashGuest | IdKind::ForbidGuest => (self.count, 1),
            IdKind::SquashHost => (1, self.count),
            IdKind::Map | IdKind::Guest | IdKind::Host => (self.count, self.count),
        };
        beyond(self.guest, guest) || beyond(self.host, host)
    }
}

/// What is wrong with `ranges`, if something is; with `lists` those of access rights are kept as well.
pub(super) fn fault(ranges: &[IdTranslation], lists: bool) -> Option<String> {
    if ranges.len() > MAX_RANGES {
        return Some(format!("has {} ranges, up to {MAX_RANGES} are allowed", ranges.len()));
    }
    ranges.iter().enumerate().find_map(|(index, range)| {
        if range.count == 0 {
            return Some(format!("{range} maps no number"));
        }
        if range.goes_beyond() {
            return Some(format!("{range} goes beyond number {}", NOBODY - 1));
        }
        if lists && range.kind != IdKind::Map {
            return Some(format!(
                "{range} maps one way only, with posix_acl map:GUEST:HOST:COUNT is allowed"
            ));
        }
        let before = ranges.iter().take(index).find(|other| range.meets(other))?;
        Some(format!(
            "{range} meets {before}: a number may be mapped once on either side"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_mapped_once_on_either_side() {
        let range = IdTranslation::both_ways;
        let fault = |ranges: &[IdTranslation]| fault(ranges, false);
        let good = [
            range(0, 1000, 1),
            range(1, 100_000, 65_535),
            range(u32::MAX - 1, 1001, 1),
        ];
        assert_eq!(fault(&good), None);
        assert_eq!(fault(&[]), None);
        for (wrong, expected) in [
            (&[range(0, 0, 0)][..], "map:0:0:0 maps no number"),
            (
                &[range(u32::MAX, 0, 1)],
                "map:4294967295:0:1 goes beyond number 4294967294",
            ),
            (
                &[range(0, 2, u32::MAX - 1)],
                "map:0:2:4294967294 goes beyond number 4294967294",
            ),
            (
                &[range(0, 10, 5), range(4, 20, 1)],
                "map:4:20:1 meets map:0:10:5: a number may be mapped once on either side",
            ),
            (
                &[range(0, 10, 5), range(9, 7, 4)],
                "map:9:7:4 meets map:0:10:5: a number may be mapped once on either side",
            ),
        ] {
            assert_eq!(fault(wrong).unwrap(), expected);
        }
        let many: Vec<_> = (0..341).map(|number| range(number, number, 1)).collect();
        assert_eq!(fault(&many).unwrap(), "has 341 ranges, up to 340 are allowed");
        assert_eq!(fault(&many[1..]), None);
    }

    #[test]
    fn what_goes_one_way_meets_what_goes_the_same_way() {
        let range = |kind, guest, host, count| IdTranslation {
            kind,
            guest,
            host,
            count,
        };
        let all = range(IdKind::SquashGuest, 0, 1001, u32::MAX);
        let back = range(IdKind::Host, 1000, 1001, 1);
        assert_eq!(fault(&[all, back], false), None);
        for (wrong, lists, expected) in [
            (
                &[all, IdTranslation::both_ways(0, 0, 1)][..],
                false,
                "map:0:0:1 meets squash-guest:0:1001:4294967295: a number may be mapped once on either side",
            ),
            (
                &[back, range(IdKind::SquashHost, 5, 1000, 2)],
                false,
                "squash-host:1000:5:2 meets host:1001:1000:1: a number may be mapped once on either side",
            ),
            (
                &[range(IdKind::ForbidGuest, 1, 0, u32::MAX)],
                false,
                "forbid-guest:1:4294967295 goes beyond number 4294967294",
            ),
            (
                &[range(IdKind::Guest, 0, 1, u32::MAX)],
                false,
                "guest:0:1:4294967295 goes beyond number 4294967294",
            ),
            (
                &[back],
                true,
                "host:1001:1000:1 maps one way only, with posix_acl map:GUEST:HOST:COUNT is allowed",
            ),
        ] {
            assert_eq!(fault(wrong, lists).unwrap(), expected);
        }
    }

    #[test]
    fn a_range_is_written_as_it_is_read() {
        use serde_json::{from_value, json, to_value};
        for (json, text) in [
            (json!({"guest": 1, "host": 2, "count": 3}), "map:1:2:3"),
            (
                json!({"kind": "guest", "guest": 1, "host": 2, "count": 3}),
                "guest:1:2:3",
            ),
            (json!({"kind": "host", "guest": 1, "host": 2, "count": 3}), "host:2:1:3"),
            (
                json!({"kind": "squash-guest", "guest": 1, "host": 2, "count": 3}),
                "squash-guest:1:2:3",
            ),
            (
                json!({"kind": "squash-host", "guest": 1, "host": 2, "count": 3}),
                "squash-host:2:1:3",
            ),
            (
                json!({"kind": "forbid-guest", "guest": 1, "count": 3}),
                "forbid-guest:1:3",
            ),
        ] {
            let range: IdTranslation = from_value(json.clone()).unwrap();
            assert_eq!((range.to_string().as_str(), to_value(range).unwrap()), (text, json));
        }
        for (json, says) in [
            (json!({"guest": 1, "count": 3}), "missing field `host`"),
            (
                json!({"kind": "forbid-guest", "guest": 1, "host": 2, "count": 3}),
                "forbid-guest has no host",
            ),
            (
                json!({"kind": "squash", "guest": 1, "host": 2, "count": 3}),
                "unknown variant `squash`",
            ),
        ] {
            let told = from_value::<IdTranslation>(json).unwrap_err().to_string();
            assert!(told.contains(says), "{told}");
        }
    }
}
