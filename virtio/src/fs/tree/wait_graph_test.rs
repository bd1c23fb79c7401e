//! Owners who wait for each other's locks: whoever closes the circle is told, and nobody else.

use super::*;
use crate::fs::filesystem::LockKind::{Read, Unlock, Write};
use crate::fs::filesystem::{LockKind, Locked};
use proptest::prelude::*;

/// Files that owners lock, open.
struct Files {
    share: Share,
    open: Vec<(Node, Handle)>,
}

impl Files {
    fn new(count: usize) -> Self {
        Self::with(count, |_| {})
    }

    fn with(count: usize, change: impl FnOnce(&mut ShareConfig)) -> Self {
        let share = Share::with(change);
        let create = |index: usize| {
            let (entry, opened) = share.create(Node::ROOT, &format!("f{index}"), O_RDWR, 0o644).unwrap();
            (entry.node, opened.handle)
        };
        let open = (0..count).map(create).collect();
        Self { share, open }
    }

    /// `owner` asks for one byte of a file, and waits by his request `request` if there is one.
    fn ask(
        &self,
        (file, byte): (usize, u64),
        owner: u64,
        kind: LockKind,
        request: Option<u64>,
    ) -> Result<Locked, Errno> {
        let (node, handle) = self.open[file];
        let lock = Lock {
            owner,
            pid: 1,
            kind,
            start: byte,
            end: byte,
            whole_file: false,
        };
        let waiter = request.map(|request| Waiter { owner, request });
        self.share.tree.setlk(node, handle, &lock, waiter)
    }

    fn has(&self, at: (usize, u64), owner: u64) {
        assert_eq!(self.ask(at, owner, Write, None), Ok(Locked::Yes));
    }

    fn waits(&self, at: (usize, u64), owner: u64) {
        assert_eq!(self.ask(at, owner, Write, Some(owner)), Ok(Locked::Later));
    }

    fn is_told(&self, at: (usize, u64), owner: u64) {
        assert_eq!(self.ask(at, owner, Write, Some(owner)), Err(Errno::DEADLK));
    }

    fn lets_go(&self, at: (usize, u64), owner: u64) {
        assert_eq!(self.ask(at, owner, Unlock, None), Ok(Locked::Yes));
    }

    fn waiting(&self) -> usize {
        self.share.tree.waits.count()
    }
}

#[test]
fn of_two_who_wait_for_each_other_the_second_is_told() {
    let files = Files::new(1);
    files.has((0, 0), 1);
    files.has((0, 1), 2);
    files.waits((0, 1), 1);
    files.is_told((0, 0), 2);
    assert_eq!(files.waiting(), 1, "who was told does not wait");
    // He may still ask, keeps what he has, and the other goes on when that goes.
    assert_eq!(files.ask((0, 0), 2, Write, None), Err(Errno::AGAIN));
    files.waits((0, 1), 1);
    files.lets_go((0, 1), 2);
    assert_eq!(files.ask((0, 1), 1, Write, Some(1)), Ok(Locked::Yes));
    assert_eq!(files.waiting(), 0);
}

#[test]
fn three_in_a_circle_over_three_files() {
    let files = Files::new(3);
    (0..3).for_each(|owner| files.has((owner, 7), owner as u64));
    files.waits((1, 7), 0);
    files.waits((2, 7), 1);
    files.is_told((0, 7), 2);
    // One who has nothing closes no circle, however long the queue that he joins.
    files.waits((0, 7), 9);
    // The circle is open once somebody is gone from it.
    files.share.tree.give_up(Waiter { owner: 1, request: 1 });
    files.waits((0, 7), 2);
    files.is_told((2, 7), 1);
}

#[test]
fn what_was_let_go_is_no_longer_in_the_way() {
    let files = Files::new(2);
    files.has((0, 0), 1);
    files.has((1, 0), 2);
    files.waits((1, 0), 1);
    // The first was not handed in again yet.
    files.lets_go((1, 0), 2);
    files.waits((0, 0), 2);
    assert_eq!(files.ask((1, 0), 1, Write, Some(1)), Ok(Locked::Yes));
    // An owner whose last descriptor is closed has nothing either.
    let (node, handle) = files.open[1];
    files.has((0, 5), 3);
    files.waits((1, 0), 3);
    files.is_told((0, 5), 1);
    files.share.tree.flush(node, handle, 1).unwrap();
    files.waits((0, 5), 1);
    assert_eq!(files.ask((1, 0), 3, Write, Some(3)), Ok(Locked::Yes));
}

#[test]
fn a_circle_leads_through_any_of_those_who_read() {
    let files = Files::new(2);
    for reader in 1..=3 {
        assert_eq!(files.ask((0, 0), reader, Read, None), Ok(Locked::Yes));
    }
    files.has((1, 0), 4);
    files.waits((1, 0), 2);
    assert_eq!(
        files.ask((0, 0), 4, Read, Some(4)),
        Ok(Locked::Yes),
        "no reader is in a reader's way"
    );
    files.lets_go((0, 0), 4);
    files.is_told((0, 0), 4);
    // A reader who would write waits for the others; two of them for each other.
    files.waits((0, 0), 1);
    files.is_told((0, 0), 3);
}

/// An owner may wait in one thread, and be granted in another what closes the circle: that is found
/// when who waits tries again.
#[test]
fn a_circle_that_a_grant_closes_is_found_at_the_next_try() {
    let files = Files::new(2);
    files.has((0, 0), 1);
    files.has((1, 0), 3);
    files.waits((1, 0), 2);
    files.waits((0, 0), 3);
    files.lets_go((0, 0), 1);
    files.has((0, 0), 2);
    // 3 waits for 2 now, who waits for 3.
    files.is_told((0, 0), 3);
}

#[test]
fn requests_of_one_owner_are_told_apart() {
    let files = Files::new(2);
    files.has((0, 0), 1);
    files.has((1, 0), 2);
    for request in [10, 11] {
        assert_eq!(files.ask((1, 0), 1, Write, Some(request)), Ok(Locked::Later));
    }
    assert_eq!(files.waiting(), 2);
    files.share.tree.give_up(Waiter { owner: 1, request: 10 });
    files.is_told((0, 0), 2);
    files.share.tree.give_up(Waiter { owner: 1, request: 11 });
    files.waits((0, 0), 2);
}

#[test]
fn locks_of_whole_files_are_no_part_of_a_circle() {
    let files = Files::new(2);
    let (node, handle) = files.open[0];
    let whole = |owner, waits: bool| {
        let lock = Lock {
            owner,
            pid: 1,
            kind: Write,
            start: 0,
            end: u64::MAX,
            whole_file: true,
        };
        let waiter = waits.then_some(Waiter { owner, request: owner });
        files.share.tree.setlk(node, handle, &lock, waiter)
    };
    assert_eq!(whole(1, false), Ok(Locked::Yes));
    files.has((1, 0), 2);
    assert_eq!(whole(2, true), Ok(Locked::Later));
    files.waits((1, 0), 1);
    assert_eq!(files.waiting(), 1);
}

#[test]
fn who_waits_for_a_file_that_is_closed_or_a_session_that_ends_is_forgotten() {
    let files = Files::new(2);
    files.has((0, 0), 1);
    files.waits((0, 0), 2);
    let (node, handle) = files.open[0];
    files.share.tree.release(node, handle, None).unwrap();
    assert_eq!(files.ask((0, 0), 2, Write, Some(2)), Err(Errno::BADF));
    assert_eq!(files.waiting(), 0);
    files.has((1, 0), 1);
    files.waits((1, 0), 2);
    files.share.tree.reset();
    assert_eq!(files.waiting(), 0);
}

#[test]
fn what_is_noted_and_looked_at_is_bounded() {
    let files = Files::with(2, |config| config.max_locks = 3);
    files.has((0, 0), 1);
    files.has((1, 0), 2);
    (3..6).for_each(|owner| files.waits((0, 0), owner));
    // No room to note this one: he waits, and nobody is told of him.
    files.waits((1, 0), 1);
    assert_eq!(files.waiting(), 3);
    files.waits((0, 0), 2);

    // The one who closes the circle is behind more owners than are looked at.
    let files = Files::new(2);
    for reader in 0..600 {
        assert_eq!(files.ask((0, 0), reader, Read, None), Ok(Locked::Yes));
    }
    files.has((1, 0), 5000);
    files.waits((1, 0), 599);
    files.waits((0, 0), 5000);
    files.is_told((1, 0), 3);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Five owners, three files, four bytes each. Who waits does nothing until it is his turn to
    /// try again. He is told exactly if a search through all that is held and waited for leads back
    /// to him, and so one is left at any time who can go on.
    #[test]
    fn a_search_through_everything_is_the_model(
        steps in prop::collection::vec((0u64..5, 0u8..3, 0usize..3, 0u64..4), 1..80)
    ) {
        let files = Files::new(3);
        // What each owner holds of each byte (0, 1 to read, 2 to write), and what he waits for.
        let mut held = [[[0u8; 4]; 3]; 5];
        let mut wishes: [Option<(usize, u64, u8)>; 5] = [None; 5];
        for (owner, kind, file, byte) in steps {
            let me = usize::try_from(owner).unwrap();
            let (file, byte, kind) = wishes[me].unwrap_or((file, byte, kind));
            let at = usize::try_from(byte).unwrap();
            let in_the_way = |who: usize, (file, byte, kind): (usize, u64, u8), held: &[[[u8; 4]; 3]; 5]| {
                let at = usize::try_from(byte).unwrap();
                let excludes = |other: &usize| {
                    let has = held[*other][file][at];
                    *other != who && (kind == 2 && has > 0 || kind == 1 && has == 2)
                };
                (0..5).filter(excludes).collect::<Vec<_>>()
            };
            wishes[me] = None;
            let mut next = in_the_way(me, (file, byte, kind), &held);
            let busy = !next.is_empty();
            let mut seen = [false; 5];
            while let Some(other) = next.pop() {
                if !std::mem::replace(&mut seen[other], true) {
                    next.extend(wishes[other].iter().flat_map(|wish| in_the_way(other, *wish, &held)));
                }
            }
            let expected = match (busy, seen[me]) {
                (false, _) => Ok(Locked::Yes),
                (true, true) => Err(Errno::DEADLK),
                (true, false) => Ok(Locked::Later),
            };
            let kinds = [Unlock, Read, Write];
            prop_assert_eq!(files.ask((file, byte), owner, kinds[usize::from(kind)], Some(owner)), expected);
            match expected {
                Ok(Locked::Yes) => held[me][file][at] = kind,
                Ok(Locked::Later) => wishes[me] = Some((file, byte, kind)),
                Err(_) => {}
            }
            prop_assert_eq!(files.waiting(), wishes.iter().flatten().count());
            let can_go_on = |who: usize| wishes[who].is_none_or(|wish| in_the_way(who, wish, &held).is_empty());
            prop_assert!((0..5).any(can_go_on));
        }
    }
}
