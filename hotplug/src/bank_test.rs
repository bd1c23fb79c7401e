use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::ticket::Ticket;

fn bank(slots: u32) -> (Bank, Arc<AtomicU32>) {
    let let_go = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&let_go);
    let on_let_go = move || {
        seen.fetch_add(1, Ordering::Relaxed);
    };
    (Bank::new(slots, on_let_go).unwrap(), let_go)
}

fn read(bank: &mut Bank, offset: u64, width: usize) -> Vec<u8> {
    let mut data = vec![0x55; width];
    bank.read(offset, &mut data);
    data
}

fn read32(bank: &mut Bank, offset: u64) -> u32 {
    u32::from_le_bytes(read(bank, offset, 4).try_into().unwrap())
}

fn write32(bank: &mut Bank, offset: u64, value: u32) {
    assert_eq!(bank.write(offset, &value.to_le_bytes()), Effect::None);
}

fn record(slot: u64) -> u64 {
    0x20 * (slot + 1)
}

fn ost(bank: &mut Bank, slot: u64, source_event: u32, status: u32) {
    write32(bank, record(slot) + 8, source_event);
    write32(bank, record(slot) + 12, status);
}

fn offer(bank: &mut Bank, slot: u32) -> Ticket {
    let (promise, ticket) = Ticket::new();
    bank.apply(slot, Event::Offer, Some(promise)).unwrap();
    ticket
}

fn ask(bank: &mut Bank, slot: u32) -> Ticket {
    let (promise, ticket) = Ticket::new();
    bank.apply(slot, Event::Ask, Some(promise)).unwrap();
    ticket
}

fn state(bank: &Bank, slot: usize) -> State {
    bank.states().nth(slot).unwrap().1
}

#[test]
fn an_offer_is_taken_shown_and_answered() {
    let (mut bank, _) = bank(4);
    let ticket = offer(&mut bank, 2);
    assert_eq!(read32(&mut bank, record(2)), 0, "hidden until the event is taken");
    assert_eq!(read32(&mut bank, 0), 2 | 1 << 16);
    assert_eq!(read32(&mut bank, 0), 0);
    assert_eq!(read32(&mut bank, record(2)), 0xf);
    ost(&mut bank, 2, 1, 0);
    assert_eq!(ticket.wait(Instant::now()), Outcome::Accepted);
    assert_eq!(state(&bank, 2), State::Present);
}

#[test]
fn an_ejection_empties_sta_at_once_and_wakes_the_host() {
    let (mut bank, let_go) = bank(2);
    bank.apply(1, Event::Boot, None).unwrap();
    let ticket = ask(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 3 << 16);
    write32(&mut bank, record(1) + 4, 1);
    assert_eq!(read32(&mut bank, record(1)), 0);
    assert_eq!(ticket.wait(Instant::now()), Outcome::Accepted);
    assert_eq!(let_go.load(Ordering::Relaxed), 1);
    ost(&mut bank, 1, 3, 0);
    assert_eq!(bank.ignored(), 0, "the report that follows an ejection is in order");
}

#[test]
fn a_refusal_carries_its_code() {
    let (mut bank, let_go) = bank(2);
    bank.apply(0, Event::Boot, None).unwrap();
    let remove = ask(&mut bank, 0);
    let add = offer(&mut bank, 1);
    read32(&mut bank, 0);
    read32(&mut bank, 0);
    ost(&mut bank, 0, 3, 0x82);
    ost(&mut bank, 1, 1, 1);
    assert_eq!(remove.wait(Instant::now()), Outcome::Refused { ost: 0x82 });
    assert_eq!(add.wait(Instant::now()), Outcome::Refused { ost: 1 });
    assert_eq!(
        (state(&bank, 0), state(&bank, 1)),
        (State::Present, State::Ejected { wanted: false })
    );
    assert_eq!(let_go.load(Ordering::Relaxed), 1, "only the refused unit has to go");
}

#[test]
fn events_are_taken_in_slot_order() {
    let (mut bank, _) = bank(300);
    for slot in [299, 0, 17] {
        drop(offer(&mut bank, slot));
    }
    let taken: Vec<u32> = (0..4).map(|_| read32(&mut bank, 0)).collect();
    assert_eq!(taken, [1 << 16, 17 | 1 << 16, 299 | 1 << 16, 0]);
}

#[test]
fn a_pinned_slot_is_never_asked_for() {
    let (mut bank, _) = bank(2);
    bank.pin(0).unwrap();
    bank.apply(0, Event::Boot, None).unwrap();
    assert_eq!(bank.apply(0, Event::Ask, None), Err(BankError::Pinned { slot: 0 }));
    write32(&mut bank, record(0) + 4, 1);
    assert_eq!((state(&bank, 0), bank.ignored()), (State::Present, 1));
}

#[test]
fn an_ejection_nobody_asked_for_is_ignored() {
    let (mut bank, let_go) = bank(2);
    bank.apply(1, Event::Boot, None).unwrap();
    for slot in [0, 1, 2, 1 << 40] {
        write32(&mut bank, record(slot) + 4, 1);
    }
    assert_eq!(state(&bank, 1), State::Present);
    assert_eq!((bank.ignored(), let_go.load(Ordering::Relaxed)), (4, 0));
}

#[test]
fn a_memory_slot_shows_its_range_in_any_width() {
    let (mut bank, _) = bank(2);
    bank.describe(
        1,
        Extent {
            base: 0x1_2345_6789_abcd,
            size_bytes: 0x800_0000,
        },
    )
    .unwrap();
    let base = record(1) + 0x10;
    assert_eq!(read(&mut bank, base, 8), 0x1_2345_6789_abcd_u64.to_le_bytes());
    assert_eq!(
        (read32(&mut bank, base), read32(&mut bank, base + 4)),
        (0x6789_abcd, 0x1_2345)
    );
    assert_eq!(read(&mut bank, base + 1, 2), [0xab, 0x89]);
    assert_eq!(read(&mut bank, base + 8, 8), 0x800_0000_u64.to_le_bytes());
}

#[test]
fn odd_reads_take_nothing_and_see_ones_where_nothing_is() {
    let (mut bank, _) = bank(1);
    drop(offer(&mut bank, 0));
    for width in [1, 2, 8] {
        assert_eq!(read(&mut bank, 0, width)[0], 0);
    }
    assert_eq!(read(&mut bank, 1, 4)[..3], [0, 0, 0]);
    assert_eq!(read(&mut bank, 4, 8), [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(read32(&mut bank, record(0) + 4), u32::MAX);
    assert_eq!(read32(&mut bank, record(1)), u32::MAX);
    assert_eq!(read(&mut bank, u64::MAX, 8), [0xff; 8]);
    assert_eq!(read32(&mut bank, 0), 1 << 16, "the event is still there");
}

#[test]
fn odd_writes_are_counted_and_do_nothing() {
    let (mut bank, _) = bank(1);
    bank.apply(0, Event::Boot, None).unwrap();
    drop(ask(&mut bank, 0));
    let eject = record(0) + 4;
    for (offset, data) in [
        (eject, &[1_u8][..]),
        (eject, &[1, 0]),
        (eject, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (eject + 1, &[1; 4]),
    ] {
        assert_eq!(bank.write(offset, data), Effect::None);
    }
    write32(&mut bank, eject, 2);
    write32(&mut bank, 0, 1);
    assert_eq!(bank.ignored(), 6);
    assert!(matches!(state(&bank, 0), State::Asked { seen: false, .. }));
}

#[test]
fn too_many_slots_and_unknown_slots_are_errors() {
    assert_eq!(
        Bank::new(0x1001, || ()).err(),
        Some(BankError::TooManySlots { found: 0x1001 })
    );
    let (mut bank, _) = bank(3);
    assert_eq!(bank.window_bytes(), 0x80);
    assert_eq!(bank.pin(3), Err(BankError::NoSuchSlot { slot: 3, slots: 3 }));
    let error = bank.check(0, Event::Ask).unwrap_err();
    assert_eq!(error.to_string(), "slot 0 is not ready for this");
}

/// One access of a guest that does what it likes, or one request of the host's.
#[derive(Clone, Debug)]
enum Act {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Host(u32, Event),
}

fn act() -> impl Strategy<Value = Act> {
    let near = 0..0xa0_u64;
    let offset = prop_oneof![8 => near, 1 => any::<u64>()];
    let width = prop_oneof![6 => Just(4_usize), 1 => Just(1), 1 => Just(2), 1 => Just(8)];
    let aligned = (0..0x28_u64).prop_map(|word| word * 4);
    let value = prop_oneof![4 => 0..4_u32, 1 => Just(0x80), 1 => Just(0x84), 1 => any::<u32>()];
    let event = prop::sample::select(vec![
        Event::Offer,
        Event::Ask,
        Event::Reclaim,
        Event::Expire,
        Event::Destroyed,
    ]);
    prop_oneof![
        (offset.clone(), width.clone()).prop_map(|(offset, width)| Act::Read(offset, width)),
        (aligned, value).prop_map(|(offset, value)| Act::Write(offset, value.to_le_bytes().to_vec())),
        (offset, width).prop_map(|(offset, width)| Act::Write(offset, vec![1; width])),
        (0..5_u32, event).prop_map(|(slot, event)| Act::Host(slot, event)),
    ]
}

proptest! {
    #[test]
    fn no_guest_gets_or_gives_what_it_was_not_asked(acts in proptest::collection::vec(act(), 1..300)) {
        let (mut bank, _) = bank(4);
        bank.pin(0).unwrap();
        bank.apply(0, Event::Boot, None).unwrap();
        let mut tickets = Vec::new();
        for act in acts {
            let before: Vec<State> = bank.states().map(|(_, state)| state).collect();
            let guest = !matches!(act, Act::Host(..));
            match act {
                Act::Read(offset, width) => drop(read(&mut bank, offset, width)),
                Act::Write(offset, data) => prop_assert_eq!(bank.write(offset, &data), Effect::None),
                Act::Host(slot, event) => {
                    let (promise, ticket) = Ticket::new();
                    let promise = matches!(event, Event::Offer | Event::Ask | Event::Reclaim).then_some(promise);
                    if bank.apply(slot, event, promise).is_ok() {
                        tickets.push(ticket);
                    }
                }
            }
            prop_assert_eq!(state(&bank, 0), State::Present, "slot 0 is pinned");
            for (before, (_, after)) in before.into_iter().zip(bank.states()).filter(|_| guest) {
                let gone = matches!(after, State::Ejected { .. }) && before != after;
                let was_open = matches!(before, State::Asked { .. } | State::Offered { seen: true });
                prop_assert!(!gone || was_open, "{before:?} -> {after:?}");
                prop_assert!(before != State::Empty || after == State::Empty);
            }
        }
        // Whatever happened, no one waits once the host has given up and what is left is gone.
        for slot in 0..4 {
            let _ = bank.apply(slot, Event::Expire, None);
        }
        let at_rest = bank.states().all(|(_, state)| matches!(state, State::Empty | State::Present | State::Ejected { .. }));
        let waiting = tickets.iter().filter(|ticket| ticket.wait(Instant::now()) == Outcome::TimedOut && ticket.latency().is_none());
        prop_assert!(!at_rest || waiting.count() == 0);
    }
}
