//! Requests of any bytes: no panic, no reply that is none, and each look-up that was given away is known to both sides.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::catalogue::furnish;
use super::*;
use crate::fs::protocol::Opcode;
use crate::fs::serve::Outcome;

/// A good request with some of its bytes changed, its end cut off or something behind it, room for
/// a reply, and how large buffers are.
#[derive(Clone, Debug)]
struct Wild {
    case: usize,
    changes: Vec<(usize, u8)>,
    len: usize,
    honest: bool,
    room: usize,
    piece: usize,
}

fn wild() -> impl Strategy<Value = Wild> {
    let small = prop_oneof![Just(0_u8), Just(1), Just(2), Just(0xff), any::<u8>()];
    (
        0..catalogue().len(),
        prop::collection::vec((0..160_usize, small), 0..4),
        prop_oneof![9 => Just(0_usize), 1 => 0..160_usize],
        prop::bool::weighted(0.95),
        prop_oneof![3 => Just(4096_usize), 1 => 0..600_usize],
        1..200_usize,
    )
        .prop_map(|(case, changes, len, honest, room, piece)| Wild {
            case,
            changes,
            len,
            honest,
            room,
            piece,
        })
}

impl Wild {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = catalogue().swap_remove(self.case).request.bytes();
        if self.len != 0 {
            bytes.resize(self.len, 0x61);
        }
        for (at, value) in &self.changes {
            // Where the opcode stands it stays.
            if let Some(byte) = bytes.get_mut(*at).filter(|_| !(4..8).contains(at)) {
                *byte = *value;
            }
        }
        if self.honest && bytes.len() >= 4 {
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        bytes
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Takes down what the guest was given by `reply`, and what it gave back by `request`.
fn keep_books(books: &mut BTreeMap<u64, u64>, request: &[u8], reply: &[u8]) {
    use Opcode::*;
    let opcode = Opcode::of(u32::from_le_bytes(request[4..8].try_into().unwrap()));
    let mut give = |node| *books.entry(node).or_default() += 1;
    match opcode.unwrap() {
        Lookup | Symlink | Mknod | Mkdir | Link | Create | Tmpfile => give(number(reply, 16)),
        Readdirplus => {
            let mut list = &reply[16..];
            while !list.is_empty() {
                if number(list, 0) != 0 {
                    give(number(list, 0));
                }
                let len = u32::from_le_bytes(list[144..148].try_into().unwrap());
                list = &list[(152 + usize::try_from(len).unwrap()).next_multiple_of(8)..];
            }
        }
        _ => {}
    }
}

/// The same for requests without a reply.
fn give_back(books: &mut BTreeMap<u64, u64>, calls: &[String]) {
    for call in calls {
        let words: Vec<_> = call.split(' ').collect();
        if let ["forget", node, count] = words[..] {
            let count: u64 = count.parse().unwrap();
            books
                .entry(node.parse().unwrap())
                .and_modify(|known| *known = known.saturating_sub(count));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn look_ups_are_balanced_whatever_is_asked(requests in prop::collection::vec(wild(), 1..30)) {
        let rig = Rig::before_init(ALL);
        rig.ask(&init_request(7, 41, LINUX_6_12));
        furnish(&rig.model);
        let mut books: BTreeMap<u64, u64> = [2, 4, 6].map(|node| (node, 1)).into();
        for wild in requests {
            let bytes = wild.bytes();
            let (outcome, reply) = rig.hand_in(&bytes, wild.room, wild.piece);
            let calls = rig.model.calls();
            give_back(&mut books, &calls);
            if outcome == Outcome::Wait || reply.is_empty() {
                continue;
            }
            let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
            prop_assert_eq!(u32::from_le_bytes(reply[..4].try_into().unwrap()), u32::try_from(reply.len()).unwrap());
            prop_assert_eq!(&reply[8..16], &bytes[8..16]);
            prop_assert!((-511..=0).contains(&error) && (error == 0 || reply.len() == 16));
            if calls.contains(&"reset".to_string()) {
                books.clear();
            }
            if error == 0 {
                keep_books(&mut books, &bytes, &reply);
            }
            prop_assert_eq!(rig.model.lookups(), books.values().sum::<u64>(), "{:?}", wild);
        }
    }

    #[test]
    fn bytes_of_any_kind_are_answered_or_not(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        opcode in 0..60_u32,
        room in 0..300_usize,
        piece in 1..200_usize,
    ) {
        let rig = Rig::new();
        furnish(&rig.model);
        rig.hand_in(&bytes, room, piece);
        if bytes.len() >= 8 {
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[4..8].copy_from_slice(&opcode.to_le_bytes());
            rig.hand_in(&bytes, room, piece);
        }
    }
}
