use std::io;
use std::sync::Mutex;
use std::task::Waker;

use husk_devices::{BusDevice, Irq};
use husk_hotplug::bank::{Bank, SlotKind};
use husk_hotplug::ged::GedNotifier;
use husk_hotplug::slot::State;
use husk_virtio::mem::{Backing, Mem, MemConfig, MemSize};
use serde_json::json;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::dimms::DIMMS;
use super::super::shrink_limit::testing::Guest;
use super::dimm_requests::FIRST;
use super::*;
use crate::config::MemoryConfig;
use crate::memory::testing::{FakeSlots, ForbiddenThread, space, space_under};
use crate::metrics::Ram;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BOOT: u64 = 64 * MIB;
const UNIT: u64 = 128 * MIB;

/// What a guest makes of a DIMM.
#[derive(Clone, Copy)]
enum Answer {
    /// It has it.
    Takes,
    /// It says so, and tries again when it is told again.
    Fails,
    /// It says no.
    Refuses(u32),
    /// It does not let go of this one.
    Keeps(u32),
}

/// A machine's memory, and the guest behind its bank.
struct Bench {
    /// First, so that it is dropped before what takes memory apart.
    _main: ForbiddenThread,
    resize: MemoryResize,
    dimms: Dimms,
    bank: Arc<Mutex<Bank>>,
    slots: Arc<FakeSlots>,
    /// How often the guest is told to look.
    rings: EventFd,
    changes: Vec<Change>,
    /// What comes is brought online before husk looks again.
    brings_online: bool,
}

impl Bench {
    fn new(more: u64) -> Self {
        Self::with(more, false)
    }

    fn with(more: u64, prefault: bool) -> Self {
        let config = MemoryConfig {
            size: BOOT,
            hotplug_size: Some(more),
            acpi_only: true,
            prefault,
            ..Default::default()
        };
        let (space, slots) = space(&config).unwrap();
        Self::with_space(space, slots, more)
    }

    fn with_space(space: Arc<AddressSpace>, slots: Arc<FakeSlots>, more: u64) -> Self {
        let rings = EventFd::new(EFD_NONBLOCK).unwrap();
        let notifier = GedNotifier::new(Irq::new(rings.try_clone().unwrap()));
        let bank = Bank::new(SlotKind::Memory, DIMMS, notifier.clone(), || ()).unwrap();
        let bank = Arc::new(Mutex::new(bank));
        let parts = MemoryParts {
            boot_bytes: BOOT,
            more_bytes: more,
            unit: UNIT,
            blocks_only: false,
        };
        Self {
            _main: slots.forbid_this_thread(),
            resize: MemoryResize::new(parts, space.clone(), None),
            dimms: Some(Hotplug::new(
                DimmPlug::new(space, Waker::noop().clone()),
                bank.clone(),
                notifier,
            )),
            bank,
            slots,
            rings,
            changes: Vec::new(),
            brings_online: true,
        }
    }

    fn set(&mut self, bytes: u64) -> Result<(), ResizeError> {
        self.resize.take_refusals();
        self.resize.set(&mut self.dimms, bytes, Instant::now())
    }

    /// As [`Bench::set`], and the guest takes it in DIMMs as large as may be: it says that it has plenty.
    fn fill(&mut self, bytes: u64) {
        let spare = std::mem::replace(&mut self.resize.shrink_limit, plenty());
        self.set(bytes).unwrap();
        while self.resize.pending().is_some() {
            self.settle(Answer::Takes);
        }
        self.resize.shrink_limit = spare;
    }

    /// Looks at what has become of it.
    fn look(&mut self) {
        if self.brings_online {
            self.resize.recent.age();
        }
        self.resize.advance(&mut self.dimms, &mut self.changes);
    }

    /// Looks until no thread is at work for it.
    fn rest(&mut self) {
        while self.is_busy() {
            std::thread::yield_now();
            self.look();
        }
    }

    /// The guest hears of what it is asked next: of which slot.
    fn hear(&self) -> u32 {
        let mut event = [0; 4];
        self.bank.lock().unwrap().read(0, &mut event);
        u32::from_le_bytes(event) & 0xffff
    }

    /// Lets the guest answer until it is asked nothing more. How many events it took.
    fn settle(&mut self, answer: Answer) -> u32 {
        let mut events = 0;
        loop {
            self.look();
            let mut event = [0; 4];
            self.bank.lock().unwrap().read(0, &mut event);
            let event = u32::from_le_bytes(event);
            if event == 0 && self.is_busy() {
                std::thread::yield_now();
                continue;
            }
            if event == 0 {
                return events;
            }
            events += 1;
            let (slot, removal) = (event & 0xffff, event >> 16 == 3);
            match answer {
                Answer::Keeps(kept) if removal && slot == kept => self.report(slot, 3, 0x82),
                Answer::Takes | Answer::Keeps(_) if removal => self.let_go(slot),
                Answer::Takes | Answer::Keeps(_) => self.report(slot, 1, 0),
                Answer::Fails => {
                    self.bank
                        .lock()
                        .unwrap()
                        .read(0x840 + 0x10 * u64::from(slot), &mut [0; 8]);
                    self.report(slot, 1, 0);
                }
                Answer::Refuses(code) => self.report(slot, if removal { 3 } else { 1 }, code),
            }
        }
    }

    /// `_EJ0`, and the look at `_STA` that follows.
    fn let_go(&self, slot: u32) {
        self.write(0x04, &slot.to_le_bytes());
        self.bank
            .lock()
            .unwrap()
            .read(0x40 + u64::from(slot / 8) * 4, &mut [0; 4]);
    }

    fn is_busy(&self) -> bool {
        self.resize.is_busy(&self.dimms)
    }

    fn report(&self, slot: u32, source: u32, status: u32) {
        let report = u64::from(slot) | u64::from(source) << 16 | u64::from(status) << 32;
        self.write(0x10, &report.to_le_bytes());
    }

    fn write(&self, register: u64, data: &[u8]) {
        let _ = self.bank.lock().unwrap().write(register, data);
    }

    fn present(&self) -> u64 {
        let present = self.resize.present_bytes(&self.dimms);
        let blocks = self
            .resize
            .blocks
            .as_ref()
            .map_or(0, |blocks| blocks.size().plugged_bytes);
        let Ram { boot_bytes, dimm_bytes } = self.resize.figures(&self.dimms);
        assert_eq!(boot_bytes + dimm_bytes + blocks, present, "figures add up");
        present
    }

    /// Sizes of the memory slots that KVM has beside the RAM of the start, in MiB.
    fn slots(&self) -> Vec<u64> {
        let slots = self.slots.taken().into_values();
        slots
            .filter(|(gpa, _)| *gpa > 0)
            .map(|(_, bytes)| bytes / MIB)
            .collect()
    }
}

/// A guest that says at any time that it has plenty available.
struct Plenty;

impl AvailableMemory for Plenty {
    fn available(&self) -> Option<(Instant, u64)> {
        Some((Instant::now(), u64::MAX))
    }

    fn request_update(&self) {}
}

fn plenty() -> ShrinkLimit {
    ShrinkLimit::new(Some(Box::new(Plenty)))
}

/// Blocks on paper.
struct Paper;

impl Backing for Paper {
    fn plug(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn unplug(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A machine without slots for DIMMs, whose virtio-mem of 1 GiB has no driver yet.
fn blocks(blocks_only: bool) -> (MemoryResize, MemHandle) {
    let (space, _) = space(&MemoryConfig::default()).unwrap();
    blocks_in(space, blocks_only)
}

/// The same, with memory in `space`.
fn blocks_in(space: Arc<AddressSpace>, blocks_only: bool) -> (MemoryResize, MemHandle) {
    let config = MemConfig {
        base: 4 * GIB,
        region_bytes: GIB,
        block_bytes: 2 * MIB,
    };
    let parts = MemoryParts {
        boot_bytes: BOOT,
        more_bytes: GIB,
        unit: UNIT,
        blocks_only,
    };
    let handle = Mem::new(config, Paper, || ()).unwrap().handle();
    (MemoryResize::new(parts, space, Some(handle.clone())), handle)
}

fn refusals(changes: &[Change]) -> usize {
    changes
        .iter()
        .filter(|change| matches!(change, Change::Refused(..)))
        .count()
}

#[test]
fn memory_comes_in_steps_that_the_guest_can_describe() {
    let mut bench = Bench::new(16 * GIB);
    bench.set(BOOT + 8 * GIB).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.present(), BOOT + 8 * GIB);
    assert_eq!(bench.slots(), [128, 896, 128, 4224, 640, 2176]);
    assert_eq!(bench.resize.pending(), None);
    let told: Vec<_> = bench
        .changes
        .iter()
        .map(|change| matches!(change, Change::MemoryPlugged(bytes, _) if *bytes == 8 * GIB))
        .collect();
    assert_eq!(told, [true], "told once, of all of it");
}

/// It may be asked to grow because it has nothing left.
#[test]
fn the_first_dimm_of_a_guest_that_says_nothing_is_a_unit_or_a_small_part_of_what_it_has() {
    let mut bench = Bench::new(16 * GIB);
    for (at, first) in [(0, 128), (4, 256)] {
        bench.set(BOOT + (at + 4) * GIB).unwrap();
        bench.rest();
        assert_eq!(bench.slots().last(), Some(&first), "what came before may be in use");
        bench.settle(Answer::Takes);
    }
    assert_eq!(bench.slots(), [128, 896, 128, 2944, 256, 2048, 1792]);
}

/// Who brings memory online may be told when the resize has been answered.
#[test]
fn what_may_not_be_online_describes_nothing() {
    let mut bench = Bench::new(16 * GIB);
    bench.brings_online = false;
    bench.set(BOOT + 8 * GIB).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.slots(), [128, 896], "16 MiB describe it");
    assert_eq!(
        bench.resize.pending().as_deref(),
        Some("the guest to bring online what has come")
    );
    let pause = bench.resize.poll().unwrap();
    assert!(!pause.is_zero() && pause <= dimm_requests::ONLINE, "{pause:?}");
    bench.resize.recent.age();
    bench.settle(Answer::Takes);
    assert_eq!(bench.slots(), [128, 896, 4352], "four times what there was");
    bench.resize.recent.age();
    bench.settle(Answer::Takes);
    assert_eq!(bench.slots(), [128, 896, 4352, 2816]);
    assert_eq!((bench.resize.pending(), bench.resize.poll()), (None, None));
}

#[test]
fn a_guest_with_little_available_is_offered_little() {
    let guest = Guest::default();
    let mut bench = Bench::new(16 * GIB);
    bench.resize = bench.resize.with_available_memory(Some(guest.clone()));
    guest.say(64 * MIB);
    bench.set(BOOT + GIB).unwrap();
    let pending = |bench: &Bench| bench.resize.pending().unwrap_or_default();
    assert_eq!(
        (pending(&bench).as_str(), guest.asked(), bench.slots().len()),
        ("the guest to say what memory it has available", 1, 0)
    );
    // 64 bytes for each page: 5 MiB describe 320, of which two units are whole.
    guest.say(10 * MIB);
    bench.look();
    bench.rest();
    assert_eq!(bench.slots(), [256]);
    assert_eq!(bench.settle(Answer::Takes), 2, "and told again");
    assert_eq!(
        (guest.asked(), bench.slots()),
        (2, vec![256]),
        "it is asked before the next one"
    );
    guest.say(1);
    bench.look();
    bench.rest();
    assert_eq!(bench.slots(), [256, 128], "a unit comes in any case");
    bench.settle(Answer::Takes);
    guest.say(512 * MIB);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.resize.pending()), (BOOT + GIB, None));
    assert_eq!(bench.resize.poll(), None, "and left alone then");
}

/// The next one would be larger.
#[test]
fn a_guest_that_kills_for_want_of_memory_while_it_grows_is_given_no_more() {
    let mut bench = Bench::new(16 * GIB);
    let killed = |bench: &mut Bench| bench.resize.stop_growing(&mut bench.dimms, "Killed process 7");
    assert_eq!(killed(&mut bench), None, "it does not grow");
    for (is_made, hears) in [(false, false), (true, false), (true, true)] {
        bench.set(BOOT + 4 * GIB).unwrap();
        if is_made {
            bench.rest();
        }
        if hears {
            bench.hear();
        }
        let Some(Change::Refused(refusal, _)) = killed(&mut bench) else {
            panic!("it grows");
        };
        let told = "add memory: the guest is out of memory: Killed process 7";
        assert_eq!(refusal.to_string(), told);
        if hears {
            bench.report(0, 1, 0);
        }
        bench.settle(Answer::Takes);
        // One that it has heard of may come, and no other.
        let came = if hears { 128 * MIB } else { 0 };
        assert_eq!(
            (bench.present(), bench.resize.wanted_bytes()),
            (BOOT + came, BOOT + came)
        );
        assert_eq!((killed(&mut bench), bench.resize.pending()), (None, None));
    }
    assert_eq!(refusals(&bench.changes), 0, "told by who asked");
    // Pages that were being found for it go back.
    let mut bench = Bench::with(GIB, true);
    bench.set(BOOT + GIB).unwrap();
    assert!(killed(&mut bench).is_some());
    assert_eq!((bench.settle(Answer::Takes), bench.resize.pending()), (0, None));
    assert_eq!(bench.present(), BOOT);
}

/// Linux has larger blocks in larger guests, as the end of their RAM allows.
#[test]
fn memory_of_a_large_guest_comes_in_its_units() {
    for (boot, unit) in [(63 * GIB, 2 * GIB), (64 * GIB, GIB)] {
        let more = 64 * GIB;
        let config = MemoryConfig {
            size: boot,
            hotplug_size: Some(more),
            acpi_only: true,
            ..Default::default()
        };
        let (space, slots) = space(&config).unwrap();
        assert_eq!(space.reserve().unwrap().unit, unit);
        let mut bench = Bench::with_space(space, slots, more);
        (bench.resize.parts.boot_bytes, bench.resize.parts.unit) = (boot, unit);
        bench.set(boot + 1).unwrap();
        bench.settle(Answer::Takes);
        assert_eq!(
            (bench.present(), bench.resize.wanted_bytes()),
            (boot + unit, boot + unit)
        );
        bench.set(boot + 9 * unit).unwrap();
        bench.settle(Answer::Takes);
        assert_eq!(bench.present(), boot + 9 * unit);
        let added: Vec<u64> = bench.slots().into_iter().rev().take(3).collect();
        let first = (boot + unit) / FIRST / unit * unit;
        assert_eq!(
            added,
            [8 * unit - first, first, unit].map(|bytes| bytes / MIB),
            "in whole units"
        );
        bench.set(0).unwrap();
        bench.settle(Answer::Takes);
        assert_eq!((bench.present(), bench.resize.pending()), (boot, None));
        assert!(bench.set(boot + more + 1).is_err());
    }
}

/// Each DIMM by the guest's word, and the resize as a whole.
#[test]
fn what_the_guest_takes_and_lets_go_of_is_in_the_histograms_and_what_it_refuses_is_not() {
    let mut bench = Bench::new(16 * GIB);
    let counts = |bench: &Bench| {
        let status = bench.resize.status(&bench.dimms, None);
        ["present", "gone", "plugged", "unplugged"].map(|name| status["latency"][name]["count"].as_u64())
    };
    bench.set(BOOT + 8 * GIB).unwrap();
    assert_eq!(counts(&bench), [Some(0); 4]);
    bench.settle(Answer::Takes);
    assert_eq!(counts(&bench), [Some(6), Some(0), Some(1), Some(0)]);
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Refuses(0x82));
    assert_eq!(counts(&bench), [Some(6), Some(0), Some(1), Some(0)]);
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(counts(&bench), [Some(6), Some(6), Some(1), Some(1)]);
}

#[test]
fn a_size_that_is_no_whole_block_is_rounded_up_and_a_smaller_one_than_at_the_start_is_none() {
    let mut bench = Bench::new(GIB);
    bench.set(BOOT + 1).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.present(), BOOT + UNIT);
    bench.set(1).unwrap();
    assert_eq!(bench.resize.wanted_bytes(), BOOT);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT, vec![]));
    assert!(matches!(bench.changes.last(), Some(Change::MemoryUnplugged(UNIT, _))));
}

/// DIMMs of 512 and 1536 MiB, and a guest that says what it has available.
fn bench_that_says() -> (Bench, Guest) {
    let guest = Guest::default();
    let mut bench = Bench::new(2 * GIB);
    bench.resize = bench.resize.with_available_memory(Some(guest.clone()));
    bench.fill(BOOT + 2 * GIB);
    assert_eq!((bench.slots(), guest.asked()), (vec![512, 1536], 0));
    guest.say(GIB);
    (bench, guest)
}

#[test]
fn a_guest_is_asked_for_no_more_than_it_says_that_it_can_spare_and_for_the_rest_once_it_can() {
    let (mut bench, guest) = bench_that_says();
    bench.set(BOOT).unwrap();
    assert_eq!(bench.settle(Answer::Takes), 0, "it has not said it since it was asked");
    let pending = |bench: &Bench| bench.resize.pending().unwrap_or_default();
    assert_eq!(
        (guest.asked(), pending(&bench).as_str()),
        (1, "the guest to say what memory it can spare")
    );
    guest.say(GIB);
    assert_eq!(bench.settle(Answer::Takes), 1);
    assert_eq!((bench.slots(), guest.asked()), (vec![1536], 2));
    guest.say(GIB - 512 * MIB);
    assert_eq!(bench.settle(Answer::Takes), 0);
    let needs = (BOOT + 1536 * MIB - 512 * MIB) / MIB;
    let margin = needs / 16;
    assert_eq!(
        pending(&bench),
        format!("the guest to need less memory: {} MiB, 64 are wanted", needs + margin)
    );
    assert!(bench.resize.poll().is_some(), "it is asked again without a wakeup");
    assert_eq!((bench.present(), refusals(&bench.changes)), (BOOT + 1536 * MIB, 0));
    // It has ended a program.
    bench.resize.shrink_limit.reset();
    bench.settle(Answer::Takes);
    guest.say(BOOT + 1536 * MIB - 32 * MIB);
    bench.settle(Answer::Takes);
    assert_eq!((bench.slots(), bench.resize.pending()), (vec![], None));
    assert_eq!(bench.resize.poll(), None, "and left alone then");
    assert!(matches!(bench.changes.last(), Some(Change::MemoryUnplugged(..))));
}

#[test]
fn a_guest_that_has_no_memory_left_keeps_the_rest_of_what_was_to_go() {
    let mut bench = Bench::new(2 * GIB);
    bench.fill(BOOT + 2 * GIB);
    assert_eq!(bench.resize.stop_shrinking(&bench.dimms, "it does not shrink"), None);
    bench.set(BOOT).unwrap();
    bench.resize.advance(&mut bench.dimms, &mut bench.changes);
    assert!(bench.resize.is_shrinking(&bench.dimms));
    let change = bench.resize.stop_shrinking(&bench.dimms, "Killed process 7").unwrap();
    let Change::Refused(refusal, _) = change else {
        panic!("{change:?}")
    };
    assert_eq!(
        refusal.to_string(),
        "remove memory: the guest is out of memory: Killed process 7"
    );
    // The one that it had been asked for goes, and no other.
    assert_eq!(bench.settle(Answer::Takes), 1);
    assert_eq!(bench.slots().len(), 1);
    assert_eq!(bench.resize.wanted_bytes(), bench.present());
    assert_eq!(bench.resize.stop_shrinking(&bench.dimms, "again"), None);
}

#[test]
fn what_there_may_be_is_whole_blocks_and_can_be_asked_for_again() {
    let mut bench = Bench::new(GIB + 1);
    bench.set(BOOT + GIB + 1).unwrap();
    bench.settle(Answer::Takes);
    let most = BOOT + GIB + UNIT;
    assert_eq!((bench.present(), bench.resize.wanted_bytes()), (most, most));
    bench.set(most).unwrap();
    assert_eq!(bench.settle(Answer::Takes), 0);
    assert!(bench.set(most + 1).is_err());
}

#[test]
fn more_than_there_may_be_is_refused_with_the_limit_and_changes_nothing() {
    let mut bench = Bench::new(GIB);
    for bytes in [BOOT + GIB + 1, u64::MAX] {
        let error = bench.set(bytes).unwrap_err();
        assert!(error.is_request());
        assert!(
            error.to_string().contains(&format!("at most {} allowed", BOOT + GIB)),
            "{error}"
        );
    }
    assert_eq!(bench.settle(Answer::Takes), 0);
    assert_eq!(bench.resize.wanted_bytes(), BOOT);
}

#[test]
fn memory_that_the_guest_only_says_it_has_is_withdrawn() {
    let mut bench = Bench::new(4 * GIB);
    bench.set(BOOT + GIB).unwrap();
    assert_eq!(bench.settle(Answer::Fails), 4, "offered, and told three times more");
    assert_eq!((bench.present(), bench.slots()), (BOOT, vec![]));
    assert_eq!(refusals(&bench.changes), 1);
    assert_eq!(bench.resize.refusals()[0].why, Why::Unproven);
    assert_eq!(
        bench.resize.wanted_bytes(),
        BOOT,
        "what there is, is what there will be"
    );
    assert_eq!(bench.settle(Answer::Takes), 0, "nothing is asked for again");
    bench.set(BOOT + GIB).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.present(), BOOT + GIB);
}

#[test]
fn a_refusal_half_way_keeps_what_came_before() {
    let mut bench = Bench::new(16 * GIB);
    bench.set(BOOT + 512 * MIB).unwrap();
    bench.settle(Answer::Takes);
    let before = Instant::now();
    bench.set(BOOT + 4 * GIB).unwrap();
    bench.settle(Answer::Refuses(0x81));
    let told = bench.changes.iter().find_map(|change| match change {
        Change::Refused(_, took) => Some(*took),
        _ => None,
    });
    assert!(
        told.is_some_and(|took| !took.is_zero() && took <= before.elapsed()),
        "since it was asked for: {told:?}"
    );
    assert_eq!(
        (bench.present(), bench.resize.wanted_bytes()),
        (BOOT + 512 * MIB, BOOT + 512 * MIB)
    );
    assert_eq!(bench.resize.refusals()[0].why, Why::Code(0x81));
}

#[test]
fn a_dimm_that_the_guest_keeps_stays() {
    let mut bench = Bench::new(4 * GIB);
    bench.fill(BOOT + 512 * MIB);
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Refuses(0x82));
    assert_eq!((bench.present(), bench.slots()), (BOOT + 512 * MIB, vec![512]));
    assert_eq!(bench.resize.wanted_bytes(), BOOT + 512 * MIB);
}

/// It has something in it that cannot be moved.
#[test]
fn another_dimm_goes_in_the_place_of_one_that_the_guest_keeps() {
    let mut bench = Bench::new(4 * GIB);
    for more in [128 * MIB, 256 * MIB, 384 * MIB] {
        bench.set(BOOT + more).unwrap();
        bench.settle(Answer::Takes);
    }
    bench.set(BOOT + 256 * MIB).unwrap();
    assert_eq!(bench.settle(Answer::Keeps(2)), 2, "two were asked for");
    assert_eq!((bench.present(), bench.slots()), (BOOT + 256 * MIB, vec![128, 128]));
    assert_eq!((bench.resize.pending(), refusals(&bench.changes)), (None, 0));
    bench.set(BOOT + 128 * MIB).unwrap();
    assert_eq!(bench.settle(Answer::Keeps(2)), 1, "it is asked last from then on");
    assert_eq!((bench.present(), refusals(&bench.changes)), (BOOT + 128 * MIB, 0));
    bench.set(BOOT).unwrap();
    assert_eq!(bench.settle(Answer::Keeps(2)), 1);
    assert_eq!(bench.resize.refusals()[0].what, "remove memory slot 2 of 128 MiB");
    assert_eq!(bench.resize.wanted_bytes(), BOOT + 128 * MIB);
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.present(), BOOT, "and asked again by each resize");
}

/// The driver of virtio-mem has come when there was a DIMM already.
#[test]
fn a_dimm_that_is_too_large_to_go_is_in_the_size_that_there_will_be() {
    let mut bench = Bench::new(GIB);
    let config = MemConfig {
        base: 64 * GIB,
        region_bytes: GIB,
        block_bytes: 2 * MIB,
    };
    bench.fill(BOOT + 384 * MIB);
    let device = Mem::new(config, Paper, || ()).unwrap();
    bench.resize.blocks = Some(device.handle());
    bench.resize.parts.blocks_only = true;
    bench.set(BOOT + 130 * MIB).unwrap();
    bench.resize.advance(&mut bench.dimms, &mut bench.changes);
    let there = BOOT + 384 * MIB;
    assert_eq!((bench.resize.wanted_bytes(), bench.present()), (there, there));
    assert_eq!(device.handle().size().requested_bytes, 0);
}

#[test]
fn a_dimm_goes_as_a_whole_or_not() {
    let mut bench = Bench::new(4 * GIB);
    for more in [256 * MIB, 640 * MIB] {
        bench.fill(BOOT + more);
    }
    assert_eq!(bench.slots(), [256, 384]);
    bench.set(BOOT + 384 * MIB).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(bench.slots(), [384], "the one that fits");
    bench.set(BOOT + 128 * MIB).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!(
        (bench.present(), bench.resize.wanted_bytes()),
        (BOOT + 384 * MIB, BOOT + 384 * MIB)
    );
}

#[test]
fn a_later_size_takes_the_place_of_one_that_the_guest_has_not_heard_of() {
    let mut bench = Bench::new(4 * GIB);
    bench.set(BOOT + 512 * MIB).unwrap();
    bench.set(BOOT).unwrap();
    assert_eq!(bench.resize.wanted_bytes(), BOOT);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT, vec![]));
}

/// A guest that is paused, or has no driver for its slots, hears of nothing.
#[test]
fn a_second_request_takes_back_what_the_guest_has_not_heard_of_at_once() {
    let mut bench = Bench::new(4 * GIB);
    bench.resize.shrink_limit = plenty();
    bench.set(BOOT + 512 * MIB).unwrap();
    bench.look();
    bench.rest();
    assert_eq!(bench.slots(), [512]);
    bench.set(BOOT).unwrap();
    assert_eq!(bench.resize.pending(), None, "nobody waits for the host to have it");
    bench.rest();
    assert_eq!((bench.slots(), bench.resize.pending()), (vec![], None));
    bench.set(BOOT + 512 * MIB).unwrap();
    bench.look();
    bench.rest();
    bench.set(BOOT + 256 * MIB).unwrap();
    bench.look();
    bench.rest();
    assert_eq!(bench.slots(), [256], "as much as is wanted");
    assert_eq!(bench.settle(Answer::Takes), 2, "told of one, twice");
    assert_eq!(bench.present(), BOOT + 256 * MIB);
    bench.set(BOOT).unwrap();
    bench.set(BOOT + 256 * MIB).unwrap();
    assert_eq!(bench.resize.pending(), None, "nobody is asked to let go");
    assert_eq!((bench.settle(Answer::Takes), bench.present()), (0, BOOT + 256 * MIB));
}

#[test]
fn a_host_that_does_not_give_it_is_a_refusal_and_the_guest_hears_nothing() {
    let mut bench = Bench::new(4 * GIB);
    bench.slots.refuse(true, false);
    bench.set(BOOT + GIB).unwrap();
    assert_eq!(bench.settle(Answer::Takes), 0);
    let told = "add memory: cannot add 128 MiB of hot-plugged memory: KVM does not take it: KVM refused to map a slot: \
                Cannot allocate memory (os error 12)";
    assert_eq!(
        (
            bench.resize.refusals()[0].to_string().as_str(),
            refusals(&bench.changes)
        ),
        (told, 1)
    );
    bench.slots.refuse(false, false);
    assert_eq!((bench.resize.wanted_bytes(), bench.settle(Answer::Takes)), (BOOT, 0));
    assert_eq!((bench.slots(), bench.resize.pending()), (vec![], None));
}

/// Nobody has looked in between.
#[test]
fn what_the_host_has_refused_is_asked_for_anew_by_the_next_resize() {
    let mut bench = Bench::new(GIB);
    bench.slots.refuse(true, false);
    while bench.slots.refused() < 3 {
        bench.set(BOOT + UNIT).unwrap();
        std::thread::yield_now();
    }
    bench.set(BOOT + UNIT).unwrap();
    bench.slots.refuse(false, false);
    // The last of them may have come too early.
    while bench.resize.readying.is_none() {
        bench.set(BOOT + UNIT).unwrap();
    }
    bench.settle(Answer::Takes);
    assert!(refusals(&bench.changes) <= 1, "of the last one alone");
}

/// A vCPU is in the middle of a page fault, for as long as the file system behind the page likes.
#[test]
fn a_kvm_that_makes_wait_keeps_nobody_but_threads_waiting() {
    let mut bench = Bench::new(GIB);
    let kvm = bench.slots.clone();
    let status = |bench: &Bench| bench.resize.status(&bench.dimms, None)["present_bytes"].as_u64();
    let pending = |bench: &Bench| bench.resize.pending().unwrap_or_default();
    let hangs = kvm.hang();
    for wanted in [UNIT, 0, 2 * UNIT, UNIT] {
        bench.set(BOOT + wanted).unwrap();
        bench.look();
        let finds = if wanted > 0 {
            "the host to find 128 MiB of memory"
        } else {
            ""
        };
        assert_eq!((pending(&bench).as_str(), status(&bench)), (finds, Some(BOOT)));
    }
    drop(hangs);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT + UNIT, vec![128]));
    let hangs = kvm.hang();
    bench.set(BOOT).unwrap();
    let slot = bench.hear();
    bench.let_go(slot);
    bench.look();
    let state = |bench: &Bench| bench.dimms.as_ref().unwrap().state(slot);
    assert_eq!(state(&bench), Some(State::Ejected { wanted: false }));
    assert_eq!(pending(&bench), "the host to take memory back");
    // Wanted again, it comes in another slot.
    bench.set(BOOT + UNIT).unwrap();
    bench.look();
    assert_eq!(pending(&bench), "the host to find 128 MiB of memory");
    drop(hangs);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), refusals(&bench.changes)), (BOOT + UNIT, 0));
    assert_eq!((bench.slots(), bench.resize.pending()), (vec![128], None));
}

#[test]
fn every_slot_can_be_filled_and_then_no_more_comes() {
    let mut bench = Bench::new(64 * GIB);
    for number in 1..=u64::from(DIMMS) {
        bench.set(BOOT + number * UNIT).unwrap();
        bench.settle(Answer::Takes);
    }
    assert_eq!(bench.slots().len(), 64);
    let error = bench.set(BOOT + 65 * UNIT).unwrap_err();
    assert!(!error.is_request());
    assert_eq!(
        error.to_string(),
        "desired_ram: all 64 memory slots are taken, no more memory can be added"
    );
    bench.settle(Answer::Takes);
    assert_eq!(bench.present(), BOOT + 64 * UNIT);
    assert_eq!(
        bench.resize.wanted_bytes(),
        BOOT + 64 * UNIT,
        "vm.info says what there is"
    );
}

/// The host finds pages, and takes them back, as long as it likes: whoever asks is told what it does, and goes on.
#[test]
fn pages_that_are_to_be_there_first_are_found_before_the_guest_hears_of_them_and_nobody_waits() {
    let mut bench = Bench::with(GIB, true);
    bench.set(BOOT + UNIT).unwrap();
    let pending = bench.resize.pending();
    assert_eq!(pending.as_deref(), Some("the host to find 128 MiB of memory"));
    assert_eq!(bench.dimms.as_ref().unwrap().plugged(), 0, "no slot is offered yet");
    assert_eq!(bench.settle(Answer::Takes), 2, "it is told then, twice");
    assert_eq!((bench.present(), bench.resize.pending()), (BOOT + UNIT, None));
    // Changed minds: more, less, nothing.
    for units in [3, 2, 1, 4, 1] {
        bench.set(BOOT + units * UNIT).unwrap();
    }
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT + UNIT, vec![128]));
    // A question that the guest has not heard is taken back. One that it has heard is not: the memory goes, and comes.
    bench.set(BOOT).unwrap();
    bench.set(BOOT + UNIT).unwrap();
    assert_eq!(bench.resize.pending(), None);
    bench.set(BOOT).unwrap();
    let slot = bench.hear();
    bench.set(BOOT + UNIT).unwrap();
    let pending = bench.resize.pending();
    assert_eq!(pending.as_deref(), Some("memory slot 0 of 128 MiB to go"));
    bench.let_go(slot);
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT + UNIT, vec![128]));
    assert_eq!(refusals(&bench.changes), 0);
}

#[test]
fn pages_that_were_found_and_are_not_wanted_any_more_go_back_beside_the_control_thread() {
    let mut bench = Bench::with(2 * GIB, true);
    bench.resize.shrink_limit = plenty();
    bench.set(BOOT + 4 * UNIT).unwrap();
    bench.look();
    bench.set(BOOT + UNIT).unwrap();
    let abandoned = |bench: &Bench| bench.dimms.as_ref().unwrap().plug().abandoned();
    assert_eq!(abandoned(&bench), 1);
    bench.rest();
    assert_eq!((abandoned(&bench), bench.slots()), (0, vec![128]));
    // And what is there when another size is asked for that it does not fit.
    bench.settle(Answer::Takes);
    bench.set(BOOT + 8 * UNIT).unwrap();
    bench.look();
    while !bench.resize.readying.as_ref().is_some_and(Readying::is_there) {
        bench.resize.readying = bench.resize.readying.take().and_then(Readying::unless_refused);
    }
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Takes);
    assert_eq!((bench.present(), bench.slots()), (BOOT, vec![]));
}

#[test]
fn the_guest_and_the_status_are_told_where_a_dimm_is() {
    let mut bench = Bench::new(GIB);
    bench.set(BOOT + UNIT).unwrap();
    bench.rest();
    let placed = bench.slots.taken().into_values().find(|(gpa, _)| *gpa > 0);
    let (base, bytes) = placed.unwrap();
    let record = [0x840, 0x848].map(|register| {
        let mut value = [0; 8];
        bench.bank.lock().unwrap().read(register, &mut value);
        u64::from_le_bytes(value)
    });
    assert_eq!((record, bytes), ([base, UNIT], UNIT));
    let dimms = |bench: &Bench| bench.resize.status(&bench.dimms, None)["dimms"].clone();
    let dimm = |state| json!([{"slot": 0, "base": base, "bytes": UNIT, "state": state}]);
    assert_eq!(dimms(&bench), dimm("offered"));
    bench.settle(Answer::Takes);
    assert_eq!(dimms(&bench), dimm("present"));
}

#[test]
fn a_dimm_that_the_host_does_not_take_back_keeps_its_slot_until_it_does() {
    let mut bench = Bench::new(GIB);
    bench.set(BOOT + UNIT).unwrap();
    bench.settle(Answer::Takes);
    bench.slots.refuse(false, true);
    bench.set(BOOT).unwrap();
    bench.settle(Answer::Takes);
    let state = |bench: &Bench| bench.dimms.as_ref().unwrap().state(0);
    assert_eq!(bench.slots(), [128]);
    assert_eq!(state(&bench), Some(State::Ejected { wanted: false }));
    let unplugged = |bench: &Bench| {
        let mut changes = bench.changes.iter();
        changes.any(|change| matches!(change, Change::MemoryUnplugged(UNIT, _)))
    };
    assert_eq!(bench.resize.pending().as_deref(), Some("the host to take memory back"));
    assert!(!unplugged(&bench), "it is not the host's yet");
    assert!(bench.resize.poll().is_some(), "it is asked again without a wakeup");
    bench.slots.refuse(false, false);
    bench.settle(Answer::Takes);
    assert_eq!((bench.slots(), state(&bench)), (vec![], Some(State::Empty)));
    assert!(unplugged(&bench));
    assert_eq!((bench.resize.pending(), bench.resize.poll()), (None, None));
}

#[test]
fn a_driver_of_virtio_mem_is_waited_for_until_it_has_what_it_should_and_says_so() {
    let owed = |plugged_bytes, settled| {
        owed(MemSize {
            plugged_bytes,
            requested_bytes: UNIT,
            usable_bytes: GIB,
            block_bytes: 2 * MIB,
            driver: true,
            settled,
        })
    };
    assert_eq!(owed(0, true).as_deref(), Some("virtio-mem: 0 of 134217728 bytes"));
    assert!(owed(2 * UNIT, true).is_some(), "it may have more");
    let to_add = "virtio-mem: 134217728 bytes to be added";
    assert_eq!(owed(UNIT, false).as_deref(), Some(to_add));
    assert_eq!(owed(UNIT, true), None);
}

/// Neither blocks nor DIMMs: nothing is asked for.
#[test]
fn what_the_host_cannot_give_is_refused_before_the_guest_hears_of_it() {
    let meminfo = |promised: u64| format!("CommitLimit: 1048576 kB\nCommitted_AS: {} kB\n", promised >> 10);
    let root = crate::check::testing::host(&[
        ("proc/sys/vm/overcommit_memory", "2\n"),
        ("proc/meminfo", &meminfo(GIB - 2 * UNIT)),
        ("proc/self/cgroup", "0::/pod/vmm\n"),
        ("sys/fs/cgroup/pod/memory.max", &(4 * UNIT).to_string()),
    ]);
    let config = MemoryConfig {
        size: BOOT,
        hotplug_size: Some(GIB),
        acpi_only: true,
        ..Default::default()
    };
    let space = space_under(root.path(), &config);
    let (mut resize, handle) = blocks_in(space.clone(), true);
    let mut bench = Bench::with_space(space, Arc::default(), GIB);
    let now = Instant::now();
    let commit = "384 MiB needed, the host may promise 256 MiB more (vm.overcommit_memory is 2, see CommitLimit in /proc/meminfo)";
    let group = "640 MiB beside what the VM started with, the control group allows 536870912 bytes (/sys/fs/cgroup/pod/memory.max)";
    for (units, why) in [(3, commit), (5, group)] {
        let bytes = BOOT + units * UNIT;
        let what = format!("cannot add {} MiB of hot-plugged memory: {why}", units * UNIT / MIB);
        for error in [resize.set(&mut None, bytes, now), bench.set(bytes)] {
            let error = error.unwrap_err();
            assert_eq!((error_chain(&error), error.is_request()), (what.clone(), false));
        }
        assert_eq!((resize.wanted_bytes(), handle.size().requested_bytes), (BOOT, 0));
        assert_eq!((bench.resize.wanted_bytes(), bench.settle(Answer::Takes)), (BOOT, 0));
    }
    // What there is, and what is asked for no more, is not asked of the host again.
    bench.set(BOOT + 2 * UNIT).unwrap();
    bench.settle(Answer::Takes);
    resize.set(&mut None, BOOT + 2 * UNIT, now).unwrap();
    std::fs::write(root.path().join("proc/meminfo"), meminfo(GIB - UNIT)).unwrap();
    bench.set(BOOT + 3 * UNIT).unwrap();
    resize.set(&mut None, BOOT + UNIT, now).unwrap();
    resize.set(&mut None, BOOT + 2 * UNIT, now).unwrap_err();
}

#[test]
fn what_is_asked_for_before_the_driver_has_come_waits_for_it_where_there_is_no_other_way() {
    let now = Instant::now();
    let (mut resize, handle) = blocks(true);
    let requested = || handle.size().requested_bytes;
    assert_eq!(
        resize.check(BOOT + 1).unwrap(),
        BOOT + 2 * MIB,
        "its blocks are what counts"
    );
    for bytes in [256 * MIB, GIB, 2 * MIB, 0] {
        resize.set(&mut None, BOOT + bytes, now).unwrap();
        assert_eq!((resize.wanted_bytes(), requested()), (BOOT + bytes, bytes));
    }
}

#[test]
fn a_device_without_a_driver_is_asked_for_less_and_never_for_more() {
    let now = Instant::now();
    let (mut resize, handle) = blocks(false);
    let requested = || handle.size().requested_bytes;
    assert_eq!(resize.check(BOOT + 1).unwrap(), BOOT + UNIT);
    resize.set(&mut None, BOOT + 2 * UNIT, now).unwrap();
    assert_eq!(requested(), 0);
    // Nothing has come, and nothing is said of it: that is still to be told.
    let mut changes = Vec::new();
    resize.advance(&mut None, &mut changes);
    assert!(changes.is_empty() && resize.since.is_some());
    handle.request(4 * UNIT).unwrap();
    resize.set(&mut None, BOOT + 2 * UNIT, now).unwrap();
    assert_eq!(requested(), 2 * UNIT);
    resize.set(&mut None, BOOT + 3 * UNIT, now).unwrap();
    assert_eq!(requested(), 2 * UNIT);
}

#[test]
fn what_is_wanted_twice_is_asked_for_once() {
    let mut bench = Bench::new(GIB);
    bench.set(BOOT + UNIT).unwrap();
    bench.rest();
    assert_eq!(bench.rings.read().unwrap(), 1);
    bench.set(BOOT + UNIT).unwrap();
    assert!(bench.rings.read().is_err(), "it is offered");
    bench.settle(Answer::Takes);
    let _ = bench.rings.read();
    bench.set(BOOT).unwrap();
    assert_eq!(bench.rings.read().unwrap(), 1);
    bench.set(BOOT).unwrap();
    bench.resize.advance(&mut bench.dimms, &mut bench.changes);
    assert!(bench.rings.read().is_err(), "it is to go");
}

/// More than fits in the reserve, from which nothing goes.
#[test]
fn memory_that_has_no_place_does_not_wait_for_one() {
    let mut bench = Bench::new(256 * MIB);
    bench.resize.parts.more_bytes = GIB;
    bench.set(BOOT + 256 * MIB).unwrap();
    bench.settle(Answer::Takes);
    assert!(bench.set(BOOT + 512 * MIB).is_err());
    assert_eq!((bench.resize.pending(), bench.present()), (None, BOOT + 256 * MIB));
}

/// Whoever goes by what is told, and not by what was configured, may ask for all of it.
#[test]
fn what_may_be_added_is_told_in_whole_units() {
    for (more, told) in [(300 * MIB, 384 * MIB), (384 * MIB, 384 * MIB), (0, 0)] {
        let mut bench = Bench::new(512 * MIB);
        bench.resize.parts.more_bytes = more;
        let status = bench.resize.status(&bench.dimms, None);
        assert_eq!(status["hotplug_bytes"], told);
        bench.set(BOOT + told).unwrap();
        assert!(bench.set(BOOT + told + 1).is_err(), "{more}");
    }
}

/// What stays lies in the middle: what comes again has as many DIMMs as there are holes.
#[test]
fn memory_that_was_given_back_comes_again_in_as_many_pieces_as_it_has_to() {
    for prefault in [false, true] {
        let mut bench = Bench::with(512 * MIB, prefault);
        for more in [128 * MIB, 384 * MIB, 512 * MIB, 256 * MIB] {
            bench.fill(BOOT + more);
        }
        assert_eq!(bench.slots(), [256], "the one in the middle");
        bench.set(BOOT + 512 * MIB).unwrap();
        bench.settle(Answer::Takes);
        assert_eq!(
            (bench.present(), bench.slots()),
            (BOOT + 512 * MIB, vec![128, 256, 128])
        );
        assert_eq!((bench.resize.pending(), refusals(&bench.changes)), (None, 0));
    }
}

#[test]
fn what_came_and_what_went_is_told_without_what_was_there() {
    let mut bench = Bench::new(4 * GIB);
    for units in [1, 3, 1, 0] {
        bench.set(BOOT + units * UNIT).unwrap();
        bench.settle(Answer::Takes);
    }
    let told = bench.changes.iter().map(|change| match change {
        Change::MemoryPlugged(bytes, _) => (true, bytes / UNIT),
        Change::MemoryUnplugged(bytes, _) => (false, bytes / UNIT),
        other => panic!("{other:?}"),
    });
    assert_eq!(told.collect::<Vec<_>>(), [(true, 1), (true, 2), (false, 2), (false, 1)]);
}

/// The whole reserve goes, and comes again before the host has taken it back.
#[test]
fn memory_that_comes_again_waits_for_the_place_of_what_went() {
    let mut bench = Bench::new(256 * MIB);
    for _ in 0..20 {
        bench.fill(BOOT + 256 * MIB);
        assert_eq!(bench.slots(), [256]);
        bench.set(BOOT).unwrap();
        let mut event = [0; 4];
        bench.bank.lock().unwrap().read(0, &mut event);
        bench.let_go(u32::from_le_bytes([event[0], event[1], 0, 0]));
        bench.resize.advance(&mut bench.dimms, &mut bench.changes);
        assert_eq!(bench.present(), BOOT);
    }
    assert_eq!(refusals(&bench.changes), 0);
}

/// That it is, is told then, and whoever asked is answered.
#[test]
fn memory_is_gone_when_the_host_has_it_again() {
    let mut bench = Bench::new(256 * MIB);
    let mut waited = 0;
    // A thread that is quick may be done before the first look.
    let mut rounds = 0..10_000;
    while waited == 0 {
        assert!(rounds.next().is_some(), "nobody ever waited");
        bench.fill(BOOT + 256 * MIB);
        bench.changes.clear();
        bench.set(BOOT).unwrap();
        bench.bank.lock().unwrap().read(0, &mut [0; 4]);
        bench.let_go(0);
        loop {
            bench.resize.advance(&mut bench.dimms, &mut bench.changes);
            if !bench.is_busy() {
                break;
            }
            waited += 1;
            assert_eq!((bench.present(), bench.changes.len()), (BOOT, 0));
            assert_eq!(bench.resize.pending().as_deref(), Some("the host to take memory back"));
            std::thread::yield_now();
        }
        assert!(matches!(bench.changes[..], [Change::MemoryUnplugged(bytes, _)] if bytes == 256 * MIB));
        assert_eq!(bench.resize.pending(), None);
    }
}

/// What was asked for takes two DIMMs, and there is a slot for one.
#[test]
fn slots_that_run_out_on_the_way_are_a_refusal_and_what_came_stays() {
    let mut bench = Bench::new(256 * GIB);
    for number in 1..u64::from(DIMMS) {
        bench.set(BOOT + number * UNIT).unwrap();
        bench.settle(Answer::Takes);
    }
    let had = bench.present();
    bench.set(had + 8 * had + UNIT).unwrap();
    bench.settle(Answer::Takes);
    let told: Vec<String> = bench.resize.refusals().iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["add memory: desired_ram: all 64 memory slots are taken, no more memory can be added"]
    );
    assert_eq!((refusals(&bench.changes), bench.resize.pending()), (1, None));
    assert!(bench.present() > had, "the slot that was left is used");
    assert_eq!(bench.resize.wanted_bytes(), bench.present());
}
