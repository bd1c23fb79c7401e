//! A disk against the simplest disk there is: an array of bytes.

use std::fs;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT,
    VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use crate::block::BlockConfig;
use crate::block::testing::{Guest, IO_ERROR, OK, config, image, pattern, segment, with_both_engines};

with_both_engines! {
    disk_behaves_like_an_array
}

#[derive(Clone, Debug)]
enum Action {
    Read(usize, usize),
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
}

const MODEL_SECTORS: usize = 96;

fn action() -> impl Strategy<Value = Action> {
    // Some reach beyond the end.
    let range = (0..MODEL_SECTORS + 2, 0..40usize);
    prop_oneof![
        range.clone().prop_map(|(at, len)| Action::Read(at, len)),
        (range.clone(), any::<u8>()).prop_map(|((at, len), seed)| Action::Write(at, len, seed)),
        (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Action::Zero(at, len, unmap)),
        range.prop_map(|(at, len)| Action::Discard(at, len)),
        Just(Action::Flush),
    ]
}

fn disk_behaves_like_an_array(io_uring: bool) {
    let config = ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..40), direct: bool, seed: u8)| {
        compare_with_array(io_uring, direct, seed, &actions);
    });
}

fn compare_with_array(io_uring: bool, direct: bool, seed: u8, actions: &[Action]) {
    let mut model = pattern(MODEL_SECTORS * 512, seed);
    let file = image(&model);
    let config = BlockConfig {
        direct,
        ..config(file.path(), io_uring)
    };
    let mut guest = Guest::new(config, 8);
    for action in actions {
        let (at, len) = match *action {
            Action::Read(at, len) | Action::Write(at, len, _) => (at, len),
            Action::Zero(at, len, _) | Action::Discard(at, len) => (at, len),
            Action::Flush => (0, 0),
        };
        let expected = if at + len <= MODEL_SECTORS { OK } else { IO_ERROR };
        let range = at * 512..(at + len) * 512;
        let reply = match *action {
            Action::Read(..) => guest.ask(IN, at as u64, &[], len as u32 * 512),
            Action::Write(_, _, seed) => guest.ask(OUT, at as u64, &pattern(len * 512, seed), 0),
            Action::Zero(_, _, unmap) => guest.ask(WRITE_ZEROES, 0, &segment(at as u64, len as u32, unmap.into()), 0),
            Action::Discard(..) => guest.ask(DISCARD, 0, &segment(at as u64, len as u32, 0), 0),
            Action::Flush => guest.ask(FLUSH, 0, &[], 0),
        };
        assert_eq!(reply.status, expected, "{action:?}");
        if expected != OK {
            continue;
        }
        match *action {
            Action::Read(..) => assert_eq!(reply.data, model[range], "{action:?}"),
            Action::Write(_, _, seed) => model[range].copy_from_slice(&pattern(len * 512, seed)),
            Action::Zero(..) | Action::Discard(..) => model[range].fill(0),
            Action::Flush => {}
        }
    }
    assert!(fs::read(file.path()).unwrap() == model);
}
