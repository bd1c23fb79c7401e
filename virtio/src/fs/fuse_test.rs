use super::*;
use crate::ring::Chain;
use crate::testing::{Buf, Driver, memory};

const REQUEST: u64 = 0x8000;
const REPLY: u64 = 0x9000;

/// A chain with `request`, and `room` bytes for a reply that begin with `reply`.
fn chain(request: &[u8], reply: &[u8], room: u32) -> (Driver, Chain) {
    let mut driver = Driver::new(&memory(), 0x1000, 16);
    driver.write(REQUEST, request);
    driver.write(REPLY, reply);
    let mut bufs = vec![Buf::Out(REQUEST, request.len().try_into().unwrap())];
    bufs.extend((room > 0).then_some(Buf::In(REPLY, room)));
    driver.add(&bufs);
    let chain = driver.ring().pop().unwrap().unwrap();
    (driver, chain)
}

fn request(len: u32, opcode: u32, unique: u64) -> Vec<u8> {
    [
        &len.to_le_bytes()[..],
        &opcode.to_le_bytes(),
        &unique.to_le_bytes(),
        &[0; 32],
    ]
    .concat()
}

fn reply(len: u32, unique: u64) -> Vec<u8> {
    [&len.to_le_bytes()[..], &[0; 4], &unique.to_le_bytes()].concat()
}

fn reply_state(request: &[u8], said: &[u8], room: u32) -> ReplyState {
    let (_, chain) = chain(request, said, room);
    Fuse.reply_state(&mut chain.reader(), &mut chain.written())
}

#[test]
fn a_request_waits_until_its_number_is_in_the_reply() {
    let lookup = request(48, 1, 14);
    assert_eq!(reply_state(&lookup, &[0; 16], 144), ReplyState::Waiting);
    assert_eq!(reply_state(&lookup, &reply(144, 12), 144), ReplyState::Waiting);
    assert_eq!(reply_state(&lookup, &reply(144, 14), 144), ReplyState::Answered(144));
    assert_eq!(
        reply_state(&lookup, &reply(u32::MAX, 14), 144),
        ReplyState::Answered(144)
    );
}

#[test]
fn what_is_no_request_leaves_no_trace() {
    for (no_request, room) in [
        (request(47, 1, 14), 16),
        (request(48, 0, 14), 16),
        (request(48, 1, 0), 16),
        (request(48, 1, 14)[..39].to_vec(), 16),
        (request(48, 1, 14), 15),
        // FUSE_FORGET
        (request(48, 2, 14), 0),
    ] {
        assert_eq!(
            reply_state(&no_request, &[0; 16], room),
            ReplyState::None,
            "{no_request:?}"
        );
    }
}

#[test]
fn a_refusal_is_a_reply_that_says_not_connected() {
    let (driver, refused) = chain(&request(48, 1, 0x1122), &[0xee; 32], 32);
    assert_eq!(Fuse.refuse(&mut refused.reader(), &mut refused.writer()), 16);
    let expected = [
        &[16, 0, 0, 0],
        &(-107_i32).to_le_bytes()[..],
        &[0x22, 0x11, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(driver.read(REPLY, 16), expected);
    assert_eq!(driver.read(REPLY + 16, 16), [0xee; 16]);
}

#[test]
fn nothing_is_written_where_no_reply_fits() {
    for (short, room) in [
        (request(48, 1, 1)[..39].to_vec(), 16),
        (request(48, 1, 1), 15),
        (request(48, 2, 1), 0),
    ] {
        let (driver, chain) = chain(&short, &[0xee; 16], room);
        assert_eq!(Fuse.refuse(&mut chain.reader(), &mut chain.writer()), 0);
        assert_eq!(driver.read(REPLY, 16), [0xee; 16]);
    }
}
