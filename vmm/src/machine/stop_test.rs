use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use husk_devices::host::fake::FakeHost;
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_devices::pci::Bdf;
use husk_devices::{Effect, MetricsSource};
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
    fn start(&self, name: &str, body: ThreadBody) -> std::io::Result<()> {
        UnconfinedThreads.start(name, body)
    }

    fn confine(&self, _thread_class: ThreadClass) -> std::io::Result<()> {
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
    let board = Arc::new(Board::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let (host, wakeup) = (FakeHost::new(), Wakeup::new().unwrap());
    let threads = Arc::new(Woken(wakeup.waker()));
    let devices = Devices::new(board.clone(), host.clone(), GuestMemory::new(ram), threads).unwrap();
    Guest {
        devices,
        board,
        host,
        wakeup,
    }
}

impl Guest {
    fn store(&self, gpa: u64, value: &[u8]) {
        assert!(
            self.board
                .answer(Port::Store(gpa, value), self.board.memory_generation())
        );
    }

    /// A driver starts the device at `at`, with its first queue.
    fn start(&self, at: Bdf) {
        let config = layout::ECAM + (u64::from(at.device) << 15);
        let mut bar = [0; 4];
        assert!(
            self.board
                .answer(Port::Load(config + 0x10, &mut bar), self.board.memory_generation())
        );
        let bar = u64::from(u32::from_le_bytes(bar) & !0xf);
        self.store(config + 4, &[6, 0]); // Memory Space and Bus Master Enable (PCIe 5.0 §7.5.1.1.3)
        // Common configuration (virtio 1.2 §4.1.4.3).
        self.store(bar + 0x14, &[1]);
        self.store(bar + 0x14, &[3]);
        self.store(bar + 0x08, &1_u32.to_le_bytes());
        self.store(bar + 0x0c, &1_u32.to_le_bytes()); // VIRTIO_F_VERSION_1
        self.store(bar + 0x14, &[11]);
        for (register, address) in [(0x20, 0x1000_u32), (0x28, 0x2000), (0x30, 0x3000)] {
            self.store(bar + register, &address.to_le_bytes());
        }
        self.store(bar + 0x1c, &[1, 0]);
        self.store(bar + 0x14, &[15]);
        let mut status = [0];
        assert!(
            self.board
                .answer(Port::Load(bar + 0x14, &mut status), self.board.memory_generation())
        );
        assert_eq!(status, [15]);
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
    assert!(
        guest.devices.ask_back("a").is_err(),
        "it is still there, and on its way out"
    );

    guest.host.refuse(false);
    guest.until(|devices| devices.collect().gone == [("a".to_owned(), at)]);
    assert!(guest.host.doorbells().is_empty());
}
