use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use husk_devices::host::fake::FakeHost;
use husk_devices::host::{MsiMessage, MsiVector};
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_devices::pci::Bdf;
use husk_devices::testing::PATIENCE;
use husk_devices::{Effect, Host, MetricsSource};
use husk_firmware::layout;
use husk_virtio::config::ConfigBytes;
use husk_virtio::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice, Watch};
use husk_virtio::ring::RingState;
use husk_virtio::rng::Rng;
use husk_virtio::threads::{ThreadBody, ThreadClass, Threads, UnconfinedThreads};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::Port;
use crate::machine::board::Board;
use crate::machine::device::Devices;
use crate::wakeup::Wakeup;

/// Nothing here takes this long.
const NEVER: Duration = Duration::from_secs(600);

/// Threads that wake `Waker` as the spawner's do.
struct Woken(Waker);

impl Threads for Woken {
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

/// A device whose handler waits in the middle of its work, and at its end, until the test lets it go.
struct Stubborn {
    bell: Arc<EventFd>,
    inside: Sender<()>,
    go_on: Arc<Mutex<Receiver<()>>>,
}

/// The test's end of it. Dropped, nothing waits any more.
struct Hand {
    bell: Arc<EventFd>,
    inside: Receiver<()>,
    go_on: Sender<()>,
}

fn stubborn() -> (Box<Stubborn>, Hand) {
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let ((entered, inside), (go_on, told)) = (channel(), channel());
    let device = Stubborn {
        bell: bell.clone(),
        inside: entered,
        go_on: Arc::new(Mutex::new(told)),
    };
    let hand = Hand { bell, inside, go_on };
    (Box::new(device), hand)
}

impl VirtioDevice for Stubborn {
    fn profile(&self) -> Profile {
        Profile {
            id: 4,
            class: 0x00ff_0000,
            features: 0,
            queue_sizes: vec![8],
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(())
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        Arc::new(Mutex::new(ConfigBytes::default()))
    }

    fn start(&mut self, _activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        Ok(vec![Box::new(Self {
            bell: self.bell.clone(),
            inside: self.inside.clone(),
            go_on: self.go_on.clone(),
        })])
    }
}

impl Handler for Stubborn {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        use std::os::fd::AsRawFd;
        watch.readable(self.bell.as_raw_fd(), 1).map_err(HandlerError::watch)
    }

    fn wake(&mut self, _token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let _ = self.bell.read();
        let _ = self.inside.send(());
        let _ = self.go_on.lock().unwrap().recv();
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        let _ = self.go_on.lock().unwrap().recv();
        Vec::new()
    }
}

fn rng() -> Box<dyn VirtioDevice> {
    Box::new(Rng::open(Path::new("/dev/zero")).unwrap())
}

struct Guest {
    devices: Devices,
    board: Arc<Board>,
    host: Arc<FakeHost>,
    wakeup: Wakeup,
}

fn guest() -> Guest {
    let host = FakeHost::new();
    guest_on(host.clone(), host)
}

/// A guest whose devices ask `asked`, which passes on to `host`.
fn guest_on(host: Arc<FakeHost>, asked: Arc<dyn Host>) -> Guest {
    let board = Arc::new(Board::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let wakeup = Wakeup::new().unwrap();
    let threads = Arc::new(Woken(wakeup.waker()));
    let devices = Devices::new(board.clone(), asked, GuestMemory::new(ram), threads).unwrap();
    Guest {
        devices,
        board,
        host,
        wakeup,
    }
}

/// A host where it takes as long as the test likes to connect a doorbell, or to take one back, as `KVM_IOEVENTFD` does
/// while a vCPU waits for the page of a file.
struct Hanging {
    host: Arc<FakeHost>,
    /// Which of both.
    on: bool,
    inside: Sender<()>,
    go_on: Mutex<Receiver<()>>,
    /// Nobody let it go on.
    is_stuck: AtomicBool,
}

/// A guest on such a host, what says that somebody is in there, and what lets them go on once it is dropped.
fn hanging(on: bool) -> (Guest, Arc<Hanging>, Receiver<()>, Sender<()>) {
    let (host, (entered, inside), (go_on, told)) = (FakeHost::new(), channel(), channel());
    let hanging = Arc::new(Hanging {
        host: host.clone(),
        on,
        inside: entered,
        go_on: Mutex::new(told),
        is_stuck: AtomicBool::new(false),
    });
    (guest_on(host, hanging.clone()), hanging, inside, go_on)
}

impl Host for Hanging {
    fn msi(&self) -> io::Result<MsiVector> {
        self.host.msi()
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        self.host.route(vector, message)
    }

    fn release(&self, vector: &MsiVector) {
        self.host.release(vector);
    }

    fn doorbell(&self, addr: u64, kick: &EventFd, on: bool) -> io::Result<()> {
        if on == self.on {
            let _ = self.inside.send(());
            let waited = self.go_on.lock().unwrap().recv_timeout(PATIENCE);
            if waited == Err(RecvTimeoutError::Timeout) {
                self.is_stuck.store(true, Ordering::SeqCst);
            }
        }
        self.host.doorbell(addr, kick, on)
    }
}

fn store(board: &Board, gpa: u64, value: &[u8]) {
    assert!(board.answer(Port::Store(gpa, value), board.memory_generation()));
}

fn load<const N: usize>(board: &Board, gpa: u64) -> [u8; N] {
    let mut data = [0; N];
    assert!(board.answer(Port::Load(gpa, &mut data), board.memory_generation()));
    data
}

/// Where the configuration space of the function at `at` is.
fn config_of(at: Bdf) -> u64 {
    layout::ECAM + (u64::from(at.device) << 15)
}

/// A driver starts the device at `at`, with its first queue. Returns where its BAR is.
fn bring_up(board: &Board, at: Bdf) -> u64 {
    let config = config_of(at);
    let bar = u64::from(u32::from_le_bytes(load(board, config + 0x10)) & !0xf);
    store(board, config + 4, &[6, 0]); // Memory Space and Bus Master Enable (PCIe 5.0 §7.5.1.1.3)
    // Common configuration (virtio 1.2 §4.1.4.3).
    store(board, bar + 0x14, &[1]);
    store(board, bar + 0x14, &[3]);
    store(board, bar + 0x08, &1_u32.to_le_bytes());
    store(board, bar + 0x0c, &1_u32.to_le_bytes()); // VIRTIO_F_VERSION_1
    store(board, bar + 0x14, &[11]);
    for (register, address) in [(0x20, 0x1000_u32), (0x28, 0x2000), (0x30, 0x3000)] {
        store(board, bar + register, &address.to_le_bytes());
    }
    store(board, bar + 0x1c, &[1, 0]);
    store(board, bar + 0x14, &[15]);
    bar
}

impl Guest {
    /// A driver starts the device at `at`, which works.
    fn start(&self, at: Bdf) {
        let bar = bring_up(&self.board, at);
        assert_eq!(load(&self.board, bar + 0x14), [15]);
    }

    /// On a vCPU of its own, the guest does something with its board.
    fn vcpu(&self, act: impl FnOnce(&Board) + Send + 'static) -> thread::JoinHandle<()> {
        let board = self.board.clone();
        thread::spawn(move || act(&board))
    }

    /// The guest is asked for `name`, takes the question and lets go of what is at `at`.
    fn eject(&mut self, name: &str, at: Bdf) {
        self.devices.ask_back(name).unwrap();
        let mut event = [0; 4];
        self.board.mmio().read(layout::PCI_BANK, &mut event);
        assert_eq!(u32::from_le_bytes(event), 3 << 16 | u32::from(at.device));
        let slot = u32::from(at.device).to_le_bytes();
        let written = self.board.mmio().write(layout::PCI_BANK + 4, &slot); // EJCT
        assert_eq!(written, Effect::None);
    }

    /// Waits for a wakeup after which `devices` are as wanted.
    fn until(&mut self, mut done: impl FnMut(&mut Devices) -> bool) {
        let Self { devices, wakeup, .. } = self;
        assert!(wakeup.wait_until(Instant::now() + NEVER, || done(devices)));
    }
}

fn forever(hand: Hand) {
    let Hand { go_on, .. } = hand;
    for _ in 0..8 {
        let _ = go_on.send(());
    }
}

#[test]
fn all_are_asked_to_stop_and_the_one_that_does_not_is_named() {
    let mut guest = guest();
    let ((first, hand), (second, other)) = (stubborn(), stubborn());
    for (name, device) in [("a", first as Box<dyn VirtioDevice>), ("b", rng()), ("c", second)] {
        let at = guest.devices.add_virtio(name, device).unwrap();
        guest.start(at);
    }
    forever(other);
    assert_eq!(guest.devices.unstopped(), ["a", "b", "c"]);
    guest.devices.stop();
    guest.until(|devices| devices.unstopped() == ["a"]);
    forever(hand);
    guest.until(|devices| devices.unstopped().is_empty());
}

#[test]
fn an_unplugged_device_keeps_slot_and_name_until_its_threads_have_stopped() {
    let mut guest = guest();
    let (device, hand) = stubborn();
    let at = guest.devices.add_virtio("a", device).unwrap();
    guest.start(at);
    guest.eject("a", at);
    for _ in 0..3 {
        let collected = guest.devices.collect();
        assert!(collected.gone.is_empty() && collected.failure.is_none());
    }
    assert_eq!(guest.devices.stopping(), ["a"]);
    let mut identity = [0; 4];
    let config = layout::ECAM + (u64::from(at.device) << 15);
    assert!(
        guest
            .board
            .answer(Port::Load(config, &mut identity), guest.board.memory_generation())
    );
    assert_eq!(identity, [0xff; 4], "it is out of the guest's reach");
    let (next, _) = guest.devices.offer_virtio("b", rng()).unwrap();
    assert_ne!(next, at);

    forever(hand);
    guest.until(|devices| devices.collect().gone == [("a".to_owned(), at)]);
    assert!(guest.devices.stopping().is_empty());
    assert!(guest.host.doorbells().is_empty());
    let (again, _) = guest.devices.offer_virtio("a", rng()).unwrap();
    assert_eq!(again, at);
}

#[test]
fn a_device_in_the_middle_of_its_work_is_held_when_that_is_done() {
    let mut guest = guest();
    let (device, hand) = stubborn();
    let at = guest.devices.add_virtio("a", device).unwrap();
    guest.start(at);
    guest.devices.add_virtio("b", rng()).unwrap();
    hand.bell.write(1).unwrap();
    hand.inside.recv_timeout(NEVER).unwrap();
    guest.devices.hold();
    assert_eq!(guest.devices.unheld(), ["a"]);
    hand.go_on.send(()).unwrap();
    guest.until(|devices| devices.unheld().is_empty());
    hand.bell.write(1).unwrap();
    guest.devices.release();
    hand.inside.recv_timeout(NEVER).unwrap();
    forever(hand);
}

#[test]
fn a_device_that_cannot_be_taken_apart_is_tried_again_and_keeps_no_other_from_going() {
    let mut guest = guest();
    let at = guest.devices.add_virtio("a", rng()).unwrap();
    let idle = guest.devices.add_virtio("b", rng()).unwrap();
    guest.start(at);
    assert_eq!(guest.host.doorbells().len(), 1);
    guest.eject("a", at);
    guest.eject("b", idle);
    guest.host.refuse(true);
    let (mut gone, mut failure) = (Vec::new(), None);
    guest.until(|devices| {
        let collected = devices.collect();
        gone.extend(collected.gone);
        failure = collected.failure;
        failure.is_some() && !gone.is_empty()
    });
    assert_eq!(gone, [("b".to_owned(), idle)]);
    let says = std::error::Error::source(&failure.unwrap()).unwrap().to_string();
    assert_eq!(says, "cannot take back the doorbells of a");
    let leaving = guest.devices.leaving(|_| false);
    assert_eq!(leaving, [("a".to_owned(), at)], "it is still there, and on its way out");

    guest.host.refuse(false);
    guest.until(|devices| devices.collect().gone == [("a".to_owned(), at)]);
    assert!(guest.host.doorbells().is_empty());
}

#[test]
fn a_vcpu_that_does_not_come_back_from_starting_a_device_keeps_nobody_waiting() {
    let (mut guest, host, inside, go_on) = hanging(true);
    let at = guest.devices.add_virtio("a", rng()).unwrap();
    let vcpu = guest.vcpu(move |board| {
        bring_up(board, at);
    });
    inside.recv_timeout(NEVER).unwrap();
    guest.devices.offer_virtio("b", rng()).unwrap();
    assert!(guest.devices.collect().gone.is_empty());
    guest.devices.withdraw();
    assert_eq!(load(&guest.board, config_of(at)), [0xff; 4], "it is out of reach");
    guest.until(|devices| devices.unstopped() == ["a"]);
    assert!(!vcpu.is_finished() && !host.is_stuck.load(Ordering::SeqCst));
    drop(go_on);
    vcpu.join().unwrap();
    guest.until(|devices| devices.unstopped().is_empty());
}

#[test]
fn a_vcpu_that_does_not_come_back_from_moving_a_window_keeps_nobody_waiting() {
    let (mut guest, host, inside, go_on) = hanging(false);
    let at = guest.devices.add_virtio("a", rng()).unwrap();
    guest.start(at);
    let vcpu = guest.vcpu(move |board| store(board, config_of(at) + 4, &[4, 0])); // Memory Space off
    inside.recv_timeout(NEVER).unwrap();
    guest.devices.offer_virtio("b", rng()).unwrap();
    guest.devices.withdraw();
    guest.until(|devices| devices.unstopped() == ["a"]);
    assert!(!vcpu.is_finished() && !host.is_stuck.load(Ordering::SeqCst));
    drop(go_on);
    vcpu.join().unwrap();
    guest.until(|devices| devices.unstopped().is_empty());
}

#[test]
fn the_host_takes_its_time_for_the_doorbells_of_a_device_that_goes_and_nobody_waits() {
    let (mut guest, host, inside, go_on) = hanging(false);
    let at = guest.devices.add_virtio("a", rng()).unwrap();
    guest.start(at);
    guest.eject("a", at);
    let (entered, waker) = (Arc::new(AtomicBool::new(false)), guest.wakeup.waker());
    let told = entered.clone();
    let watcher = thread::spawn(move || {
        inside.recv_timeout(NEVER).unwrap();
        told.store(true, Ordering::SeqCst);
        waker.wake();
        inside
    });
    guest.until(|devices| devices.collect().gone.is_empty() && entered.load(Ordering::SeqCst));
    let _inside = watcher.join().unwrap();
    assert!(guest.devices.collect().gone.is_empty());
    assert_eq!(guest.devices.stopping(), ["a"]);
    assert_ne!(
        guest.devices.offer_virtio("b", rng()).unwrap().0,
        at,
        "its addresses are taken"
    );
    assert!(!host.is_stuck.load(Ordering::SeqCst));
    drop(go_on);
    guest.until(|devices| devices.collect().gone == [("a".to_owned(), at)]);
    assert!(guest.host.doorbells().is_empty());
}
