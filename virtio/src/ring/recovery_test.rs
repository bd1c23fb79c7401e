use std::collections::HashSet;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::*;
use crate::testing::{Driver, F_INDIRECT, F_NEXT, F_WRITE, memory};

/// A request is its number, not 0; a reply the same number, or 0xff.
struct Numbers;

impl Protocol for Numbers {
    fn reply_state(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> ReplyState {
        let asked = request.read_obj::<u32>().ok().filter(|number| *number != 0);
        match (asked, reply.read_obj::<u32>()) {
            (Some(asked), Ok(said)) if asked == said => ReplyState::Answered(4),
            (Some(_), Ok(_)) => ReplyState::Waiting,
            _ => ReplyState::None,
        }
    }

    fn refuse(&self, _: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32 {
        reply.write_obj(0xff_u32).map_or(0, |()| 4)
    }
}

/// A driver as Linux is one: descriptors and memory that were given back last are used first, and
/// each request has a table.
struct Guest {
    driver: Driver,
    free_heads: Vec<u16>,
    free_rooms: Vec<u64>,
    /// In the order of their requests: head, memory.
    out: Vec<(u16, u64)>,
    /// The numbers of those.
    numbers: Vec<u16>,
    number: u32,
}

const SIZE: u16 = 8;
/// What a request takes: an indirect table of two, the request, the reply.
const ROOM: u64 = 0x40;
const REQUEST: u64 = 0x20;
const REPLY: u64 = 0x28;

impl Guest {
    fn new() -> Self {
        Self {
            driver: Driver::new(&memory(), 0x1000, SIZE),
            free_heads: (0..SIZE).rev().collect(),
            free_rooms: (0..u64::from(SIZE) + 1).rev().map(|at| 0x2_0000 + ROOM * at).collect(),
            out: Vec::new(),
            numbers: Vec::new(),
            number: 0,
        }
    }

    /// Makes a request, without room for a reply if `silent`.
    fn ask(&mut self, silent: bool) -> Option<u16> {
        self.ask_in(silent, self.free_rooms.len() - 1)
    }

    /// The same, in a room that is free.
    fn ask_in(&mut self, silent: bool, room: usize) -> Option<u16> {
        let head = self.free_heads.pop()?;
        let room = self.free_rooms.remove(room);
        self.number += 1;
        let driver = &self.driver;
        driver.write(room + REQUEST, &self.number.to_le_bytes());
        driver.write(room + REPLY, &[0; 4]);
        let (next, entries) = if silent { (0, 1) } else { (F_NEXT, 2) };
        driver.put(room, 0, Descriptor::new(room + REQUEST, 4, next, 1));
        driver.put(room, 1, Descriptor::new(room + REPLY, 4, F_WRITE, 0));
        driver.put(driver.desc, head, Descriptor::new(room, 16 * entries, F_INDIRECT, 0));
        driver.offer(head);
        self.out.push((head, room));
        self.numbers.push(u16::try_from(self.number).unwrap());
        Some(head)
    }

    /// Writes a reply.
    fn reply(&self, which: usize) {
        let (_, room) = self.out[which];
        self.driver.write(room + REPLY, &self.driver.read(room + REQUEST, 4));
    }

    /// Replies, puts it into the used ring, and has the driver take it.
    fn answer(&mut self, which: usize) {
        self.reply(which);
        let (head, room) = self.out.remove(which);
        self.numbers.remove(which);
        let driver = &mut self.driver;
        let at = driver.load(driver.used + 2);
        let entry = driver.used + 4 + 8 * u64::from(at % SIZE);
        driver.write(entry, &[u32::from(head).to_le_bytes(), 4_u32.to_le_bytes()].concat());
        driver.store(driver.used + 2, at.wrapping_add(1));
        assert_eq!(driver.take_used(), Some((head.into(), 4)));
        self.free_heads.push(head);
        self.free_rooms.push(room);
    }

    fn recover(&self) -> (Ring, Result<Recovered, RingError>) {
        let mut ring = self.driver.ring();
        let recovered = ring.recover(&Numbers);
        (ring, recovered)
    }

    /// What the driver is given: head and length.
    fn given(&mut self) -> HashSet<(u32, u32)> {
        std::iter::from_fn(|| self.driver.take_used()).collect()
    }

    /// Requests made since the oldest that is out.
    fn oldest_age(&self) -> u16 {
        let latest = u16::try_from(self.number).unwrap();
        self.numbers.first().map_or(0, |number| latest - number)
    }

    fn owed(&self) -> HashSet<(u32, u32)> {
        self.out.iter().map(|(head, _)| (u32::from(*head), 4)).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum BackendAction {
    Ask(prop::sample::Index),
    Answer(prop::sample::Index),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_was_owed_is_refused_and_nothing_else(
        actions in prop::collection::vec(
            prop_oneof![
                any::<prop::sample::Index>().prop_map(BackendAction::Ask),
                any::<prop::sample::Index>().prop_map(BackendAction::Answer),
            ],
            1..200,
        ),
    ) {
        let mut guest = Guest::new();
        for action in actions {
            match action {
                BackendAction::Ask(room) => drop(guest.ask_in(false, room.index(guest.free_rooms.len()))),
                BackendAction::Answer(_) if guest.out.is_empty() => {}
                BackendAction::Answer(which) => guest.answer(which.index(guest.out.len())),
            }
        }
        let (ring, recovered) = guest.recover();
        let Recovered { refused, returned, lost } = recovered.unwrap();
        let (given, owed) = (guest.given(), guest.owed());
        prop_assert!(given.is_subset(&owed), "{given:?} of {owed:?}");
        prop_assert_eq!((usize::from(refused), returned), (given.len(), 0));
        prop_assert_eq!(usize::from(refused + lost), owed.len());
        // Only what is older than the available ring can be in doubt.
        prop_assert!(lost == 0 || guest.oldest_age() >= SIZE, "{lost} lost");
        let state = ring.into_state().queue;
        prop_assert_eq!(state.next_avail, state.next_used.wrapping_add(lost));
        for (head, room) in &guest.out {
            let said = guest.driver.read(room + REPLY, 4);
            prop_assert_eq!(said[0] == 0xff, given.contains(&((*head).into(), 4)));
        }
    }
}

#[test]
fn a_request_older_than_all_that_the_rings_remember_is_found() {
    let mut guest = Guest::new();
    let old = guest.ask(false).unwrap();
    for _ in 0..3 * SIZE {
        guest.ask(false).unwrap();
        guest.answer(1);
    }
    assert_eq!(guest.recover().1.unwrap().refused, 1);
    assert_eq!(guest.given(), [(u32::from(old), 4)].into());
    assert!(guest.driver.interrupts() > 0);
}

#[test]
fn a_reply_that_only_lacks_its_entry_is_given_as_it_is() {
    let mut guest = Guest::new();
    for _ in 0..20 {
        guest.ask(false).unwrap();
        guest.answer(0);
    }
    let head = guest.ask(false).unwrap();
    guest.reply(0);
    let recovered = guest.recover().1.unwrap();
    assert_eq!((recovered.refused, recovered.returned, recovered.lost), (0, 1, 0));
    assert_eq!(guest.given(), [(u32::from(head), 4)].into());
    let (_, room) = guest.out[0];
    assert_eq!(guest.driver.read(room + REPLY, 4), 21_u32.to_le_bytes());
}

#[test]
fn requests_without_a_reply_are_given_back_empty() {
    let mut guest = Guest::new();
    let heads = [guest.ask(true).unwrap(), guest.ask(true).unwrap()];
    let recovered = guest.recover().1.unwrap();
    assert_eq!((recovered.refused, recovered.returned, recovered.lost), (0, 2, 0));
    assert_eq!(guest.given(), heads.map(|head| (u32::from(head), 0)).into());
}

#[test]
fn what_is_no_request_and_has_room_for_a_reply_is_left_alone() {
    let mut guest = Guest::new();
    guest.ask(false).unwrap();
    guest.driver.write(guest.out[0].1 + REQUEST, &[0; 4]);
    let recovered = guest.recover().1.unwrap();
    assert_eq!((recovered.refused, recovered.returned, recovered.lost), (0, 0, 1));
    assert!(guest.given().is_empty());
}

#[test]
fn what_cannot_be_found_is_counted() {
    let mut guest = Guest::new();
    guest.ask(false).unwrap();
    // The driver takes it all back, the entry in the available ring excepted.
    guest.driver.write(guest.out[0].1, &[0; 0x40]);
    guest.driver.write(guest.driver.desc, &[0xff; 16 * SIZE as usize]);
    let recovered = guest.recover().1.unwrap();
    assert_eq!((recovered.refused, recovered.returned, recovered.lost), (0, 0, 1));
    assert!(guest.given().is_empty());
}

#[test]
fn a_driver_between_writing_and_offering_gets_what_is_owed() {
    let mut guest = Guest::new();
    guest.ask(false).unwrap();
    // Four more that seem to wait, and will for ever: their entries never come.
    for _ in 0..4 {
        guest.ask(false).unwrap();
    }
    guest.driver.store(guest.driver.avail + 2, 1);
    let watched = Watched::new(|_| ());
    let recovered = guest.driver.ring().recover(&watched).unwrap();
    assert_eq!((recovered.refused, recovered.lost), (1, 0));
    assert_eq!(watched.looks(), LOOKS, "it may still offer them");
    assert_eq!(guest.given(), [(u32::from(guest.out[0].0), 4)].into());
}

/// [`Numbers`], and something that happens when a request has been looked at for the so manieth time.
struct Watched<F> {
    looked_at: AtomicUsize,
    then: F,
}

impl<F: Fn(usize) + Send + Sync> Watched<F> {
    fn new(then: F) -> Self {
        let looked_at = AtomicUsize::new(0);
        Self { looked_at, then }
    }

    /// How often the whole table was looked at, each of whose heads leads to something here.
    fn looks(&self) -> usize {
        self.looked_at.load(Ordering::Relaxed) / usize::from(SIZE)
    }
}

impl<F: Fn(usize) + Send + Sync> Protocol for Watched<F> {
    fn reply_state(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> ReplyState {
        let reply_state = Numbers.reply_state(request, reply);
        (self.then)(self.looked_at.fetch_add(1, Ordering::Relaxed) + 1);
        reply_state
    }

    fn refuse(&self, request: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32 {
        Numbers.refuse(request, reply)
    }
}

#[test]
fn a_driver_at_rest_is_looked_at_once() {
    let mut guest = Guest::new();
    guest.ask(false).unwrap();
    let watched = Watched::new(|_| ());
    assert_eq!(guest.driver.ring().recover(&watched).unwrap().refused, 1);
    assert_eq!(watched.looks(), 1);
}

#[test]
fn a_driver_that_offers_more_meanwhile_is_looked_at_again() {
    let mut guest = Guest::new();
    guest.ask(false).unwrap();
    guest.ask(false).unwrap();
    // The second one is written and offered when everything has been looked at once.
    let request = guest.out[1].1 + REQUEST;
    let written = guest.driver.read(request, 4);
    guest.driver.write(request, &[0; 4]);
    guest.driver.store(guest.driver.avail + 2, 1);
    let watched = Watched::new(|count| {
        if count == usize::from(SIZE) {
            guest.driver.write(request, &written);
            guest.driver.store(guest.driver.avail + 2, 2);
        }
    });
    let mut ring = guest.driver.ring();
    assert_eq!(ring.recover(&watched).unwrap().refused, 2);
    assert_eq!((watched.looks(), ring.state().queue.next_avail), (2, 2));
    assert_eq!(guest.given(), guest.owed());
}

#[test]
fn of_two_that_say_a_room_is_theirs_and_cannot_be_dated_neither_is_believed() {
    let mut guest = Guest::new();
    let stale = guest.ask(false).unwrap();
    guest.answer(0);
    // Its memory has a new owner, and its descriptor stays as it was.
    let last = guest.free_heads.pop().unwrap();
    guest.free_heads.insert(0, last);
    let owner = guest.ask(false).unwrap();
    assert!(last == stale && stale < owner, "and the wrong one is looked at first");
    for _ in 0..SIZE {
        guest.ask(false).unwrap();
        guest.answer(1);
    }
    let recovered = guest.recover().1.unwrap();
    assert_eq!((recovered.refused, recovered.returned, recovered.lost), (0, 0, 1));
    assert!(guest.given().is_empty());
}

#[test]
fn indices_that_make_no_sense_are_an_error() {
    let guest = Guest::new();
    guest.driver.store(guest.driver.avail + 2, SIZE + 1);
    assert!(matches!(
        guest.recover().1,
        Err(RingError::AvailIndex { found: 9, next: 0, .. })
    ));
    // As after a back-end that used what it was never given.
    guest.driver.store(guest.driver.avail + 2, 0);
    guest.driver.store(guest.driver.used + 2, 1);
    assert!(matches!(guest.recover().1, Err(RingError::AvailIndex { next: 1, .. })));
}

#[test]
fn hostile_tables_end() {
    let guest = Guest::new();
    let (desc, mem) = (guest.driver.desc, guest.driver.mem.clone());
    let at = |head| Chain::at(&mem.memory().into_inner(), &guest.driver.state().queue, head, &mut 1000);
    let put = |index, descriptor| guest.driver.put(desc, index, descriptor);
    // A loop; a table in a table; a hole; readable after writable; a table of nothing; an end outside.
    put(0, Descriptor::new(0x4000, 4, F_NEXT, 0));
    put(1, Descriptor::new(0x4000, 32, F_INDIRECT, 0));
    guest.driver.put(0x4000, 0, Descriptor::new(0x4000, 32, F_INDIRECT, 0));
    put(2, Descriptor::new(1 << 40, 4, 0, 0));
    put(3, Descriptor::new(0x4000, 4, F_WRITE | F_NEXT, 4));
    put(4, Descriptor::new(0x4000, 4, 0, 0));
    put(5, Descriptor::new(0x4000, 8, F_INDIRECT, 0));
    put(6, Descriptor::new(0x4000, 4, F_NEXT, 8));
    put(7, Descriptor::new(0x4000, u32::MAX, 0, 0));
    let good: Vec<u16> = (0..10).filter(|head| at(*head).is_some()).collect();
    assert_eq!(good, [4]);
    assert!(Chain::at(&mem.memory().into_inner(), &guest.driver.state().queue, 4, &mut 0).is_none());
}
