//! Locks: who waits, who goes on, who gives up.

use rustix::io::Errno;

use super::catalogue::{FILE, OPEN_FILE, furnished};
use super::*;
use crate::fs::serve::{Outcome, Serve};

const END: u64 = (1 << 63) - 1;

/// A wish of `owner` for bytes 0 to 9, or with `flock` for the whole file.
fn lock(opcode: u32, owner: u64, kind: u32, flock: bool) -> Request {
    let end = if flock { END } else { 9 };
    let body = [u64s([OPEN_FILE, owner, 0, end]), u32s([kind, 5, u32::from(flock), 0])].concat();
    let mut request = request(opcode, FILE, &[&body]);
    request.unique = owner;
    request
}

fn interrupt(unique: u64) -> Request {
    request(36, 0, &[&u64s([unique])])
}

fn hand_in(rig: &Rig, request: &Request) -> Outcome {
    rig.hand_in(&request.bytes(), 64, 64).0
}

#[test]
fn who_waits_goes_on_when_the_lock_is_free() {
    for flock in [false, true] {
        let rig = furnished();
        assert_eq!(rig.ask(&lock(33, 1, 1, flock)), success([]));
        assert_eq!(rig.ask(&lock(32, 2, 1, flock)), failure(Errno::AGAIN));
        assert_eq!(hand_in(&rig, &lock(33, 2, 1, flock)), Outcome::Wait);
        let before = rig.server.generation();
        assert_eq!(hand_in(&rig, &lock(33, 2, 1, flock)), Outcome::Wait);
        assert_eq!(rig.server.generation(), before);
        assert_eq!(rig.ask(&lock(32, 1, 2, flock)), success([]));
        assert_ne!(rig.server.generation(), before);
        assert_eq!(hand_in(&rig, &lock(33, 2, 1, flock)), Outcome::Done(16));
        assert!(rig.model.is_locked());
    }
}

#[test]
fn who_is_interrupted_gives_up() {
    let rig = furnished();
    rig.ask(&lock(33, 1, 1, false));
    assert_eq!(hand_in(&rig, &lock(33, 2, 1, false)), Outcome::Wait);
    assert_eq!(hand_in(&rig, &lock(33, 3, 1, false)), Outcome::Wait);
    let before = rig.server.generation();
    assert_eq!(hand_in(&rig, &interrupt(2)), Outcome::Done(0));
    assert_ne!(rig.server.generation(), before);
    assert_eq!(hand_in(&rig, &lock(33, 3, 1, false)), Outcome::Wait);
    rig.model.calls();
    assert_eq!(rig.ask(&lock(33, 2, 1, false)), failure(Errno::INTR));
    assert_eq!(rig.model.calls().last().unwrap(), "give_up 2 2");
    // Once.
    assert_eq!(hand_in(&rig, &lock(33, 2, 1, false)), Outcome::Wait);
    // Also before it comes; twice is as good as once.
    for _ in 0..2 {
        hand_in(&rig, &interrupt(4));
    }
    assert_eq!(rig.ask(&lock(33, 4, 1, false)), failure(Errno::INTR));
    assert_eq!(hand_in(&rig, &lock(33, 4, 1, false)), Outcome::Wait);
    // A lock that can be had is had.
    hand_in(&rig, &interrupt(1));
    assert_eq!(rig.ask(&lock(33, 1, 1, false)), success([]));
    assert_eq!(rig.count("interrupts"), 4);
}

#[test]
fn who_finds_no_room_to_wait_is_taken_off() {
    let rig = furnished();
    let given_up = |request: &Request| {
        rig.give_up(&request.bytes());
        rig.model.calls()
    };
    assert_eq!(given_up(&lock(33, 7, 1, false)), ["give_up 7 7"]);
    assert_eq!(given_up(&lock(32, 7, 1, false)), [""; 0], "it does not wait");
    let mut short = lock(33, 7, 1, false).bytes();
    short.truncate(60);
    rig.give_up(&short);
    rig.give_up(&[]);
    assert_eq!(rig.model.calls(), [""; 0]);
}

#[test]
fn of_those_given_up_the_newest_are_kept() {
    let rig = furnished();
    rig.ask(&lock(33, 1, 1, false));
    for unique in 1000..1300 {
        hand_in(&rig, &interrupt(unique));
    }
    assert_eq!(hand_in(&rig, &lock(33, 1043, 1, false)), Outcome::Wait);
    assert_eq!(rig.ask(&lock(33, 1044, 1, false)), failure(Errno::INTR));
    assert_eq!(rig.ask(&lock(33, 1299, 1, false)), failure(Errno::INTR));
    // A new session knows of none.
    rig.ask(&init_request(7, 41, LINUX_6_12));
    let rig = furnished();
    rig.ask(&lock(33, 1, 1, false));
    assert_eq!(hand_in(&rig, &lock(33, 1100, 1, false)), Outcome::Wait);
}

#[test]
fn what_is_in_the_way_is_told() {
    let rig = furnished();
    rig.ask(&lock(32, 1, 1, false));
    let told = [u64s([0, 9]), u32s([1, 5])].concat();
    assert_eq!(rig.ask(&lock(31, 2, 0, false)), success(told));
    let free = [u64s([0, 9]), u32s([2, 0])].concat();
    assert_eq!(rig.ask(&lock(31, 1, 0, false)), success(free));
}

#[test]
fn a_lock_that_makes_no_sense_is_refused() {
    let rig = furnished();
    let with = |start, end, kind| request(32, FILE, &[&u64s([OPEN_FILE, 1, start, end]), &u32s([kind, 5, 0, 0])]);
    for wrong in [
        with(10, 9, 0),
        with(1 << 63, u64::MAX, 0),
        with(0, 9, 3),
        with(0, 9, u32::MAX),
        lock(31, 1, 2, false),
        lock(31, 1, 1, true),
    ] {
        assert_eq!(rig.ask(&wrong), failure(Errno::INVAL), "{wrong:?}");
    }
    assert_eq!(rig.model.calls(), [""; 0]);
    assert_eq!(rig.ask(&with(0, u64::MAX, 0)), success([]));
}

#[test]
fn a_guest_with_locks_of_its_own_is_sent_away() {
    let mut share = ALL;
    share.locks = false;
    let rig = Rig::with(share, LINUX_6_12);
    for opcode in 31..=33 {
        assert_eq!(rig.ask(&lock(opcode, 1, 1, false)), failure(Errno::NOSYS));
    }
    assert_eq!(rig.model.calls(), [""; 0]);
}
