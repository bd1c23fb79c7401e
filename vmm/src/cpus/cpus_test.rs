//! Needs `/dev/kvm`, where it does not say otherwise: a guest of a few instructions for each vCPU.
//!
//! The first vCPU counts at [`FIRST`]. When [`START`] is set it clears it and starts vCPU 1 (Intel
//! SDM vol. 3A §9.4.4.1), which counts at [`SECOND`].

use std::time::{Duration, Instant};

use husk_devices::testing::until;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::kvm::{Access, Kvm, Vm};
use crate::wakeup::Wakeup;

/// Nothing here takes this long.
const NEVER: Duration = Duration::from_secs(600);

const RAM_BYTES: usize = 0x4000;
/// Where the first vCPU's code is, 32-bit and flat.
const CODE: usize = 0;
/// Where the second one's is: page 1, in real mode.
const CODE_16: usize = 0x1000;
const FIRST: usize = 0x2000;
const SECOND: usize = 0x2004;
const START: usize = 0x2008;

fn code() -> Vec<u8> {
    let mut code = Vec::new();
    store(&mut code, 0xfee0_00f0, 0x1ff); // its local APIC enabled, as of every guest that starts others
    let again = code.len();
    code.extend([0xff, 0x05]); // again: inc dword [FIRST]
    code.extend(0x2000_u32.to_le_bytes());
    code.extend([0x83, 0x3d]); // cmp dword [START], 0
    code.extend(0x2008_u32.to_le_bytes());
    code.push(0);
    code.extend([0x74, 0xf1]); // je again
    for (address, value) in [
        (0x2008, 0_u32),
        (0xfee0_0310, 1 << 24), // to APIC ID 1:
        (0xfee0_0300, 0x4500),  // INIT
        (0xfee0_0310, 1 << 24),
        (0xfee0_0300, 0x4601), // SIPI, page 1
    ] {
        store(&mut code, address, value);
    }
    let back = -i8::try_from(code.len() + 2 - again).unwrap();
    code.extend([0xeb, back.to_le_bytes()[0]]); // jmp again
    code
}

/// `mov dword [address], value`.
fn store(code: &mut Vec<u8>, address: u32, value: u32) {
    code.extend([0xc7, 0x05]);
    code.extend(address.to_le_bytes());
    code.extend(value.to_le_bytes());
}

/// `inc dword [SECOND]`, again and again.
const CODE_OF_SECOND: [u8; 7] = [0x66, 0xff, 0x06, 0x04, 0x20, 0xeb, 0xf9];

struct Guest {
    cpus: Cpus,
    vm: Vm,
    topology: Topology,
    wakeup: Wakeup,
    board: Arc<Board>,
    ram: MmapRegion,
}

/// A guest with `boot` of `max` vCPUs; `None`, said in a line, where there is no KVM.
#[expect(unsafe_code, reason = "a KVM slot that points into the test's own mapping")]
fn guest(boot: u32, max: u32) -> Option<Guest> {
    let kvm = Kvm::for_test()?;
    let vm = kvm.create_vm().unwrap();
    let ram = MmapRegion::new(RAM_BYTES).unwrap();
    // SAFETY: the guest is gone before its RAM: fields are dropped in their order.
    unsafe { vm.map(0, 0, ram.as_ptr(), RAM_BYTES as u64, Access::ReadWrite) }.unwrap();
    vm.create_irqchip(max, 0xfffb_d000).unwrap();
    let topology = kvm.topology(max);
    let wakeup = Wakeup::new().unwrap();
    let board = Arc::new(Board::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let kicker = Kicker::install().unwrap();
    let cpus = Cpus::prepare(
        &up_to(boot, max),
        &board,
        kicker,
        Mode::Off,
        &Trace::default(),
        &wakeup.waker(),
    )
    .unwrap();
    let mut guest = Guest {
        cpus,
        vm,
        topology,
        wakeup,
        board,
        ram,
    };
    guest.write(CODE, &code());
    guest.write(CODE_16, &CODE_OF_SECOND);
    let vcpus = (0..boot).map(|id| guest.vcpu(id)).collect();
    guest.cpus.put(vcpus);
    Some(guest)
}

impl Guest {
    fn vcpu(&self, id: u32) -> Vcpu {
        let mut vcpu = self.vm.create_vcpu(id).unwrap();
        vcpu.configure(&self.topology).unwrap();
        if id == 0 {
            let mut system = vcpu.system_registers().unwrap();
            for segment in [&mut system.cs, &mut system.ds, &mut system.es, &mut system.ss] {
                (segment.base, segment.limit, segment.g, segment.db) = (0, u32::MAX, 1, 1);
            }
            system.cr0 |= 1;
            let registers = kvm_bindings::kvm_regs {
                rip: CODE as u64,
                rflags: 2,
                ..Default::default()
            };
            vcpu.set_registers(&registers, &system).unwrap();
        }
        vcpu
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.ram.as_volatile_slice().write_slice(bytes, at).unwrap();
    }

    fn count(&self, at: usize) -> u32 {
        self.ram.as_volatile_slice().read_obj(at).unwrap()
    }

    /// Waits until the vCPU that counts at `at` has gone on.
    fn counts(&self, at: usize) {
        let before = self.count(at);
        until(|| {
            assert_eq!(self.board.ending(), None);
            self.count(at) != before
        });
    }

    fn until(&self, done: impl Fn(&Cpus) -> bool) {
        assert!(self.wakeup.wait_until(Instant::now() + NEVER, || done(&self.cpus)));
    }

    /// Waits until the guest has started vCPU `id`, of which nothing but KVM's counters tells.
    fn until_online(&self, id: u32) {
        until(|| self.cpus.is_online(id));
    }

    fn pause(&mut self) {
        self.cpus.pause();
        self.until(Cpus::is_paused);
    }

    fn add(&mut self, id: u32) -> Result<(), AddError> {
        if self.cpus.needs_vcpu(id) {
            let error = self.cpus.add(id, &self.topology).unwrap_err();
            assert!(matches!(error, AddError::Unmade { .. }), "{error}");
            self.cpus.park(self.vm.create_vcpu(id).unwrap());
        }
        assert!(!self.cpus.needs_vcpu(id));
        self.cpus.add(id, &self.topology)
    }

    fn unplug(&mut self, id: u32) {
        until(|| self.cpus.retire(id));
        self.cpus.remove(id);
    }

    /// Has the first vCPU start the second one.
    fn start_second(&self) {
        self.write(START, &[1]);
        self.counts(SECOND);
    }

    fn states(&self) -> Vec<CpuState> {
        (0..self.cpus.max()).map(|id| self.cpus.state(id)).collect()
    }
}

fn up_to(boot_vcpus: u32, max_vcpus: u32) -> CpusConfig {
    CpusConfig {
        boot_vcpus,
        max_vcpus,
        ..CpusConfig::default()
    }
}

/// Threads for `boot` of `max` vCPUs that never come, so that whatever is asked of one is not done
/// before its thread ends. Needs no KVM.
fn without_vcpus(boot: u32, max: u32) -> (Cpus, Wakeup) {
    let wakeup = Wakeup::new().unwrap();
    let board = Arc::new(Board::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let kicker = Kicker::install().unwrap();
    let cpus = Cpus::prepare(
        &up_to(boot, max),
        &board,
        kicker,
        Mode::Off,
        &Trace::default(),
        &wakeup.waker(),
    );
    (cpus.unwrap(), wakeup)
}

#[test]
fn what_was_asked_is_not_done_before_the_last_vcpu_has_done_it() {
    use CpuState::{Absent, Parked, Running};
    let (mut cpus, wakeup) = without_vcpus(2, 3);
    let states = |cpus: &Cpus| [0, 1, 2, 3].map(|id| cpus.state(id));
    assert_eq!(states(&cpus), [Parked, Parked, Absent, Absent]);
    assert_eq!(cpus.max(), 3);
    cpus.run();
    assert_eq!(states(&cpus), [Running, Running, Absent, Absent]);
    cpus.pause();
    assert_eq!(
        states(&cpus),
        [Running, Running, Absent, Absent],
        "asked, and not yet out"
    );
    assert!(!cpus.is_paused() && !cpus.is_stopped());
    // The one that is to leave has no vCPU to give back, but an end.
    cpus.retire(1);
    assert!(wakeup.wait_until(Instant::now() + NEVER, || cpus.retire(1)));
    assert_eq!(
        states(&cpus),
        [Running, Parked, Absent, Absent],
        "it has left and is not forgotten"
    );
    assert!(!cpus.is_paused() && !cpus.is_stopped(), "there is another one");
    cpus.remove(0);
    cpus.remove(1);
    assert_eq!(states(&cpus), [Running, Absent, Absent, Absent]);
    cpus.resume();
    assert_eq!(cpus.state(0), Running);
    cpus.stop();
    assert!(wakeup.wait_until(Instant::now() + NEVER, || cpus.is_stopped()));
}

#[test]
fn a_vcpu_that_is_to_go_runs_until_it_has_left_and_is_not_called_running_then() {
    let (mut cpus, wakeup) = without_vcpus(2, 2);
    cpus.run();
    assert_eq!(cpus.state(1), CpuState::Running);
    assert!(wakeup.wait_until(Instant::now() + NEVER, || cpus.retire(1)));
    assert_eq!([0, 1].map(|id| cpus.state(id)), [CpuState::Running, CpuState::Parked]);
}

#[test]
fn each_vcpu_that_is_there_has_figures_and_is_online_once_the_guest_has_started_it() {
    let Some(mut guest) = guest(1, 3) else { return };
    let online = |guest: &Guest| -> Vec<(u32, bool)> {
        let figures = guest.cpus.figures();
        figures.iter().map(|figure| (figure.id, figure.online)).collect()
    };
    assert_eq!(online(&guest), [(0, true)], "nobody has to start the first one");
    guest.cpus.run();
    guest.add(1).unwrap();
    assert_eq!(online(&guest), [(0, true), (1, false)]);
    guest.start_second();
    guest.until_online(1);
    assert_eq!(online(&guest), [(0, true), (1, true)]);
    guest.unplug(1);
    assert_eq!(online(&guest), [(0, true)]);
    assert!(guest.cpus.figures()[0].ran.is_some_and(|ran| !ran.is_zero()));
}

#[test]
fn a_pause_stops_every_vcpu_and_they_go_on_from_there() {
    let Some(mut guest) = guest(2, 2) else { return };
    assert_eq!(guest.states(), [CpuState::Parked; 2]);
    guest.cpus.run();
    guest.counts(FIRST);
    guest.start_second();
    for _ in 0..3 {
        guest.pause();
        assert_eq!(guest.states(), [CpuState::Held; 2]);
        let before = [FIRST, SECOND].map(|at| guest.count(at));
        (0..100).for_each(|_| thread::yield_now());
        assert_eq!([FIRST, SECOND].map(|at| guest.count(at)), before, "they stand still");
        guest.cpus.resume();
        assert_eq!(guest.states(), [CpuState::Running; 2]);
        guest.counts(FIRST);
        guest.counts(SECOND);
    }
}

#[test]
fn a_pause_that_is_taken_back_at_once_leaves_the_guest_running() {
    let Some(mut guest) = guest(1, 1) else { return };
    guest.cpus.run();
    for _ in 0..100 {
        guest.cpus.pause();
        guest.cpus.resume();
    }
    guest.counts(FIRST);
}

#[test]
fn everything_stops_from_wherever_it_is() {
    for (running, paused) in [(false, false), (true, false), (true, true)] {
        let Some(mut guest) = guest(2, 3) else { return };
        if running {
            guest.cpus.run();
        }
        if paused {
            guest.pause();
        }
        guest.cpus.stop();
        guest.until(Cpus::is_stopped);
    }
}

#[test]
fn a_vcpu_that_comes_waits_until_the_guest_starts_it() {
    let Some(mut guest) = guest(1, 2) else { return };
    guest.cpus.run();
    assert_eq!(guest.states(), [CpuState::Running, CpuState::Absent]);
    assert!(!guest.cpus.is_starting(0) && !guest.cpus.is_starting(1));
    guest.add(1).unwrap();
    assert_eq!(guest.states(), [CpuState::Running; 2]);
    guest.counts(FIRST);
    assert_eq!((guest.cpus.is_online(1), guest.count(SECOND)), (false, 0));
    assert!(!guest.cpus.is_starting(1));
    guest.start_second();
    guest.until_online(1);
    assert!(guest.cpus.is_online(0) && !guest.cpus.is_starting(1));
}

#[test]
fn a_vcpu_that_was_reset_and_not_yet_sent_off_is_starting() {
    let Some(mut guest) = guest(1, 2) else { return };
    // INIT where SIPI was.
    let sipi = code().windows(4).position(|bytes| bytes == 0x4601_u32.to_le_bytes());
    guest.write(CODE + sipi.unwrap(), &0x4500_u32.to_le_bytes());
    guest.cpus.run();
    guest.add(1).unwrap();
    guest.write(START, &[1]);
    guest.until(|cpus| cpus.is_starting(1));
    assert!(!guest.cpus.is_online(1));
    assert_eq!(guest.count(SECOND), 0);
}

#[test]
fn each_vcpu_that_is_there_shows_what_kvm_counts_and_has_the_clock_of_the_first() {
    let Some(mut guest) = guest(1, 3) else { return };
    let first = guest.cpus.slots[0].thread.as_ref().unwrap();
    let offset = first.handover.with(|vcpu| vcpu.tsc_offset()).unwrap();
    assert_eq!(guest.cpus.tsc_offset, offset);
    guest.cpus.run();
    guest.add(2).unwrap();
    guest.counts(FIRST);
    guest.pause();
    let counted: Vec<_> = guest.cpus.counters().collect();
    assert_eq!(counted.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 2]);
    for (id, counters) in counted {
        let has_stats = guest.cpus.slots[id as usize].stats.is_some();
        let names: Vec<_> = counters.iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"exits") == has_stats, "vCPU {id}: {names:?}");
        let exits = counters.iter().find(|(name, _)| *name == "exits");
        assert!(
            id != 0 || exits.is_none_or(|(_, exits)| *exits > 0),
            "it was called out"
        );
    }
}

#[test]
fn a_guest_that_has_ended_is_not_entered_again() {
    let Some(mut guest) = guest(1, 1) else { return };
    guest.cpus.run();
    guest.counts(FIRST);
    guest.board.end(Ending::PowerOff);
    guest.cpus.pause();
    guest.until(Cpus::is_stopped);
}

#[test]
fn no_thread_outlives_the_vcpus() {
    let Some(mut guest) = guest(1, 2) else { return };
    guest.cpus.run();
    guest.add(1).unwrap();
    guest.counts(FIRST);
    let board = guest.board.clone();
    drop(guest);
    assert_eq!(Arc::strong_count(&board), 1, "each thread has it");
}

#[test]
fn a_vcpu_that_went_comes_again_as_it_was_at_first() {
    let Some(mut guest) = guest(1, 2) else { return };
    guest.cpus.run();
    for _ in 0..3 {
        guest.add(1).unwrap();
        guest.start_second();
        guest.until_online(1);
        guest.unplug(1);
        assert_eq!(guest.states(), [CpuState::Running, CpuState::Absent]);
        let before = guest.count(SECOND);
        guest.counts(FIRST);
        assert_eq!(guest.count(SECOND), before, "it has left the guest");
        guest.add(1).unwrap();
        guest.counts(FIRST);
        assert_eq!(guest.count(SECOND), before, "it waits to be started");
        assert!(!guest.cpus.is_online(1));
        guest.unplug(1);
    }
}

/// Whether the process has a thread of this name.
fn has_thread(name: &str) -> bool {
    let names = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names = names.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.any(|found| found.trim_end() == name)
}

/// Its thread is nobody's: it ends by itself, and is not waited for in the end, nor taken for that
/// of the vCPU when it comes again.
#[test]
fn the_thread_of_a_vcpu_that_has_gone_is_not_waited_for() {
    // A number that no other test has.
    let Some(mut guest) = guest(1, 8) else { return };
    guest.cpus.run();
    guest.add(7).unwrap();
    guest.counts(FIRST);
    guest.unplug(7);
    until(|| !has_thread("vcpu7"));
    guest.add(7).unwrap();
    guest.unplug(7);
    guest.cpus.stop();
    guest.until(Cpus::is_stopped);
    guest.cpus.join();
}

#[test]
fn a_vcpu_that_comes_during_a_pause_waits_with_the_others() {
    let Some(mut guest) = guest(1, 2) else { return };
    guest.cpus.run();
    guest.cpus.pause();
    guest.add(1).unwrap();
    guest.until(Cpus::is_paused);
    assert_eq!(guest.states(), [CpuState::Held; 2]);
    guest.unplug(1);
    assert_eq!(guest.states(), [CpuState::Held, CpuState::Absent]);
    guest.add(1).unwrap();
    guest.cpus.resume();
    assert_eq!(guest.states(), [CpuState::Running; 2]);
    guest.start_second();
}

#[test]
fn only_what_is_absent_can_come() {
    let Some(mut guest) = guest(1, 2) else { return };
    for id in [0, 2, u32::MAX] {
        let error = guest.add(id).unwrap_err();
        assert_eq!(error.to_string(), format!("there is no vCPU {id} to add"));
    }
    guest.cpus.run();
    guest.add(1).unwrap();
    assert!(guest.add(1).is_err());
    assert!(guest.cpus.retire(7), "what is not there has left");
    guest.cpus.remove(0);
    assert_eq!(guest.states(), [CpuState::Running; 2], "not asked to leave");
}
