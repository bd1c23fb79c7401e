//! The device in front of a back-end made of rust-vmm's crates.

use std::io;
use std::path::Path;
use std::thread::{self, JoinHandle};

use husk_devices::memory::GuestMemory;
use husk_devices::testing::until;
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::*;
use crate::ring::{Notify, Ring, RingState};
use crate::testing::{Buf, Driver, Vectors};
use crate::vhost_user::testing::shared_memory;
use crate::worker::Worker;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Answers each request with its bytes, every bit turned.
struct Inverter(Option<Memory>);

impl VhostUserBackendMut for Inverter {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        3
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        crate::vhost_user::testing::FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.0 = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(&mut self, queue: u16, _: EventSet, vrings: &[VringRwLock], _: usize) -> io::Result<()> {
        let memory = self.0.as_ref().unwrap().memory();
        let vring = &vrings[usize::from(queue)];
        let mut state = vring.get_mut();
        while let Some(chain) = state.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let [from, to] = chain.collect::<Vec<_>>()[..] else {
                panic!("not a request")
            };
            let mut bytes = vec![0; usize::try_from(from.len()).unwrap()];
            memory.read_slice(&mut bytes, from.addr()).unwrap();
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            memory.write_slice(&bytes, to.addr()).unwrap();
            state.add_used(head, from.len()).unwrap();
        }
        state.signal_used_queue()
    }
}

/// Serves connections one after another.
fn serve(path: &Path, connections: usize) -> JoinHandle<()> {
    let mut listener = Listener::new(path, false).unwrap();
    thread::spawn(move || {
        for _ in 0..connections {
            let memory = Memory::new(GuestMemoryMmap::new());
            let backend = Arc::new(std::sync::RwLock::new(Inverter(None)));
            let mut daemon = VhostUserDaemon::new("back-end".into(), backend, memory).unwrap();
            daemon.start(&mut listener).unwrap();
            // Ends with an error in any case: the front-end left.
            daemon.wait().unwrap_err();
            daemon
                .get_epoll_handlers()
                .iter()
                .for_each(|handler| handler.send_exit_event());
        }
    })
}

fn config(folder: &Path) -> FsConfig {
    FsConfig {
        tag: "share".into(),
        socket: folder.join("s"),
        queues: 2,
        queue_size: 16,
        patience: Duration::ZERO,
    }
}

fn activation(drivers: &[Driver], mem: &GuestMemory, notify: &Notify, states: Option<&[RingState]>) -> Activation {
    let ring = |(driver, index): (&Driver, u16)| {
        let fresh = RingState {
            index,
            ..driver.state()
        };
        let state = states.map_or(fresh, |states| states[usize::from(index)]);
        Ring::new(state, driver.kick.clone(), notify.clone(), mem.clone()).ok()
    };
    Activation {
        mem: mem.clone(),
        features: 1 << 32,
        rings: drivers.iter().zip(0..).map(ring).collect(),
        config_changed: Notify::none(),
    }
}

fn run(fs: &mut Fs, activation: Activation) -> Worker {
    let handler = fs.start(activation).unwrap().remove(0);
    Worker::spawn("io-fs", handler, Box::new(|error| panic!("{error}"))).unwrap()
}

/// Sends a request on each queue and waits for the answers.
fn ask(drivers: &mut [Driver]) {
    for (driver, at) in drivers.iter_mut().zip((0x8_0000..).step_by(0x1000)) {
        driver.write(at, b"request");
        driver.add(&[Buf::Out(at, 7), Buf::In(at + 0x100, 7)]);
        driver.kick.write(1).unwrap();
        let mut used = None;
        until(|| {
            used = driver.take_used();
            used.is_some()
        });
        let answer: Vec<u8> = b"request".iter().map(|byte| !byte).collect();
        assert_eq!(used.map(|(_, bytes)| bytes), Some(7));
        assert_eq!(driver.read(at + 0x100, 7), answer);
    }
}

#[test]
fn requests_of_every_queue_are_answered_without_this_process() {
    let folder = tempfile::tempdir().unwrap();
    let servant = serve(&folder.path().join("s"), 1);
    let mem = shared_memory(&[4 << 20]);
    let mut fs = Fs::connect(&config(folder.path()), mem.clone()).unwrap();
    let mut drivers = [0x1_0000, 0x2_0000, 0x3_0000].map(|base| Driver::new(&mem, base, 16));
    let vectors = Vectors::new();
    let notify = Notify::new(vectors.vector());
    let worker = run(&mut fs, activation(&drivers, &mem, &notify, None));
    for _ in 0..40 {
        ask(&mut drivers);
    }
    // Stopped and started again, the device goes on where it was.
    let states = worker.join();
    assert!(states.iter().all(|state| state.queue.next_avail == 40), "{states:?}");
    let worker = run(&mut fs, activation(&drivers, &mem, &notify, Some(&states)));
    ask(&mut drivers);
    worker.join();
    assert!(vectors.take_sent() > 0, "by the vector's own eventfd");
    let metrics = fs.metrics();
    assert_eq!((metrics.connects.get(), metrics.starts.get()), (1, 2));
    drop(fs);
    servant.join().unwrap();
}

#[test]
fn a_paused_device_is_served_from_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let servant = serve(&folder.path().join("s"), 1);
    let mem = shared_memory(&[]);
    let mut fs = Fs::connect(&config(folder.path()), mem.clone()).unwrap();
    let mut drivers = [0x1_0000, 0x2_0000, 0x3_0000].map(|base| Driver::new(&mem, base, 16));
    let worker = run(&mut fs, activation(&drivers, &mem, &Notify::none(), None));
    for _ in 0..20 {
        ask(&mut drivers);
        worker.hold();
        until(|| worker.is_held());
        // Requests that come while nobody looks.
        let [driver, ..] = &mut drivers;
        driver.add(&[Buf::Out(0x8_0000, 7), Buf::In(0x8_0100, 7)]);
        worker.release();
        until(|| driver.take_used().is_some());
    }
    worker.join();
    let metrics = fs.metrics();
    assert_eq!((metrics.starts.get(), metrics.backend_failures.get()), (1, 0));
    drop(fs);
    servant.join().unwrap();
}

#[test]
fn a_device_that_was_reset_is_served_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let servant = serve(&folder.path().join("s"), 1);
    let mem = shared_memory(&[]);
    let mut fs = Fs::connect(&config(folder.path()), mem.clone()).unwrap();
    for base in [0x1_0000, 0x4_0000] {
        let mut drivers = [0, 0x1_0000, 0x2_0000].map(|at| Driver::new(&mem, base + at, 16));
        let worker = run(&mut fs, activation(&drivers, &mem, &Notify::none(), None));
        ask(&mut drivers);
        worker.join();
    }
    drop(fs);
    servant.join().unwrap();
}

#[test]
fn a_back_end_with_too_few_queues_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let servant = serve(&folder.path().join("s"), 1);
    let three = FsConfig {
        queues: 3,
        ..config(folder.path())
    };
    let error = Fs::connect(&three, shared_memory(&[]));
    let message = error.err().unwrap().to_string();
    assert_eq!(message, "it serves 3 virtqueues, the device has 4");
    servant.join().unwrap();
}

#[test]
fn a_back_end_that_comes_late_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        serve(&path, 1)
    });
    let patient = FsConfig {
        patience: Duration::from_secs(60),
        ..config(folder.path())
    };
    drop(Fs::connect(&patient, shared_memory(&[])).unwrap());
    late.join().unwrap().join().unwrap();
}

#[test]
fn the_configuration_has_tag_and_queues() {
    let folder = tempfile::tempdir().unwrap();
    let servant = serve(&folder.path().join("s"), 1);
    let fs = Fs::connect(&config(folder.path()), shared_memory(&[])).unwrap();
    let mut bytes = [0xff; 44];
    fs.config().lock().unwrap().read(0, &mut bytes);
    assert_eq!(&bytes[..6], b"share\0");
    assert_eq!(bytes[6..36], [0; 30]);
    assert_eq!(bytes[36..], [2, 0, 0, 0, 0, 0, 0, 0]);
    let profile = fs.profile();
    assert_eq!(
        (profile.id, profile.features, profile.queue_sizes),
        (26, 0, vec![16; 3])
    );
    drop(fs);
    servant.join().unwrap();
}
