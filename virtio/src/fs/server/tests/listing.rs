//! Directories: an entry that was given away is one look-up, and one that did not fit is none.

use rustix::io::Errno;

use super::*;
use crate::fs::serve::Serve;

/// A directory with entries whose names have 1 to `count` bytes, opened: its handle.
fn with_entries(rig: &Rig, count: usize) -> u64 {
    for len in 1..=count {
        let name = vec![b'x'; len];
        let made = rig.ask(&request(8, 1, &[&u32s([0o100_644, 0, 0, 0]), &name, b"\0"]));
        let node: [u8; 8] = made.body[..8].try_into().unwrap();
        rig.hand_in(&request(2, u64::from_le_bytes(node), &[&u64s([1])]).bytes(), 0, 64);
    }
    assert_eq!(rig.model.lookups(), 0);
    let opened = rig.ask(&request(27, 1, &[&u32s([0, 0])]));
    u64::from_le_bytes(opened.body[..8].try_into().unwrap())
}

fn list(opcode: u32, handle: u64, offset: u64, size: u32) -> Request {
    request(opcode, 1, &[&u64s([handle, offset]), &u32s([size, 0]), &u64s([0, 0])])
}

/// Names, where the next one is, and the nodes that were given away.
fn parse(mut list: &[u8], plus: bool) -> Vec<(Vec<u8>, u64, u64)> {
    let mut all = Vec::new();
    while !list.is_empty() {
        let head = if plus { 128 } else { 0 };
        let node = if plus {
            u64::from_le_bytes(list[..8].try_into().unwrap())
        } else {
            0
        };
        let dirent = &list[head..];
        let next = u64::from_le_bytes(dirent[8..16].try_into().unwrap());
        let len: usize = u32::from_le_bytes(dirent[16..20].try_into().unwrap())
            .try_into()
            .unwrap();
        all.push((dirent[24..24 + len].to_vec(), next, node));
        list = &list[(head + 24 + len).next_multiple_of(8)..];
    }
    all
}

#[test]
fn a_list_is_read_in_portions_of_any_size() {
    for (opcode, plus) in [(28, false), (44, true)] {
        let rig = Rig::new();
        let handle = with_entries(&rig, 60);
        for size in [264, 265, 271, 272, 300, 511, 1024, 4096, 1 << 16] {
            let (mut offset, mut names, mut nodes) = (0, Vec::new(), Vec::new());
            loop {
                let reply = rig.ask(&list(opcode, handle, offset, size));
                assert_eq!(reply.error, 0);
                assert!(reply.body.len() <= size.try_into().unwrap());
                let portion = parse(&reply.body, plus);
                let Some((_, next, _)) = portion.last() else { break };
                offset = *next;
                names.extend(portion.iter().map(|(name, ..)| name.len()));
                nodes.extend(portion.iter().map(|(.., node)| *node).filter(|node| *node != 0));
            }
            let expected: Vec<_> = [1, 2].into_iter().chain(1..=60).collect();
            assert_eq!(names, expected, "{opcode} in portions of {size}");
            // Each but `.` and `..` was given away once, and no other.
            assert_eq!(nodes.len(), if plus { 60 } else { 0 });
            assert_eq!(
                rig.model.lookups(),
                u64::try_from(nodes.len()).unwrap(),
                "portions of {size}"
            );
            for node in nodes {
                rig.hand_in(&request(2, node, &[&u64s([1])]).bytes(), 0, 64);
            }
            assert_eq!(rig.model.lookups(), 0);
        }
    }
}

#[test]
fn what_is_given_away_is_what_fits_in_any_room() {
    let rig = Rig::new();
    with_entries(&rig, 5);
    for room in 0..1200 {
        let opened = rig.ask(&request(27, 1, &[&u32s([0, 0])]));
        let handle = u64::from_le_bytes(opened.body[..8].try_into().unwrap());
        let reply = rig.ask_in(&list(44, handle, 0, 4096), room);
        let given = parse(&reply.body, true).iter().filter(|(.., node)| *node != 0).count();
        assert_eq!(rig.model.lookups(), u64::try_from(given).unwrap(), "room for {room}");
        // `.`, `..` and five names, all shorter than 8 bytes.
        assert_eq!(reply.body.len(), (room / 160).min(7) * 160);
        assert_eq!(reply.error != 0, room < 160);
        rig.server.reset();
        rig.ask(&init_request(7, 41, LINUX_6_12));
    }
}

#[test]
fn no_room_for_the_first_entry_is_not_the_end() {
    let rig = Rig::new();
    let handle = with_entries(&rig, 1);
    assert_eq!(rig.ask(&list(28, handle, 0, 31)), failure(Errno::INVAL));
    assert_eq!(rig.ask(&list(28, handle, 0, 0)), failure(Errno::INVAL));
    assert_eq!(rig.ask(&list(28, handle, 3, 0)), success([]));
    assert_eq!(rig.ask(&list(28, handle + 1, 0, 100)), failure(Errno::BADF));
}

#[test]
fn lists_with_nodes_need_an_agreement() {
    let mut share = ALL;
    share.readdirplus = false;
    let rig = Rig::with(share, LINUX_6_12);
    let handle = with_entries(&rig, 1);
    rig.model.calls();
    assert_eq!(rig.ask(&list(44, handle, 0, 4096)), failure(Errno::NOSYS));
    assert_eq!(rig.model.calls(), [""; 0]);
    assert_eq!(rig.ask(&list(28, handle, 0, 4096)).body.len(), 96);
}
