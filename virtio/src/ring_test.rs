use std::io::{Read, Write};

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;

use super::*;
use crate::testing::{Buf, Driver, END, F_INDIRECT, F_NEXT, F_WRITE, SECOND, Vectors, memory};

const BASE: u64 = 0x1000;
const DATA: u64 = 0x2_0000;

fn echo(reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> Result<Step, HandlerError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let written = writer.write(&bytes).unwrap();
    Ok(Step::Used(u32::try_from(written).unwrap()))
}

fn drain_error(driver: &Driver) -> RingError {
    match driver.ring().drain(echo) {
        Err(HandlerError::Ring(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn drain_answers_every_chain_and_interrupts_once() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let mut ring = driver.ring();
    driver.write(DATA, b"hello");
    let first = driver.add(&[Buf::Out(DATA, 2), Buf::Out(DATA + 2, 3), Buf::In(DATA + 0x100, 16)]);
    let second = driver.add(&[Buf::Out(DATA, 5), Buf::In(DATA + 0x200, 3)]);
    driver.kick.write(1).unwrap();

    ring.drain(echo).unwrap();

    assert_eq!(driver.take_used(), Some((first.into(), 5)));
    assert_eq!(driver.take_used(), Some((second.into(), 3)));
    assert_eq!(driver.take_used(), None);
    assert_eq!(driver.read(DATA + 0x100, 5), b"hello");
    assert_eq!(driver.read(DATA + 0x200, 4), b"hel\0");
    assert_eq!(driver.interrupts(), 1);
    assert!(ring.kick().read().is_err(), "the kick was taken");
}

#[test]
fn what_was_left_of_one_chain_is_not_found_in_the_next() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    for (out, room) in [(5, 7), (3, 2)] {
        driver.add(&[Buf::Out(DATA, out), Buf::In(DATA + 0x100, room)]);
    }
    let mut seen = Vec::new();
    let look = |reader: &mut Reader<'_>, writer: &mut Writer<'_>| {
        seen.push((
            reader.available_bytes(),
            reader.bytes_read(),
            writer.available_bytes(),
            writer.bytes_written(),
        ));
        reader.read_obj::<u8>().unwrap();
        writer.write_obj(1_u8).unwrap();
        Ok(Step::Used(1))
    };
    driver.ring().drain(look).unwrap();
    assert_eq!(seen, [(5, 0, 7, 0), (3, 0, 2, 0)]);
}

#[test]
fn a_ring_says_its_number_its_size_and_what_was_not_yet_announced() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let state = RingState {
        index: 3,
        ..driver.state()
    };
    let mut ring = Ring::new(state, driver.kick.clone(), Notify::none(), driver.mem.clone()).unwrap();
    assert_eq!((ring.index(), ring.size(), ring.unannounced()), (3, 8, 0));
    for pushed in 1..=2 {
        driver.add(&[Buf::In(DATA, 4)]);
        let chain = ring.pop().unwrap().unwrap();
        ring.push(chain.head(), 0).unwrap();
        assert_eq!(ring.unannounced(), pushed);
    }
    ring.signal().unwrap();
    assert_eq!((ring.unannounced(), ring.into_state().index), (0, 3));
}

#[test]
fn a_vector_is_raised_by_a_notify_and_by_whoever_shares_it() {
    let vectors = Vectors::new();
    let notify = Notify::new(vectors.vector());
    notify.signal();
    assert_eq!(vectors.take_sent(), 1);
    notify.share().unwrap().raise();
    assert_eq!(vectors.take_sent(), 1);
    assert!(Notify::new(|| ()).share().is_none() && Notify::none().share().is_none());
    assert_eq!(format!("{notify:?}, {:?}", Notify::none()), "Notify, Notify(none)");
}

#[test]
fn kicks_are_asked_for_and_not_and_what_came_meanwhile_is_told() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    ring.disable_kicks().unwrap();
    assert_eq!(driver.used_flags(), 1, "VIRTQ_USED_F_NO_NOTIFY (virtio 1.2 §2.7.10)");
    assert!(!ring.enable_kicks().unwrap());
    assert_eq!(driver.used_flags(), 0);
    ring.disable_kicks().unwrap();
    driver.add(&[Buf::In(DATA, 4)]);
    assert!(ring.enable_kicks().unwrap(), "it comes without a kick");
    assert!(ring.pop().unwrap().is_some());
    assert!(!ring.enable_kicks().unwrap());
}

#[test]
fn ring_survives_its_index_wrapping_around() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    for round in 0..70_000u32 {
        let head = driver.add(&[Buf::In(DATA, 4)]);
        ring.drain(|_, writer| Ok(Step::Used(u32::try_from(writer.available_bytes()).unwrap())))
            .unwrap();
        assert_eq!(driver.take_used(), Some((head.into(), 4)), "round {round}");
    }
}

#[test]
fn later_puts_the_chain_back() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    let head = driver.add(&[Buf::In(DATA, 4)]);

    ring.drain(|_, _| Ok(Step::Later)).unwrap();
    assert_eq!((driver.take_used(), driver.interrupts()), (None, 0));
    assert_eq!(driver.used_flags(), 1, "kicks are suppressed while the device waits");

    ring.drain(|_, _| Ok(Step::Used(0))).unwrap();
    assert_eq!((driver.take_used(), driver.interrupts()), (Some((head.into(), 0)), 1));
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn driver_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    driver.set_avail_flags(1);
    driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(echo).unwrap();
    assert_eq!(driver.interrupts(), 0);
    driver.set_avail_flags(0);
    ring.drain(echo).unwrap();
    assert_eq!(driver.interrupts(), 0, "nothing new was used");
    driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(echo).unwrap();
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn event_index_decides_about_interrupts_and_kicks() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    driver.event_idx = true;
    let mut ring = driver.ring();

    driver.set_used_event(1);
    driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(echo).unwrap();
    assert_eq!(driver.interrupts(), 0, "the driver asked for the second one");
    driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(echo).unwrap();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.avail_event(), 2, "a kick is wanted for the third chain");
}

#[test]
fn busy_driver_cannot_keep_the_thread() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    let mut handled = 0;
    driver.add(&[Buf::In(DATA, 4)]);

    // Every answer is followed by another request, for ever.
    let shared = std::cell::RefCell::new(&mut driver);
    ring.drain(|_, _| {
        handled += 1;
        assert!(handled < 100, "the ring never lets go");
        shared.borrow_mut().add(&[Buf::In(DATA, 4)]);
        Ok(Step::Used(0))
    })
    .unwrap();

    assert_eq!(handled, 4);
    assert_eq!(ring.kick().read().unwrap(), 1, "the ring has kicked itself");
}

#[test]
fn what_a_queue_does_is_counted_over_resets_and_until_somebody_else_serves_it() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let counters = Arc::<QueueCounters>::default();
    assert_eq!(counters.snapshot(), None, "no driver has come");
    let mut ring = driver.ring().with_counters(counters.clone());
    assert_eq!(counters.snapshot(), Some(QueueStats::default()));
    for _ in 0..3 {
        driver.add(&[Buf::In(DATA, 4)]);
    }
    driver.kick.write(2).unwrap();
    ring.drain(echo).unwrap();
    // The device looks by itself: nobody has called.
    ring.drain(echo).unwrap();
    let once = QueueStats {
        chains: 3,
        wakeups: 1,
        interrupts: 1,
    };
    assert_eq!((counters.snapshot(), driver.interrupts()), (Some(once), 1));
    // A driver that wants no interrupt, and one that begins anew.
    drop(ring);
    let mut driver = Driver::new(&memory(), BASE, 8);
    let mut ring = driver.ring().with_counters(counters.clone());
    driver.set_avail_flags(1);
    driver.add(&[Buf::In(DATA, 4)]);
    let head = ring.pop().unwrap().unwrap().head();
    ring.push(head, 0).unwrap();
    ring.signal().unwrap();
    ring.note_kick();
    let twice = QueueStats {
        chains: 4,
        wakeups: 2,
        interrupts: 1,
    };
    assert_eq!((counters.snapshot(), driver.interrupts()), (Some(twice), 0));
    ring.into_parts();
    assert_eq!(counters.snapshot(), None, "the kernel counts for itself");
}

#[test]
fn a_turn_gives_as_many_chains_as_there_are_entries_however_they_are_taken() {
    type Take = fn(&mut Ring) -> Option<u16>;
    let take: Take = |ring| {
        let mem = ring.memory().into_inner();
        ring.take(&mem, |_, _| ()).unwrap()
    };
    let pop: Take = |ring| ring.pop().unwrap().map(|chain| chain.head());
    for (name, take) in [("take", take), ("pop", pop)] {
        let mut driver = Driver::new(&memory(), BASE, 8);
        driver.add(&[Buf::In(DATA, 4)]);
        let mut ring = driver.ring();
        ring.busy_driver = Some(driver.busy(1));
        for turn in 0..3 {
            for _ in 0..8 {
                let head = take(&mut ring).unwrap();
                ring.push(head, 0).unwrap();
            }
            assert!(!ring.is_spent(), "{name}, turn {turn}");
            assert_eq!(take(&mut ring), None, "{name}, turn {turn}");
            assert!(ring.is_spent(), "{name}, turn {turn}");
            assert!(!ring.enable_kicks().unwrap(), "another look is not worth it");
            assert_eq!(take(&mut ring), None, "{name}, turn {turn}");
            assert_eq!(driver.kick.read().unwrap(), 1, "it has kicked itself, once");
            ring.take_kick();
        }
    }
}

#[test]
fn chains_that_are_put_back_cost_as_much_as_others() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.add(&[Buf::In(DATA, 4)]);
    let mut ring = driver.ring();
    let mem = ring.memory().into_inner();
    for _ in 0..4 {
        let head = ring.take(&mem, |_, _| ()).unwrap().unwrap();
        ring.put_back(head);
    }
    assert_eq!(ring.take(&mem, |_, _| ()).unwrap(), None);
    ring.note_kick();
    assert_eq!(ring.take(&mem, |_, _| ()).unwrap(), Some(0));
    assert_eq!(driver.kick.read().unwrap(), 1, "noted, and left as it was");
}

#[test]
fn a_turn_that_ends_with_the_last_chain_asks_for_kicks_and_not_for_another() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.event_idx = true;
    let mut ring = driver.ring();
    for _ in 0..4 {
        driver.add(&[Buf::In(DATA, 4)]);
    }
    ring.drain(|_, _| Ok(Step::Used(0))).unwrap();
    assert!(!ring.is_spent());
    assert!(driver.kick.read().is_err());
    assert_eq!(driver.avail_event(), 4);
}

#[test]
fn a_driver_that_takes_back_what_it_offered_cannot_keep_the_thread() {
    let driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    // Every second look finds a chain, and the ones in between find none.
    let (mem, avail) = (driver.mem.clone(), driver.avail + 2);
    let mut looks = 0u16;
    ring.busy_driver = Some(Box::new(move || {
        looks += 1;
        assert!(looks < 1000, "the thread is never let go");
        let mem = mem.memory();
        vm_memory::Bytes::store(&*mem, (looks + 1) % 2, GuestAddress(avail), Ordering::Release).unwrap();
    }));
    ring.drain(|_, _| panic!("there is none")).unwrap();
    assert!(ring.is_spent());
    assert_eq!(driver.kick.read().unwrap(), 1);
}

#[test]
fn the_backlog_is_what_is_available() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    assert_eq!(ring.backlog().unwrap(), 0);
    for _ in 0..3 {
        driver.add(&[Buf::In(DATA, 4)]);
    }
    assert_eq!(ring.backlog().unwrap(), 3);
    ring.pop().unwrap();
    assert_eq!(ring.backlog().unwrap(), 2);
}

#[test]
fn completed_chains_are_announced_although_a_later_one_fails() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.add(&[Buf::In(DATA, 4)]);
    driver.add(&[Buf::In(END, 4)]);
    assert!(driver.ring().drain(echo).is_err());
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.take_used(), Some((0, 0)));
    assert_eq!(driver.take_used(), None);
}

#[test]
fn buffer_may_cross_from_one_region_to_the_next() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    driver.write(SECOND - 3, b"across");
    driver.add(&[Buf::Out(SECOND - 3, 6), Buf::In(DATA, 6)]);
    ring.drain(echo).unwrap();
    assert_eq!(driver.read(DATA, 6), b"across");
}

#[test]
fn indirect_chain_is_followed() {
    let driver = Driver::new(&memory(), BASE, 4);
    let table = DATA + 0x1000;
    driver.put(driver.desc, 2, Descriptor::new(table, 32, F_INDIRECT, 0));
    driver.put(table, 0, Descriptor::new(DATA, 3, F_NEXT, 1));
    driver.put(table, 1, Descriptor::new(DATA + 16, 8, F_WRITE, 0));
    driver.write(DATA, b"abc");
    driver.offer(2);
    driver.ring().drain(echo).unwrap();
    assert_eq!(driver.read(DATA + 16, 4), b"abc\0");
}

#[test]
fn zero_length_buffer_is_harmless() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.write(DATA, b"xy");
    driver.add(&[
        Buf::Out(DATA, 1),
        Buf::Out(DATA, 0),
        Buf::Out(DATA + 1, 1),
        Buf::In(DATA + 8, 2),
    ]);
    driver.ring().drain(echo).unwrap();
    assert_eq!(driver.read(DATA + 8, 2), b"xy");
}

#[test]
fn chains_complete_out_of_order() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let mut ring = driver.ring();
    driver.write(DATA, b"in");
    let first = driver.add(&[Buf::Out(DATA, 2), Buf::In(DATA + 16, 4)]);
    let second = driver.add(&[Buf::In(DATA + 32, 4)]);

    let a = ring.pop().unwrap().unwrap();
    let b = ring.pop().unwrap().unwrap();
    assert!(ring.pop().unwrap().is_none());
    assert_eq!((a.head(), b.head()), (first, second));
    assert_eq!(a.reader().available_bytes(), 2);
    assert_eq!(a.readable().map(|s| s.len()).sum::<usize>(), 2);
    b.writer().write_all(b"late").unwrap();
    ring.push(second, 4).unwrap();
    assert_eq!(driver.interrupts(), 0, "push does not interrupt");
    ring.push(first, 0).unwrap();
    ring.signal().unwrap();

    assert_eq!(driver.take_used(), Some((second.into(), 4)));
    assert_eq!(driver.take_used(), Some((first.into(), 0)));
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(DATA + 32, 4), b"late");
    assert!(matches!(ring.push(first, 0), Err(RingError::NotInFlight { head, .. }) if head == first));
    assert!(matches!(ring.push(99, 0), Err(RingError::NotInFlight { head: 99, .. })));
}

#[test]
fn a_chain_knows_where_in_guest_memory_it_may_be_written_to() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let mut ring = driver.ring();
    driver.add(&[Buf::Out(DATA, 2), Buf::In(DATA + 16, 4), Buf::In(SECOND - 4, 8)]);
    driver.add(&[Buf::Out(DATA, 2)]);
    let chain = ring.pop().unwrap().unwrap();
    // A buffer is one range, also where it crosses from one region to the next and is two slices.
    assert!(chain.writable_ranges().eq([(DATA + 16, 4), (SECOND - 4, 8)]));
    assert_eq!(chain.writable().count(), 3);
    assert!(Arc::ptr_eq(chain.memory(), &ring.memory().into_inner()));
    assert_eq!(ring.pop().unwrap().unwrap().writable_ranges().count(), 0);
}

#[test]
fn state_carries_a_ring_on() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(|_, _| Ok(Step::Used(1))).unwrap();
    driver.take_used();

    let state = ring.into_state();
    let mut ring = Ring::new(state, driver.kick.clone(), Notify::none(), driver.mem.clone()).unwrap();
    let head = driver.add(&[Buf::In(DATA, 4)]);
    ring.drain(|_, _| Ok(Step::Used(2))).unwrap();

    assert_eq!(driver.take_used(), Some((head.into(), 2)));
}

#[test]
fn same_head_twice_in_flight_is_refused() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    let mut ring = driver.ring();
    let head = driver.add(&[Buf::In(DATA, 4)]);
    driver.offer(head);
    let _first = ring.pop().unwrap().unwrap();
    assert!(matches!(ring.pop(), Err(RingError::HeadInFlight { queue: 0, head: h }) if h == head));
}

#[test]
fn available_index_running_ahead_is_refused() {
    let driver = Driver::new(&memory(), BASE, 8);
    driver.store(driver.avail + 2, 9);
    let error = drain_error(&driver);
    assert!(matches!(
        error,
        RingError::AvailIndex {
            found: 9,
            next: 0,
            size: 8,
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "queue 0: available index 9 is more than 8 entries ahead of 0"
    );
}

#[test]
fn head_outside_the_table_is_refused() {
    let driver = Driver::new(&memory(), BASE, 8);
    driver.offer(8);
    assert!(matches!(
        drain_error(&driver),
        RingError::HeadOutside { head: 8, size: 8, .. }
    ));
}

#[test]
fn chain_that_loops_is_refused() {
    let driver = Driver::new(&memory(), BASE, 4);
    driver.put(driver.desc, 0, Descriptor::new(DATA, 4, F_NEXT, 1));
    driver.put(driver.desc, 1, Descriptor::new(DATA, 4, F_NEXT, 0));
    driver.offer(0);
    assert!(matches!(
        drain_error(&driver),
        RingError::ChainBroken { head: 0, after: 4, .. }
    ));
}

#[test]
fn chain_that_leaves_the_table_is_refused() {
    let driver = Driver::new(&memory(), BASE, 4);
    driver.put(driver.desc, 1, Descriptor::new(DATA, 4, F_NEXT, 4));
    driver.offer(1);
    assert!(matches!(
        drain_error(&driver),
        RingError::ChainBroken { head: 1, after: 1, .. }
    ));
}

#[test]
fn nested_empty_odd_and_unreadable_indirect_tables_are_refused() {
    let table = DATA + 0x1000;
    for (addr, len) in [
        (table, 16),
        (table, 0),
        (table, 24),
        (END - 8, 16),
        (u64::MAX - 15, 16),
        (u64::MAX, 32),
    ] {
        let driver = Driver::new(&memory(), BASE, 4);
        driver.put(driver.desc, 0, Descriptor::new(addr, len, F_INDIRECT, 0));
        driver.put(table, 0, Descriptor::new(table, 16, F_INDIRECT, 0));
        driver.offer(0);
        let error = drain_error(&driver);
        assert!(
            matches!(error, RingError::ChainBroken { head: 0, after: 0, .. }),
            "{addr:#x}+{len}: {error}"
        );
    }
}

#[test]
fn indirect_chain_longer_than_the_largest_queue_is_refused() {
    let driver = Driver::new(&memory(), BASE, 4);
    let table = DATA + 0x1000;
    driver.put(driver.desc, 0, Descriptor::new(table, 16 * 8, F_INDIRECT, 0));
    for n in 0..8 {
        driver.put(
            table,
            n,
            Descriptor::new(DATA, 1, if n < 7 { F_NEXT } else { 0 }, n + 1),
        );
    }
    driver.offer(0);
    assert!(matches!(drain_error(&driver), RingError::ChainTooLong { limit: 4, .. }));
}

#[test]
fn buffers_outside_ram_are_refused() {
    for (addr, len) in [(END, 1), (END - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8), (0, u32::MAX)] {
        for pop in [false, true] {
            let mut driver = Driver::new(&memory(), BASE, 4);
            driver.add(&[Buf::Out(addr, len)]);
            let error = if pop {
                driver.ring().pop().err().unwrap()
            } else {
                drain_error(&driver)
            };
            assert!(
                matches!(error, RingError::OutsideMemory { what: "buffer", .. }),
                "{addr:#x}+{len}: {error}"
            );
        }
    }
}

#[test]
fn chain_of_more_than_4_gib_is_refused() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.add(&[Buf::In(0, u32::MAX), Buf::In(0, 1)]);
    assert!(driver.ring().pop().is_err());
}

#[test]
fn readable_after_writable_is_refused() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.add(&[Buf::In(DATA, 4), Buf::Out(DATA, 4)]);
    assert!(matches!(
        drain_error(&driver),
        RingError::ReadAfterWrite { head: 0, .. }
    ));
}

#[test]
fn misplaced_rings_are_refused() {
    let driver = Driver::new(&memory(), BASE, 8);
    let make = |change: &dyn Fn(&mut QueueState)| {
        let mut state = driver.state();
        change(&mut state.queue);
        Ring::new(state, driver.kick.clone(), Notify::none(), driver.mem.clone()).map(|_| ())
    };
    assert!(make(&|_| ()).is_ok());
    assert!(matches!(
        make(&|q| q.desc_table = END - 64),
        Err(RingError::OutsideMemory {
            what: "descriptor table",
            ..
        })
    ));
    assert!(matches!(
        make(&|q| q.avail_ring = END - 20),
        Err(RingError::OutsideMemory {
            what: "available ring",
            ..
        })
    ));
    assert!(matches!(
        make(&|q| q.used_ring = !3),
        Err(RingError::OutsideMemory { what: "used ring", .. })
    ));
    assert!(matches!(make(&|q| q.desc_table += 8), Err(RingError::Config { .. })));
    assert!(matches!(make(&|q| q.used_ring += 2), Err(RingError::Config { .. })));
    assert!(matches!(make(&|q| q.size = 6), Err(RingError::Config { .. })));
    assert!(matches!(make(&|q| q.size = 16), Err(RingError::Config { .. })));
    assert!(matches!(make(&|q| q.ready = false), Err(RingError::Config { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Chains as a driver makes them, wherever ring and buffers lie: of all memory only what was
    /// given to be written changes, and of the ring only its used part.
    #[test]
    fn nothing_is_written_but_the_used_ring_and_the_buffers_for_it(
        base in (0u64..0x10).prop_map(|page| page << 12),
        chains in prop::collection::vec((0u64..0x100, 0u32..0x2000, 0u64..0x100, 0u32..0x2000), 1..20),
    ) {
        const SIZE: u16 = 8;
        let at = |gpa: u64| usize::try_from(gpa).unwrap();
        let mut driver = Driver::new(&memory(), base, SIZE);
        let mut ring = driver.ring();
        // Both regions, and buffers that cross from one to the other.
        let place = |slot: u64| DATA + slot * 0x1d03;
        for (number, (from, out, to, room)) in chains.into_iter().enumerate() {
            let written = out.min(room);
            driver.write(place(from), &vec![u8::try_from(number + 1).unwrap(); at(out.into())]);
            driver.add(&[Buf::Out(place(from), out), Buf::In(place(to), room)]);
            let mut expected = driver.read(0, at(END));
            let sent = expected[at(place(from))..][..at(written.into())].to_vec();
            ring.drain(echo).unwrap();
            let after = driver.read(0, at(END));
            expected[at(place(to))..][..sent.len()].copy_from_slice(&sent);
            let used = at(driver.used)..at(driver.used + 6 + 8 * u64::from(SIZE));
            expected[used.clone()].copy_from_slice(&after[used]);
            prop_assert!(after == expected, "something else was written to");
            prop_assert_eq!(driver.interrupts(), 1);
            prop_assert_eq!(driver.take_used().map(|(_, len)| len), Some(written));
            prop_assert_eq!(driver.take_used(), None, "given back once");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever bytes lie in the table and the rings: an answer or an error, no panic, no endless loop.
    #[test]
    fn garbage_in_the_rings_is_harmless(bytes in prop::collection::vec(any::<u8>(), 16 * 8 + 6 + 16), idx in 0u16..12) {
        let driver = Driver::new(&memory(), BASE, 8);
        driver.write(BASE, &bytes);
        driver.store(driver.avail + 2, idx);
        let _ = driver.ring().drain(echo);
        let mut ring = driver.ring();
        while let Ok(Some(chain)) = ring.pop() {
            prop_assert!(usize::from(chain.head()) < 8);
            ring.push(chain.head(), 0).unwrap();
        }
    }

    /// Plausible chains with random links: what is accepted respects the table, the order and the memory.
    #[test]
    fn accepted_chains_are_well_formed(
        links in prop::collection::vec((0u64..END + 64, 0u32..0x2000, 0u16..8, 0u16..10), 8),
        heads in prop::collection::vec(0u16..9, 1..9),
    ) {
        let driver = Driver::new(&memory(), BASE, 8);
        for (n, (addr, len, flags, next)) in links.into_iter().enumerate() {
            // Buffers stay away from the rings so that `echo` cannot rewrite them.
            driver.put(BASE, u16::try_from(n).unwrap(), Descriptor::new(addr.max(DATA), len, flags, next));
        }
        heads.iter().for_each(|head| driver.offer(*head));
        let mut ring = driver.ring();
        let mut popped = Vec::new();
        while let Ok(Some(chain)) = ring.pop() {
            prop_assert!(!popped.contains(&chain.head()), "a head is in flight once");
            prop_assert!(chain.readable().count() + chain.writable().count() <= 16);
            popped.push(chain.head());
        }
        for head in popped {
            ring.push(head, 0).unwrap();
        }
    }
}

#[test]
fn chains_pushed_together_appear_together_and_count_for_the_event_index() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    driver.event_idx = true;
    let mut ring = driver.ring();
    // The driver wants to hear of the first entry only, and three come at once.
    driver.set_used_event(0);
    for _ in 0..3 {
        driver.add(&[Buf::In(DATA, 16)]);
    }
    let mem = ring.memory().into_inner();
    let heads: Vec<(u16, u32)> = std::iter::from_fn(|| ring.take(&mem, |_, _| ()).unwrap())
        .map(|head| (head, 16))
        .collect();
    assert_eq!(heads.len(), 3);

    ring.push_all(&heads).unwrap();
    ring.signal().unwrap();

    assert_eq!(driver.interrupts(), 1);
    for (head, len) in heads {
        assert_eq!(driver.take_used(), Some((head.into(), len)));
    }
    // The next three are past what was asked for.
    ring.note_kick();
    for _ in 0..3 {
        let head = driver.add(&[Buf::In(DATA, 16)]);
        assert_eq!(ring.take(&mem, |_, _| ()).unwrap(), Some(head));
        ring.push_all(&[(head, 1)]).unwrap();
    }
    ring.signal().unwrap();
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn the_entry_that_the_driver_asked_for_interrupts_once_and_the_next_one_does_not() {
    let mut driver = Driver::new(&memory(), BASE, 8);
    driver.event_idx = true;
    let mut ring = driver.ring();
    for (asked_for, batch, interrupts) in [
        (0, 1, 1),
        (0, 1, 0),
        (0, 2, 0),
        (5, 1, 0),
        (5, 1, 1),
        (5, 1, 0),
        (9, 2, 0),
        (9, 2, 1),
    ] {
        driver.set_used_event(asked_for);
        for _ in 0..batch {
            driver.add(&[Buf::In(DATA, 16)]);
        }
        ring.drain(|_, _| Ok(Step::Used(0))).unwrap();
        assert_eq!(
            driver.interrupts(),
            interrupts,
            "{batch} more, entry {asked_for} asked for"
        );
    }
}

#[test]
fn chains_are_pushed_all_or_none() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    let head = driver.add(&[Buf::In(DATA, 16)]);
    let mem = ring.memory().into_inner();
    ring.take(&mem, |_, _| ()).unwrap();
    let error = ring.push_all(&[(head, 1), (3, 1)]).unwrap_err();
    assert!(matches!(error, RingError::NotInFlight { head: 3, .. }), "{error}");
    assert_eq!(driver.take_used(), None);
}

#[test]
fn chains_put_back_come_again_in_their_order() {
    let mut driver = Driver::new(&memory(), BASE, 4);
    let mut ring = driver.ring();
    let (one, two) = (driver.add(&[Buf::In(DATA, 1)]), driver.add(&[Buf::In(DATA, 2)]));
    let mem = ring.memory().into_inner();
    for _ in 0..3 {
        ring.note_kick();
        assert_eq!(ring.take(&mem, |_, _| ()).unwrap(), Some(one));
        assert_eq!(ring.take(&mem, |_, _| ()).unwrap(), Some(two));
        ring.put_back(two);
        ring.put_back(one);
    }
    assert_eq!(ring.into_state().queue.next_avail, 0);
}
