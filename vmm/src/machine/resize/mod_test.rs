use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use husk_devices::{BusDevice, Irq, error_chain};
use husk_hotplug::bank::{Bank, SlotKind};
use husk_hotplug::ged::GedNotifier;
use husk_hotplug::{Plug, PlugError};
use husk_virtio::balloon::{Balloon, BalloonConfig};
use husk_virtio::device::VirtioDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::config::MemoryConfig;
use crate::memory::testing::{FakeSlots, ForbiddenThread, space};
use crate::memory::{AddressSpace, Kind};

const MIB: u64 = 1 << 20;
const BOOT: u64 = 64 * MIB;
const MORE: u64 = 1024 * MIB;
const VCPUS: u32 = 4;

/// vCPUs on paper: so many can be created.
#[derive(Default)]
struct Paper {
    there: BTreeSet<u32>,
    /// Those that the guest has started.
    online: BTreeSet<u32>,
    /// The one that the host does not take back.
    kept: Option<u32>,
    most: usize,
    /// No thread has yet to make them.
    are_made: bool,
}

impl Plug for Paper {
    type Unit = ();

    fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
        if self.there.len() >= self.most {
            return Err(PlugError {
                what: format!("add vCPU {slot}"),
                source: "the host has no thread left".into(),
            });
        }
        self.there.insert(slot);
        Ok(())
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        if self.kept == Some(slot) {
            return Err(PlugError {
                what: format!("end vCPU {slot}"),
                source: "its thread does not end".into(),
            });
        }
        self.there.remove(&slot);
        Ok(())
    }
}

impl Vcpus for Paper {
    fn max(&self) -> u32 {
        VCPUS
    }

    fn ready(&mut self, ids: &[u32]) -> bool {
        assert!(!ids.is_empty());
        self.are_made
    }

    fn is_online(&self, id: u32) -> bool {
        self.online.contains(&id)
    }

    fn is_starting(&self, _: u32) -> bool {
        false
    }
}

struct Bench {
    /// First, so that it is dropped before what takes memory apart.
    _main: ForbiddenThread,
    resizes: Resizes,
    cpus: Hotplug<Paper>,
    /// What the guest sees of its vCPUs.
    cpu_bank: Arc<Mutex<Bank>>,
    dimms: Dimms,
    space: Arc<AddressSpace>,
    slots: Arc<FakeSlots>,
    balloon: Balloon,
}

impl Bench {
    /// A machine of one vCPU and [`BOOT`] bytes, with a balloon of one MiB.
    fn new() -> Self {
        Self::with(None)
    }

    /// As [`Bench::new`], with a policy for what an idle guest has.
    fn with(reclaim: Option<Reclaim>) -> Self {
        let config = MemoryConfig {
            size: BOOT,
            hotplug_size: Some(MORE),
            acpi_only: true,
            ..Default::default()
        };
        let (space, slots) = space(&config).unwrap();
        let notifier = GedNotifier::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let bank = |kind, count| Arc::new(Mutex::new(Bank::new(kind, count, notifier.clone(), || ()).unwrap()));
        let paper = Paper {
            most: usize::MAX,
            are_made: true,
            ..Paper::default()
        };
        let cpu_bank = bank(SlotKind::Cpu, VCPUS);
        let mut cpus = Hotplug::new(paper, cpu_bank.clone(), notifier.clone());
        cpus.present(0, ()).unwrap();
        let dimms = Hotplug::new(
            DimmPlug::new(space.clone(), Waker::noop().clone()),
            bank(SlotKind::Memory, 8),
            notifier.clone(),
        );
        let parts = MemoryParts {
            boot_bytes: BOOT,
            more_bytes: MORE,
            unit: 128 * MIB,
            blocks_only: false,
        };
        let balloon = Balloon::new(BalloonConfig::default(), space.clone(), || ()).unwrap();
        balloon.handle().set_target(BalloonTarget::new(MIB).unwrap());
        Self {
            _main: slots.forbid_this_thread(),
            resizes: Resizes::new(
                MemoryResize::new(parts, space.clone(), None),
                Some(balloon.handle()),
                reclaim,
            ),
            cpus,
            cpu_bank,
            dimms: Some(dimms),
            space,
            slots,
            balloon,
        }
    }

    fn begin(&mut self, vcpus: u32, ram_bytes: u64, balloon_bytes: u64) -> Result<(), ResizeError> {
        let wanted = TargetSize {
            vcpus: Some(vcpus),
            ram_bytes: Some(ram_bytes),
            balloon_bytes: Some(balloon_bytes),
        };
        self.resizes.begin(&mut self.cpus, &mut self.dimms, wanted)
    }

    /// As [`Bench::begin`], of nothing.
    fn begin_nothing(&mut self) {
        let Self {
            resizes, cpus, dimms, ..
        } = self;
        resizes.begin(cpus, dimms, TargetSize::default()).unwrap();
    }

    /// What has changed, without the times.
    fn advance(&mut self) -> Vec<String> {
        let changes = self.resizes.advance(&mut self.cpus, &mut self.dimms);
        let told = changes.into_iter().map(|change| match change {
            Change::VcpuPresent(id, _) => format!("{id} present"),
            Change::VcpuOnline(id, _) => format!("{id} online"),
            Change::VcpuGone(id, _) => format!("{id} gone"),
            Change::MemoryPlugged(bytes, _) => format!("{bytes} plugged"),
            Change::MemoryUnplugged(bytes, _) => format!("{bytes} unplugged"),
            Change::Refused(refusal, _) => refusal.to_string(),
        });
        told.collect()
    }

    /// Looks until no thread is at work for it.
    fn rest(&mut self) {
        while self.resizes.memory.is_busy(&self.dimms) {
            std::thread::yield_now();
            self.advance();
        }
    }

    /// The guest hears of its vCPU slots: of which one, and whether it is to let go of it.
    fn hear(&self) -> (u32, bool) {
        let mut event = [0; 4];
        self.cpu_bank.lock().unwrap().read(0, &mut event);
        let event = u32::from_le_bytes(event);
        (event & 0xffff, event >> 16 == 3)
    }

    /// `_SUN` of a vCPU that comes, and `_OST` with this status.
    fn report(&self, slot: u32, status: u32) {
        let report = u64::from(slot) | 1 << 16 | u64::from(status) << 32;
        let mut bank = self.cpu_bank.lock().unwrap();
        let _ = bank.write(0x08, &slot.to_le_bytes());
        let _ = bank.write(0x10, &report.to_le_bytes());
    }

    /// `_OST` of a vCPU that it was asked to let go of, with this status.
    fn refuse_to_let_go(&self, slot: u32, status: u32) {
        let report = u64::from(slot) | 3 << 16 | u64::from(status) << 32;
        let _ = self.cpu_bank.lock().unwrap().write(0x10, &report.to_le_bytes());
    }

    /// `_EJ0` of a vCPU, and the look at `_STA` that follows.
    fn let_go(&self, slot: u32) {
        let mut bank = self.cpu_bank.lock().unwrap();
        let _ = bank.write(0x04, &slot.to_le_bytes());
        bank.read(0x40, &mut [0; 4]);
    }

    /// vCPUs and RAM that there will be, what is in them by now, and the balloon's size.
    fn sizes(&self) -> (u32, u64, usize, usize, u64) {
        let size = self.resizes.size(&self.cpus, &self.dimms);
        let balloon = self.balloon.handle().size().target_bytes;
        let (vcpus, regions) = (self.cpus.plug().there.len(), self.slots.taken().len());
        (size.vcpus, size.ram_bytes, vcpus, regions, balloon)
    }
}

#[test]
fn what_cannot_be_begins_nothing() {
    let mut bench = Bench::new();
    let before = bench.sizes();
    for (vcpus, ram, balloon, why) in [
        (0, BOOT + MORE, MIB, "desired_vcpus"),
        (VCPUS + 1, BOOT + MORE, MIB, "desired_vcpus"),
        (u32::MAX, BOOT, 0, "desired_vcpus"),
        (2, BOOT + MORE + 1, 0, "desired_ram"),
        (2, u64::MAX, 0, "desired_ram"),
        (2, BOOT + MORE, BOOT + MORE, "desired_balloon"),
        (2, BOOT + MORE, 4095, "desired_balloon"),
        (2, 0, BOOT, "desired_balloon"),
    ] {
        let error = bench.begin(vcpus, ram, balloon).unwrap_err();
        assert!(error.is_request() && error.to_string().contains(why), "{error}");
        assert_eq!((bench.sizes(), bench.resizes.pending()), (before, None), "{error}");
    }
    bench.begin(2, BOOT + MORE, 2 * MIB).unwrap();
    bench.rest();
    assert_eq!(bench.sizes(), (2, BOOT + MORE, 2, 2, 2 * MIB));
    bench.begin(1, 0, BOOT - 4096).unwrap();
    bench.rest();
    assert_eq!(
        bench.sizes(),
        (1, BOOT, 1, 1, BOOT - 4096),
        "what it began with is the least"
    );
}

#[test]
fn a_host_that_fails_half_way_leaves_nothing_of_a_resize() {
    let mut bench = Bench::new();
    let before = bench.sizes();
    bench.cpus.plug_mut().most = 3;
    let error = bench.begin(4, BOOT + MORE, 2 * MIB).unwrap_err();
    assert!(!error.is_request());
    bench.rest();
    assert_eq!(bench.sizes(), before, "neither vCPUs nor memory nor balloon");
    assert_eq!((bench.advance().len(), bench.resizes.pending()), (0, None));
    bench.cpus.plug_mut().most = 4;
    let taken = bench.space.place(Kind::Dimm, MORE).unwrap();
    bench.begin(4, BOOT + MORE, 2 * MIB).unwrap_err();
    drop(taken);
    assert_eq!(bench.sizes(), before);
    bench.begin(4, BOOT + MORE, 2 * MIB).unwrap();
    bench.rest();
    assert_eq!(bench.sizes(), (4, BOOT + MORE, 4, 2, 2 * MIB));
}

/// KVM makes vCPUs when it likes, and nobody waits for it.
#[test]
fn the_guest_hears_of_vcpus_when_all_of_them_are_made() {
    let mut bench = Bench::new();
    let pending = |bench: &Bench| bench.resizes.pending().unwrap_or_default();
    bench.cpus.plug_mut().are_made = false;
    for wanted in [4, 3] {
        bench.begin(wanted, BOOT, MIB).unwrap();
        assert!(bench.advance().is_empty());
        assert_eq!((bench.sizes().0, bench.sizes().2), (wanted, 1));
        assert_eq!(pending(&bench), "the host to make vCPUs");
        let status = bench.resizes.status(&bench.cpus, &bench.dimms);
        assert_eq!(
            (&status["vcpus"]["desired"], bench.hear()),
            (&json!(wanted), (0, false))
        );
    }
    bench.begin(1, BOOT, MIB).unwrap();
    assert_eq!(
        (pending(&bench).as_str(), bench.sizes().0),
        ("", 1),
        "it has all that it should"
    );
    bench.begin(3, BOOT, MIB).unwrap();
    bench.cpus.plug_mut().are_made = true;
    assert!(bench.advance().is_empty());
    assert_eq!((pending(&bench).as_str(), bench.sizes().2), ("vCPUs to come: 1 2", 3));
    assert_eq!([bench.hear(), bench.hear()], [(1, false), (2, false)]);
    // One that KVM refuses then is told as any other of the host's refusals.
    bench.cpus.plug_mut().are_made = false;
    bench.begin(4, BOOT, MIB).unwrap();
    (bench.cpus.plug_mut().most, bench.cpus.plug_mut().are_made) = (3, true);
    [1, 2].into_iter().for_each(|slot| bench.report(slot, 0));
    while bench.resizes.cpus.refusals().is_empty() {
        bench.advance();
    }
    let told = bench.resizes.refusals(TargetSize::ALL)[0].to_string();
    assert_eq!(
        told,
        "3 of 4 vCPUs: slot 3: cannot add vCPU 3: the host has no thread left"
    );
    assert_eq!((bench.sizes().0, pending(&bench).as_str()), (3, ""));
}

/// It has been asked by then.
#[test]
fn memory_that_the_host_refuses_late_is_no_reason_to_take_vcpus_back() {
    let mut bench = Bench::new();
    bench.slots.refuse(true, false);
    bench.begin(4, BOOT + MORE, 2 * MIB).unwrap();
    bench.rest();
    assert_eq!(bench.sizes(), (4, BOOT, 4, 1, 2 * MIB));
    let told = bench.resizes.refusals(TargetSize::ALL);
    assert!(matches!(&told[..], [Refusal { why: Why::Host, .. }]), "{told:?}");
    assert_eq!(bench.resizes.pending().as_deref(), Some("vCPUs to come: 1 2 3"));
}

/// Eight slots for vCPUs, and those that are there.
fn vcpus(there: &[u32]) -> (Hotplug<Paper>, Arc<Mutex<Bank>>) {
    let notifier = GedNotifier::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let bank = Arc::new(Mutex::new(
        Bank::new(SlotKind::Cpu, 8, notifier.clone(), || ()).unwrap(),
    ));
    let paper = Paper {
        most: usize::MAX,
        are_made: true,
        ..Paper::default()
    };
    let mut cpus = Hotplug::new(paper, bank.clone(), notifier);
    there.iter().for_each(|slot| cpus.present(*slot, ()).unwrap());
    (cpus, bank)
}

/// A guest that let go of one and kept the one above it.
#[test]
fn a_host_that_fails_half_way_takes_back_the_vcpus_that_it_made_and_no_others() {
    let (mut cpus, _) = vcpus(&[0, 1, 3]);
    let mut resize = CpuResize::default();
    cpus.plug_mut().most = 4;
    resize.set(&mut cpus, 6, Instant::now()).unwrap_err();
    assert_eq!(cpus.plug().there, BTreeSet::from([0, 1, 3]));
    let states: Vec<_> = cpus.states().into_iter().map(|(_, state)| state.name()).collect();
    assert_eq!(states[..5], ["present", "present", "absent", "present", "absent"]);
    resize.advance(&mut cpus, &mut Vec::new());
    assert_eq!(resize.pending(), None);
}

/// The guest never hears of those, and whoever asked is told why there are not as many as were asked for.
#[test]
fn a_vcpu_that_the_host_does_not_take_back_keeps_no_other_and_is_not_why_the_resize_failed() {
    let (mut cpus, _) = vcpus(&[0]);
    let mut resize = CpuResize::default();
    (cpus.plug_mut().most, cpus.plug_mut().kept) = (4, Some(3));
    let error = resize.set(&mut cpus, 6, Instant::now()).unwrap_err();
    assert!(
        error_chain(&error).contains("add vCPU 4: the host has no thread left"),
        "{error}"
    );
    assert_eq!((cpus::count(&cpus), &cpus.plug().there), (1, &BTreeSet::from([0, 3])));
    cpus.plug_mut().kept = None;
    resize.advance(&mut cpus, &mut Vec::new());
    assert_eq!((resize.pending(), &cpus.plug().there), (None, &BTreeSet::from([0])));
}

/// Up and down, and down and up, while the guest looks at nothing.
#[test]
fn a_reversal_that_the_guest_does_not_hear_of_is_no_change() {
    let mut bench = Bench::new();
    let counts = |bench: &Bench| {
        let latencies = bench.resizes.latencies();
        let counts = latencies.iter().map(|(_, took)| took.count());
        counts.take(3).collect::<Vec<_>>()
    };
    bench.begin(4, BOOT, MIB).unwrap();
    bench.begin(1, BOOT, MIB).unwrap();
    assert_eq!((bench.advance(), bench.resizes.pending()), (vec![], None));
    assert_eq!((bench.hear().0, counts(&bench)), (0, vec![0, 0, 0]));
    bench.begin(2, BOOT, MIB).unwrap();
    assert_eq!(bench.hear(), (1, false));
    bench.report(1, 0);
    bench.cpus.plug_mut().online.insert(1);
    assert_eq!(bench.advance(), ["1 present", "1 online"]);
    for keeps in [false, true] {
        bench.begin(1, BOOT, MIB).unwrap();
        if keeps {
            assert_eq!(bench.hear(), (1, true));
        }
        bench.begin(2, BOOT, MIB).unwrap();
        if keeps {
            bench.refuse_to_let_go(1, 0x82);
        }
        assert_eq!((bench.advance(), bench.resizes.pending()), (vec![], None));
        assert!(bench.resizes.refusals(TargetSize::ALL).is_empty());
        assert_eq!((bench.sizes().0, counts(&bench)), (2, vec![1, 1, 0]));
    }
}

/// Whoever waits for it is told of it all the same.
#[test]
fn what_the_guest_has_refused_outlasts_a_resize_that_does_not_begin() {
    let mut bench = Bench::new();
    bench.begin(3, BOOT, MIB).unwrap();
    assert_eq!([bench.hear(), bench.hear()], [(1, false), (2, false)]);
    bench.report(1, 0x81);
    let refused = "add vCPU 1: the guest refused, with code 0x81";
    assert_eq!(bench.advance(), [refused]);
    let stands = |bench: &mut Bench| {
        assert!(bench.advance().is_empty());
        let told: Vec<String> = bench
            .resizes
            .refusals(TargetSize::ALL)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told, [refused]);
        assert_eq!(
            bench.resizes.awaited(TargetSize::ALL).as_deref(),
            Some("vCPUs to come: 2")
        );
    };
    let taken = bench.space.place(Kind::Dimm, MORE).unwrap();
    bench.begin(2, BOOT + MORE, MIB).unwrap_err();
    stands(&mut bench);
    drop(taken);
    bench.cpus.plug_mut().most = 2;
    bench.begin(4, BOOT, MIB).unwrap_err();
    stands(&mut bench);
    bench.begin(2, BOOT, MIB).unwrap();
    assert!(
        bench.resizes.refusals(TargetSize::ALL).is_empty(),
        "the next one that does takes its place"
    );
}

/// Shims send vCPUs and memory one after the other.
#[test]
fn a_vcpu_that_is_refused_late_is_no_answer_to_a_resize_of_memory() {
    let mut bench = Bench::new();
    let begin = |bench: &mut Bench, vcpus, ram_bytes| {
        let wanted = TargetSize {
            vcpus,
            ram_bytes,
            balloon_bytes: None,
        };
        bench.resizes.begin(&mut bench.cpus, &mut bench.dimms, wanted).unwrap();
    };
    begin(&mut bench, Some(2), None);
    begin(&mut bench, None, Some(BOOT + MORE));
    assert_eq!(bench.hear(), (1, false));
    bench.report(1, 0x81);
    let refused = "add vCPU 1: the guest refused, with code 0x81";
    assert_eq!(bench.advance(), [refused], "it is told all the same");
    let of = |vcpus, ram_bytes| TargetSize {
        vcpus,
        ram_bytes,
        balloon_bytes: None,
    };
    assert_eq!(bench.resizes.refusals(of(None, Some(BOOT))), []);
    assert_eq!(
        bench.resizes.refusals(of(Some(2), None)).len(),
        1,
        "who waits for it hears of it"
    );
    let kinds = |bench: &Bench| {
        let status = bench.resizes.status(&bench.cpus, &bench.dimms);
        ["vcpus", "memory"].map(|kind| status[kind]["refusals"].clone())
    };
    assert_eq!(kinds(&bench), [json!([refused]), json!([])]);
    // It stays until vCPUs are asked for again.
    begin(&mut bench, None, Some(BOOT));
    assert_eq!(kinds(&bench)[0], json!([refused]));
    begin(&mut bench, Some(1), None);
    assert_eq!(
        (kinds(&bench), bench.resizes.refusals(TargetSize::ALL)),
        ([json!([]), json!([])], vec![])
    );
    let status = bench.resizes.status(&bench.cpus, &bench.dimms);
    assert_eq!(
        status["memory"]["asked_bytes"], BOOT,
        "of whichever resize spoke of it last"
    );
}

/// What there is when the guest has let go of a vCPU that is wanted again by then, and the host has no thread for
/// another one.
fn let_go_of_and_wanted_again() -> (Hotplug<Paper>, CpuResize, Vec<Change>) {
    let (mut cpus, bank) = vcpus(&[0, 1]);
    let (mut resize, mut changes, now) = (CpuResize::default(), Vec::new(), Instant::now());
    resize.set(&mut cpus, 1, now).unwrap();
    bank.lock().unwrap().read(0, &mut [0; 4]);
    resize.set(&mut cpus, 2, now).unwrap();
    cpus.plug_mut().most = 1;
    let _ = bank.lock().unwrap().write(4, &1_u32.to_le_bytes());
    resize.advance(&mut cpus, &mut changes);
    (cpus, resize, changes)
}

/// The guest has let go of a vCPU that is wanted again by then, and the host has no thread for another one.
#[test]
fn a_vcpu_that_the_host_cannot_make_again_is_refused_and_not_forgotten() {
    let (mut cpus, mut resize, mut changes) = let_go_of_and_wanted_again();
    assert_eq!(resize.pending().as_deref(), Some("the host to make vCPUs"));
    assert!(
        matches!(changes[..], [Change::VcpuGone(1, _)]),
        "whatever comes in its place: {changes:?}"
    );
    while resize.pending().is_some() {
        assert!(
            resize.poll(Instant::now()).is_some(),
            "it is tried again without a wakeup"
        );
        resize.advance(&mut cpus, &mut changes);
    }
    assert_eq!(cpus::count(&cpus), 1);
    let told: Vec<String> = resize.refusals().iter().map(ToString::to_string).collect();
    let why = "1 of 2 vCPUs: slot 1: cannot add vCPU 1: the host has no thread left";
    assert_eq!(told, [why]);
    assert!(matches!(changes.last(), Some(Change::Refused(..))), "{changes:?}");
    // It is said once, and the next resize begins anew.
    resize.take_refusals();
    resize.advance(&mut cpus, &mut changes);
    assert!(resize.refusals().is_empty());
    cpus.plug_mut().most = 2;
    resize.set(&mut cpus, 2, Instant::now()).unwrap();
    assert_eq!(cpus::count(&cpus), 2);
}

/// The thread of the one that went may count until it has ended.
#[test]
fn a_vcpu_that_the_host_can_make_again_a_moment_later_comes() {
    let (mut cpus, mut resize, mut changes) = let_go_of_and_wanted_again();
    cpus.plug_mut().most = 2;
    resize.advance(&mut cpus, &mut changes);
    assert_eq!((cpus::count(&cpus), resize.refusals()), (2, &[][..]));
    assert_eq!(resize.pending().as_deref(), Some("vCPUs to come: 1"));
}

#[test]
fn a_vcpu_that_goes_though_it_is_wanted_again_is_told_to_have_gone() {
    let mut bench = Bench::new();
    bench.begin(2, BOOT, MIB).unwrap();
    assert_eq!(bench.hear(), (1, false));
    bench.report(1, 0);
    assert_eq!(bench.advance(), ["1 present"]);
    bench.begin(1, BOOT, MIB).unwrap();
    assert_eq!(bench.hear(), (1, true));
    bench.begin(2, BOOT, MIB).unwrap();
    assert!(bench.advance().is_empty(), "it may keep it yet");
    bench.let_go(1);
    assert_eq!(bench.advance(), ["1 gone"]);
    assert_eq!(bench.hear(), (1, false));
    bench.report(1, 0);
    assert_eq!(bench.advance(), ["1 present"]);
    // TargetSize no more after all: told once.
    for vcpus in [1, 2, 1] {
        bench.begin(vcpus, BOOT, MIB).unwrap();
        if vcpus == 1 {
            bench.hear();
        }
    }
    bench.let_go(1);
    assert_eq!(bench.advance(), ["1 gone"]);
    assert!(bench.advance().is_empty());
}

#[test]
fn each_answer_about_a_vcpu_is_told_once_and_stands_in_the_status() {
    let mut bench = Bench::new();
    bench.begin(4, 0, MIB).unwrap();
    let pending = |bench: &Bench| bench.resizes.pending().unwrap_or_default();
    assert_eq!(pending(&bench), "vCPUs to come: 1 2 3");
    for (slot, status) in [(1, 0), (2, 0x81), (3, 0)] {
        assert_eq!(bench.hear(), (slot, false));
        bench.report(slot, status);
    }
    let refused = "add vCPU 2: the guest refused, with code 0x81";
    assert_eq!(bench.advance(), ["1 present", refused, "3 present"]);
    let told: Vec<String> = bench
        .resizes
        .refusals(TargetSize::ALL)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!((told, pending(&bench)), (vec![refused.to_owned()], String::new()));
    assert!(bench.advance().is_empty());
    bench.cpus.plug_mut().online.insert(1);
    assert_eq!((bench.advance(), bench.advance()), (vec!["1 online".into()], vec![]));
    let status = bench.resizes.status(&bench.cpus, &bench.dimms);
    let vcpus = &status["vcpus"];
    let states = ["online", "online", "absent", "present"];
    assert_eq!(vcpus["states"], json!(states), "nobody has to start the first one");
    let counts = ["desired", "present", "online", "max"].map(|name| vcpus[name].as_u64());
    assert_eq!(counts, [Some(3), Some(3), Some(2), Some(4)]);
    assert_eq!(status["memory"]["present_bytes"], BOOT);

    bench.begin(1, 0, MIB).unwrap();
    assert_eq!(pending(&bench), "vCPUs to go: 3 1");
    for slot in [3, 1] {
        assert_eq!(bench.hear(), (slot, true));
        bench.let_go(slot);
    }
    assert_eq!(bench.advance(), ["3 gone", "1 gone"]);
    assert!(bench.resizes.refusals(TargetSize::ALL).is_empty() && pending(&bench).is_empty());
    let latencies = bench.resizes.latencies();
    let counts: Vec<_> = latencies.iter().map(|(what, took)| (*what, took.count())).collect();
    let vcpus = [("vcpu_present", 2), ("vcpu_online", 1), ("vcpu_removed", 2)];
    assert_eq!(counts[..3], vcpus);
    assert_eq!(counts[3..], [("memory_plugged", 0), ("memory_unplugged", 0)]);
}

#[test]
fn a_resize_leaves_in_the_balloon_what_a_client_wants_of_what_an_idle_guest_gave() {
    let config = crate::config::BalloonConfig {
        size: MIB,
        reclaim_idle: Some(8),
        ..Default::default()
    };
    let mut bench = Bench::with(Reclaim::new(&config, Instant::now()));
    let balloon = bench.balloon.handle();
    let given = BalloonTarget::new(8 * MIB).unwrap();
    balloon.set_target(given);
    bench.begin_nothing();
    assert_eq!(balloon.size().target_bytes, MIB);
    bench.begin(1, 0, 2 * MIB).unwrap();
    assert_eq!(balloon.size().target_bytes, 2 * MIB);
    balloon.set_target(given);
    bench.begin_nothing();
    assert_eq!(balloon.size().target_bytes, 2 * MIB, "what it wanted last");
    let generation = || bench.balloon.config().lock().unwrap().generation();
    let before = generation();
    fill(&balloon, 2 * MIB);
    assert_eq!(generation(), before, "the driver is not disturbed for nothing");
}

#[test]
fn a_balloon_is_waited_for_if_it_has_a_driver_and_another_size_than_it_should() {
    let owed = |driver, actual_bytes| {
        owed(BalloonSize {
            actual_bytes,
            target_bytes: MIB,
            driver,
        })
    };
    assert_eq!(owed(true, 4096).as_deref(), Some("balloon: 4096 of 1048576 bytes"));
    assert!(owed(true, 2 * MIB).is_some());
    assert_eq!([owed(true, MIB), owed(false, 0), owed(false, MIB)], [None, None, None]);
}

#[test]
fn a_resize_waits_for_what_it_asked_for_and_not_for_what_another_did() {
    let mut bench = Bench::new();
    let vcpus = |vcpus| TargetSize {
        vcpus: Some(vcpus),
        ..TargetSize::default()
    };
    let memory = TargetSize {
        ram_bytes: Some(BOOT + MORE),
        ..TargetSize::default()
    };
    bench.begin(1, BOOT + MORE, MIB).unwrap();
    assert!(bench.resizes.awaited(TargetSize::ALL).is_some());
    let Bench {
        resizes, cpus, dimms, ..
    } = &mut bench;
    resizes.begin(cpus, dimms, vcpus(1)).unwrap();
    assert!(
        resizes
            .awaited(memory)
            .is_some_and(|awaited| awaited.contains("memory"))
    );
    assert_eq!(resizes.awaited(vcpus(1)), None, "the guest has the vCPU");
    resizes.begin(cpus, dimms, vcpus(2)).unwrap();
    assert!(
        resizes
            .awaited(vcpus(2))
            .is_some_and(|awaited| !awaited.contains("memory"))
    );
    assert!(
        resizes.awaited(memory).is_some(),
        "it is waited for whatever comes later"
    );
}

#[test]
fn less_ram_than_the_balloon_is_to_have_is_refused_with_what_it_has() {
    let mut bench = Bench::new();
    let ram = |bytes| TargetSize {
        ram_bytes: Some(bytes),
        ..TargetSize::default()
    };
    bench.begin(1, BOOT + MORE, BOOT + MIB).unwrap();
    let before = bench.sizes();
    let error = bench
        .resizes
        .begin(&mut bench.cpus, &mut bench.dimms, ram(BOOT))
        .unwrap_err();
    assert!(error.is_request());
    let told = format!(
        "desired_ram: {BOOT} bytes asked for, more than the {} bytes that the balloon is to have needed (desired_balloon)",
        BOOT + MIB
    );
    assert_eq!((error.to_string(), bench.sizes()), (told, before));
    bench
        .resizes
        .begin(&mut bench.cpus, &mut bench.dimms, ram(2 * BOOT))
        .unwrap();
    bench.begin(1, BOOT, MIB).unwrap();
    assert_eq!((bench.sizes().1, bench.sizes().4), (BOOT, MIB), "both at once");
}

/// RAM that was to come and does not was counted with when the balloon was asked for.
#[test]
fn a_balloon_that_would_leave_nothing_of_the_ram_that_came_gives_back_what_is_missing() {
    let config = crate::config::BalloonConfig {
        reclaim_idle: Some(8),
        ..Default::default()
    };
    for reclaim in [None, Reclaim::new(&config, Instant::now())] {
        let mut bench = Bench::with(reclaim);
        bench.begin(1, BOOT + MORE, BOOT + MORE - 48 * MIB).unwrap();
        let size = |bench: &Bench| bench.resizes.size(&bench.cpus, &bench.dimms);
        assert_eq!(size(&bench).balloon_bytes, Some(BOOT + MORE - 48 * MIB));
        bench
            .resizes
            .stop_growing(&mut bench.dimms, "Killed process 7")
            .unwrap();
        bench.advance();
        assert_eq!(
            (size(&bench).ram_bytes, size(&bench).balloon_bytes, bench.sizes().4),
            (BOOT, Some(BOOT - 48 * MIB), BOOT - 48 * MIB),
            "the guest has what it was to have beside it"
        );
        let status = bench.resizes.status(&bench.cpus, &bench.dimms);
        assert_eq!(
            status["memory"]["balloon"]["asked_bytes"],
            BOOT + MORE - 48 * MIB,
            "whatever came of it"
        );
    }
}

/// Neither a guest that answers nothing nor memory that it keeps has the control thread look all the time.
#[test]
fn an_idle_guest_is_looked_at_again_after_a_while_whatever_it_keeps() {
    let config = crate::config::BalloonConfig {
        reclaim_idle: Some(8),
        ..Default::default()
    };
    let long_ago = Instant::now() - Duration::from_secs(60);
    let mut bench = Bench::with(Reclaim::new(&config, long_ago));
    assert_eq!(bench.resizes.poll(), Some(Duration::ZERO), "it is overdue");
    bench.begin(1, BOOT + MORE, 0).unwrap();
    bench.resizes.advance(&mut bench.cpus, &mut bench.dimms);
    assert!(bench.resizes.awaited(TargetSize::ALL).is_some());
    assert!(bench.resizes.poll() > Some(Duration::from_secs(1)));
}

#[test]
fn a_refusal_says_whose_it_is() {
    let said = |why| {
        let what = "add vCPU 3".into();
        Refusal { what, why }.to_string()
    };
    assert_eq!(said(Why::Code(0x81)), "add vCPU 3: the guest refused, with code 0x81");
    assert_eq!(
        said(Why::Unproven),
        "add vCPU 3: the guest reported success, but does not have it"
    );
    assert_eq!(said(Why::Host), "add vCPU 3");
    let code = |why| {
        let what = String::new();
        Refusal { what, why }.code()
    };
    let codes = [Why::Code(0x81), Why::Unproven, Why::Host].map(code);
    assert_eq!(codes, [Some(0x81), None, None]);
}
