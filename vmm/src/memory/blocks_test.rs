use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::super::testing::{FakeSlots, space};
use super::*;
use crate::config::MemoryConfig;
use crate::seccomp::{Mode, Role};
use crate::subprocess::{expect_passed, rerun};

const MIB: u64 = 1 << 20;
const BASE: u64 = 4 << 30;
const BLOCK: u64 = 2 * MIB;
const WINDOW: u64 = 1 << 30;

fn blocks(shared: bool) -> (Blocks, Arc<AddressSpace>, Arc<FakeSlots>) {
    let config = MemoryConfig {
        size: 8 * MIB,
        shared,
        hotplug_size: Some(WINDOW),
        ..Default::default()
    };
    let (space, slots) = space(&config).unwrap();
    let blocks = Blocks::new(space.clone(), BASE..BASE + WINDOW, BLOCK).unwrap();
    (blocks, space, slots)
}

fn write(space: &AddressSpace, offset: u64) -> bool {
    space
        .guest()
        .memory()
        .write_obj(1_u8, GuestAddress(BASE + offset))
        .is_ok()
}

fn read(space: &AddressSpace, offset: u64) -> Option<u8> {
    space.guest().memory().read_obj(GuestAddress(BASE + offset)).ok()
}

#[test]
fn a_chunk_is_there_while_a_block_of_it_is() {
    for shared in [false, true] {
        let (mut blocks, space, slots) = blocks(shared);
        assert!(!write(&space, 0));
        blocks.plug(&(126 * MIB..130 * MIB)).unwrap();
        assert_eq!(blocks.plugged_bytes(), 4 * MIB);
        assert_eq!(slots.taken().len(), 3, "RAM and two chunks");
        assert!(write(&space, 126 * MIB) && write(&space, 128 * MIB) && !write(&space, 256 * MIB));
        blocks.unplug(&(126 * MIB..128 * MIB)).unwrap();
        assert_eq!(
            (slots.taken().len(), read(&space, 126 * MIB), read(&space, 128 * MIB)),
            (2, None, Some(1))
        );
        blocks.unplug(&(0..WINDOW)).unwrap();
        assert_eq!((slots.taken().len(), blocks.plugged_bytes()), (1, 0));
    }
}

/// What KVM maps is what there is, wherever blocks begin and end and however short the last chunk is.
#[test]
fn blocks_that_fill_no_chunk_are_the_guests_all_the_same() {
    let (_, space, slots) = blocks(false);
    let window = BASE + 256 * MIB..BASE + 394 * MIB;
    let mut blocks = Blocks::new(space.clone(), window.clone(), BLOCK).unwrap();
    let mapped = |space: &AddressSpace| {
        let slots: Vec<_> = slots.taken().into_values().filter(|(gpa, _)| *gpa > 0).collect();
        let regions = space.regions().into_iter().filter(|region| region.gpa > 0);
        assert!(
            regions
                .map(|region| (region.gpa, region.bytes))
                .eq(slots.iter().copied())
        );
        slots
            .into_iter()
            .map(|(gpa, bytes)| ((gpa - BASE) / MIB, bytes / MIB))
            .collect::<Vec<_>>()
    };
    blocks.plug(&(126 * MIB..138 * MIB)).unwrap();
    assert_eq!(mapped(&space), [(256, 128), (384, 10)]);
    assert!(write(&space, 382 * MIB) && write(&space, 394 * MIB - 1) && !write(&space, 394 * MIB));
    blocks.unplug(&(126 * MIB..136 * MIB)).unwrap();
    assert_eq!(mapped(&space), [(384, 10)]);
    blocks.unplug(&(136 * MIB..138 * MIB)).unwrap();
    assert_eq!(mapped(&space), []);
}

#[test]
fn a_block_that_comes_again_is_empty_and_its_neighbours_are_not() {
    for shared in [false, true] {
        let (mut blocks, space, _) = blocks(shared);
        blocks.plug(&(0..8 * MIB)).unwrap();
        for offset in (0..8 * MIB).step_by(2 << 20) {
            write(&space, offset);
        }
        blocks.unplug(&(2 * MIB..4 * MIB)).unwrap();
        assert_eq!(read(&space, 2 * MIB), Some(0), "harmless, and nothing");
        write(&space, 2 * MIB);
        blocks.plug(&(2 * MIB..4 * MIB)).unwrap();
        assert_eq!(
            [0, 2, 4, 6].map(|mib| read(&space, mib * MIB)),
            [Some(1), Some(0), Some(1), Some(1)]
        );
    }
}

/// What is written where no block is plugged shows wherever none is, and in no memory.
/// A vCPU does not stop while its memory goes.
#[test]
fn what_is_touched_while_it_goes_leaves_no_page_behind() {
    for shared in [false, true] {
        let (mut blocks, space, _) = blocks(shared);
        // Its neighbour keeps the chunk.
        blocks.plug(&(0..BLOCK)).unwrap();
        let (done, memory) = (AtomicBool::new(false), space.guest().memory());
        let region = memory.find_region(GuestAddress(BASE + BLOCK)).unwrap();
        thread::scope(|scope| {
            let touching = scope.spawn(|| {
                let (bytes, mut touched) = (region.as_volatile_slice().unwrap(), 0);
                while !done.load(Ordering::Relaxed) {
                    bytes.write_obj(1_u8, index(BLOCK) + touched % 512 * 4096).unwrap();
                    touched += 1;
                }
                touched
            });
            let left_behind = (0..2000).find_map(|_| {
                blocks.plug(&(BLOCK..2 * BLOCK)).unwrap();
                blocks.unplug(&(BLOCK..2 * BLOCK)).unwrap();
                Some(resident(&space, BLOCK)).filter(|pages| *pages > 0)
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(left_behind, None, "shared: {shared}");
            assert!(touching.join().unwrap() > 0);
        });
    }
}

/// Pages of 4 KiB that the host keeps for the block at `offset`.
fn resident(space: &AddressSpace, offset: u64) -> u64 {
    let memory = space.guest().memory();
    let region = memory.find_region(GuestAddress(BASE + offset)).unwrap();
    match region.file_offset() {
        Some(file) => file.file().metadata().unwrap().blocks() / 8,
        // What lies over it now has taken its place, and everything that it had.
        None => 0,
    }
}

/// A vhost-user back-end has the whole file, and writes where a guest's descriptor says.
#[test]
fn what_a_back_end_has_filled_where_nothing_was_plugged_is_given_back_by_the_plug() {
    let (mut blocks, space, _) = blocks(true);
    blocks.plug(&(0..BLOCK)).unwrap();
    let memory = space.guest().memory();
    let region = memory.find_region(GuestAddress(BASE)).unwrap();
    let file = region.file_offset().unwrap().arc().clone();
    let (start, full) = (region.file_offset().unwrap().start(), vec![0xff; index(BLOCK)]);
    drop(memory);
    // In a chunk that is there, and in one that is not.
    for offset in [2 * BLOCK, 128 * MIB] {
        file.write_all_at(&full, start + offset).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 >= BLOCK);
        blocks.plug(&(offset..offset + BLOCK)).unwrap();
        assert_eq!(
            file.metadata().unwrap().blocks(),
            0,
            "no page is there that nobody has touched since"
        );
        assert_eq!(read(&space, offset), Some(0));
        blocks.unplug(&(offset..offset + BLOCK)).unwrap();
    }
}

#[test]
fn what_the_host_does_not_take_back_is_plugged_as_before() {
    let (mut blocks, space, _) = blocks(true);
    blocks.plug(&(126 * MIB..130 * MIB)).unwrap();
    assert!(write(&space, 126 * MIB) && write(&space, 128 * MIB));
    // Of the file's second chunk no page is given back.
    let unplugged = thread::scope(|scope| {
        let confined = scope.spawn(|| {
            refuse_holes_from(128 * MIB);
            blocks
                .unplug(&(126 * MIB..130 * MIB))
                .map_err(|error| error_chain(&error).to_string())
        });
        confined.join().unwrap()
    });
    assert!(unplugged.unwrap_err().contains("Input/output error"));
    assert_eq!(blocks.plugged_bytes(), 4 * MIB);
    assert_eq!((read(&space, 126 * MIB), read(&space, 128 * MIB)), (Some(0), Some(1)));
    assert!(write(&space, 126 * MIB) && write(&space, 130 * MIB - 1));
    blocks.unplug(&(126 * MIB..130 * MIB)).unwrap();
    assert_eq!((blocks.plugged_bytes(), read(&space, 128 * MIB)), (0, None));
}

#[test]
fn a_plug_that_cannot_empty_a_block_leaves_no_chunk_behind() {
    let (mut blocks, _space, slots) = blocks(true);
    let plugged = thread::scope(|scope| {
        let confined = scope.spawn(|| {
            refuse_holes_from(0);
            blocks
                .plug(&(0..BLOCK))
                .map_err(|error| error_chain(&error).to_string())
        });
        confined.join().unwrap()
    });
    assert!(plugged.unwrap_err().contains("Input/output error"));
    assert_eq!((blocks.plugged_bytes(), slots.taken().len()), (0, 1));
}

/// Has fallocate(2) of this thread fail with EIO from `offset` of any file on.
fn refuse_holes_from(offset: u64) {
    let beyond = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ge, offset).unwrap();
    let rule = SeccompRule::new(vec![beyond]).unwrap();
    let filter = SeccompFilter::new(
        [(libc::SYS_fallocate, vec![rule])].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EIO.unsigned_abs()),
        TargetArch::x86_64,
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn blocks_that_are_not_plugged_are_one_and_the_same_and_no_memory() {
    for shared in [false, true] {
        let (mut blocks, space, _) = blocks(shared);
        blocks.plug(&(4 * MIB..8 * MIB)).unwrap();
        assert!(write(&space, 126 * MIB), "it is in the slot");
        let bare = [0, 2, 8, 126].map(|mib| read(&space, mib * MIB));
        assert_eq!((bare, read(&space, 4 * MIB)), ([Some(1); 4], Some(0)));
        blocks.unplug(&(6 * MIB..8 * MIB)).unwrap();
        assert_eq!([4, 6].map(|mib| read(&space, mib * MIB)), [Some(0), Some(1)]);
        blocks.plug(&(6 * MIB..128 * MIB)).unwrap();
        assert_eq!(
            [0, 6, 126].map(|mib| read(&space, mib * MIB)),
            [Some(1), Some(0), Some(0)]
        );
        assert!(write(&space, 126 * MIB));
        assert_eq!([4, 6, 8].map(|mib| read(&space, mib * MIB)), [Some(0); 3]);
    }
}

/// However large the device is, so many parts of a chunk are one mapping or another.
#[test]
fn a_unit_of_several_blocks_is_covered_while_none_of_them_is_plugged() {
    let (space, _) = space(&MemoryConfig {
        size: 8 * MIB,
        hotplug_size: Some(64 << 30),
        ..Default::default()
    })
    .unwrap();
    let mut blocks = Blocks::new(space.clone(), BASE..BASE + (64 << 30), BLOCK).unwrap();
    assert_eq!((blocks.chunk, blocks.unit), (256 * MIB, 4 * MIB));
    blocks.plug(&(0..BLOCK)).unwrap();
    assert!(write(&space, 4 * MIB));
    assert_eq!([2, 8].map(|mib| read(&space, mib * MIB)), [Some(0), Some(1)]);
    blocks.plug(&(4 * MIB..6 * MIB)).unwrap();
    assert_eq!(
        [4, 6, 8].map(|mib| read(&space, mib * MIB)),
        [Some(0), Some(0), Some(1)]
    );
    blocks.unplug(&(0..BLOCK)).unwrap();
    assert_eq!(
        [0, 2, 4].map(|mib| read(&space, mib * MIB)),
        [Some(1), Some(0), Some(0)]
    );
}

#[test]
fn plugging_is_all_or_nothing() {
    let (mut blocks, space, slots) = blocks(false);
    blocks.plug(&(0..BLOCK)).unwrap();
    // Somebody else has the third chunk.
    let other = space.grow_at(Kind::Dimm, BASE + 256 * MIB, 128 * MIB).unwrap();
    blocks.plug(&(64 * MIB..320 * MIB)).unwrap_err();
    assert_eq!((blocks.plugged_bytes(), slots.taken().len()), (BLOCK, 3));
    drop(other);
    blocks.plug(&(64 * MIB..320 * MIB)).unwrap();
    slots.refuse(true, false);
    blocks.plug(&(320 * MIB..WINDOW)).unwrap_err();
    assert_eq!(blocks.plugged_bytes(), BLOCK + 256 * MIB);
}

#[test]
fn a_chunk_that_kvm_keeps_is_used_again() {
    let (mut blocks, space, slots) = blocks(false);
    blocks.plug(&(0..BLOCK)).unwrap();
    slots.refuse(false, true);
    blocks.unplug(&(0..BLOCK)).unwrap();
    assert_eq!((blocks.plugged_bytes(), slots.taken().len()), (0, 2));
    slots.refuse(false, false);
    blocks.plug(&(0..BLOCK)).unwrap();
    assert!(write(&space, 0));
    blocks.unplug(&(0..BLOCK)).unwrap();
    assert_eq!(slots.taken().len(), 1);
}

#[test]
fn what_is_no_block_of_the_device_is_refused() {
    let (mut blocks, space, slots) = blocks(false);
    for (start, end) in [(0, MIB), (MIB, 3 * MIB), (0, WINDOW + BLOCK), (BLOCK, 0), (0, u64::MAX)] {
        let range = Range { start, end };
        assert!(
            blocks.plug(&range).is_err() && blocks.unplug(&range).is_err(),
            "{range:?}"
        );
    }
    assert_eq!(slots.taken().len(), 1);
    for (window, block) in [
        (BASE..BASE + WINDOW, MIB),
        (BASE..BASE + WINDOW, 3 * MIB),
        (BASE..BASE + WINDOW, 0),
        (BASE..BASE, BLOCK),
        (BASE + MIB..BASE + WINDOW, BLOCK),
        (BASE..BASE + MIB, BLOCK),
    ] {
        assert!(
            Blocks::new(space.clone(), window.clone(), block).is_err(),
            "{window:?} {block}"
        );
    }
}

#[test]
fn a_large_device_has_few_slots() {
    let (space, _) = space(&MemoryConfig {
        size: 8 * MIB,
        hotplug_size: Some(1 << 40),
        ..Default::default()
    })
    .unwrap();
    let window = BASE..BASE + (1 << 40);
    assert_eq!(Blocks::new(space, window, BLOCK).unwrap().chunk, 4 << 30);
}

/// Which role the process is to confine a thread to, and have it do its work.
const CONFINED: &str = "HUSK_MEMORY_CONFINED";
/// What it says at its end.
const DONE: &str = "the work of the role was done";

/// Not a test by itself: run by the one below, in a process of its own.
#[test]
fn confined_thread() {
    let Ok(role) = std::env::var(CONFINED) else { return };
    crate::process::prepare();
    let spaces = [false, true].map(|shared| {
        let config = MemoryConfig {
            size: 8 * MIB,
            shared,
            hotplug_size: Some(WINDOW),
            prefault: true,
            thp: true,
            mergeable: true,
            ..Default::default()
        };
        let (space, _) = space(&config).unwrap();
        (Blocks::new(space.clone(), BASE..BASE + WINDOW, BLOCK).unwrap(), space)
    });
    let work = move || {
        Mode::On.enter(Role::Spawner).unwrap();
        Mode::On
            .enter(if role == "mem" { Role::Mem } else { Role::Balloon })
            .unwrap();
        for (mut blocks, space) in spaces {
            if role == "mem" {
                blocks.plug(&(126 * MIB..130 * MIB)).unwrap();
                blocks.unplug(&(126 * MIB..128 * MIB)).unwrap();
                blocks.plug(&(126 * MIB..128 * MIB)).unwrap();
                blocks.unplug(&(0..WINDOW)).unwrap();
            } else {
                space.discard(&(2 * MIB..4 * MIB)).unwrap();
            }
        }
    };
    thread::spawn(work).join().unwrap();
    eprintln!("{DONE}");
}

#[test]
fn the_threads_of_virtio_mem_and_the_balloon_may_do_what_they_have_to() {
    for role in ["mem", "balloon"] {
        let mut confined = rerun("memory::blocks::tests::confined_thread");
        assert_eq!(expect_passed(confined.env(CONFINED, role), DONE), Ok(()), "{role}");
    }
}
