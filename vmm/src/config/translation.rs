//! Users and groups who have one number in the guest and another on the host.

use std::fmt;

use husk_virtio::fs::share::IdMap;
use serde::{Deserialize, Serialize};

/// The most ranges of users, or of groups: as many as a user namespace has (user_namespaces(7)).
pub const MAX_RANGES: usize = 340;
/// Nobody: -1 of chown(2).
const NOBODY: u64 = u32::MAX as u64;

/// `count` numbers from `guest` on in the guest, which are those from `host` on for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdTranslation {
    /// First number in the guest.
    pub guest: u32,
    /// First number on the host.
    pub host: u32,
    /// How many.
    pub count: u32,
}

/// As it is written at the command line.
impl fmt::Display for IdTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map:{}:{}:{}", self.guest, self.host, self.count)
    }
}

impl From<IdTranslation> for IdMap {
    fn from(range: IdTranslation) -> Self {
        let IdTranslation { guest, host, count } = range;
        Self { guest, host, count }
    }
}

impl IdTranslation {
    fn meets(&self, other: &Self) -> bool {
        let meet = |one: u32, another: u32| {
            let end = |start: u32, count: u32| u64::from(start) + u64::from(count);
            u64::from(one) < end(another, other.count) && u64::from(another) < end(one, self.count)
        };
        meet(self.guest, other.guest) || meet(self.host, other.host)
    }
}

/// What is wrong with `ranges`, if something is.
pub(super) fn fault(ranges: &[IdTranslation]) -> Option<String> {
    if ranges.len() > MAX_RANGES {
        return Some(format!("has {} ranges, up to {MAX_RANGES} are allowed", ranges.len()));
    }
    let beyond = |first: u32, count: u32| u64::from(first) + u64::from(count) > NOBODY;
    ranges.iter().enumerate().find_map(|(index, range)| {
        if range.count == 0 {
            return Some(format!("{range} maps no number"));
        }
        if beyond(range.guest, range.count) || beyond(range.host, range.count) {
            return Some(format!("{range} goes beyond number {}", NOBODY - 1));
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
        let range = |guest, host, count| IdTranslation { guest, host, count };
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
}
