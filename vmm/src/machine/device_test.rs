use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Wake, Waker};
use std::thread;
use std::time::Instant;

use husk_devices::host::fake::FakeHost;
use husk_devices::memory::GuestMemoryMmap;
use husk_devices::pci::BarWindow;
use husk_devices::{Effect, MetricsSource, error_chain};
use husk_firmware::{Ecam, Platform, PowerRegisters, acpi};
use husk_hotplug::outcome::Outcome;
use husk_hotplug::{Plug, PlugError};
use husk_virtio::config::ConfigBytes;
use husk_virtio::device::{Activation, ConfigAccess, Handler, Profile, StartError};
use husk_virtio::rng::Rng;
use husk_virtio::threads::{ThreadBody, ThreadClass, UnconfinedThreads};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::config::Limits;
use crate::kvm::Port;
use crate::machine::cpu_slots;
use crate::machine::resize::dimm_slots;

/// Registers that the AML of the slots writes (the map is in husk-hotplug's `bank`): to let go of one, and to report.
const EJECT: u64 = 0x04;
const REPORT: u64 = 0x10;

/// Has the test look again.
struct Unparks(thread::Thread);

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Threads that do so when they have stopped.
struct Waking(Waker);

impl Threads for Waking {
    fn start(&self, name: &str, body: ThreadBody) -> io::Result<()> {
        UnconfinedThreads.start(name, body)
    }

    fn confine(&self, _thread_class: ThreadClass) -> io::Result<()> {
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.0.clone()
    }
}

fn devices() -> (Devices, Arc<Board>) {
    devices_on(FakeHost::new())
}

fn devices_on(host: Arc<FakeHost>) -> (Devices, Arc<Board>) {
    let board = Arc::new(Board::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let memory = GuestMemory::new(ram);
    let threads = Arc::new(Waking(Waker::from(Arc::new(Unparks(thread::current())))));
    let devices = Devices::new(board.clone(), host, memory, threads).unwrap();
    (devices, board)
}

fn device() -> Box<dyn VirtioDevice> {
    Box::new(Rng::open(Path::new("/dev/zero")).unwrap())
}

/// The guest takes the next event: slot in bits 0-15, what to notify it of above.
fn take(board: &Board) -> u32 {
    let mut event = [0; 4];
    board.mmio().read(layout::PCI_BANK, &mut event);
    u32::from_le_bytes(event)
}

/// The guest writes a register of the slots.
fn write(board: &Board, register: u64, value: &[u8]) {
    assert!(matches!(
        board.mmio().write(layout::PCI_BANK + register, value),
        Effect::None
    ));
}

/// The guest takes the news of a device at `at` and has a driver for it: `_OST` with source event 1 and status 0.
fn insert(board: &Board, at: Bdf) {
    assert_eq!(take(board), 1 << 16 | u32::from(at.device));
    write(board, REPORT, &(1 << 16 | u64::from(at.device)).to_le_bytes());
}

/// The guest lets go of what is at `at`, asked or not.
fn let_go(board: &Board, at: Bdf) {
    write(board, EJECT, &u32::from(at.device).to_le_bytes());
}

/// The guest takes the question and lets go of what is at `at`.
fn eject(board: &Board, at: Bdf) {
    assert_eq!(take(board), 3 << 16 | u32::from(at.device));
    let_go(board, at);
}

/// Takes apart what the guest has let go of, which works.
fn collect(devices: &mut Devices) -> Vec<(String, Bdf)> {
    let mut gone = Vec::new();
    loop {
        let collected = devices.collect();
        assert!(collected.failure.is_none(), "{:?}", collected.failure);
        gone.extend(collected.gone);
        if devices.stopping().is_empty() {
            return gone;
        }
        thread::park();
    }
}

fn names(devices: &Devices) -> Vec<String> {
    let names = devices.counters().into_iter().map(|counted| counted.name);
    names.filter(|name| !name.starts_with("__")).collect()
}

fn ignored_writes(devices: &Devices) -> u64 {
    let counted = devices.counters();
    let hotplug = counted.iter().find(|counted| counted.name == HOTPLUG).unwrap();
    assert_eq!((hotplug.kind, hotplug.counters[0].0), ("hotplug", "ignored_writes"));
    hotplug.counters[0].1
}

#[test]
fn a_device_that_the_guest_lets_go_of_is_gone_with_its_name() {
    let (mut devices, board) = devices();
    let at = devices.add_virtio("a", device()).unwrap();
    let receiver = devices.ask_back("a").unwrap();
    assert!(collect(&mut devices).is_empty());
    eject(&board, at);
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
    assert!(matches!(devices.ask_back("a"), Err(SlotError::Unknown(_))));
    assert!(lock(board.pci()).function(at).is_none());
    assert_eq!(devices.add_virtio("b", device()).unwrap(), at, "its slot is free");
}

#[test]
fn a_guest_that_is_asked_again_is_told_again_once() {
    let (mut devices, board) = devices();
    let at = devices.add_virtio("a", device()).unwrap();
    devices.ask_back("a").unwrap();
    let told = 3 << 16 | u32::from(at.device);
    assert_eq!([take(&board), take(&board)], [told, 0]);
    let receiver = devices.ask_back("a").unwrap();
    assert_eq!([take(&board), take(&board)], [told, 0]);
    let_go(&board, at);
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
}

#[test]
fn a_device_that_the_guest_has_not_heard_of_is_gone_with_its_name() {
    let (mut devices, board) = devices();
    let (at, _) = devices.offer_virtio("a", device()).unwrap();
    devices.ask_back("a").unwrap();
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert!(names(&devices).is_empty());
    assert_eq!(take(&board), 0, "the guest never hears of it");
    assert!(matches!(devices.ask_back("a"), Err(SlotError::Unknown(_))));
}

#[test]
fn two_devices_never_have_one_name() {
    let (mut devices, _) = devices();
    let at = devices.add_virtio("a", device()).unwrap();
    let again = [
        devices.add_virtio("a", device()).unwrap_err(),
        devices.offer_virtio("a", device()).unwrap_err(),
    ];
    for error in again {
        assert_eq!(error_chain(&error), "a: there is a device of this name already");
    }
    assert_eq!(names(&devices), ["a"]);
    assert_eq!(devices.add_virtio("b", device()).unwrap(), bdf(2), "no slot is lost");
    assert_eq!(at, bdf(1));
}

#[test]
fn slots_are_used_again_and_again() {
    let (mut devices, board) = devices();
    let names: Vec<String> = (1..SLOTS).map(|slot| format!("d{slot}")).collect();
    for round in 0..40 {
        for (name, slot) in names.iter().zip(1..) {
            let (at, receiver) = devices.offer_virtio(name, device()).unwrap();
            assert_eq!(at, bdf(slot), "round {round}");
            insert(&board, at);
            assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
        }
        let one_more = devices.offer_virtio("d0", device()).unwrap_err();
        assert!(matches!(
            one_more,
            BuildError::Full {
                source: SlotError::Full,
                ..
            }
        ));
        for (name, slot) in names.iter().zip(1..) {
            let receiver = devices.ask_back(name).unwrap();
            eject(&board, bdf(slot));
            assert_eq!(collect(&mut devices), [(name.clone(), bdf(slot))]);
            assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
        }
    }
    assert_eq!(ignored_writes(&devices), 0);
}

#[test]
fn stray_writes_to_the_slots_are_counted_and_change_nothing() {
    let (mut devices, board) = devices();
    let at = devices.add_virtio("a", device()).unwrap();
    let_go(&board, at);
    write(&board, 0x40, &[0xff; 4]);
    let_go(&board, bdf(0));
    let_go(&board, bdf(7));
    write(&board, 0, &[0xff; 8]);
    assert_eq!(ignored_writes(&devices), 5);
    assert!(collect(&mut devices).is_empty());
    assert_eq!(names(&devices), ["a"]);
    devices.ask_back("a").unwrap();
    eject(&board, at);
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
}

#[test]
fn stray_writes_to_all_banks_are_counted_together() {
    struct Nothing;
    impl Plug for Nothing {
        type Unit = ();
        fn create(&mut self, _: u32, (): ()) -> Result<(), PlugError> {
            Ok(())
        }
        fn destroy(&mut self, _: u32) -> Result<(), PlugError> {
            Ok(())
        }
    }
    let (mut devices, board) = devices();
    let cpus = cpu_slots::slots(2);
    let _cpus = devices.hotplug_mut().bank(&board, cpus, Nothing).unwrap();
    for bank in [layout::PCI_BANK, layout::CPU_BANK, layout::CPU_BANK] {
        assert!(matches!(board.mmio().write(bank, &[0xff; 8]), Effect::None));
    }
    assert_eq!(ignored_writes(&devices), 3);
}

#[test]
fn a_device_that_comes_while_another_one_goes_is_not_taken_for_it() {
    let (mut devices, board) = devices();
    let at = devices.add_virtio("a", device()).unwrap();
    devices.ask_back("a").unwrap();
    eject(&board, at);
    // Before the main thread has seen that the guest let go.
    let (next, _) = devices.offer_virtio("b", device()).unwrap();
    assert_ne!(next, at);
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert_eq!(names(&devices), ["b"]);
    assert!(lock(board.pci()).function(next).is_some());
}

/// A vCPU switches the decoding of what is in slot 1 on and off (PCIe 5.0 §7.5.1.1.3, Memory Space
/// Enable) until `over`.
fn switch_decoding(board: &Board, over: &AtomicBool) {
    let command = layout::ECAM + (1 << 15) + 4;
    while !over.load(Ordering::Relaxed) {
        for value in [2, 0] {
            assert!(board.answer(Port::Store(command, &[value, 0]), board.memory_generation()));
        }
    }
}

#[test]
fn a_guest_that_maps_a_device_while_it_goes_keeps_nothing_of_it() {
    let (mut devices, board) = devices();
    let over = Arc::new(AtomicBool::new(false));
    let vcpus = [(); 2].map(|()| {
        let (board, over) = (board.clone(), over.clone());
        thread::spawn(move || switch_decoding(&board, &over))
    });
    let mut left = 0;
    for _ in 0..2000 {
        let (at, _) = devices.offer_virtio("a", device()).unwrap();
        assert_eq!(at, bdf(1));
        devices.ask_back("a").unwrap();
        assert_eq!(collect(&mut devices).len(), 1);
        left += usize::from(board.mmio().remove(layout::PCI32).is_some());
    }
    over.store(true, Ordering::Relaxed);
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    assert_eq!(left, 0, "BARs of devices that are gone are on the bus");
}

/// A device that says on which thread it is dropped, and waits there for its test, as close(2) may for a file system.
struct Traced {
    queue_size: u16,
    dropped: Sender<thread::ThreadId>,
    go_on: Receiver<()>,
    config: Arc<Mutex<ConfigBytes>>,
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Who is not interested has let it go.
        let _ = self.dropped.send(thread::current().id());
        let _ = self.go_on.recv();
    }
}

/// Such a device, where it tells, and what lets it go.
fn traced() -> (Box<Traced>, Receiver<thread::ThreadId>, Sender<()>) {
    let ((dropped, drops), (go, go_on)) = (channel(), channel());
    let device = Traced {
        queue_size: 16,
        dropped,
        go_on,
        config: Arc::default(),
    };
    (Box::new(device), drops, go)
}

impl VirtioDevice for Traced {
    fn profile(&self) -> Profile {
        Profile {
            id: 27,
            class: 0,
            features: 0,
            queue_sizes: vec![self.queue_size],
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(())
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, _: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        Ok(Vec::new())
    }
}

/// Registers of BAR 0 (virtio 1.2 §4.1.4), and where the first function's is.
const BAR_0: u64 = layout::PCI32;
const MSIX_TABLE: u64 = 0x4000;

/// The guest lets the function at `at` decode its BARs and write to memory, and routes its first vector.
fn use_function(board: &Board, at: Bdf) {
    let header = layout::ECAM + (u64::from(at.device) << 15);
    assert!(board.answer(Port::Store(header + 4, &[6, 0]), board.memory_generation()));
    for (offset, value) in [(0, 0xfee0_0000_u32), (4, 0), (8, 0x41), (12, 0)] {
        board.answer(
            Port::Store(BAR_0 + MSIX_TABLE + offset, &value.to_le_bytes()),
            board.memory_generation(),
        );
    }
    let mut capability = [0];
    board.answer(Port::Load(header + 0x34, &mut capability), board.memory_generation());
    loop {
        let here = header + u64::from(capability[0]);
        let mut id = [0];
        board.answer(Port::Load(here, &mut id), board.memory_generation());
        if id == [0x11] {
            assert!(board.answer(Port::Store(here + 2, &[0, 0x80]), board.memory_generation()));
            return;
        }
        board.answer(Port::Load(here + 1, &mut capability), board.memory_generation());
        assert_ne!(capability, [0], "there is no MSI-X capability");
    }
}

#[test]
fn a_device_that_has_no_place_on_the_bus_is_dropped_by_a_thread() {
    let (mut devices, _board) = devices();
    let (mut device, dropped, go) = traced();
    drop(go);
    device.queue_size = 9;
    let error = devices.offer_virtio("a", device).unwrap_err();
    assert!(error_chain(&error).contains("queue 0 has 9 descriptors"), "{error}");
    assert_ne!(dropped.recv().unwrap(), thread::current().id());
}

#[test]
fn a_device_ends_when_it_is_removed_although_vcpus_still_refer_to_it() {
    let host = FakeHost::new();
    let (mut devices, board) = devices_on(host.clone());
    let gsis = host.gsis();
    let (device, dropped, go) = traced();
    drop(go);
    let at = devices.add_virtio("a", device).unwrap();
    use_function(&board, at);
    assert_eq!(host.gsis().len(), gsis.len() + 1, "one vector is in use");
    // What vCPUs hold in the middle of an access: the function as `Board::remap` finds it, the window as the bus does.
    let function = lock(board.pci()).function(at).unwrap();
    let mut window = BarWindow::new(function.clone(), 0);
    devices.ask_back("a").unwrap();
    eject(&board, at);
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert_ne!(
        dropped.recv().unwrap(),
        thread::current().id(),
        "nor is this one asked to wait"
    );
    assert!(dropped.recv().is_err(), "it is gone");
    assert_eq!(host.gsis(), gsis, "with its interrupts");
    thread::spawn(move || {
        let mut register = [0; 4];
        window.read(0, &mut register);
        assert_eq!(register, [0xff; 4]);
        assert_eq!(window.write(MSIX_TABLE + 12, &[0; 4]), Effect::None);
        let mut function = lock(&function);
        function.read_config(0, &mut register);
        assert_eq!(register, [0xff; 4]);
        assert_eq!(function.write_config(4, &[2, 0]), Effect::None);
        assert!(function.decoded().is_empty());
        function.bar_moved(0, Some(BAR_0)).unwrap();
    })
    .join()
    .unwrap();
    assert_eq!((host.gsis(), host.doorbells().len()), (gsis, 0));
}

#[test]
fn a_device_whose_file_does_not_close_keeps_its_name_and_its_slot_and_keeps_nobody_waiting() {
    let (mut devices, board) = devices();
    let (device, dropped, go) = traced();
    let at = devices.add_virtio("a", device).unwrap();
    let other = devices.add_virtio("b", self::device()).unwrap();
    for (name, at) in [("a", at), ("b", other)] {
        devices.ask_back(name).unwrap();
        eject(&board, at);
    }
    let mut gone = devices.collect().gone;
    dropped.recv().unwrap();
    loop {
        gone.extend(devices.collect().gone);
        if devices.stopping() == ["a"] {
            break;
        }
        thread::park();
    }
    assert_eq!(gone, [("b".to_owned(), other)]);
    let error = devices.offer_virtio("a", self::device()).unwrap_err();
    assert_eq!(error_chain(&error), "a: there is a device of this name already");
    assert_ne!(devices.offer_virtio("c", self::device()).unwrap().0, at);
    // Nor does the end of the machine wait, which asks for it as well.
    devices.stop();
    while devices.unstopped() != ["a"] {
        thread::park();
    }
    go.send(()).unwrap();
    assert_eq!(collect(&mut devices), [("a".to_owned(), at)]);
    assert!(devices.unstopped().is_empty());
    assert_eq!(devices.add_virtio("a", self::device()).unwrap(), at, "its slot is free");
}

#[test]
fn the_devices_of_a_machine_that_ends_are_closed_each_by_itself() {
    let (mut devices, _) = devices();
    let (slow, slow_drops, go) = traced();
    let (quick, quick_drops, gone) = traced();
    drop(gone);
    devices.add_virtio("a", slow).unwrap();
    devices.add_virtio("b", quick).unwrap();
    devices.stop();
    while devices.unstopped() != ["a"] {
        thread::park();
    }
    let closers = [slow_drops.recv().unwrap(), quick_drops.recv().unwrap()];
    assert!(closers.iter().all(|closer| *closer != thread::current().id()));
    drop(go);
    while !devices.unstopped().is_empty() {
        thread::park();
    }
}

#[test]
fn a_device_that_is_refused_is_closed_by_a_thread() {
    let (mut devices, _) = devices();
    devices.add_virtio("a", device()).unwrap();
    let (again, dropped, go) = traced();
    devices.offer_virtio("a", again).unwrap_err();
    assert_ne!(dropped.recv().unwrap(), thread::current().id());
    drop(go);
}

/// A bank of slots that nothing comes to.
struct Nothing;

impl Plug for Nothing {
    type Unit = ();

    fn create(&mut self, _slot: u32, (): ()) -> Result<(), PlugError> {
        Ok(())
    }

    fn destroy(&mut self, _slot: u32) -> Result<(), PlugError> {
        Ok(())
    }
}

#[test]
fn tables_of_as_many_vcpus_as_there_may_be_fit_with_every_bank() {
    for max in [1, 8, 300, 944, 945, 1024, 2048, Limits::ARCHITECTURE.max_vcpus] {
        let (mut devices, board) = devices();
        let cpus = devices.hotplug_mut().bank(&board, cpu_slots::slots(max), Nothing);
        let memory = devices.hotplug_mut().bank(&board, dimm_slots(), Nothing);
        assert!(cpus.is_ok() && memory.is_ok());
        let apic_ids: Vec<u32> = (0..max).collect();
        let platform = Platform {
            ram: &[(0, 256 << 20)],
            apic_ids: &apic_ids[..1],
            spare_apic_ids: &apic_ids[1..],
            ecam: Some(Ecam {
                base: layout::ECAM,
                end_bus: 0,
            }),
            power: PowerRegisters {
                sleep_control: layout::SLEEP_CONTROL_PORT,
                sleep_status: layout::SLEEP_STATUS_PORT,
                reset: layout::RESET_PORT,
                reset_value: 1,
            },
            aml: &devices.aml(),
        };
        let tables = acpi::build(&platform, |bytes| {
            assert!(bytes < 1 << 20, "{bytes} bytes for {max} vCPUs");
            Ok(128 << 20)
        });
        let tables = tables.unwrap();
        assert!(tables.low.bytes.len() as u64 <= layout::ACPI_LEN, "{max}");
        assert_eq!(tables.high.is_some(), max > 883, "{max}");
    }
}
