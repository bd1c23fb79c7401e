//! Numbers of users or groups: which they are on the other side.

use rustix::io::Errno;

use crate::fs::share::{IdMap, IdMapKind};

/// What the guest sees of an owner who has no number there (`DEFAULT_OVERFLOWUID` of linux/highuid.h).
const NOBODY: u32 = 65_534;

impl IdMapKind {
    /// It says what numbers of the guest are.
    fn is_from_guest(self) -> bool {
        matches!(self, Self::Map | Self::Guest | Self::SquashGuest | Self::ForbidGuest)
    }

    /// It says what numbers of the host are.
    fn is_from_host(self) -> bool {
        matches!(self, Self::Map | Self::Host | Self::SquashHost)
    }

    /// Several numbers become one.
    fn squashes(self) -> bool {
        matches!(self, Self::SquashGuest | Self::SquashHost)
    }
}

/// Ranges of users, or of groups.
pub(super) struct Ids {
    ranges: Vec<IdMap>,
    /// Numbers in none of them have none on the other side.
    closed: bool,
}

impl Ids {
    /// Those of `ranges`.
    pub fn new(ranges: &[IdMap]) -> Self {
        Self {
            ranges: ranges.to_vec(),
            closed: ranges.iter().any(|range| range.kind == IdMapKind::Map),
        }
    }

    /// Whether any number is another on the other side.
    pub fn maps(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether it is told what numbers of the guest are.
    pub fn maps_guest(&self) -> bool {
        self.ranges.iter().any(|range| range.kind.is_from_guest())
    }

    /// A number of the host, for the guest.
    pub fn to_guest(&self, host: u32) -> u32 {
        let ranges = self.ranges.iter().filter(|range| range.kind.is_from_host());
        match find(ranges.map(|range| (range, range.host, range.guest)), host) {
            Some((_, guest)) => guest,
            None if self.closed => NOBODY,
            None => host,
        }
    }

    /// A number of the guest, for the host.
    ///
    /// # Errors
    /// `EPERM` if it has none there or is forbidden, `EINVAL` for that which means nobody.
    pub fn to_host(&self, guest: u32) -> Result<u32, Errno> {
        if guest == u32::MAX {
            return Err(Errno::INVAL);
        }
        let ranges = self.ranges.iter().filter(|range| range.kind.is_from_guest());
        match find(ranges.map(|range| (range, range.guest, range.host)), guest) {
            Some((IdMapKind::ForbidGuest, _)) => Err(Errno::PERM),
            Some((_, host)) => Ok(host),
            None if self.closed => Err(Errno::PERM),
            None => Ok(guest),
        }
    }
}

/// The range among those, each with its first number on this side and on the other, that `id` is in, and what it is
/// there.
fn find<'a>(ranges: impl Iterator<Item = (&'a IdMap, u32, u32)>, id: u32) -> Option<(IdMapKind, u32)> {
    let mut found = ranges.filter_map(|(range, from, to)| {
        let beyond = id.checked_sub(from).filter(|beyond| *beyond < range.count)?;
        let beyond = if range.kind.squashes() { 0 } else { beyond };
        let to = to.checked_add(beyond).filter(|id| *id != u32::MAX)?;
        Some((range.kind, to))
    });
    found.next()
}

/// The first of `ranges` that cannot be, if there is one: a number of one side is in an earlier one as well, or it goes
/// beyond the last number.
pub(super) fn fault(ranges: &[IdMap]) -> Option<&IdMap> {
    let last = |from: u32, count: u32| from.checked_add(count);
    let meet = |one: u32, another: u32, counts: (u32, u32)| {
        one < another.saturating_add(counts.1) && another < one.saturating_add(counts.0)
    };
    let all = ranges.iter().enumerate();
    let mut faults = all.filter_map(|(index, range)| {
        let squashed = |to: u32| {
            if range.kind.squashes() {
                last(to, 1)
            } else {
                last(to, range.count)
            }
        };
        let (guest, host) = match (range.kind, range.kind.is_from_guest()) {
            (IdMapKind::ForbidGuest, _) => (last(range.guest, range.count), Some(0)),
            (_, true) => (last(range.guest, range.count), squashed(range.host)),
            (_, false) => (squashed(range.guest), last(range.host, range.count)),
        };
        let twice = ranges.iter().take(index).any(|other| {
            let counts = (range.count, other.count);
            let of_guest = range.kind.is_from_guest() && other.kind.is_from_guest();
            let of_host = range.kind.is_from_host() && other.kind.is_from_host();
            of_guest && meet(range.guest, other.guest, counts) || of_host && meet(range.host, other.host, counts)
        });
        (twice || guest.is_none() || host.is_none()).then_some(range)
    });
    faults.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(kind: IdMapKind, guest: u32, host: u32, count: u32) -> IdMap {
        IdMap {
            kind,
            guest,
            host,
            count,
        }
    }

    #[test]
    fn each_kind_says_what_it_says_and_leaves_the_rest_alone() {
        use IdMapKind::{ForbidGuest, Guest, Host, SquashGuest, SquashHost};
        let one = |kind| Ids::new(&[range(kind, 10, 1000, 5)]);
        let to_host = |kind| [9, 10, 14, 15].map(|id| one(kind).to_host(id));
        let to_guest = |kind| [999, 1000, 1004, 1005].map(|id| one(kind).to_guest(id));
        let (as_it_is, no) = ([9, 10, 14, 15].map(Ok), Err(Errno::PERM));
        assert_eq!(to_host(IdMapKind::Map), [no, Ok(1000), Ok(1004), no]);
        assert_eq!(to_guest(IdMapKind::Map), [NOBODY, 10, 14, NOBODY]);
        assert_eq!(to_host(Guest), [Ok(9), Ok(1000), Ok(1004), Ok(15)]);
        assert_eq!(to_host(SquashGuest), [Ok(9), Ok(1000), Ok(1000), Ok(15)]);
        assert_eq!(to_host(ForbidGuest), [Ok(9), no, no, Ok(15)]);
        assert_eq!([Host, SquashHost].map(to_host), [as_it_is; 2]);
        assert_eq!(to_guest(Host), [999, 10, 14, 1005]);
        assert_eq!(to_guest(SquashHost), [999, 10, 10, 1005]);
        assert_eq!(
            [Guest, SquashGuest, ForbidGuest].map(to_guest),
            [[999, 1000, 1004, 1005]; 3]
        );
        for kind in [Guest, Host] {
            assert_eq!(one(kind).to_host(u32::MAX), Err(Errno::INVAL));
        }
    }

    #[test]
    fn everybody_in_the_guest_is_one_on_the_host() {
        // As virtiofsd's README has it for an ordinary user.
        let all = range(IdMapKind::SquashGuest, 0, 1001, u32::MAX);
        let back = range(IdMapKind::Host, 1000, 1001, 1);
        assert_eq!(fault(&[all, back]), None);
        let ids = Ids::new(&[all, back]);
        assert_eq!([0, 1000, u32::MAX - 1].map(|id| ids.to_host(id)), [Ok(1001); 3]);
        assert_eq!([1001, 1000, 0].map(|id| ids.to_guest(id)), [1000, 1000, 0]);
        assert!(ids.maps_guest() && !Ids::new(&[back]).maps_guest());
    }

    #[test]
    fn ranges_meet_on_the_side_that_they_come_from() {
        use IdMapKind::{ForbidGuest, Guest, Host, Map, SquashGuest, SquashHost};
        for (first, second, good) in [
            (range(Map, 0, 10, 5), range(Map, 5, 14, 1), false),
            (range(Map, 0, 10, 5), range(Map, 5, 15, 1), true),
            (range(Map, 0, 10, 5), range(ForbidGuest, 4, 0, 1), false),
            (range(Map, 0, 10, 5), range(SquashGuest, 5, 10, 1), true),
            (range(Map, 0, 10, 5), range(SquashHost, 0, 14, 1), false),
            (range(Guest, 0, 10, 5), range(Host, 0, 10, 5), true),
            (range(Guest, 0, 10, 5), range(Guest, 9, 10, 5), true),
            (range(Host, 0, 10, 5), range(SquashHost, 0, 14, 2), false),
        ] {
            assert_eq!(fault(&[first, second]).is_none(), good, "{first:?} {second:?}");
        }
        for (one, good) in [
            (range(SquashGuest, 0, u32::MAX - 1, u32::MAX), true),
            (range(SquashGuest, 0, u32::MAX, 1), false),
            (range(Guest, 0, 1, u32::MAX), false),
            (range(SquashHost, u32::MAX, 0, 1), false),
            (range(ForbidGuest, u32::MAX, u32::MAX, 0), true),
            (range(ForbidGuest, 1, 0, u32::MAX), false),
        ] {
            assert_eq!(fault(&[one]).is_none(), good, "{one:?}");
        }
    }
}
