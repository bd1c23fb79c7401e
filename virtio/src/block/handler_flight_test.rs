//! Many requests at a time, large and odd ones, and the end of a queue.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use husk_devices::testing::until;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};
use virtio_queue::desc::split::Descriptor;
use vm_memory::MmapRegion;

use super::super::engine::Op;
use super::{COMPLETED, KICKED, QueueHandler};
use crate::block::testing::{
    DATA, Guest, HEADER, HERE, IO_ERROR, KIB, OK, STATUS, UNANSWERED, Watched, activation, buffers, config, counter,
    has_uring, image, pattern, pipe, plain_reply, with_both_engines,
};
use crate::block::{Block, BlockConfig};
use crate::device::{Handler, HandlerError, Hold, VirtioDevice, Watch};
use crate::iovecs::Iovecs;
use crate::ring::{Notify, Ring, RingError, RingState};
use crate::testing::{Buf, Driver, F_INDIRECT, F_NEXT, F_WRITE, SECOND, memory};

with_both_engines! {
    direct_io_takes_odd_buffers
    direct_io_takes_parts_of_a_block
    more_odd_requests_than_bounce_buffers
    more_requests_than_fit_in_flight
    more_buffers_than_one_call_takes
    a_held_queue_has_given_back_whatever_it_took_and_goes_on_with_the_rest
    stop_leaves_guest_memory_alone
    stopped_queue_goes_on_where_it_was
    stop_waits_for_no_more_than_the_host_has_begun
    nobody_is_answered_without_the_right_to_memory
    what_ended_while_the_queue_was_held_without_the_right_is_answered_when_it_is_back
    one_turn_moves_no_more_than_its_share
    long_requests_come_to_their_end_all_the_same
    a_turn_of_flushes_is_short
    a_driver_that_is_always_at_work_does_not_keep_the_thread
}

/// Sends `count` reads of `len` bytes into the buffers that `at` names, and gives the heads.
fn send_reads(guest: &mut Guest, count: u16, len: u32, at: impl Fn(u16) -> u64) -> Vec<u16> {
    let heads = (0..count).map(|n| {
        let header = HEADER + 16 * u64::from(n);
        guest.driver.write(header, &Guest::header(IN, u64::from(n)));
        guest.driver.write(STATUS + u64::from(n), &[UNANSWERED]);
        guest.driver.add(&[
            Buf::Out(header, 16),
            Buf::In(at(n), len),
            Buf::In(STATUS + u64::from(n), 1),
        ])
    });
    let heads = heads.collect();
    guest.kick();
    heads
}

fn a_held_queue_has_given_back_whatever_it_took_and_goes_on_with_the_rest(io_uring: bool) {
    let file = image(&pattern(256 * KIB, 5));
    let mut guest = Guest::new(config(file.path(), io_uring), 1024);
    send_reads(&mut guest, 200, 512, |n| DATA + 512 * u64::from(n));
    guest.wake().unwrap();
    guest.hold();
    let given = std::iter::from_fn(|| guest.driver.take_used()).count();
    // With io_uring as many as may be under way, and more if the host had them at hand.
    assert!(
        given >= if io_uring { 128 } else { 200 },
        "{given} of those that it took"
    );
    // No kick is coming: the driver was told that none is wanted.
    guest.release();
    assert_eq!(given + guest.settle(200 - given).len(), 200);
    // With nothing to do.
    guest.hold();
    guest.release();
    assert_eq!(guest.ask(IN, 0, &[], 512).status, OK);
}

/// A queue whose host has begun a read that does not end as long as nothing is in the pipe.
struct Hanging {
    // The handler is dropped first, and with it what the kernel does for it.
    handler: Box<QueueHandler>,
    reader: fs::File,
    buffers: Iovecs,
    _memory: MmapRegion,
}

impl Handler for Hanging {
    fn set_bus_master_flag(&mut self, bus_master: Arc<AtomicBool>) {
        self.handler.set_bus_master_flag(bus_master);
    }

    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.handler.watch(watch)?;
        let op = Op::Read {
            file: &self.reader,
            buffers: &self.buffers,
            offset: HERE,
        };
        // SAFETY: file, buffers and memory stay until the handler, and with it the engine, is gone. No job has this
        // slot.
        assert!(unsafe { self.handler.engine.run(usize::MAX, op, false) }.is_none());
        assert!(self.handler.engine.submit().unwrap());
        Ok(())
    }

    fn wake(&mut self, token: u32, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.handler.wake(token, watch)
    }

    fn hold(&mut self, watch: &mut dyn Watch) -> Result<Hold, HandlerError> {
        self.handler.hold(watch)
    }

    fn release(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.handler.release(watch)
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.handler.stop()
    }
}

#[test]
fn a_hold_that_is_called_off_leaves_a_queue_at_work_beside_what_the_host_does_not_end() {
    if !has_uring() {
        return;
    }
    let file = image(&pattern(64 * KIB, 5));
    let block = Block::open(config(file.path(), true)).unwrap();
    let driver = Driver::new(&memory(), 0x1000, 16);
    let (reader, writer) = pipe();
    let read = MmapRegion::new(1).unwrap();
    let hanging = Hanging {
        handler: Box::new(block.queue_handler(driver.ring(), &block.agree_on_cache(0))),
        reader,
        buffers: buffers(&read),
        _memory: read,
    };
    let bus_master = Arc::new(AtomicBool::new(true));
    let mut guest = Guest::run_by_hand(driver, Box::new(hanging), block.metrics());
    guest.set_bus_master_flag(&bus_master);
    assert_eq!(guest.ask(IN, 0, &[], 512).status, OK);
    for is_bus_master in [true, false] {
        bus_master.store(is_bus_master, Ordering::SeqCst);
        assert_eq!(guest.ask_to_hold(), Hold::Pending);
        send_reads(&mut guest, 1, 512, |_| DATA);
        guest.wake().unwrap();
        assert_eq!((guest.ask_to_hold(), guest.driver.take_used()), (Hold::Pending, None));
        assert!(!guest.has_rung(), "its thread sleeps");
        guest.release();
        bus_master.store(true, Ordering::SeqCst);
        guest.settle(1);
    }
    assert_eq!(guest.ask_to_hold(), Hold::Pending);
    rustix::io::write(&writer, b"x").unwrap();
    guest.hold();
    guest.release();
    assert_eq!(guest.ask(IN, 0, &[], 512).status, OK);
}

#[test]
fn what_the_host_has_at_hand_is_answered_in_the_turn_that_took_it_and_rings_no_more() {
    if !has_uring() {
        return;
    }
    let file = image(&pattern(256 * KIB, 5));
    let mut guest = Guest::new(config(file.path(), true), 256);
    guest.wake().unwrap();
    // Other work of the host may keep a page from being at hand, now and then.
    let at_once = (0..20).filter(|_| {
        send_reads(&mut guest, 4, 512, |n| DATA + 512 * u64::from(n));
        guest.wake().unwrap();
        let answered = std::iter::from_fn(|| guest.driver.take_used()).count();
        let is_quiet = !guest.has_rung();
        if answered < 4 {
            guest.settle(4 - answered);
        }
        answered == 4 && is_quiet
    });
    assert!(at_once.count() > 0);
    assert_eq!(guest.ask(IN, 0, &[], 512).status, OK);
}

#[test]
fn a_small_write_with_nothing_beside_it_is_answered_in_the_turn_that_took_it_and_rings_no_more() {
    if !has_uring() {
        return;
    }
    let file = image(&[0; 256 * KIB]);
    let mut guest = Guest::new(config(file.path(), true), 256);
    guest.wake().unwrap();
    // Now and then other work of the host may keep the thread from it, so that the next ones go through the ring.
    let at_once = (0..20).filter(|n| {
        guest.driver.write(DATA, &[n + 1; 4 * KIB]);
        guest.driver.write(HEADER, &Guest::header(OUT, 8 * u64::from(*n)));
        guest
            .driver
            .add(&[Buf::Out(HEADER, 16), Buf::Out(DATA, 4 * KIB as u32), Buf::In(STATUS, 1)]);
        guest.kick();
        guest.wake().unwrap();
        let is_answered = guest.driver.take_used().is_some();
        let is_quiet = !guest.has_rung();
        if !is_answered {
            guest.settle(1);
        }
        is_answered && is_quiet
    });
    assert!(at_once.count() > 0);
    let written = fs::read(file.path()).unwrap();
    let expected = (1..=20_u8).flat_map(|n| [n; 4 * KIB]);
    assert!(
        written.into_iter().take(80 * KIB).eq(expected),
        "each is where it belongs"
    );
}

#[test]
fn a_file_of_which_a_part_is_at_hand_is_read_whole_and_past_its_end_there_are_zeroes() {
    if !has_uring() {
        return;
    }
    let content = pattern(300 * KIB + 100, 9);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), true), 16);
    for turn in 0..4 {
        // Some of its pages leave the cache, as far as the host heeds that.
        file.as_file().sync_all().unwrap();
        let (offset, len) = (turn * 64 * KIB as u64, std::num::NonZeroU64::new(32 * KIB as u64));
        rustix::fs::fadvise(file.as_file(), offset, len, rustix::fs::Advice::DontNeed).unwrap();
        let reply = guest.ask(IN, 0, &[], 256 * KIB as u32);
        assert!(reply.status == OK && reply.data == content[..256 * KIB], "turn {turn}");
    }
    let last = 300 * KIB as u64 / 512;
    let reply = guest.ask(IN, last, &[], 512);
    let mut expected = content[300 * KIB..].to_vec();
    expected.resize(512, 0);
    assert!(reply.status == OK && reply.data == expected);
}

fn direct_io_takes_odd_buffers(io_uring: bool) {
    let file = image(&[0; 512 * KIB]);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 16);
    let len = 300 * KIB as u32;
    let data = pattern(len as usize, 3);
    let cut = |at: u64| {
        [
            (at, 1u32),
            (at + 1, 4095),
            (at + 4096, len - 4096 - 7),
            (at + u64::from(len) - 7, 7),
        ]
    };

    for (sector, at) in [(8, DATA + 3), (9, DATA)] {
        guest.driver.write(HEADER, &Guest::header(OUT, sector));
        guest.driver.write(at, &data);
        let outs = cut(at).map(|(at, len)| Buf::Out(at, len));
        guest
            .driver
            .add(&[&[Buf::Out(HEADER, 16)], &outs[..], &[Buf::In(STATUS, 1)]].concat());
        guest.kick();
        guest.settle(1);
        assert_eq!(guest.driver.read(STATUS, 1), [OK]);
        assert!(fs::read(file.path()).unwrap()[sector as usize * 512..][..data.len()] == data);

        let at = at + 0x8_0000;
        guest.driver.write(HEADER, &Guest::header(IN, sector));
        guest.driver.write(at, &vec![UNANSWERED; len as usize]);
        let ins = cut(at).map(|(at, len)| Buf::In(at, len));
        guest
            .driver
            .add(&[&[Buf::Out(HEADER, 16)], &ins[..], &[Buf::In(STATUS, 1)]].concat());
        guest.kick();
        assert_eq!(guest.settle(1)[0].1, len + 1);
        assert!(guest.driver.read(at, len as usize) == data);
    }
    assert_eq!(counter(&guest, "bounced_requests"), 4);
    assert_eq!(guest.ask(IN, 8, &[], 4096).status, OK);
    assert_eq!(counter(&guest, "bounced_requests"), 4, "aligned buffers take no detour");
}

fn direct_io_takes_parts_of_a_block(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut block = Block::open(config).unwrap();
    block.assume_direct_unit(4096);
    let features = block.profile().features;
    let mut guest = Guest::start(&mut block, 8, features);
    let mut expected = content;

    for (sector, len) in [
        (0usize, 512usize),
        (9, 4096),
        (8, 8192),
        (16, 4096),
        (127, 512),
        (3, 30 * 512),
    ] {
        let data = pattern(len, sector as u8);
        assert_eq!(guest.ask(OUT, sector as u64, &data, 0), plain_reply(OK));
        expected[sector * 512..][..len].copy_from_slice(&data);
        let reply = guest.ask(IN, sector as u64, &[], len as u32);
        assert_eq!((reply.status, reply.data), (OK, data));
    }
    assert!(guest.ask(IN, 0, &[], 64 * 1024).data == expected);
    assert!(fs::read(file.path()).unwrap() == expected);
}

fn more_odd_requests_than_bounce_buffers(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 256);
    let at = |n: u16| DATA + 1 + 0x1000 * u64::from(n);

    send_reads(&mut guest, 80, 1024, at);
    guest.settle(80);

    for n in 0..80 {
        assert_eq!(guest.driver.read(STATUS + u64::from(n), 1), [OK], "request {n}");
        assert_eq!(
            guest.driver.read(at(n), 1024),
            content[usize::from(n) * 512..][..1024],
            "request {n}"
        );
    }
}

fn more_requests_than_fit_in_flight(io_uring: bool) {
    let content = pattern(256 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 1024);
    let at = |n: u16| DATA + 0x200 * u64::from(n);

    let mut heads = send_reads(&mut guest, 340, 512, at);
    let mut used: Vec<_> = guest.settle(340).into_iter().map(|(head, _)| head as u16).collect();

    heads.sort_unstable();
    used.sort_unstable();
    assert_eq!(used, heads, "each came back once");
    assert!(guest.driver.read(DATA, 340 * 512) == content[..340 * 512]);
    assert!(guest.driver.read(STATUS, 340).iter().all(|status| *status == OK));
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK), "kicks are wanted again");
}

fn more_buffers_than_one_call_takes(io_uring: bool) {
    let content = pattern(1024 * KIB, 1);
    let file = image(&content);
    let mut guest = Guest::new(config(file.path(), io_uring), 2048);
    let (count, len) = (1600, 400);
    let mut bufs = vec![Buf::Out(HEADER, 16)];
    bufs.extend((0..count).map(|n| Buf::In(DATA + 0x200 * n, len)));
    bufs.push(Buf::In(STATUS, 1));
    guest.driver.write(HEADER, &Guest::header(IN, 7));
    guest.driver.add(&bufs);
    guest.kick();

    assert_eq!(guest.settle(1)[0].1, count as u32 * len + 1);

    let read: Vec<u8> = (0..count)
        .flat_map(|n| guest.driver.read(DATA + 0x200 * n, len as usize))
        .collect();
    assert!(read == content[7 * 512..][..read.len()]);
}

fn stop_leaves_guest_memory_alone(io_uring: bool) {
    let content = pattern(1024 * KIB, 1);
    let file = image(&content);
    file.as_file().sync_all().unwrap();
    let config = BlockConfig {
        direct: true,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 64);
    let (count, len) = (20, 64 * KIB as u32);
    let at = |n: u16| DATA + u64::from(len) * u64::from(n);
    send_reads(&mut guest, count, len, at);

    guest.wake().unwrap();
    let states = guest.stop();

    assert_eq!(states[0].queue.next_avail, count);
    assert_eq!(states[0].queue.next_used, count, "what was taken was answered");
    for n in 0..count {
        assert_eq!(guest.driver.read(STATUS + u64::from(n), 1), [OK]);
        assert!(guest.driver.read(at(n), len as usize) == content[usize::from(n) * 512..][..len as usize]);
    }
    let canary = vec![UNANSWERED; usize::from(count) * len as usize];
    guest.driver.write(DATA, &canary);
    std::thread::sleep(Duration::from_millis(50));
    assert!(guest.driver.read(DATA, canary.len()) == canary, "somebody still wrote");
}

fn stopped_queue_goes_on_where_it_was(io_uring: bool) {
    let content = pattern(64 * KIB, 1);
    let file = image(&content);
    let mut block = Block::open(config(file.path(), io_uring)).unwrap();
    let features = block.profile().features;
    let mut guest = Guest::start(&mut block, 16, features);
    assert_eq!(guest.ask(IN, 3, &[], 512).status, OK);
    let state = guest.stop()[0];

    // Made available while nobody was there: the new handler looks without being kicked.
    let heads = send_reads(&mut guest, 4, 512, |n| DATA + 0x200 * u64::from(n));
    guest.driver.kick.read().unwrap();
    let mut guest = guest.resume(&mut block, state, features);

    let mut used: Vec<_> = guest.settle(4).into_iter().map(|(head, _)| head as u16).collect();
    used.sort_unstable();
    assert_eq!(used, heads);
    assert_eq!(guest.driver.read(DATA, 2048), content[..2048]);
}

/// Offers `count` reads, all of one table: 1022 times the same MiB.
fn offer_long_reads(guest: &mut Guest, count: u16) {
    let table = 0x4_0000;
    let put = |index: u16, address: u64, len: u32, flags: u16| {
        let descriptor = Descriptor::new(address, len, flags, index + 1);
        guest.driver.put(table, index, descriptor);
    };
    guest.driver.write(HEADER, &Guest::header(IN, 0));
    put(0, HEADER, 16, F_NEXT);
    (1..=1022).for_each(|index| put(index, SECOND, 0x10_0000, F_NEXT | F_WRITE));
    put(1023, STATUS, 1, F_WRITE);
    for head in 0..count {
        let descriptor = Descriptor::new(table, 1024 * 16, F_INDIRECT, 0);
        guest.driver.put(guest.driver.desc, head, descriptor);
        guest.driver.offer(head);
    }
    guest.kick();
}

/// A queue of a disk of 1 GiB without content.
fn large_disk(io_uring: bool) -> (tempfile::NamedTempFile, Guest) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    let config = BlockConfig {
        queue_size: 1024,
        ..config(file.path(), io_uring)
    };
    let guest = Guest::new(config, 1024);
    (file, guest)
}

fn stop_waits_for_no_more_than_the_host_has_begun(io_uring: bool) {
    let (_file, mut guest) = large_disk(io_uring);
    offer_long_reads(&mut guest, 16);
    guest.wake().unwrap();
    let state = guest.stop()[0].queue;
    assert_eq!(
        (counter(&guest, "read_requests"), counter(&guest, "failed_requests")),
        (0, u64::from(state.next_avail))
    );
    assert_eq!(state.next_used, state.next_avail, "what was taken was answered");
    let used: Vec<_> = std::iter::from_fn(|| guest.driver.take_used()).collect();
    assert_eq!(used.len(), usize::from(state.next_avail));
    assert!((1..=16).contains(&used.len()));
    assert_eq!(guest.driver.read(STATUS, 1), [IO_ERROR]);
}

fn nobody_is_answered_without_the_right_to_memory(io_uring: bool) {
    let (_file, mut guest) = large_disk(io_uring);
    let bus_master = Arc::new(AtomicBool::new(true));
    guest.set_bus_master_flag(&bus_master);
    guest.driver.write(STATUS, &[UNANSWERED]);
    offer_long_reads(&mut guest, 16);
    guest.wake().unwrap();
    bus_master.store(false, Ordering::SeqCst);
    let before = guest.driver.used_flags();
    let interrupts = guest.driver.interrupts();
    guest.hold();
    let state = guest.stop()[0].queue;
    assert!(state.next_avail > 0 && state.next_used == 0);
    assert_eq!(guest.driver.take_used(), None);
    assert_eq!(guest.driver.read(STATUS, 1), [UNANSWERED]);
    assert_eq!(
        (guest.driver.used_flags(), guest.driver.interrupts()),
        (before, interrupts)
    );
}

fn what_ended_while_the_queue_was_held_without_the_right_is_answered_when_it_is_back(io_uring: bool) {
    let file = image(&[]);
    file.as_file().set_len(64 << 20).unwrap();
    let mut guest = Guest::new(config(file.path(), io_uring), 64);
    let bus_master = Arc::new(AtomicBool::new(true));
    guest.set_bus_master_flag(&bus_master);
    for _ in 0..10 {
        assert_eq!(guest.ask(OUT, 0, &pattern(512 * KIB, 1), 0).status, OK);
        guest.driver.write(HEADER, &Guest::header(FLUSH, 0));
        for _ in 0..3 {
            guest.driver.add(&[Buf::Out(HEADER, 16), Buf::In(STATUS, 1)]);
        }
        guest.kick();
        guest.wake().unwrap();
        bus_master.store(false, Ordering::SeqCst);
        let before = std::iter::from_fn(|| guest.driver.take_used()).count();
        guest.hold();
        assert_eq!(guest.driver.take_used(), None);
        guest.release();
        bus_master.store(true, Ordering::SeqCst);
        guest.settle(3 - before);
        assert_eq!(guest.driver.read(STATUS, 1), [OK]);
    }
}

fn one_turn_moves_no_more_than_its_share(io_uring: bool) {
    let (_file, mut guest) = large_disk(io_uring);
    offer_long_reads(&mut guest, 4);
    for _ in 0..10 {
        guest.wake().unwrap();
        assert_eq!(guest.driver.take_used(), None, "none of a GiB is done after ten turns");
    }
    guest.stop();
}

fn long_requests_come_to_their_end_all_the_same(io_uring: bool) {
    let content = pattern(1024 * KIB, 5);
    let file = image(&content.repeat(20));
    let mut guest = Guest::new(config(file.path(), io_uring), 64);
    guest.driver.write(HEADER, &Guest::header(IN, 0));
    // Each reads the same MiB twenty times, and the next one the same.
    let mut bufs = vec![Buf::Out(HEADER, 16)];
    bufs.extend([Buf::In(SECOND, 1024 * KIB as u32); 20]);
    bufs.push(Buf::In(STATUS, 1));
    for _ in 0..2 {
        guest.driver.add(&bufs);
    }
    guest.kick();
    let used = guest.settle(2);
    assert!(used.iter().all(|(_, len)| *len == 20 * 1024 * KIB as u32 + 1));
    assert_eq!(guest.driver.read(STATUS, 1), [OK]);
    assert!(guest.driver.read(SECOND, content.len()) == content);
    assert_eq!(guest.ask(FLUSH, 0, &[], 0), plain_reply(OK), "kicks are wanted again");
}

fn a_turn_of_flushes_is_short(io_uring: bool) {
    let file = image(&pattern(64 * KIB, 1));
    let mut guest = Guest::new(config(file.path(), io_uring), 256);
    guest.driver.write(HEADER, &Guest::header(FLUSH, 0));
    for _ in 0..100 {
        guest.driver.add(&[Buf::Out(HEADER, 16), Buf::In(STATUS, 1)]);
    }
    guest.kick();
    guest.wake().unwrap();
    let first = std::iter::from_fn(|| guest.driver.take_used()).count();
    assert!(first <= 4, "{first} flushes in one turn");
    assert_eq!(guest.settle(100 - first).len(), 100 - first);
    assert_eq!(counter(&guest, "flush_requests"), 100);
}

fn a_driver_that_is_always_at_work_does_not_keep_the_thread(io_uring: bool) {
    // Without room for a status; nothing to do; not allowed.
    for (bufs, name) in [
        (&[Buf::Out(HEADER, 16)][..], "malformed_chains"),
        (&[Buf::Out(HEADER, 15), Buf::In(STATUS, 1)], "failed_requests"),
        (&[Buf::Out(HEADER, 16), Buf::In(STATUS, 1)], "unsupported_requests"),
    ] {
        let file = image(&pattern(64 * KIB, 1));
        let mut block = Block::open(config(file.path(), io_uring)).unwrap();
        let mut driver = Driver::new(&memory(), 0x1000, 16);
        driver.write(HEADER, &Guest::header(99, 0));
        driver.add(bufs);
        driver.busy_heads = 1;
        let mut handlers = block.start(activation(&driver.mem, 0, &[&driver])).unwrap();
        let mut guest = Guest::run_by_hand(driver, handlers.remove(0), block.metrics());
        for turn in 1..4 {
            guest.wake().unwrap();
            assert_eq!(counter(&guest, name), 16 * turn, "as many as the ring has entries");
        }
    }
}

#[test]
fn busy_driver_cannot_keep_the_thread() {
    let file = image(&pattern(4 * KIB, 1));
    let mut block = Block::open(config(file.path(), false)).unwrap();
    let driver = Arc::new(Mutex::new(Driver::new(&memory(), 0x1000, 8)));
    let (mem, kick, state) = {
        let driver = driver.lock().unwrap();
        driver.write(HEADER, &Guest::header(IN, 0));
        (driver.mem.clone(), driver.kick.clone(), driver.state())
    };
    // Every answer is followed by another request, for ever, and none of them by a kick.
    let request = [Buf::Out(HEADER, 16), Buf::In(DATA, 512), Buf::In(STATUS, 1)];
    let sender = driver.clone();
    let notify = Notify::new(move || {
        sender.lock().unwrap().add(&request);
    });
    let ring = Ring::new(state, kick.clone(), notify, mem.clone()).unwrap();
    let mut activation = activation(&mem, 0, &[]);
    activation.rings.push(Some(ring));
    let mut handler = block.start(activation).unwrap().remove(0);
    driver.lock().unwrap().add(&request);

    for round in 1..4 {
        handler.wake(0, &mut Watched::default()).unwrap();
        let answered = std::iter::from_fn(|| driver.lock().unwrap().take_used()).count();
        assert_eq!(answered, 8, "round {round}: as many as the ring has entries");
        assert!(kick.read().is_ok(), "round {round}: it will come back");
    }
}

#[test]
fn chain_offered_twice_while_in_flight_ends_the_queue_unharmed() {
    if !has_uring() {
        return;
    }
    let file = image(&pattern(64 * KIB, 1));
    let mut guest = Guest::new(config(file.path(), true), 8);
    // Neither a read nor a write, which may be over before the second offer is looked at.
    guest.driver.write(HEADER, &Guest::header(FLUSH, 0));
    guest.driver.write(STATUS, &[UNANSWERED]);
    let bufs = [Buf::Out(HEADER, 16), Buf::In(STATUS, 1)];
    let head = guest.driver.add(&bufs);
    guest.driver.offer(head);
    guest.kick();

    let error = guest.wake().unwrap_err();

    let HandlerError::Ring(RingError::HeadInFlight { head: found, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(found, head);
    guest.stop();
    assert_eq!(
        guest.driver.take_used(),
        Some((head.into(), 1)),
        "the first one was carried out"
    );
    assert_eq!(guest.driver.take_used(), None);
}

/// A queue with a flush that the host has ended, beside another sync that it has not told of.
struct TwoSyncs {
    // The handler goes before the image.
    handler: QueueHandler,
    block: Block,
    driver: Driver,
    head: u16,
    other: usize,
    _file: tempfile::NamedTempFile,
}

fn two_syncs() -> TwoSyncs {
    let file = image(&pattern(4 * KIB, 1));
    let block = Block::open(config(file.path(), true)).unwrap();
    let mem = memory();
    let mut driver = Driver::new(&mem, 0x1000, 16);
    let mut handler = block.queue_handler(driver.ring(), &block.writeback);
    handler.watch(&mut Watched::default()).unwrap();
    let other = handler.jobs.depth() - 1;
    handler.sync_order.begin(other);
    driver.write(HEADER, &Guest::header(FLUSH, 0));
    driver.write(STATUS, &[UNANSWERED]);
    let head = driver.add(&[Buf::Out(HEADER, 16), Buf::In(STATUS, 1)]);
    handler.wake(KICKED, &mut Watched::default()).unwrap();
    until(|| {
        handler.wake(COMPLETED, &mut Watched::default()).unwrap();
        !handler.engine.is_busy()
    });
    TwoSyncs {
        handler,
        block,
        driver,
        head,
        other,
        _file: file,
    }
}

#[test]
fn a_flush_is_answered_by_what_all_syncs_say_that_ran_beside_it() {
    if !has_uring() {
        return;
    }
    for (lost, status) in [(false, OK), (true, IO_ERROR)] {
        let mut syncs = two_syncs();
        assert_eq!(syncs.driver.take_used(), None);
        assert_eq!(syncs.driver.read(STATUS, 1), [UNANSWERED]);
        if lost {
            let error = std::io::Error::from_raw_os_error(libc::EIO);
            syncs.block.image.durability().lose(&error);
        }
        syncs.handler.sync_order.end(syncs.other);
        syncs.handler.wake(COMPLETED, &mut Watched::default()).unwrap();
        assert_eq!(syncs.driver.take_used(), Some((syncs.head.into(), 1)));
        assert_eq!(syncs.driver.read(STATUS, 1), [status]);
    }
}
