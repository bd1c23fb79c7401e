use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;
use std::time::Instant;

use husk_devices::{BusDevice, Effect, Irq};
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bank::SlotKind;
use crate::outcome::Outcome;

/// Memory blocks that exist on paper, and a host that can be told to fail.
#[derive(Default)]
struct Blocks {
    there: BTreeMap<u32, u64>,
    cannot_create: bool,
    cannot_destroy: bool,
    is_busy: bool,
    /// What was created, or discarded.
    used: Vec<u64>,
}

fn unless(broken: bool, what: &str) -> Result<(), PlugError> {
    let error = || PlugError {
        what: what.to_owned(),
        source: "the host is broken".into(),
    };
    if broken { Err(error()) } else { Ok(()) }
}

impl Plug for Blocks {
    type Unit = u64;

    fn create(&mut self, slot: u32, size: u64) -> Result<(), PlugError> {
        self.used.push(size);
        unless(self.cannot_create, "create a block")?;
        assert_eq!(self.there.insert(slot, size), None, "a slot is filled once");
        Ok(())
    }

    fn discard(&mut self, size: u64) {
        self.used.push(size);
    }

    fn retire(&mut self, _slot: u32) -> bool {
        !self.is_busy
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        unless(self.cannot_destroy, "destroy a block")?;
        self.there.remove(&slot).expect("only what is there is destroyed");
        Ok(())
    }

    fn extent(&self, slot: u32) -> Extent {
        Extent {
            base: u64::from(slot) << 32,
            size_bytes: self.there[&slot],
        }
    }
}

/// A machine of four slots, the first of which is there from the start and pinned.
struct Machine {
    host: Hotplug<Blocks>,
    bank: Arc<Mutex<Bank>>,
    line: EventFd,
}

impl Machine {
    fn new() -> Self {
        Self::of(SlotKind::Memory)
    }

    fn of(kind: SlotKind) -> Self {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let notifier = GedNotifier::new(Irq::new(line.try_clone().unwrap()));
        let mut bank = Bank::new(kind, 4, notifier.clone(), || ()).unwrap();
        bank.pin(0).unwrap();
        let bank = Arc::new(Mutex::new(bank));
        let mut host = Hotplug::new(Blocks::default(), Arc::clone(&bank), notifier);
        host.present(0, 1).unwrap();
        Self { host, bank, line }
    }

    /// With slot 1 present as well, by the regular way.
    fn grown() -> Self {
        let mut machine = Self::new();
        let receiver = machine.host.add(1, 10).unwrap();
        assert_eq!(machine.take(), 1 | 1 << 16);
        machine.accept(1);
        assert_eq!(answer(&receiver), Outcome::Accepted);
        machine
    }

    fn rung(&self) -> bool {
        self.line.read().is_ok()
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.bank.lock().unwrap().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        assert_eq!(
            self.bank.lock().unwrap().write(offset, &value.to_le_bytes()),
            Effect::None
        );
    }

    fn take(&self) -> u32 {
        self.read(0)
    }

    fn eject(&self, slot: u32) {
        self.write(0x04, slot);
    }

    fn ost(&self, slot: u32, source_event: u32, status: u32) {
        let report = u64::from(slot) | u64::from(source_event) << 16 | u64::from(status) << 32;
        let data = report.to_le_bytes();
        assert_eq!(self.bank.lock().unwrap().write(0x10, &data), Effect::None);
    }

    /// What a guest says that has the memory: success, and the same when it is told again.
    fn accept(&self, slot: u32) {
        self.ost(slot, 1, 0);
        assert_eq!(self.take(), slot | 1 << 16);
        self.ost(slot, 1, 0);
    }

    fn there(&self) -> Vec<(u32, u64)> {
        self.host
            .plug()
            .there
            .iter()
            .map(|(slot, size)| (*slot, *size))
            .collect()
    }

    fn state(&self, slot: u32) -> State {
        self.host.state(slot).unwrap()
    }
}

fn answer(receiver: &OutcomeReceiver) -> Outcome {
    receiver.wait(Instant::now())
}

#[test]
fn what_is_there_at_boot_makes_no_noise() {
    let machine = Machine::new();
    assert_eq!((machine.take(), machine.rung()), (0, false));
    assert_eq!((machine.host.plugged(), machine.host.target()), (1, 1));
}

#[test]
fn the_lowest_slot_that_will_be_free_is_filled_whatever_happens_there() {
    let mut machine = Machine::grown();
    assert_eq!(machine.host.lowest_free(), Some((2, State::Empty)));
    let removal = machine.host.remove(1).unwrap();
    assert_eq!(machine.take(), 1 | 3 << 16);
    let found = machine.host.lowest_free();
    assert!(
        matches!(found, Some((1, State::Asked { wanted: false, .. }))),
        "{found:?}"
    );
    // The guest has heard that it goes: what comes is its successor.
    machine.host.fill(1, 20).unwrap();
    assert_eq!(answer(&removal), Outcome::Withdrawn);
    machine.eject(1);
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!(machine.there(), [(0, 1), (1, 20)]);
    machine.host.fill(2, 30).unwrap();
    assert_eq!(machine.there(), [(0, 1), (1, 20), (2, 30)]);
    let states = machine.host.states();
    assert_eq!(states, [0, 1, 2, 3].map(|slot| (slot, machine.state(slot))));
}

#[test]
fn whoever_waits_is_woken_by_the_guests_answer() {
    struct Count(AtomicU32);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut machine = Machine::new();
    let count = Arc::new(Count(AtomicU32::new(0)));
    machine.host.set_waker(Waker::from(count.clone()));
    let receiver = machine.host.add(1, 10).unwrap();
    assert_eq!((machine.take(), count.0.load(Ordering::Relaxed)), (1 | 1 << 16, 0));
    machine.accept(1);
    assert_eq!(
        (answer(&receiver), count.0.load(Ordering::Relaxed)),
        (Outcome::Accepted, 1)
    );
}

#[test]
fn what_needs_no_time_to_go_and_is_no_memory_says_neither() {
    struct Plain(Vec<u32>);
    impl Plug for Plain {
        type Unit = ();
        fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
            self.0.push(slot);
            Ok(())
        }
        fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
            self.0.retain(|there| *there != slot);
            Ok(())
        }
    }
    let machine = Machine::of(SlotKind::Pci);
    let notifier = GedNotifier::new(Irq::new(machine.line.try_clone().unwrap()));
    let bank = Arc::new(Mutex::new(
        Bank::new(SlotKind::Pci, 2, notifier.clone(), || ()).unwrap(),
    ));
    let mut host = Hotplug::new(Plain(Vec::new()), bank, notifier);
    host.add(0, ()).unwrap();
    host.add(1, ()).unwrap();
    assert_eq!((host.plug().extent(1).base, host.plug().extent(1).size_bytes), (0, 0));
    // The guest has not heard of it: it goes at once.
    host.remove(1).unwrap();
    assert_eq!((&host.plug().0[..], host.state(1)), (&[0][..], Some(State::Empty)));
}

#[test]
fn a_unit_exists_before_the_guest_hears_of_it() {
    let mut machine = Machine::new();
    let receiver = machine.host.add(2, 0x800_0000).unwrap();
    assert!(machine.rung());
    assert_eq!(machine.there(), [(0, 1), (2, 0x800_0000)]);
    assert_eq!(machine.take(), 2 | 1 << 16);
    assert_eq!(
        (machine.read(0x864), machine.read(0x868)),
        (2, 0x800_0000),
        "base and size"
    );
    assert_eq!((machine.host.plugged(), machine.host.target()), (1, 2));
    machine.accept(2);
    assert_eq!(answer(&receiver), Outcome::Accepted);
    assert_eq!((machine.host.plugged(), machine.host.target()), (2, 2));
}

#[test]
fn a_unit_that_cannot_be_created_is_never_offered() {
    let mut machine = Machine::new();
    machine.host.plug_mut().cannot_create = true;
    let error = machine.host.add(1, 10).unwrap_err();
    assert!(matches!(error, HotplugError::Plug { slot: 1, .. }));
    assert_eq!(
        (machine.state(1), machine.take(), machine.rung()),
        (State::Empty, 0, false)
    );
}

#[test]
fn a_taken_slot_is_not_filled_twice() {
    let mut machine = Machine::grown();
    assert!(matches!(
        machine.host.add(1, 11),
        Err(HotplugError::Bank(BankError::NotAllowed { slot: 1, .. }))
    ));
    assert!(matches!(
        machine.host.add(4, 11),
        Err(HotplugError::Bank(BankError::NoSuchSlot { slot: 4, slots: 4 }))
    ));
    assert_eq!(machine.there(), [(0, 1), (1, 10)]);
}

#[test]
fn a_refused_unit_is_destroyed() {
    let mut machine = Machine::new();
    let receiver = machine.host.add(1, 10).unwrap();
    machine.take();
    machine.ost(1, 1, 0x81);
    assert_eq!(answer(&receiver), Outcome::Refused { ost: 0x81 });
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!((machine.there(), machine.state(1)), (vec![(0, 1)], State::Empty));
}

#[test]
fn a_unit_is_destroyed_after_the_guest_let_go_and_not_before() {
    let mut machine = Machine::grown();
    let receiver = machine.host.remove(1).unwrap();
    assert!(machine.rung());
    assert_eq!(machine.host.reap().unwrap(), [0_u32; 0]);
    assert_eq!(machine.take(), 1 | 3 << 16);
    machine.eject(1);
    assert_eq!(answer(&receiver), Outcome::Accepted);
    assert_eq!(machine.there().len(), 2);
    let extent = |machine: &Machine| [0x850, 0x854, 0x858, 0x85c].map(|offset| machine.read(offset));
    assert_eq!(extent(&machine), [0, 1, 10, 0]);
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!((machine.there(), machine.state(1)), (vec![(0, 1)], State::Empty));
    assert_eq!(extent(&machine), [0; 4], "where nothing is");
}

#[test]
fn a_unit_that_is_busy_keeps_its_slot_until_it_is_not() {
    let mut machine = Machine::grown();
    machine.host.remove(1).unwrap();
    machine.host.plug_mut().is_busy = true;
    machine.take();
    machine.eject(1);
    assert_eq!(machine.host.reap().unwrap(), [0_u32; 0]);
    assert_eq!(machine.there().len(), 2);
    assert_eq!(machine.state(1), State::Ejected { wanted: false });
    machine.host.plug_mut().is_busy = false;
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!((machine.there(), machine.state(1)), (vec![(0, 1)], State::Empty));
}

#[test]
fn a_pinned_or_empty_slot_cannot_be_removed() {
    let mut machine = Machine::new();
    assert!(matches!(
        machine.host.remove(0),
        Err(HotplugError::Bank(BankError::Pinned { slot: 0 }))
    ));
    assert!(matches!(
        machine.host.remove(1),
        Err(HotplugError::Bank(BankError::NotAllowed { slot: 1, .. }))
    ));
}

#[test]
fn a_grow_takes_back_a_shrink_the_guest_has_not_heard_of() {
    let mut machine = Machine::grown();
    let shrink = machine.host.remove(1).unwrap();
    let grow = machine.host.reclaim(1, 99).unwrap();
    assert_eq!(
        (answer(&shrink), answer(&grow)),
        (Outcome::Withdrawn, Outcome::Withdrawn)
    );
    assert_eq!((machine.take(), machine.state(1)), (0, State::Present));
    assert_eq!(machine.there(), [(0, 1), (1, 10)], "the old unit stays");
}

#[test]
fn a_grow_is_served_when_the_guest_refuses_the_shrink() {
    let mut machine = Machine::grown();
    let shrink = machine.host.remove(1).unwrap();
    machine.take();
    let grow = machine.host.reclaim(1, 99).unwrap();
    assert_eq!(
        (answer(&shrink), answer(&grow)),
        (Outcome::Withdrawn, Outcome::TimedOut)
    );
    machine.ost(1, 3, 0x82);
    assert_eq!(answer(&grow), Outcome::Withdrawn, "it has done nothing for it");
    assert_eq!(
        (machine.there(), machine.state(1)),
        (vec![(0, 1), (1, 10)], State::Present)
    );
}

#[test]
fn a_successor_that_cannot_be_created_leaves_a_slot_empty_even_if_it_was_pinned_meanwhile() {
    let mut machine = Machine::grown();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    let grow = machine.host.reclaim(1, 99).unwrap();
    machine.bank.lock().unwrap().pin(1).unwrap();
    machine.eject(1);
    machine.host.plug_mut().cannot_create = true;
    machine.host.reap().unwrap_err();
    assert_eq!((machine.there(), machine.state(1)), (vec![(0, 1)], State::Empty));
    assert_eq!(answer(&grow), Outcome::Withdrawn);
    assert_eq!(
        machine.host.reap().unwrap(),
        [0_u32; 0],
        "what is gone is not destroyed again"
    );
}

#[test]
fn a_grow_follows_a_shrink_that_the_guest_carried_out() {
    let mut machine = Machine::grown();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    let grow = machine.host.reclaim(1, 99).unwrap();
    machine.eject(1);
    machine.rung();
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!(machine.there(), [(0, 1), (1, 99)]);
    assert!(machine.rung());
    machine.ost(1, 3, 0);
    assert_eq!(
        answer(&grow),
        Outcome::TimedOut,
        "the report of the ejection does not answer the new offer"
    );
    assert_eq!(machine.take(), 1 | 1 << 16);
    machine.accept(1);
    assert_eq!(answer(&grow), Outcome::Accepted);
}

#[test]
fn what_the_guest_has_not_been_asked_for_yet_is_taken_back_and_nothing_else() {
    let mut machine = Machine::grown();
    assert!(!machine.host.take_back(1), "nobody was to ask");
    let shrink = machine.host.remove(1).unwrap();
    assert!(machine.host.take_back(1));
    assert_eq!(
        (answer(&shrink), machine.state(1)),
        (Outcome::Withdrawn, State::Present)
    );
    assert_eq!(machine.take(), 0, "the guest hears nothing");
    let shrink = machine.host.remove(1).unwrap();
    machine.take();
    assert!(!machine.host.take_back(1), "it has heard");
    machine.eject(1);
    assert!(!machine.host.take_back(1));
    assert_eq!(answer(&shrink), Outcome::Accepted);
    assert!(!machine.host.take_back(9), "there is no such slot");
}

/// The guest keeps what it was asked for, or nobody wants the slot any more.
#[test]
fn a_successor_that_has_no_place_any_more_is_discarded() {
    for refuses in [false, true] {
        let mut machine = Machine::grown();
        drop(machine.host.remove(1).unwrap());
        machine.take();
        drop(machine.host.reclaim(1, 99).unwrap());
        let used = |machine: &Machine| machine.host.plug().used.contains(&99);
        assert!(!used(&machine), "it is wanted");
        if refuses {
            machine.ost(1, 3, 0x82);
            machine.host.reap().unwrap();
            assert_eq!(machine.there(), [(0, 1), (1, 10)]);
        } else {
            drop(machine.host.remove(1).unwrap());
        }
        assert!(used(&machine));
    }
}

#[test]
fn a_grow_whose_unit_cannot_be_created_is_withdrawn() {
    let mut machine = Machine::grown();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    let grow = machine.host.reclaim(1, 99).unwrap();
    machine.eject(1);
    machine.host.plug_mut().cannot_create = true;
    assert!(machine.host.reap().is_err());
    assert_eq!(answer(&grow), Outcome::Withdrawn);
    assert_eq!(
        (machine.there(), machine.state(1), machine.take()),
        (vec![(0, 1)], State::Empty, 0)
    );
}

#[test]
fn a_grow_waits_while_the_old_unit_cannot_be_destroyed() {
    let mut machine = Machine::grown();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    let grow = machine.host.reclaim(1, 99).unwrap();
    machine.eject(1);
    machine.host.plug_mut().cannot_destroy = true;
    assert!(machine.host.reap().is_err());
    assert_eq!((answer(&grow), grow.latency()), (Outcome::TimedOut, None));
    machine.host.plug_mut().cannot_destroy = false;
    assert_eq!(machine.host.reap().unwrap(), [1]);
    assert_eq!(machine.there(), [(0, 1), (1, 99)]);
}

#[test]
fn a_time_out_undoes_what_the_guest_has_not_seen() {
    let mut machine = Machine::grown();
    let (grow, shrink) = (machine.host.add(2, 20).unwrap(), machine.host.remove(1).unwrap());
    assert_eq!(machine.host.expire(2).unwrap(), State::Empty);
    assert_eq!(machine.host.expire(1).unwrap(), State::Present);
    assert_eq!((answer(&grow), answer(&shrink)), (Outcome::TimedOut, Outcome::TimedOut));
    assert!(
        grow.latency().is_some(),
        "an answer of its own, not only the end of waiting"
    );
    assert_eq!((machine.take(), machine.there()), (0, vec![(0, 1), (1, 10)]));
}

#[test]
fn what_the_guest_has_seen_it_may_finish_late() {
    let mut machine = Machine::grown();
    let (grow, shrink) = (machine.host.add(2, 20).unwrap(), machine.host.remove(1).unwrap());
    machine.take();
    machine.take();
    machine.host.expire(1).unwrap();
    machine.host.expire(2).unwrap();
    machine.accept(2);
    machine.eject(1);
    assert_eq!((answer(&grow), answer(&shrink)), (Outcome::Accepted, Outcome::Accepted));
    assert_eq!(machine.host.reap().unwrap(), [1]);
}

#[test]
fn an_unheard_offer_is_removed_without_the_guest() {
    let mut machine = Machine::new();
    let grow = machine.host.add(3, 30).unwrap();
    let shrink = machine.host.remove(3).unwrap();
    assert_eq!(
        (answer(&grow), answer(&shrink)),
        (Outcome::Withdrawn, Outcome::Withdrawn)
    );
    assert_eq!(
        (machine.state(3), machine.there(), machine.take()),
        (State::Empty, vec![(0, 1)], 0)
    );
}

#[test]
fn a_stale_successor_is_not_created() {
    let mut machine = Machine::new();
    drop(machine.host.add(1, 10).unwrap());
    machine.take();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    drop(machine.host.reclaim(1, 99).unwrap());
    machine.ost(1, 3, 0x82);
    machine.ost(1, 1, 1);
    assert_eq!(machine.state(1), State::Ejected { wanted: false });
    machine.host.reap().unwrap();
    assert_eq!((machine.state(1), machine.there()), (State::Empty, vec![(0, 1)]));
}

#[test]
fn a_unit_that_cannot_be_destroyed_keeps_its_slot_until_it_can() {
    let mut machine = Machine::grown();
    drop(machine.host.remove(1).unwrap());
    machine.take();
    machine.eject(1);
    machine.host.plug_mut().cannot_destroy = true;
    assert_eq!(machine.host.reap().unwrap_err().to_string(), "slot 1");
    assert!(machine.host.add(1, 11).is_err());
    assert_eq!(machine.state(1), State::Ejected { wanted: false });
    machine.host.plug_mut().cannot_destroy = false;
    drop(machine.host.add(1, 11).unwrap());
    assert_eq!(machine.there(), [(0, 1), (1, 11)], "add() clears the slot first");
}

#[test]
fn slots_are_chosen_from_the_ends() {
    let mut machine = Machine::grown();
    assert_eq!(
        (
            machine.host.vacant(),
            machine.host.removable(),
            machine.host.reclaimable()
        ),
        (Some(2), Some(1), None)
    );
    drop(machine.host.remove(1).unwrap());
    assert_eq!((machine.host.removable(), machine.host.reclaimable()), (None, Some(1)));
    assert_eq!((machine.host.plugged(), machine.host.target()), (2, 1));
}

#[derive(Clone, Debug)]
enum Act {
    Add(u32),
    Reclaim(u32),
    TakeBack(u32),
    Remove(u32),
    Expire(u32),
    Ejected,
    Break(bool, bool),
    Take,
    Sign(u32),
    Look(u32),
    Eject(u32),
    Ost(u32, u32, u32),
}

fn act() -> impl Strategy<Value = Act> {
    let slot = 0..4_u32;
    let status = prop::sample::select(vec![0, 1, 0x80, 0x81, 0x84]);
    prop_oneof![
        slot.clone().prop_map(Act::Add),
        slot.clone().prop_map(Act::Reclaim),
        slot.clone().prop_map(Act::TakeBack),
        slot.clone().prop_map(Act::Remove),
        slot.prop_map(Act::Expire),
        Just(Act::Ejected),
        any::<(bool, bool)>().prop_map(|(create, destroy)| Act::Break(create, destroy)),
        Just(Act::Take),
        (0..4_u32).prop_map(Act::Sign),
        (0..4_u32).prop_map(Act::Look),
        (0..4_u32).prop_map(Act::Eject),
        (0..4_u32, prop::sample::select(vec![1_u32, 3]), status)
            .prop_map(|(slot, event, status)| Act::Ost(slot, event, status)),
    ]
}

proptest! {
    /// Exactly the slots that are not empty have a unit, whatever host and guest do, and in the end
    /// all of it can be cleared. What was to fill one is created or discarded, once.
    #[test]
    fn units_and_slots_agree(
        kind in prop::sample::select(vec![SlotKind::Cpu, SlotKind::Memory, SlotKind::Pci]),
        acts in proptest::collection::vec(act(), 1..200),
    ) {
        let mut machine = Machine::of(kind);
        let mut receivers = Vec::new();
        let mut units = 1..;
        let mut unit = || units.next().unwrap();
        assert_eq!(unit(), 1, "that of the start");
        for act in acts {
            match act {
                Act::Add(slot) => receivers.extend(machine.host.add(slot, unit())),
                Act::Reclaim(slot) => receivers.extend(machine.host.reclaim(slot, unit())),
                Act::TakeBack(slot) => {
                    let before = machine.state(slot);
                    let is_back = machine.host.take_back(slot);
                    prop_assert!(is_back || machine.state(slot) == before);
                    let is_asked = matches!(machine.state(slot), State::Asked { .. });
                    prop_assert!(!(is_back && is_asked));
                }
                Act::Remove(slot) => receivers.extend(machine.host.remove(slot)),
                Act::Expire(slot) => drop(machine.host.expire(slot)),
                Act::Ejected => drop(machine.host.reap()),
                Act::Break(create, destroy) => {
                    machine.host.plug_mut().cannot_create = create;
                    machine.host.plug_mut().cannot_destroy = destroy;
                }
                Act::Take => drop(machine.take()),
                Act::Sign(slot) => machine.write(0x08, slot),
                Act::Look(slot) => drop(machine.read(0x840 + 0x10 * u64::from(slot))),
                Act::Eject(slot) => machine.eject(slot),
                Act::Ost(slot, event, status) => machine.ost(slot, event, status),
            }
            let filled: Vec<u32> = (0..4).filter(|slot| machine.state(*slot) != State::Empty).collect();
            let there: Vec<u32> = machine.there().into_iter().map(|(slot, _)| slot).collect();
            prop_assert_eq!(&filled, &there);
            let plugged = machine.host.plugged();
            prop_assert!(plugged <= filled.len(), "the guest has no more than there is");
        }
        machine.host.plug_mut().cannot_create = false;
        machine.host.plug_mut().cannot_destroy = false;
        machine.host.reap().unwrap();
        for slot in 1..4 {
            drop(machine.host.remove(slot));
        }
        while machine.take() != 0 {}
        for slot in 1..4 {
            machine.eject(slot);
        }
        machine.host.reap().unwrap();
        prop_assert_eq!(machine.there(), [(0, 1)]);
        let mut used = std::mem::take(&mut machine.host.plug_mut().used);
        used.sort_unstable();
        prop_assert_eq!(used, (1..unit()).collect::<Vec<_>>());
        // Each receiver gets one outcome, by an answer or because nobody will answer any more.
        drop(machine);
        for receiver in receivers {
            receiver.wait(Instant::now());
            prop_assert!(receiver.latency().is_some());
        }
    }
}
