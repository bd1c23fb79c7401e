//! Requests of every kind, good ones and all that can be wrong with their length, and with the room for their reply.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::catalogue::furnished;
use super::*;
use crate::fs::protocol::Opcode;
use crate::fs::serve::{Outcome, Serve};

/// The whole reply as bytes.
fn bytes_of(case: &Case) -> Vec<u8> {
    let Some(reply) = &case.reply else {
        return Vec::new();
    };
    let len = u32::try_from(16 + reply.body.len()).unwrap();
    [
        &len.to_le_bytes()[..],
        &reply.error.to_le_bytes(),
        &case.request.unique.to_le_bytes(),
        &reply.body,
    ]
    .concat()
}

fn calls_of(case: &Case) -> Vec<&str> {
    case.call.iter().flat_map(|call| call.lines()).collect()
}

#[test]
fn there_is_a_case_for_every_opcode() {
    let known: BTreeSet<_> = catalogue().iter().map(Case::opcode).collect();
    assert_eq!(known, Opcode::ALL.iter().copied().collect());
}

#[test]
fn every_opcode_is_answered_to_the_byte() {
    for case in catalogue() {
        let rig = furnished();
        let (outcome, reply) = rig.hand_in(&case.request.bytes(), 1 << 16, 1 << 20);
        let expected = bytes_of(&case);
        assert_eq!(reply, expected, "{:?}", case.opcode());
        assert_eq!(outcome, Outcome::Done(expected.len().try_into().unwrap()));
        assert_eq!(rig.model.calls(), calls_of(&case), "{:?}", case.opcode());
        assert_eq!(rig.count("malformed_requests"), 0, "{:?}", case.opcode());
    }
}

#[test]
fn buffers_of_any_size_make_no_difference() {
    for case in catalogue() {
        for piece in (1..=41).chain([63, 64, 127, 128]) {
            let rig = furnished();
            let (_, reply) = rig.hand_in(&case.request.bytes(), 5000, piece);
            assert_eq!(reply, bytes_of(&case), "{:?} in pieces of {piece}", case.opcode());
        }
    }
}

#[test]
fn a_request_that_is_cut_off_does_nothing() {
    for case in catalogue() {
        let whole = case.request.bytes();
        let rig = furnished();
        for len in 0..whole.len() {
            let mut cut = whole[..len].to_vec();
            assert_refused(&rig, &case, &cut);
            if len >= 4 {
                // What it says of its own length makes no difference.
                cut[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                let is_whole = case.opcode() == Opcode::Ioctl && len >= 40;
                if !is_whole {
                    assert_refused(&rig, &case, &cut);
                }
            }
        }
    }
}

#[test]
fn a_request_with_more_behind_it_does_nothing() {
    for case in catalogue() {
        // Longer ones may come with what is not known yet.
        if matches!(case.opcode(), Opcode::Init | Opcode::Ioctl) {
            continue;
        }
        for more in [1, 7, 8, 16] {
            let rig = furnished();
            let mut longer = case.request.clone();
            longer.body.extend(vec![0xff; more]);
            assert_refused(&rig, &case, &longer.bytes());
            longer.body.extend(vec![0; more]);
            let mut wrong = longer.bytes();
            let len = u32::try_from(case.request.bytes().len()).unwrap();
            wrong[..4].copy_from_slice(&len.to_le_bytes());
            assert_refused(&rig, &case, &wrong);
        }
    }
}

fn assert_refused(rig: &Rig, case: &Case, bytes: &[u8]) {
    let before = rig.count("malformed_requests");
    let (outcome, reply) = rig.hand_in(bytes, 1 << 12, 1 << 20);
    let about = format!("{:?} of {} bytes", case.opcode(), bytes.len());
    assert_eq!(rig.model.calls(), [""; 0], "{about}");
    assert_eq!(rig.count("malformed_requests"), before + 1, "{about}");
    if bytes.len() < 40 || case.reply.is_none() {
        assert_eq!(outcome, Outcome::Done(0), "{about}");
    } else {
        assert_eq!(reply[4..8], (-Errno::INVAL.raw_os_error()).to_le_bytes(), "{about}");
        assert_eq!(reply.len(), 16);
    }
}

#[test]
fn a_reply_that_does_not_fit_is_found_out_before() {
    for case in catalogue() {
        let whole = bytes_of(&case);
        for room in 0..whole.len() {
            let rig = furnished();
            let (outcome, reply) = rig.hand_in(&case.request.bytes(), room, 7);
            let about = format!("{:?} with room for {room}", case.opcode());
            assert_eq!(rig.count("short_replies"), 1, "{about}");
            if room < 16 {
                assert_eq!((outcome, rig.model.calls()), (Outcome::Done(0), vec![]), "{about}");
                continue;
            }
            // Contents and lists are cut, or refused by whoever knows how long they would be.
            let cut = matches!(
                case.opcode(),
                Opcode::Read
                    | Opcode::Readlink
                    | Opcode::Readdir
                    | Opcode::Readdirplus
                    | Opcode::Getxattr
                    | Opcode::Listxattr
            );
            let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
            if !cut {
                assert_eq!((error, reply.len()), (-Errno::IO.raw_os_error(), 16), "{about}");
                assert_eq!(rig.model.calls(), [""; 0], "{about}");
            } else if error == 0 {
                assert_eq!(reply[16..], whole[16..reply.len()], "{about}");
            } else {
                assert_eq!(reply.len(), 16, "{about}");
            }
        }
    }
}

#[test]
fn what_needs_no_reply_gets_none() {
    for case in catalogue().into_iter().filter(|case| case.reply.is_none()) {
        for room in [0, 1, 16, 100] {
            let rig = furnished();
            let (outcome, _) = rig.hand_in(&case.request.bytes(), room, 64);
            assert_eq!(outcome, Outcome::Done(0), "{:?}", case.opcode());
            assert_eq!(rig.model.calls(), calls_of(&case), "{:?}", case.opcode());
            assert_eq!(rig.count("short_replies"), 0);
        }
    }
}

#[test]
fn unknown_opcodes_are_not_implemented() {
    let rig = Rig::new();
    let unknown = [0, 7, 19, 37, 40, 41, 48, 49, 53, 4096, 26 << 24, u32::MAX];
    for opcode in unknown {
        assert_eq!(rig.ask(&request(opcode, 1, &[&[0; 48]])), failure(Errno::NOSYS));
    }
    assert_eq!(rig.count("unknown_requests"), 12);
    assert_eq!(rig.count("malformed_requests"), 0);
}

#[test]
fn extensions_belong_to_what_is_made() {
    for case in catalogue().into_iter().filter(|case| !case.opcode().creates()) {
        let rig = furnished();
        let mut extended = case.request.clone();
        extended.extensions = 1;
        extended.body.extend(u32s([8, 0]));
        assert_refused(&rig, &case, &extended.bytes());
    }
}

#[test]
fn errors_of_the_kernel_itself_are_not_passed_on() {
    let rig = Rig::new();
    let reply = rig.ask(&request(3, 99, &[&[0; 16]]));
    assert_eq!(reply, failure(Errno::BADF));
    assert_eq!(rig.count("errors"), 1);
    assert!(rig.server.counters().contains(&("files", 1)));
}
