use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, Sender};

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_devices::testing::until;
use husk_virtio::fs::serve::Outcome;
use husk_virtio::ring::{Reader, Writer};
use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::queue::Source;
use super::super::vring::Vring;
use super::*;

/// Entries of a ring, and bytes between one ring and the next.
const SIZE: u16 = 16;
const RING: u64 = 0x1000;

/// A file system whose requests are one letter each: 'h' hangs until somebody lets it go, 'w' waits for a lock.
struct Letters {
    begun: Mutex<Sender<u8>>,
    let_go: Mutex<Receiver<()>>,
    /// Called when a request is given up.
    given_up: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Serve for Letters {
    fn enter(&self) -> io::Result<()> {
        Ok(())
    }

    fn handle(&self, mut request: Reader<'_>, _: Writer<'_>) -> Outcome {
        let mut letter = [0];
        request.read_exact(&mut letter).unwrap();
        lock(&self.begun).send(letter[0]).unwrap();
        match letter[0] {
            b'h' => {
                // Its sender may have gone, and lets it go as well.
                let _ = lock(&self.let_go).recv();
                Outcome::Done(0)
            }
            b'w' => Outcome::Wait,
            _ => Outcome::Done(0),
        }
    }

    fn give_up(&self, _: Reader<'_>) {
        let given_up = lock(&self.given_up);
        given_up.iter().for_each(|look| look());
    }

    fn generation(&self) -> u64 {
        0
    }

    fn reset(&self) {}

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A pool, and the front-end's side of its queues.
struct Bench {
    pool: Arc<WorkerPool>,
    serve: Arc<Letters>,
    mem: GuestMemory,
    vrings: Vec<Vring>,
    begun: Receiver<u8>,
    let_go: Sender<()>,
    sent: Vec<u16>,
}

impl Bench {
    fn new(queues: u16) -> Self {
        let (sender, begun) = mpsc::channel();
        let (let_go, receiver) = mpsc::channel();
        let serve = Arc::new(Letters {
            begun: Mutex::new(sender),
            let_go: Mutex::new(receiver),
            given_up: Mutex::default(),
        });
        let mem = GuestMemory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let pool = WorkerPool::start(serve.clone(), queues, 4).unwrap();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let vrings: Vec<Vring> = (0..queues).map(|_| Vring::new(mem.clone(), SIZE).unwrap()).collect();
        for (index, vring) in vrings.iter().enumerate() {
            let at = RING * (1 + index as u64);
            vring.set_queue_size(SIZE);
            vring.set_queue_info(at, at + 0x400, at + 0x800).unwrap();
            vring.set_queue_ready(true);
            let queue = pool.queue(index).unwrap();
            queue.bring(Source {
                vring: vring.clone(),
                mem: mem.clone(),
                bell: bell.clone(),
            });
        }
        Self {
            pool,
            serve,
            mem,
            vrings,
            begun,
            let_go,
            sent: vec![0; queues.into()],
        }
    }

    /// Makes a request available.
    fn send(&mut self, queue: usize, letter: u8) {
        let at = RING * (1 + queue as u64);
        let sent = self.sent[queue];
        let (mem, head) = (self.mem.memory(), u64::from(sent % SIZE));
        let place = 0x8_0000 + at + head;
        mem.write_obj(letter, GuestAddress(place)).unwrap();
        mem.write_obj(place, GuestAddress(at + 16 * head)).unwrap();
        mem.write_obj(1u64, GuestAddress(at + 16 * head + 8)).unwrap();
        mem.write_obj(sent % SIZE, GuestAddress(at + 0x404 + 2 * head)).unwrap();
        self.sent[queue] = sent + 1;
        mem.write_obj(sent + 1, GuestAddress(at + 0x402)).unwrap();
    }

    /// Requests of a queue that were answered.
    fn used(&self, queue: usize) -> u16 {
        self.vrings[queue].queue_used_idx().unwrap()
    }

    /// Has a thread be the own one of a queue.
    fn serve(&self, queue: usize) {
        let pool = self.pool.clone();
        thread::spawn(move || pool.serve_queue(queue));
    }
}

#[test]
fn a_queue_that_is_enabled_while_its_thread_hangs_in_another_ones_request_is_served() {
    let mut bench = Bench::new(3);
    bench.vrings[1].set_enabled(true);
    bench.send(1, b'h');
    bench.serve(1);
    assert_eq!(bench.begun.recv().unwrap(), b'h');
    bench.send(2, b'x');
    bench.vrings[2].set_enabled(true);
    // Nobody tells of it: who would is in the request.
    until(|| bench.used(2) == 1);
    assert_eq!(bench.used(1), 0);
    bench.let_go.send(()).unwrap();
    until(|| bench.used(1) == 1);
}

#[test]
fn a_queue_that_is_not_enabled_or_was_taken_back_is_left_alone() {
    let mut bench = Bench::new(2);
    let vring = bench.vrings[1].clone();
    bench.send(1, b'x');
    bench.pool.serve_queue(1);
    assert_eq!(bench.used(1), 0);
    vring.set_enabled(true);
    bench.pool.serve_queue(1);
    until(|| bench.used(1) == 1);
    vring.set_queue_ready(false);
    bench.pool.queue(1).unwrap().stop();
    bench.send(1, b'x');
    bench.pool.serve_queue(1);
    assert_eq!((bench.used(1), vring.queue_next_avail()), (1, 1));
    // Brought again, as it was.
    vring.set_queue_next_used(1);
    vring.set_queue_ready(true);
    bench.pool.serve_queue(1);
    until(|| bench.used(1) == 2);
    bench.pool.forget();
    bench.send(1, b'x');
    bench.pool.serve_queue(1);
    assert_eq!(bench.used(1), 2, "its front-end has gone");
}

#[test]
fn the_file_system_is_asked_under_no_lock_of_a_queue() {
    let mut bench = Bench::new(2);
    let (told, tells) = mpsc::channel();
    let pool = bench.pool.clone();
    *lock(&bench.serve.given_up) = Some(Box::new(move || {
        told.send(pool.queue(1).unwrap().load(0).serving).unwrap();
    }));
    bench.vrings[1].set_enabled(true);
    // Two requests may wait, of so many entries.
    for _ in 0..3 {
        bench.send(1, b'w');
    }
    bench.serve(1);
    let serving = tells.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(serving > 0, "and nobody takes the ring meanwhile");
    until(|| bench.used(1) == 1);
}
