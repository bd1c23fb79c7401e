//! Sequences of `vm.resize` on a machine without KVM: real slots, memory, virtio-mem and balloon,
//! vCPUs on paper, a guest that answers as it likes, and a host that fails at times.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | bytes | a request with this body |
//! | 1 | fields, vCPUs, MiB of RAM, MiB of balloon | the same, made of numbers |
//! | 2 | - | husk looks what has become of it, and waits for a DIMM that a thread is making |
//! | 3 | bank | the guest takes the next event |
//! | 4 | bank, slot, source, status | it evaluates `_OST` |
//! | 5, 6 | bank, slot | `_EJ0`, `_SUN` |
//! | 7 | slot | `_CRS` of a memory slot |
//! | 8 | bank, offset, bytes | it writes to a bank |
//! | 9 | - | the driver of virtio-mem comes or goes |
//! | 10 | request, block, blocks | what it asks for |
//! | 11 | pages | what the driver of the balloon says that is in it |
//! | 12 | flags | from now on KVM takes no slot, gives none back, or there is no thread for a vCPU, or no longer |
//! | 13 | - | the guest answers all that it was asked, as it should |
//!
//! A request that is refused has changed nothing. No slot of KVM changes on the thread that asks
//! and looks. What the guest can reach is what there is, and the sums agree. In the end, when guest
//! and host do what they should, every resize comes to its end and both sides have the same.

mod driver;
mod paper_host;
mod seeds;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use husk::api::Resize;
use husk::config::MemoryConfig;
use husk::machine::resize::{DimmPlug, Dimms, MemoryParts, MemoryResize, Resizes, dimm_slots};
use husk::machine::{MachineSize, TargetSize};
use husk::memory::{AddressSpace, Blocks};
use husk_devices::{BusDevice, Irq};
use husk_hotplug::bank::{Bank, SlotKind};
use husk_hotplug::ged::GedNotifier;
use husk_hotplug::slot::State;
use husk_hotplug::{Hotplug, Plug};
use husk_virtio::balloon::{Balloon, BalloonConfig};
use husk_virtio::device::VirtioDevice;
use husk_virtio::mem::{Mem, MemConfig};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::script::Script;
use driver::Driver;
use paper_host::{Kvm, Paper, as_main};
pub use seeds::seeds;

const MIB: u64 = 1 << 20;
/// Little, so that DIMMs are small, and the address sanitizer has little to keep account of.
const BOOT: u64 = 16 * MIB;
const MORE: u64 = 384 * MIB;
const VCPUS: u32 = 6;
const BLOCK: u64 = 2 * MIB;
/// Where each begins, and how long it is, in bytes.
type Ranges = BTreeSet<(u64, u64)>;
/// Of whichever kind.
const ALL: TargetSize = TargetSize {
    vcpus: Some(0),
    ram_bytes: Some(0),
    balloon_bytes: Some(0),
};
const PHYS_BITS: u8 = 40;
/// Turns after which everything that was asked for is done if it ever will be.
const TURNS: usize = 500;
/// Looks after which a thread has done what it had to if it ever will.
const LOOKS: usize = 100_000;
/// Between two of them.
const PAUSE: Duration = Duration::from_micros(100);

/// Registers of a bank.
const EJCT: u64 = 0x04;
const SIGN: u64 = 0x08;
const OSTR: u64 = 0x10;
const STATUS: u64 = 0x40;
const RECORDS: u64 = 0x840;
/// Requests of virtio-mem (virtio 1.2 §5.15.6).
const PLUG: u8 = 0;
/// A field of the configuration (virtio 1.2 §5.15.4).
const REQUESTED_SIZE: u64 = 0x30;
const UNPLUG_ALL: u8 = 2;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let Some(flags) = script.u8() else { return };
    let mut machine = Machine::new(flags);
    while machine.step(&mut script).is_some() {
        machine.check();
    }
    machine.end();
}

struct Machine {
    resizes: Resizes,
    cpus: Hotplug<Paper>,
    dimms: Dimms,
    /// Of vCPUs and of memory.
    banks: [Arc<Mutex<Bank>>; 2],
    kvm: Arc<Kvm>,
    space: Arc<AddressSpace>,
    mem: Option<Mem>,
    driver: Option<Driver>,
    balloon: Balloon,
}

impl Machine {
    /// With virtio-mem if bit 0 of `flags` is set.
    fn new(flags: u8) -> Self {
        let config = MemoryConfig {
            size: BOOT,
            hotplug_size: Some(MORE),
            acpi_only: flags & 1 == 0,
            ..Default::default()
        };
        let kvm = Arc::<Kvm>::default();
        let space = AddressSpace::new(&config, kvm.clone(), PHYS_BITS).expect("memory that nobody touches");
        let reserve = space.reserve().expect("it was asked for");
        let mem = reserve.blocks.map(|(base, bytes)| {
            let blocks = Blocks::new(space.clone(), base..base + bytes, BLOCK).unwrap();
            let config = MemConfig {
                base,
                region_bytes: bytes,
                block_bytes: BLOCK,
            };
            Mem::new(config, blocks, || ()).unwrap()
        });
        let notifier = GedNotifier::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
        let bank = |kind, slots| Arc::new(Mutex::new(Bank::new(kind, slots, notifier.clone(), || ()).unwrap()));
        let banks = [bank(SlotKind::Cpu, VCPUS), bank(SlotKind::Memory, dimm_slots().count)];
        banks[0].lock().unwrap().pin(0).unwrap();
        let mut cpus = Hotplug::new(Paper::default(), banks[0].clone(), notifier.clone());
        cpus.present(0, ()).unwrap();
        let dimms = Hotplug::new(
            DimmPlug::new(space.clone(), Waker::noop().clone()),
            banks[1].clone(),
            notifier,
        );
        let parts = MemoryParts {
            boot_bytes: BOOT,
            more_bytes: MORE,
            unit: reserve.unit,
            blocks_only: false,
        };
        let balloon = Balloon::new(BalloonConfig::default(), space.clone(), || ()).unwrap();
        let memory = MemoryResize::new(parts, space.clone(), mem.as_ref().map(Mem::handle));
        Self {
            resizes: Resizes::new(memory, Some(balloon.handle()), None),
            cpus,
            dimms: Some(dimms),
            banks,
            kvm,
            space,
            mem,
            driver: None,
            balloon,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        match script.u8()? % 14 {
            0 => {
                if let Ok(wanted) = serde_json::from_slice(script.bytes()?) {
                    self.ask(wanted);
                }
            }
            1 => {
                let fields = script.u8()?;
                let (vcpus, ram, balloon) = (script.u8()?, script.u16()?, script.u8()?);
                self.ask(Resize {
                    desired_vcpus: (fields & 1 != 0).then_some(u32::from(vcpus % 8)),
                    desired_ram: (fields & 2 != 0).then_some(u64::from(ram % 480) * MIB),
                    desired_balloon: (fields & 4 != 0).then_some(u64::from(balloon) * MIB),
                    containers_revision: None,
                });
            }
            2 => self.look(),
            3 => {
                let bank = script.u8()?;
                self.take(bank);
            }
            4 => {
                let (bank, slot, source, status) = (script.u8()?, script.u8()?, script.u16()?, script.u8()?);
                self.report(bank, slot.into(), source.into(), status.into());
            }
            what @ 5..=6 => {
                let (bank, slot) = (script.u8()?, script.u8()?);
                self.write(
                    bank,
                    if what == 5 { EJCT } else { SIGN },
                    &u32::from(slot).to_le_bytes(),
                );
            }
            7 => {
                let record = RECORDS + 0x10 * u64::from(script.u8()? % 64);
                self.banks[1].lock().unwrap().read(record, &mut [0; 8]);
            }
            8 => {
                let (bank, offset, bytes) = (script.u8()?, script.u8()?, script.bytes()?);
                self.write(bank, offset.into(), &bytes[..bytes.len().min(8)]);
            }
            9 => match self.driver.take() {
                Some(driver) => driver.stop(),
                None => self.start_driver(),
            },
            10 => {
                let (request, block, blocks) = (script.u8()?, script.u16()?, script.u16()?);
                self.ask_mem(request, block, blocks);
            }
            11 => self.fill_balloon(script.u32()?),
            12 => self.break_host(script.u8()?),
            _ => self.behave(),
        }
        Some(())
    }

    fn advance(&mut self) {
        drop(as_main(|| self.resizes.advance(&mut self.cpus, &mut self.dimms)));
    }

    /// As [`Machine::advance`], until no thread makes a DIMM.
    fn look(&mut self) {
        self.advance();
        let makes = |resizes: &Resizes| {
            let pending = resizes.pending();
            pending.is_some_and(|pending| pending.contains("the host to find"))
        };
        for _ in 0..LOOKS {
            if !makes(&self.resizes) {
                return;
            }
            thread::sleep(PAUSE);
            self.advance();
        }
        panic!("a DIMM is made for ever");
    }

    fn break_host(&mut self, flags: u8) {
        self.kvm.refuses.store(flags & 1 != 0, Ordering::Relaxed);
        self.kvm.keeps.store(flags & 2 != 0, Ordering::Relaxed);
        self.cpus.plug_mut().cannot_create = flags & 4 != 0;
    }

    fn size(&self) -> MachineSize {
        self.resizes.size(&self.cpus, &self.dimms)
    }

    /// All that a request that is refused must leave alone.
    fn wanted(&self) -> (u32, u64, u64) {
        let MachineSize { vcpus, ram_bytes, .. } = self.size();
        (vcpus, ram_bytes, self.balloon.handle().size().target_bytes)
    }

    fn ask(&mut self, wanted: Resize) {
        let slots = |machine: &Self| (machine.cpus.states(), machine.dimms.as_ref().map(Hotplug::states));
        let before = (self.wanted(), slots(self));
        let target = TargetSize {
            vcpus: wanted.desired_vcpus,
            ram_bytes: wanted.desired_ram,
            balloon_bytes: wanted.desired_balloon,
        };
        let begun = as_main(|| self.resizes.begin(&mut self.cpus, &mut self.dimms, target));
        let after = (self.wanted(), slots(self));
        match begun {
            Ok(()) => {
                let (vcpus, ram, balloon) = after.0;
                assert!(wanted.desired_vcpus.is_none_or(|wanted| wanted == vcpus));
                assert!(wanted.desired_balloon.is_none_or(|wanted| wanted == balloon));
                assert!((BOOT..=BOOT + MORE).contains(&ram), "{ram} bytes");
            }
            Err(error) if error.is_request() => assert!(before == after, "{wanted:?}: {error}"),
            Err(error) => assert!(before.0 == after.0, "{wanted:?}: {error}: {before:?} {after:?}"),
        }
    }

    fn bank(&self, bank: u8) -> std::sync::MutexGuard<'_, Bank> {
        self.banks[usize::from(bank & 1)].lock().unwrap()
    }

    fn write(&self, bank: u8, register: u64, data: &[u8]) {
        let _ = self.bank(bank).write(register, data);
    }

    fn report(&self, bank: u8, slot: u32, source: u32, status: u32) {
        let report = u64::from(slot & 0xffff) | u64::from(source & 0xffff) << 16 | u64::from(status) << 32;
        self.write(bank, OSTR, &report.to_le_bytes());
    }

    /// Whether there was an event.
    fn take(&self, bank: u8) -> bool {
        let mut event = [0; 4];
        self.bank(bank).read(0, &mut event);
        event != [0; 4]
    }

    fn start_driver(&mut self) {
        if let Some(mem) = &mut self.mem {
            self.driver = Some(Driver::start(mem));
        }
    }

    fn ask_mem(&mut self, request: u8, block: u16, blocks: u16) {
        if let (Some(driver), Some((base, _))) = (&mut self.driver, self.space.reserve().and_then(|r| r.blocks)) {
            driver.ask(request, base + u64::from(block) * BLOCK, blocks);
        }
    }

    /// The driver writes `actual` (virtio 1.2 §5.5.6).
    fn fill_balloon(&self, pages: u32) {
        self.balloon.config().lock().unwrap().write(4, &pages.to_le_bytes());
    }

    /// A guest as it should be: it answers what it has been asked.
    fn behave(&mut self) {
        while self.take(0) || self.take(1) {}
        let dimms = self.dimms.as_ref().map(Hotplug::states).unwrap_or_default();
        for (bank, states) in [(0, self.cpus.states()), (1, dimms)] {
            for (slot, state) in states {
                match state {
                    State::Offered { seen: true } | State::Reported { seen: true } => {
                        self.write(bank, SIGN, &slot.to_le_bytes());
                        self.report(bank, slot, 1, 0);
                    }
                    State::Asked { seen: true, .. } => self.write(bank, EJCT, &slot.to_le_bytes()),
                    _ => {}
                }
            }
            // What has gone it forgets when it has seen that.
            self.bank(bank).read(STATUS, &mut [0; 64]);
        }
        let Some(size) = self.mem.as_ref().map(|mem| mem.handle().size()) else {
            return;
        };
        if size.plugged_bytes != size.requested_bytes {
            if self.driver.is_none() {
                self.start_driver();
            }
            self.ask_mem(UNPLUG_ALL, 0, 0);
            let blocks = u16::try_from(size.requested_bytes / BLOCK).unwrap();
            self.ask_mem(PLUG, 0, blocks);
        }
        if let Some(mem) = &self.mem {
            mem.config().lock().unwrap().read(REQUESTED_SIZE, &mut [0; 8]);
        }
    }

    /// What there is, is what the guest can reach, and what the sums say.
    fn check(&self) {
        let filled = |states: Vec<(u32, State)>| -> BTreeSet<u32> {
            let filled = states.into_iter().filter(|(_, state)| *state != State::Empty);
            filled.map(|(slot, _)| slot).collect()
        };
        assert_eq!(self.cpus.plug().there, filled(self.cpus.states()));
        let [regions, taken] = self.reachable();
        assert_eq!(regions, taken);
        let dimms = self.dimms.as_ref().unwrap();
        let mut plugged = 0;
        for (slot, state) in dimms.states() {
            let extent = dimms.plug().extent(slot);
            let there = regions.contains(&(extent.base, extent.size_bytes));
            // One that the guest has let go of is on its way to the host, unless KVM keeps it.
            if !matches!(state, State::Ejected { .. }) {
                assert_eq!(there, state != State::Empty, "memory slot {slot} is {state:?}");
            }
            plugged += if state.plugged() { extent.size_bytes } else { 0 };
        }
        plugged += self.mem.as_ref().map_or(0, |mem| mem.handle().size().plugged_bytes);
        let target = self.balloon.handle().size().target_bytes;
        assert!(
            target == 0 || target < self.size().ram_bytes,
            "{target} bytes in the balloon, {:?}",
            self.size()
        );
        let reached: u64 = taken.iter().map(|(_, bytes)| bytes).sum();
        let balloon = self.balloon.handle().size().actual_bytes;
        assert_eq!(self.size().actual_bytes, (BOOT + plugged).saturating_sub(balloon));
        assert!(BOOT + plugged <= reached, "{plugged} bytes plugged, {reached} reached");
    }

    /// What is said to be in the guest's reach, and what KVM has slots for. Threads are given time
    /// to make both the same.
    fn reachable(&self) -> [Ranges; 2] {
        let look = || {
            let regions = self.space.regions().iter().map(|of| (of.gpa, of.bytes)).collect();
            [regions, self.kvm.taken.lock().unwrap().values().copied().collect()]
        };
        let mut looks = (0..LOOKS).map(|_| look());
        let is_same = |[regions, taken]: &[Ranges; 2]| {
            let is_same = regions == taken;
            if !is_same {
                thread::sleep(PAUSE);
            }
            is_same
        };
        looks.find(is_same).unwrap_or_else(look)
    }

    /// Guest and host do what they should, and that leads somewhere.
    fn end(&mut self) {
        self.break_host(0);
        for _ in 0..TURNS {
            self.advance();
            let open = |states: Vec<(u32, State)>| {
                states
                    .into_iter()
                    .any(|(_, state)| !matches!(state, State::Empty | State::Present))
            };
            let dimms = self.dimms.as_ref().map(Hotplug::states).unwrap_or_default();
            if self.resizes.pending().is_none() && !open(self.cpus.states()) && !open(dimms) {
                break;
            }
            // Threads take pages back meanwhile.
            thread::sleep(Duration::from_millis(1));
            self.behave();
            self.check();
        }
        assert_eq!(self.resizes.pending(), None, "it never ends");
        self.fill_balloon(0);
        let size = self.size();
        assert_eq!(Ok(size.vcpus), u32::try_from(self.cpus.plugged()));
        let status = self.resizes.status(&self.cpus, &self.dimms);
        assert_eq!(
            size.actual_bytes,
            size.ram_bytes,
            "{:?} {status}",
            self.resizes.refusals(ALL)
        );
        if let Some(driver) = self.driver.take() {
            driver.stop();
        }
    }
}
