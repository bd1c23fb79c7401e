use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use husk_devices::Irq;
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::ged::GedEvent;
use crate::outcome::{Outcome, OutcomeReceiver};

/// A notifier and its line.
fn notifier() -> (GedNotifier, EventFd) {
    let line = EventFd::new(EFD_NONBLOCK).unwrap();
    (GedNotifier::new(Irq::new(line.try_clone().unwrap())), line)
}

fn bank(slots: u32) -> (Bank, Arc<AtomicU32>) {
    bank_of(SlotKind::Pci, slots)
}

fn bank_of(kind: SlotKind, slots: u32) -> (Bank, Arc<AtomicU32>) {
    let let_go = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&let_go);
    let on_eject = move || {
        seen.fetch_add(1, Ordering::Relaxed);
    };
    (Bank::new(kind, slots, notifier().0, on_eject).unwrap(), let_go)
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
    0x840 + 0x10 * slot
}

fn sta(bank: &mut Bank, slot: u32) -> bool {
    match read32(bank, 0x40 + u64::from(slot / 8 * 4)) >> (slot % 8 * 4) & 0xf {
        0 => false,
        0xf => true,
        half => panic!("{half:#x}"),
    }
}

fn eject(bank: &mut Bank, slot: u32) {
    write32(bank, 0x04, slot);
}

fn sign(bank: &mut Bank, slot: u32) {
    write32(bank, 0x08, slot);
}

fn ost(bank: &mut Bank, slot: u32, source_event: u32, status: u32) {
    let report = u64::from(slot) | u64::from(source_event) << 16 | u64::from(status) << 32;
    assert_eq!(bank.write(0x10, &report.to_le_bytes()), Effect::None);
}

fn offer(bank: &mut Bank, slot: u32) -> OutcomeReceiver {
    let (sender, receiver) = OutcomeReceiver::new();
    bank.apply(slot, Event::Offer, Some(sender)).unwrap();
    receiver
}

fn ask(bank: &mut Bank, slot: u32) -> OutcomeReceiver {
    let (sender, receiver) = OutcomeReceiver::new();
    bank.apply(slot, Event::Ask, Some(sender)).unwrap();
    receiver
}

fn state(bank: &Bank, slot: usize) -> State {
    bank.states().nth(slot).unwrap().1
}

#[test]
fn an_offer_is_taken_shown_and_answered() {
    let (mut bank, _) = bank(4);
    let receiver = offer(&mut bank, 2);
    assert!(!sta(&mut bank, 2), "hidden until the event is taken");
    assert_eq!(read32(&mut bank, 0), 2 | 1 << 16);
    assert_eq!(read32(&mut bank, 0), 0);
    assert!(sta(&mut bank, 2));
    ost(&mut bank, 2, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
    assert_eq!(state(&bank, 2), State::Present);
}

#[test]
fn an_ejection_empties_sta_at_once_and_wakes_the_host() {
    let (mut bank, let_go) = bank(2);
    bank.apply(1, Event::Boot, None).unwrap();
    let receiver = ask(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 3 << 16);
    eject(&mut bank, 1);
    assert!(!sta(&mut bank, 1));
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
    assert_eq!(let_go.load(Ordering::Relaxed), 1);
    ost(&mut bank, 1, 3, 0);
    assert_eq!(bank.ignored(), 0, "the report that follows an ejection is in order");
}

/// A slot that the guest has let go of and that is offered anew, before the guest has seen that the unit has gone.
fn offered_anew(kind: SlotKind) -> (Bank, EventFd) {
    let (notifier, line) = notifier();
    let mut bank = Bank::new(kind, 40, notifier, || ()).unwrap();
    bank.apply(33, Event::Boot, None).unwrap();
    drop(ask(&mut bank, 33));
    assert_eq!(read32(&mut bank, 0), 33 | 3 << 16);
    eject(&mut bank, 33);
    bank.apply(33, Event::Destroyed, None).unwrap();
    drop(offer(&mut bank, 33));
    (bank, line)
}

#[test]
fn a_slot_is_offered_anew_once_the_guest_has_seen_it_empty() {
    for kind in [SlotKind::Cpu, SlotKind::Memory] {
        type Look = fn(&mut Bank);
        let looks: [Look; 4] = [
            |bank| assert!(!sta(bank, 33)),
            |bank| assert_eq!(read(bank, 0x50, 1), [0]),
            |bank| ost(bank, 33, 3, 0),
            |bank| ost(bank, 33, 0x103, 0),
        ];
        for look in looks {
            let (mut bank, line) = offered_anew(kind);
            assert_eq!(read32(&mut bank, 0), 0);
            assert!(!sta(&mut bank, 0), "another slot");
            ost(&mut bank, 34, 3, 0);
            assert_eq!(read32(&mut bank, 0), 0);
            assert!(line.read().is_err(), "nothing to take, so nobody is called");
            look(&mut bank);
            assert!(line.read().is_ok());
            assert_eq!(read32(&mut bank, 0), 33 | 1 << 16);
        }
    }
}

#[test]
fn a_slot_that_nobody_offers_anew_calls_nobody() {
    let (notifier, line) = notifier();
    let mut bank = Bank::new(SlotKind::Cpu, 2, notifier, || ()).unwrap();
    bank.apply(1, Event::Boot, None).unwrap();
    drop(ask(&mut bank, 1));
    read32(&mut bank, 0);
    eject(&mut bank, 1);
    assert!(!sta(&mut bank, 1));
    ost(&mut bank, 1, 3, 0);
    assert!(line.read().is_err());
}

#[test]
fn a_pci_slot_is_offered_anew_at_once() {
    let (mut bank, _) = offered_anew(SlotKind::Pci);
    assert_eq!(read32(&mut bank, 0), 33 | 1 << 16);
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
fn what_comes_is_taken_upwards_and_then_what_goes_downwards() {
    let (mut bank, _) = bank(300);
    for slot in [299, 0, 17] {
        drop(offer(&mut bank, slot));
    }
    for slot in [5, 200, 100] {
        bank.apply(slot, Event::Boot, None).unwrap();
        drop(ask(&mut bank, slot));
    }
    let taken: Vec<u32> = (0..7).map(|_| read32(&mut bank, 0)).collect();
    let events = [(0, 1), (17, 1), (299, 1), (200, 3), (100, 3), (5, 3)];
    let expected: Vec<u32> = events
        .map(|(slot, notify)| slot | notify << 16)
        .into_iter()
        .chain([0])
        .collect();
    assert_eq!(taken, expected);
}

#[test]
fn every_slot_has_four_bits_of_status() {
    let (mut bank, _) = bank(28);
    for slot in [0, 7, 8, 27] {
        bank.apply(slot, Event::Boot, None).unwrap();
    }
    let words: Vec<u32> = (0..5).map(|word| read32(&mut bank, 0x40 + word * 4)).collect();
    assert_eq!(words, [0xf000_000f, 0xf, 0, 0xf000, u32::MAX]);
}

#[test]
fn the_last_slot_that_there_may_be_has_its_status_before_the_records() {
    let (mut bank, _) = bank_of(SlotKind::Memory, Bank::MAX_SLOTS);
    bank.apply(Bank::MAX_SLOTS - 1, Event::Boot, None).unwrap();
    assert_eq!(read32(&mut bank, record(0) - 4), 0xf000_0000);
}

/// Offers slot 1 of a bank, whose slot 0 is there from the start, and lets the guest take the event.
fn offered(kind: SlotKind) -> (Bank, OutcomeReceiver) {
    let (mut bank, _) = bank_of(kind, 2);
    bank.pin(0).unwrap();
    bank.apply(0, Event::Boot, None).unwrap();
    let receiver = offer(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 1 << 16);
    (bank, receiver)
}

#[test]
fn a_processor_is_taken_when_its_sun_was_asked_for() {
    let (mut bank, receiver) = offered(SlotKind::Cpu);
    sign(&mut bank, 0);
    sign(&mut bank, 1);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
    assert_eq!((state(&bank, 1), bank.ignored()), (State::Present, 0));
}

#[test]
fn a_processor_whose_sun_was_not_asked_for_is_withdrawn_at_once() {
    let (mut bank, receiver) = offered(SlotKind::Cpu);
    sign(&mut bank, 0);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Unproven);
    assert!(!sta(&mut bank, 1));
    // A sign of an earlier life proves nothing.
    sign(&mut bank, 1);
    bank.apply(1, Event::Destroyed, None).unwrap();
    let receiver = offer(&mut bank, 1);
    sign(&mut bank, 1);
    read32(&mut bank, 0);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Unproven);
}

#[test]
fn a_processor_that_comes_again_has_to_be_asked_for_again() {
    let (mut bank, receiver) = offered(SlotKind::Cpu);
    sign(&mut bank, 0);
    sign(&mut bank, 1);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
    ask(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 3 << 16);
    eject(&mut bank, 1);
    sta(&mut bank, 1);
    bank.apply(1, Event::Destroyed, None).unwrap();
    let receiver = offer(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 1 << 16);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Unproven);
}

#[test]
fn a_sun_that_is_asked_for_twice_says_what_it_says_once() {
    for (times, expected) in [(0, Outcome::Unproven), (2, Outcome::Accepted)] {
        let (mut bank, receiver) = offered(SlotKind::Cpu);
        sign(&mut bank, 0);
        sign(&mut bank, 0);
        (0..times).for_each(|_| sign(&mut bank, 1));
        ost(&mut bank, 1, 1, 0);
        assert_eq!(receiver.wait(Instant::now()), expected);
    }
}

#[test]
fn a_guest_that_asks_for_no_sun_is_believed() {
    let (mut bank, receiver) = offered(SlotKind::Cpu);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
}

#[test]
fn memory_is_taken_when_the_guest_needs_no_second_look() {
    // 6.12 takes what it has already for done, 6.1 for an error.
    for second in [0, 1] {
        let (mut bank, receiver) = offered(SlotKind::Memory);
        read32(&mut bank, record(1));
        ost(&mut bank, 1, 1, 0);
        assert_eq!(receiver.wait(Instant::now()), Outcome::TimedOut);
        assert_eq!(read32(&mut bank, 0), 1 | 1 << 16, "told again");
        ost(&mut bank, 1, 1, second);
        assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
        assert_eq!((state(&bank, 1), read32(&mut bank, 0)), (State::Present, 0));
    }
}

#[test]
fn memory_that_the_guest_tries_to_add_again_is_not_there() {
    let (mut bank, receiver) = offered(SlotKind::Memory);
    let mut told = 0;
    loop {
        read(&mut bank, record(1), 8);
        ost(&mut bank, 1, 1, 0);
        if read32(&mut bank, 0) == 0 {
            break;
        }
        told += 1;
    }
    assert_eq!(told, 3);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Unproven);
    assert!(!sta(&mut bank, 1), "withdrawn");
}

#[test]
fn memory_that_came_with_the_second_attempt_is_taken() {
    let (mut bank, receiver) = offered(SlotKind::Memory);
    for look in [true, true, false] {
        if look {
            read(&mut bank, record(1), 8);
        }
        ost(&mut bank, 1, 1, 0);
        read32(&mut bank, 0);
    }
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
}

#[test]
fn a_look_at_another_slot_proves_nothing() {
    let (mut bank, receiver) = offered(SlotKind::Memory);
    read(&mut bank, record(1), 8);
    ost(&mut bank, 1, 1, 0);
    read32(&mut bank, 0);
    read(&mut bank, record(0), 8);
    ost(&mut bank, 1, 1, 0);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
}

#[test]
fn the_guest_is_called_again_for_what_has_to_be_checked() {
    let (notifier, line) = notifier();
    let mut bank = Bank::new(SlotKind::Memory, 1, notifier.clone(), || ()).unwrap();
    drop(offer(&mut bank, 0));
    read32(&mut bank, 0);
    assert!(line.read().is_err(), "offers are rung by who makes them");
    ost(&mut bank, 0, 1, 0);
    assert!(line.read().is_ok());
    let mut status = [0; 4];
    crate::ged::Ged::new(notifier).read(0, &mut status);
    assert_eq!(u32::from_le_bytes(status), GedEvent::Memory.bit());
}

#[test]
fn a_guest_that_took_a_request_and_is_asked_again_is_told_again_of_functions_only() {
    for (kind, told) in [(SlotKind::Pci, 1 | 3 << 16), (SlotKind::Cpu, 0), (SlotKind::Memory, 0)] {
        let (mut bank, _) = bank_of(kind, 2);
        bank.apply(1, Event::Boot, None).unwrap();
        let first = ask(&mut bank, 1);
        ask(&mut bank, 1);
        assert_eq!(read32(&mut bank, 0), 1 | 3 << 16);
        assert_eq!(read32(&mut bank, 0), 0, "asked twice before it heard, told once");
        let second = ask(&mut bank, 1);
        assert_eq!(bank.waits(1), told != 0, "{kind:?}");
        assert_eq!(read32(&mut bank, 0), told, "{kind:?}");
        assert_eq!(read32(&mut bank, 0), 0);
        assert_eq!(first.wait(Instant::now()), Outcome::Withdrawn);
        ask(&mut bank, 1);
        drop(second);
        eject(&mut bank, 1);
        assert_eq!(read32(&mut bank, 0), 0, "what it let go of is asked for no more");
        assert!(matches!(state(&bank, 1), State::Ejected { .. }));
        bank.apply(1, Event::Destroyed, None).unwrap();
        assert_eq!(read32(&mut bank, 0), 0);
    }
}

#[test]
fn a_request_that_is_refused_is_not_told_again() {
    let (mut bank, _) = bank(2);
    bank.apply(1, Event::Boot, None).unwrap();
    ask(&mut bank, 1);
    assert_eq!(read32(&mut bank, 0), 1 | 3 << 16);
    let receiver = ask(&mut bank, 1);
    ost(&mut bank, 1, 3, 0x82);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Refused { ost: 0x82 });
    assert_eq!(read32(&mut bank, 0), 0);
}

#[test]
fn a_pinned_slot_is_never_asked_for() {
    let (mut bank, _) = bank(2);
    bank.pin(0).unwrap();
    bank.apply(0, Event::Boot, None).unwrap();
    assert_eq!(bank.apply(0, Event::Ask, None), Err(BankError::Pinned { slot: 0 }));
    eject(&mut bank, 0);
    assert_eq!((state(&bank, 0), bank.ignored()), (State::Present, 1));
}

#[test]
fn an_ejection_nobody_asked_for_is_ignored() {
    let (mut bank, let_go) = bank(2);
    bank.apply(1, Event::Boot, None).unwrap();
    for slot in [0, 1, 2, u32::MAX] {
        eject(&mut bank, slot);
    }
    assert_eq!(state(&bank, 1), State::Present);
    assert_eq!((bank.ignored(), let_go.load(Ordering::Relaxed)), (4, 0));
}

#[test]
fn a_guest_lets_go_of_the_processor_that_it_was_asked_for_and_of_no_other() {
    let (mut bank, let_go) = bank_of(SlotKind::Cpu, 4);
    bank.pin(0).unwrap();
    for slot in 0..4 {
        bank.apply(slot, Event::Boot, None).unwrap();
    }
    let receiver = ask(&mut bank, 3);
    assert_eq!(read32(&mut bank, 0), 3 << 16 | 3);
    for slot in [0, 1, 2, 4, u32::MAX] {
        eject(&mut bank, slot);
        ost(&mut bank, slot & 0xffff, 3, 0x82);
        ost(&mut bank, slot & 0xffff, 1, 0x81);
    }
    let states: Vec<State> = bank.states().map(|(_, state)| state).collect();
    assert_eq!(states[..3], [State::Present; 3]);
    assert!((0..4).all(|slot| sta(&mut bank, slot)));
    assert_eq!(
        (receiver.wait(Instant::now()), let_go.load(Ordering::Relaxed)),
        (Outcome::TimedOut, 0)
    );
    eject(&mut bank, 3);
    assert_eq!(
        (receiver.wait(Instant::now()), let_go.load(Ordering::Relaxed)),
        (Outcome::Accepted, 1)
    );
    assert!(!sta(&mut bank, 3) && (0..3).all(|slot| sta(&mut bank, slot)));
}

#[test]
fn a_memory_slot_shows_its_range_in_any_width() {
    let (mut bank, _) = bank_of(SlotKind::Memory, 2);
    bank.describe(
        1,
        Extent {
            base: 0x1_2345_6789_abcd,
            size_bytes: 0x2_0800_0000,
        },
    )
    .unwrap();
    let base = record(1);
    assert_eq!(read(&mut bank, base, 8), 0x1_2345_6789_abcd_u64.to_le_bytes());
    assert_eq!(
        (read32(&mut bank, base), read32(&mut bank, base + 4)),
        (0x6789_abcd, 0x1_2345)
    );
    assert_eq!(read(&mut bank, base + 1, 2), [0xab, 0x89]);
    assert_eq!(read(&mut bank, base + 8, 8), 0x2_0800_0000_u64.to_le_bytes());
}

#[test]
fn odd_reads_take_nothing_and_see_ones_where_nothing_is() {
    let (mut bank, _) = bank(1);
    drop(offer(&mut bank, 0));
    for width in [1, 2, 8] {
        assert_eq!(read(&mut bank, 0, width)[0], 0);
    }
    assert_eq!(read(&mut bank, 1, 4)[..3], [0, 0, 0]);
    assert_eq!(read(&mut bank, 0x0c, 8), [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(
        (read32(&mut bank, 0x40), read32(&mut bank, 0x44)),
        (0, u32::MAX),
        "the end of the status"
    );
    assert_eq!(read32(&mut bank, record(0)), u32::MAX, "no memory here");
    assert_eq!(read(&mut bank, u64::MAX, 8), [0xff; 8]);
    assert_eq!(read32(&mut bank, 0), 1 << 16, "the event is still there");
}

#[test]
fn odd_writes_are_counted_and_do_nothing() {
    let (mut bank, _) = bank(1);
    bank.apply(0, Event::Boot, None).unwrap();
    drop(ask(&mut bank, 0));
    for (offset, data) in [
        (0x04, &[0_u8][..]),
        (0x04, &[0, 0]),
        (0x04, &[0; 8]),
        (0x05, &[0; 4]),
        (0x10, &[0; 4]),
        (0x14, &[0; 8]),
        (0x18, &[0; 8]),
        (0x00, &[0; 4]),
    ] {
        assert_eq!(bank.write(offset, data), Effect::None);
    }
    eject(&mut bank, 1);
    sign(&mut bank, 1);
    ost(&mut bank, 1, 3, 0);
    assert_eq!(bank.ignored(), 11);
    assert_eq!(bank.metrics().metrics(), [("ignored_writes", 11)]);
    assert!(matches!(state(&bank, 0), State::Asked { seen: false, .. }));
}

#[test]
fn too_many_slots_and_unknown_slots_are_errors() {
    assert_eq!(
        Bank::new(SlotKind::Pci, 0x1001, notifier().0, || ()).err(),
        Some(BankError::TooManySlots { found: 0x1001 })
    );
    let (mut bank, _) = bank(3);
    assert_eq!(bank.window_bytes(), 0x840);
    assert_eq!(bank_of(SlotKind::Memory, 3).0.window_bytes(), 0x870);
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
    let offset = prop_oneof![8 => 0..0x60_u64, 2 => 0x840..0x890_u64, 1 => any::<u64>()];
    let width = prop_oneof![6 => Just(4_usize), 1 => Just(1), 1 => Just(2), 3 => Just(8)];
    let slot = || 0..5_u32;
    let source = prop::sample::select(vec![0, 1, 3, 0x103, 0x200]);
    let status = prop_oneof![4 => 0..4_u32, 1 => Just(0x80), 1 => Just(0x84), 1 => any::<u32>()];
    let event = prop::sample::select(vec![
        Event::Offer,
        Event::Ask,
        Event::Reclaim,
        Event::Expire,
        Event::Destroyed,
    ]);
    let word = |offset| move |value: u32| Act::Write(offset, value.to_le_bytes().to_vec());
    prop_oneof![
        3 => Just(Act::Read(0, 4)),
        2 => (offset.clone(), width.clone()).prop_map(|(offset, width)| Act::Read(offset, width)),
        2 => slot().prop_map(word(0x04)),
        1 => slot().prop_map(word(0x08)),
        4 => (slot(), source, status).prop_map(|(slot, source, status): (u32, u32, u32)| {
            let low = slot | source << 16;
            Act::Write(0x10, [low.to_le_bytes(), status.to_le_bytes()].concat())
        }),
        1 => (offset, width).prop_map(|(offset, width)| Act::Write(offset, vec![1; width])),
        4 => (slot(), event).prop_map(|(slot, event)| Act::Host(slot, event)),
    ]
}

fn kinds() -> impl Strategy<Value = SlotKind> {
    prop::sample::select(vec![SlotKind::Cpu, SlotKind::Memory, SlotKind::Pci])
}

proptest! {
    #[test]
    fn no_guest_gets_or_gives_what_it_was_not_asked(kind in kinds(), acts in proptest::collection::vec(act(), 1..300)) {
        let (mut bank, _) = bank_of(kind, 4);
        bank.pin(0).unwrap();
        bank.apply(0, Event::Boot, None).unwrap();
        let mut receivers = Vec::new();
        for act in acts {
            let before: Vec<State> = bank.states().map(|(_, state)| state).collect();
            let guest = !matches!(act, Act::Host(..));
            match act {
                Act::Read(offset, width) => drop(read(&mut bank, offset, width)),
                Act::Write(offset, data) => prop_assert_eq!(bank.write(offset, &data), Effect::None),
                Act::Host(slot, event) => {
                    let (sender, receiver) = OutcomeReceiver::new();
                    let sender = matches!(event, Event::Offer | Event::Ask | Event::Reclaim).then_some(sender);
                    if bank.apply(slot, event, sender).is_ok() {
                        receivers.push(receiver);
                    }
                }
            }
            prop_assert_eq!(state(&bank, 0), State::Present, "slot 0 is pinned");
            for (before, (_, after)) in before.into_iter().zip(bank.states()).filter(|_| guest) {
                let gone = matches!(after, State::Ejected { .. }) && before != after;
                let was_open = matches!(before, State::Asked { .. } | State::Offered { seen: true } | State::Reported { seen: true });
                prop_assert!(!gone || was_open, "{before:?} -> {after:?}");
                prop_assert!(before != State::Empty || after == State::Empty);
            }
        }
        // Whatever happened, no one waits once the host has given up and what is left is gone.
        for slot in 0..4 {
            let _ = bank.apply(slot, Event::Expire, None);
        }
        let at_rest = bank.states().all(|(_, state)| matches!(state, State::Empty | State::Present | State::Ejected { .. }));
        let waits = |receiver: &&OutcomeReceiver| {
            receiver.wait(Instant::now()) == Outcome::TimedOut && receiver.latency().is_none()
        };
        let waiting = receivers.iter().filter(waits);
        prop_assert!(!at_rest || waiting.count() == 0);
    }
}
