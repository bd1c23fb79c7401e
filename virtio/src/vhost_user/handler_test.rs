use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use husk_devices::Irq;
use husk_devices::memory::GuestRegionMmap;
use husk_devices::testing::{PATIENCE, until};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::channel::REPLY_TIMEOUT;
use super::super::link::{Link, VhostUserMetrics};
use super::super::message::Request;
use super::super::testing::{BackendAction, Heard, IMPATIENT, regions_of, serve, shared_memory, spoil};
use super::*;
use crate::device::{MemoryListener, Retire};
use crate::ring::{Notify, Reader, ReplyState, Ring, Signal, Writer};
use crate::testing::{Buf, Driver};
use crate::worker::Worker;

#[path = "handler_pause_test.rs"]
mod pause;

/// A request is a byte, and its reply has bit 7 set in addition; 0xff means no.
struct Bytewise;

impl Protocol for Bytewise {
    fn reply_state(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> ReplyState {
        match (request.read_obj::<u8>(), reply.read_obj::<u8>()) {
            (Ok(asked), Ok(said)) if asked | 0x80 == said => ReplyState::Answered(1),
            (Ok(_), Ok(_)) => ReplyState::Waiting,
            _ => ReplyState::None,
        }
    }

    fn refuse(&self, _: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32 {
        reply.write_obj(0xff_u8).map_or(0, |()| 1)
    }
}

/// Watches nothing.
struct Blind;
impl Watch for Blind {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        Ok(())
    }
}

/// A device with two queues of 16 entries, its back-end, and the driver's side.
struct Bench {
    mem: GuestMemory,
    link: Arc<Link>,
    heard: Arc<Heard>,
    drivers: [Driver; 2],
}

fn bench(action: Option<(Request, BackendAction)>) -> Bench {
    let (here, there) = UnixStream::pair().unwrap();
    let heard = serve(there, action);
    let link = Link::from_stream(here, Path::new("/nowhere/fs.sock"), 2, REPLY_TIMEOUT).unwrap();
    heard.take();
    let mem = shared_memory(&[]);
    let drivers = [0x1_0000, 0x2_0000].map(|base| Driver::new(&mem, base, 16));
    Bench {
        mem,
        link,
        heard,
        drivers,
    }
}

impl Bench {
    fn activation(&self) -> Activation {
        let rings = self.drivers.iter().map(Driver::ring).zip(0..);
        let rings = rings.map(|(ring, index)| {
            let mut parts = ring.into_parts();
            parts.state.index = index;
            Ring::new(parts.state, parts.kick, parts.notify, self.mem.clone()).ok()
        });
        Activation {
            mem: self.mem.clone(),
            features: 1 << 32,
            rings: rings.collect(),
            config_changed: Notify::none(),
        }
    }

    fn handler(&self) -> Box<VhostUserHandler> {
        Box::new(VhostUserHandler::new(self.link.clone(), self.activation(), &[0, 1], &Bytewise).unwrap())
    }

    /// Its memory, and 1 MiB of another file.
    fn grown(&self) -> GuestMemory {
        let at = FileOffset::new(tempfile_of(1 << 20), 0);
        let more = GuestRegionMmap::from_range(GuestAddress(8 << 20), 1 << 20, Some(at)).unwrap();
        GuestMemory::new(self.mem.memory().insert_region(Arc::new(more)).unwrap())
    }

    /// The device at work, and why it stops by itself if it does.
    fn run(&self) -> (Worker, Receiver<HandlerError>) {
        let (said, heard) = channel();
        let tell = Box::new(move |error| said.send(error).unwrap());
        (Worker::spawn("io-fs", self.handler(), tell).unwrap(), heard)
    }

    fn started(&self) -> (Worker, Receiver<HandlerError>) {
        let running = self.run();
        until(|| self.metrics().starts.get() > 0);
        running
    }

    /// Has little time for what the back-end is asked next. What it answers as it should must not
    /// depend on that: a test would fail on a machine that is busy.
    fn lose_patience(&self) {
        self.link.set_limit(IMPATIENT);
    }

    /// Has a back-end leave that closes when it is asked to forget a region.
    fn leave(&self) {
        let changed = GuestMemory::new(regions_of(&Arc::new(tempfile_of(2 << 20)), &[]));
        assert!(self.link.memory_added(&changed, soon()).is_err());
    }

    /// The device held, as a pause does it.
    fn hold(&self, worker: &Worker) {
        worker.hold();
        until(|| worker.is_held());
    }

    /// The back-end has taken `taken` requests of the queue and ended `ended`, ever.
    fn serve(&self, queue: usize, taken: u16, ended: u16) {
        self.heard.take_requests(u32::try_from(queue).unwrap(), taken.into());
        self.end(queue, ended);
    }

    fn end(&self, queue: usize, ended: u16) {
        self.drivers[queue].store(self.drivers[queue].used + 2, ended);
    }

    fn metrics(&self) -> &VhostUserMetrics {
        self.link.metrics()
    }
}

/// When a change of memory has to be taken.
fn soon() -> Instant {
    Instant::now() + REPLY_TIMEOUT
}

fn tempfile_of(bytes: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

/// A descriptor's file, to tell whether two are the same.
fn same_file(one: &EventFd, other: &EventFd) -> bool {
    one.write(1).unwrap();
    other.read().is_ok()
}

fn why(failure: HandlerError) -> String {
    let source = std::error::Error::source(&failure).map(ToString::to_string);
    format!("{failure}: {}", source.unwrap_or_default())
}

#[test]
fn rings_come_back_where_the_back_end_stopped() {
    let bench = bench(None);
    let (worker, _) = bench.started();
    bench.serve(0, 7, 7);
    bench.serve(1, 5, 5);
    let states = worker.join();
    let positions: Vec<_> = states
        .iter()
        .map(|state| (state.queue.next_avail, state.queue.next_used))
        .collect();
    assert_eq!(positions, [(7, 7), (5, 5)]);
    let last: Vec<u32> = bench.heard.requests().into_iter().rev().take(2).collect();
    assert_eq!(last, [Request::GetVringBase as u32; 2]);
}

#[test]
fn a_ring_goes_on_where_it_stopped() {
    let bench = bench(None);
    let mut activation = bench.activation();
    let mut parts = activation.rings[1].take().unwrap().into_parts();
    (parts.state.queue.next_avail, parts.state.queue.next_used) = (40, 38);
    activation.rings[1] = Ring::new(parts.state, parts.kick, parts.notify, bench.mem.clone()).ok();
    let mut handler = VhostUserHandler::new(bench.link.clone(), activation, &[], &Bytewise).unwrap();
    handler.lend().unwrap();
    let told = bench.heard.take();
    let bases = told
        .iter()
        .filter(|message| message.request == Request::SetVringBase as u32);
    let bases: Vec<&[u8]> = bases.map(|message| &message.payload[..]).collect();
    assert_eq!(bases, [[0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 40, 0, 0, 0]]);
}

#[test]
fn the_back_end_gets_the_doorbell_that_the_kernel_signals_and_no_descriptor_that_this_process_needs() {
    let bench = bench(None);
    let (_worker, _) = bench.started();
    let given = bench.heard.event(Request::SetVringKick);
    let doorbell = bench.link.doorbell(1).unwrap().event().clone();
    assert!(same_file(&doorbell, &given));
    // A kick that the kernel did not catch gets there all the same.
    bench.drivers[1].kick.write(1).unwrap();
    until(|| given.read().is_ok());
    assert!(!same_file(&given, &bench.drivers[1].kick));
}

#[test]
fn a_back_end_that_spoils_its_eventfds_holds_up_neither_kicks_nor_the_stop_nor_its_successor() {
    let mut bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    let (worker, failures) = bench.started();
    for queue in [0, 1] {
        spoil(bench.link.doorbell(queue).unwrap().event());
    }
    spoil(&bench.heard.event(Request::SetVringCall));
    for _ in 0..3 {
        bench.drivers[1].kick.write(1).unwrap();
    }
    until(|| {
        let unheard = bench.drivers[1].kick.read().is_ok();
        if unheard {
            bench.drivers[1].kick.write(1).unwrap();
        }
        !unheard
    });
    bench.leave();
    failures.recv_timeout(PATIENCE).unwrap();
    let head = ask(&mut bench.drivers[1], 0x8_0000);
    bench.drivers[1].kick.write(1).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (head, 1));
    // The kernel's signals arrive as well, and are not read: the old back-end may do that.
    let head = ask(&mut bench.drivers[1], 0x8_1000);
    bench.link.doorbell(1).unwrap().event().read().unwrap();
    bench.link.doorbell(1).unwrap().event().write(1).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (head, 1));
    assert_eq!(worker.join().len(), 2);
}

#[test]
fn an_interrupt_without_an_eventfd_is_passed_on() {
    let bench = bench(None);
    let (_worker, _) = bench.started();
    bench.heard.event(Request::SetVringCall).write(1).unwrap();
    until(|| bench.drivers[1].interrupts() > 0);
    assert_eq!(bench.drivers[0].interrupts(), 0);
}

#[test]
fn an_interrupt_signalled_right_before_the_stop_is_not_lost() {
    let bench = bench(None);
    let mut handler = bench.handler();
    handler.lend().unwrap();
    bench.heard.event(Request::SetVringCall).write(1).unwrap();
    handler.stop();
    assert_eq!(bench.drivers[1].interrupts(), 1);
}

#[test]
fn an_interrupt_with_an_eventfd_is_the_back_ends() {
    struct Shared(Irq);
    impl Signal for Shared {
        fn signal(&self) {
            self.0.raise();
        }
        fn share(&self) -> Option<Irq> {
            Some(self.0.clone())
        }
    }
    let bench = bench(None);
    let irq = Irq::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut activation = bench.activation();
    let parts = activation.rings[1].take().unwrap().into_parts();
    let notify = Notify::new(Shared(irq.clone()));
    activation.rings[1] = Ring::new(parts.state, parts.kick, notify, bench.mem.clone()).ok();
    let mut handler = VhostUserHandler::new(bench.link.clone(), activation, &[], &Bytewise).unwrap();
    handler.lend().unwrap();
    assert!(same_file(&bench.heard.event(Request::SetVringCall), irq.event()));
}

#[test]
fn a_missing_queue_is_named_unless_it_may_be_missing() {
    let bench = bench(None);
    let mut activation = bench.activation();
    activation.rings[1] = None;
    let error = VhostUserHandler::new(bench.link.clone(), activation, &[0, 1], &Bytewise)
        .err()
        .unwrap();
    assert!(matches!(error, StartError::QueueMissing(1)));
    let mut activation = bench.activation();
    activation.rings[0] = None;
    let mut handler = VhostUserHandler::new(bench.link.clone(), activation, &[1, 1], &Bytewise).unwrap();
    handler.lend().unwrap();
    let states = Box::new(handler).stop();
    assert_eq!(states.iter().map(|state| state.index).collect::<Vec<_>>(), [1]);
}

#[test]
fn the_death_of_the_back_end_is_a_failure_of_the_device_only() {
    let bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    let (worker, failures) = bench.started();
    // The back-end leaves when it is asked to forget a region: the change fails, and so does the device.
    bench.leave();
    let error = why(failures.recv_timeout(PATIENCE).unwrap());
    assert_eq!(
        error,
        "the vhost-user back-end failed: /nowhere/fs.sock: it closed the connection"
    );
    let states = worker.join();
    assert_eq!(states.len(), 2, "the rings come back all the same");
    assert_eq!(bench.metrics().backend_failures.get(), 1);
}

#[test]
fn a_back_end_that_talks_without_being_asked_is_left() {
    // The second byte comes when nobody waits for an answer any more.
    let mut bytes = super::super::testing::answer(Request::SetVringEnable as u32, 0);
    bytes.push(0);
    let bench = bench(Some((Request::SetVringEnable, BackendAction::Say(bytes))));
    let (_worker, failures) = bench.run();
    assert!(why(failures.recv_timeout(PATIENCE).unwrap()).contains("/nowhere/fs.sock: it "));
    assert_eq!(bench.metrics().backend_failures.get(), 1);
}

#[test]
fn every_step_of_the_start_and_of_the_stop_may_go_wrong() {
    use Request::*;
    let start = [
        SetFeatures,
        AddMemReg,
        SetVringNum,
        SetVringAddr,
        SetVringBase,
        SetVringCall,
        SetVringKick,
        SetVringEnable,
    ];
    let actions = || {
        [
            BackendAction::Refuse(1),
            BackendAction::Close,
            BackendAction::KeepSilent,
            BackendAction::Drip,
            BackendAction::Dawdle,
            BackendAction::Say(vec![0x5a; 600]),
        ]
    };
    for (request, action) in start
        .iter()
        .flat_map(|request| actions().map(|action| (*request, action)))
    {
        let is_slow = action.is_slow();
        let bench = bench(Some((request, action)));
        if is_slow {
            bench.lose_patience();
        }
        let (worker, failures) = bench.run();
        failures.recv_timeout(PATIENCE).unwrap();
        assert_eq!(worker.join().len(), 2);
        assert!(
            bench.link.acquire().unwrap().present().is_err(),
            "nobody speaks to it again"
        );
    }
    for action in [
        BackendAction::Close,
        BackendAction::KeepSilent,
        BackendAction::Drip,
        BackendAction::Say(vec![0x5a; 600]),
    ] {
        let bench = bench(Some((GetVringBase, action)));
        let (worker, _) = bench.started();
        bench.lose_patience();
        let positions: Vec<u16> = worker.join().iter().map(|state| state.queue.next_avail).collect();
        assert_eq!(positions, [0, 0], "as far as the used rings say");
    }
}

#[test]
fn a_ring_in_memory_of_its_own_fails_the_device_and_not_the_connection() {
    let bench = bench(None);
    let mut handler = bench.handler();
    handler.rings[1].ring.state.queue.desc_table = 32 << 20;
    let error = handler.lend().unwrap_err();
    bench.serve(0, 7, 7);
    assert!(matches!(error, BackendError::RingMemory { queue: 1, .. }));
    assert!(handler.failed(&error, &mut Blind).is_err());
    let states = handler.stop();
    let positions: Vec<u16> = states.iter().map(|state| state.queue.next_avail).collect();
    assert_eq!(positions, [7, 0], "the first one was already handed over");
    assert!(bench.link.acquire().unwrap().present().is_ok());
}

#[test]
fn new_memory_is_told_while_the_device_works() {
    let bench = bench(None);
    let file = Arc::new(tempfile_of(64 << 20));
    let mem = GuestMemory::new(regions_of(&file, &[]));
    bench.link.memory_added(&mem, soon()).unwrap();
    bench.heard.take();
    let at = FileOffset::from_arc(file, 8 << 20);
    let more = GuestRegionMmap::from_range(GuestAddress(8 << 20), 1 << 20, Some(at)).unwrap();
    let grown = mem.memory().insert_region(Arc::new(more));
    bench
        .link
        .memory_added(&GuestMemory::new(grown.unwrap()), soon())
        .unwrap();
    assert_eq!(bench.heard.requests(), [Request::AddMemReg as u32], "only what is new");
    assert_eq!(bench.metrics().memory_updates.get(), 2);
}

#[test]
fn memory_that_is_gone_is_told_without_a_wait_and_by_whoever_speaks_to_the_back_end() {
    let bench = bench(Some((Request::RemMemReg, BackendAction::KeepSilent)));
    let grown = bench.grown();
    for speaks in [false, true] {
        bench.link.memory_added(&grown, soon()).unwrap();
        bench.heard.take();
        let connection = speaks.then(|| bench.link.acquire().unwrap());
        bench.link.memory_removed(&bench.mem).unwrap();
        if let Some(connection) = connection {
            assert_eq!(bench.heard.requests(), [] as [u32; 0]);
            drop(connection);
        }
        until(|| bench.heard.requests() == [Request::RemMemReg as u32]);
    }
    assert_eq!(bench.metrics().memory_updates.get(), 4);
    assert!(bench.link.acquire().unwrap().present().unwrap().check().is_ok());
}

#[test]
fn a_back_end_that_has_gone_or_is_on_its_way_out_is_told_of_no_memory() {
    let bench = bench(None);
    bench.link.memory_added(&bench.grown(), soon()).unwrap();
    bench.heard.take();
    bench.link.retire();
    bench.link.memory_removed(&bench.mem).unwrap();
    bench.link.close();
    bench.link.memory_removed(&bench.mem).unwrap();
    assert_eq!(bench.metrics().memory_updates.get(), 1);
    assert_eq!(bench.heard.requests(), [] as [u32; 0]);
}

#[test]
fn a_back_end_is_told_of_memory_that_the_device_reaches_later() {
    let bench = bench(None);
    // As large as it will ever be: what comes into it changes nothing.
    bench.link.share(shared_memory(&[8 << 20]));
    let (worker, _) = bench.started();
    assert_eq!(regions_told(&bench.heard.requests()), 2);
    drop(worker);
}

fn regions_told(requests: &[u32]) -> usize {
    requests
        .iter()
        .filter(|request| **request == Request::AddMemReg as u32)
        .count()
}

#[test]
fn the_next_start_connects_to_the_next_back_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let serve_next = move || {
        drop(serve(
            listener.accept().unwrap().0,
            Some((Request::RemMemReg, BackendAction::Close)),
        ))
    };
    let mut bench = bench(None);
    let servant = std::thread::spawn(move || {
        serve_next();
        serve_next();
    });
    bench.link = Link::connect(&path, 2, Duration::ZERO).unwrap();
    let (first, failures) = bench.started();
    let other = GuestMemory::new(regions_of(&Arc::new(tempfile_of(2 << 20)), &[]));
    assert!(bench.link.memory_added(&other, soon()).is_err());
    failures.recv_timeout(PATIENCE).unwrap();
    first.join();
    let (second, _) = bench.run();
    until(|| bench.metrics().starts.get() >= 2);
    assert_eq!(bench.metrics().connects.get(), 2);
    second.join();
    servant.join().unwrap();
}

#[test]
fn nobody_at_the_socket_is_an_error_that_says_so() {
    let patience = Duration::from_millis(25);
    let error = Link::connect(Path::new("/nowhere/s"), 2, patience).unwrap_err();
    assert_eq!(
        error_chain(&error),
        "cannot connect to its socket: No such file or directory (os error 2)"
    );
}

/// A request at `at`, its reply behind it. Returns its head.
fn ask(driver: &mut Driver, at: u64) -> u32 {
    driver.write(at, &[1, 0]);
    driver.add(&[Buf::Out(at, 1), Buf::In(at + 1, 1)]).into()
}

fn answer_of(driver: &mut Driver) -> (u32, u32) {
    let mut used = None;
    until(|| {
        used = driver.take_used();
        used.is_some()
    });
    used.unwrap()
}

#[test]
fn what_a_dead_back_end_owes_is_refused_and_so_is_what_comes_later() {
    let mut bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    let (worker, failures) = bench.started();
    let owed = [(0, 0x8_0000), (1, 0x8_1000)].map(|(queue, at)| ask(&mut bench.drivers[queue], at));
    bench.leave();
    failures.recv_timeout(PATIENCE).unwrap();
    for (driver, head) in bench.drivers.iter_mut().zip(owed) {
        assert_eq!(answer_of(driver), (head, 1));
    }
    assert_eq!(bench.drivers[0].read(0x8_0000, 2), [1, 0xff]);
    let later = ask(&mut bench.drivers[1], 0x8_2000);
    bench.drivers[1].kick.write(1).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (later, 1));
    assert!(bench.drivers[1].interrupts() > 0);
    let states = worker.join();
    let positions: Vec<_> = states
        .iter()
        .map(|state| (state.queue.next_avail, state.queue.next_used))
        .collect();
    assert_eq!(positions, [(1, 1), (2, 2)]);
    let metrics = bench.metrics();
    assert_eq!((metrics.refused_requests.get(), metrics.lost_requests.get()), (3, 0));
}

#[test]
fn a_start_that_fails_is_a_device_that_refuses() {
    for action in [
        BackendAction::Close,
        BackendAction::Refuse(1),
        BackendAction::Say(vec![0x5a; 600]),
    ] {
        for step in [Request::SetFeatures, Request::AddMemReg, Request::SetVringEnable] {
            let mut bench = bench(Some((step, action.clone())));
            let head = ask(&mut bench.drivers[1], 0x8_0000);
            let (worker, failures) = bench.run();
            assert_eq!(answer_of(&mut bench.drivers[1]), (head, 1));
            failures.recv_timeout(PATIENCE).unwrap();
            worker.join();
            assert_eq!(bench.metrics().refused_requests.get(), 1);
        }
    }
}

#[test]
fn what_a_back_end_answered_before_it_said_that_it_has_the_ring_is_not_served_again() {
    let mut bench = bench(Some((Request::SetVringEnable, BackendAction::KeepSilent)));
    let head = ask(&mut bench.drivers[0], 0x8_0000);
    let (worker, failures) = bench.run();
    until(|| bench.heard.requests().contains(&(Request::SetVringEnable as u32)));
    let driver = &mut bench.drivers[0];
    driver.write(0x8_0001, &[0x81]);
    driver.write(driver.used + 4, &[head, 1].map(u32::to_le_bytes).concat());
    driver.store(driver.used + 2, 1);
    bench.link.hang_up();
    failures.recv_timeout(PATIENCE).unwrap();
    let driver = &mut bench.drivers[0];
    let later = ask(driver, 0x8_1000);
    driver.kick.write(1).unwrap();
    assert_eq!(answer_of(driver), (head, 1));
    assert_eq!(answer_of(driver), (later, 1), "the used index does not go back");
    assert_eq!(driver.read(0x8_0000, 2), [1, 0x81], "nor is the reply another one");
    assert_eq!(driver.read(0x8_1000, 2), [1, 0xff]);
    let states = worker.join();
    assert_eq!((states[0].queue.next_avail, states[0].queue.next_used), (2, 2));
    assert_eq!(bench.metrics().refused_requests.get(), 1);
}

#[test]
fn a_back_end_that_ruined_a_ring_costs_that_ring_only() {
    let mut bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    let (worker, failures) = bench.started();
    bench.drivers[0].store(bench.drivers[0].used + 2, 0x1234);
    let owed = ask(&mut bench.drivers[1], 0x8_0000);
    bench.leave();
    failures.recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (owed, 1));
    assert_eq!(worker.join().len(), 2, "the ruined one comes back, too");
}

#[test]
fn a_driver_that_breaks_the_rules_ends_a_device_that_refuses() {
    let bench = bench(Some((Request::SetFeatures, BackendAction::Close)));
    let (worker, failures) = bench.run();
    failures.recv_timeout(PATIENCE).unwrap();
    bench.drivers[0].store(bench.drivers[0].avail + 2, 0x1234);
    bench.drivers[0].kick.write(1).unwrap();
    until(|| worker.is_stopped());
    assert_eq!(bench.metrics().backend_failures.get(), 1);
}

#[test]
fn all_rings_together_are_handed_over_and_taken_back_within_one_limit() {
    let bench = bench(Some((Request::SetFeatures, BackendAction::Dawdle)));
    bench.lose_patience();
    let (worker, failures) = bench.run();
    assert!(why(failures.recv_timeout(PATIENCE).unwrap()).contains("within 100 ms, with all that was asked before"));
    assert!(bench.heard.requests().len() <= 2, "{:?}", bench.heard.requests());
    worker.join();
    let bench = self::bench(Some((Request::GetVringBase, BackendAction::Dawdle)));
    let (worker, _) = bench.started();
    bench.heard.take();
    bench.lose_patience();
    worker.join();
    assert!(bench.heard.requests().len() <= 2, "{:?}", bench.heard.requests());
}

#[test]
fn a_device_on_its_way_out_waits_for_no_answer_and_connects_to_nobody() {
    for step in [
        Request::SetFeatures,
        Request::AddMemReg,
        Request::SetVringEnable,
        Request::GetVringBase,
    ] {
        let mut bench = bench(None);
        let (here, there) = UnixStream::pair().unwrap();
        bench.heard = serve(there, Some((step, BackendAction::KeepSilent)));
        // Nobody would live to see this limit.
        let limit = Duration::from_secs(1 << 30);
        bench.link = Link::from_stream(here, Path::new("/nowhere/s"), 2, limit).unwrap();
        let (worker, failures) = bench.run();
        if step == Request::GetVringBase {
            until(|| bench.metrics().starts.get() > 0);
            worker.hold();
        }
        until(|| bench.heard.requests().contains(&(step as u32)));
        // Whoever changes memory meanwhile waits for the connection until its own deadline, and no longer.
        let busy = bench.link.memory_added(&bench.mem, Instant::now());
        assert_eq!(
            busy.unwrap_err().to_string(),
            "/nowhere/s: it was busy with something else for 0 ms"
        );
        bench.link.retire();
        assert_eq!(worker.join().len(), 2, "at {step:?}");
        assert!(failures.try_recv().is_err(), "at {step:?}");
        assert_eq!(bench.metrics().backend_failures.get(), 0, "at {step:?}");
        let error = bench.link.acquire().unwrap().ready().unwrap_err();
        assert!(matches!(error, BackendError::Gone(None)), "{error}");
    }
}

#[test]
fn memory_that_the_back_end_refuses_is_an_error_of_the_change_and_not_the_end_of_the_share() {
    let bench = bench(Some((Request::AddMemReg, BackendAction::RefuseLater(1))));
    let (worker, failures) = bench.started();
    let grown = bench.grown();
    let error = bench.link.memory_added(&grown, soon()).unwrap_err().to_string();
    assert_eq!(error, "/nowhere/fs.sock: it refused AddMemReg with code 1");
    bench.heard.take();
    bench.link.memory_added(&bench.mem, soon()).unwrap();
    assert_eq!(bench.heard.requests(), [] as [u32; 0], "it has what it had");
    bench.serve(0, 7, 7);
    assert_eq!(
        worker.join()[0].queue.next_avail,
        7,
        "and gives its rings back in order"
    );
    assert!(failures.try_recv().is_err());
}

#[test]
fn the_end_of_a_device_is_no_failure_of_its_back_end() {
    let bench = bench(None);
    let mut handler = bench.handler();
    handler.watch(&mut Blind).unwrap();
    bench.link.retire();
    handler.wake(CONNECTION, &mut Blind).unwrap();
    assert_eq!(handler.stop().len(), 2);
    assert_eq!(bench.metrics().backend_failures.get(), 0);
}

#[test]
fn a_back_end_that_is_gone_keeps_nobody_from_changing_memory() {
    // While the device does not run, nobody else notices.
    let (here, there) = UnixStream::pair().unwrap();
    serve(there.try_clone().unwrap(), None);
    let link = Link::from_stream(here, Path::new("/nowhere/s"), 2, REPLY_TIMEOUT).unwrap();
    there.shutdown(std::net::Shutdown::Both).unwrap();
    link.memory_added(&shared_memory(&[]), soon()).unwrap();
    // The same after a stop that it did not answer.
    let bench = bench(Some((Request::GetVringBase, BackendAction::Close)));
    let (worker, _) = bench.started();
    worker.join();
    bench.link.memory_added(&shared_memory(&[]), soon()).unwrap();
}
