use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use husk_devices::error_chain;
use husk_devices::memory::GuestRegionMmap;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::super::testing::{FakeBackend, FakeSlots, listen, space};
use super::*;
use crate::config::HotplugMethod;
use crate::memory::Blocks;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RAM: u64 = 8 * MIB;
/// Where the reserve of such a VM begins, and what it is given in.
const BASE: u64 = 4 * GIB;
const UNIT: u64 = 128 * MIB;

fn config(shared: bool) -> MemoryConfig {
    MemoryConfig {
        size: RAM,
        shared,
        hotplug_size: Some(GIB),
        acpi_only: true,
        ..Default::default()
    }
}

fn growing() -> (Arc<AddressSpace>, Arc<FakeSlots>) {
    space(&config(false)).unwrap()
}

/// All that can be seen of a space from outside.
#[derive(Debug, PartialEq)]
struct Seen {
    slots: Vec<(u64, u64)>,
    regions: Vec<RegionInfo>,
    devices: Vec<(u64, u64)>,
    backends: Vec<(u64, u64)>,
    committed: usize,
}

fn seen(space: &AddressSpace, slots: &FakeSlots) -> Seen {
    let ranges = |memory: &GuestMemory| {
        let memory = memory.memory();
        memory
            .iter()
            .map(|region| (region.start_addr().0, region.len()))
            .collect()
    };
    Seen {
        slots: slots.taken().into_values().collect(),
        regions: space.regions(),
        devices: ranges(&space.guest()),
        backends: ranges(&space.shared()),
        committed: committed(space),
    }
}

/// Bytes of the reserve that this process could touch.
fn committed(space: &AddressSpace) -> usize {
    let Some((reserve, _)) = &space.reserve else { return 0 };
    let memory = space.shared().memory();
    let region = memory.find_region(GuestAddress(reserve.base)).unwrap();
    let (start, end) = (
        region.as_ptr().addr(),
        region.as_ptr().addr() + usize::try_from(region.len()).unwrap(),
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let writable = maps.lines().filter(|line| line.contains(" rw"));
    let ranges = writable.filter_map(|line| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        Some((hex(from)?.max(start), hex(to)?.min(end)))
    });
    ranges.map(|(from, to)| to.saturating_sub(from)).sum()
}

/// KiB of `region` that are in this process's memory.
fn resident_kib(region: &GuestRegionMmap) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (start, end) = (
        region.as_ptr().addr(),
        region.as_ptr().addr() + usize::try_from(region.len()).unwrap(),
    );
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, _)) = first.split_once('-') {
            inside = usize::from_str_radix(from, 16).is_ok_and(|from| (start..end).contains(&from));
        } else if let (true, Some(rss)) = (inside, line.strip_prefix("Rss:")) {
            sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}

fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

#[test]
fn ram_on_both_sides_of_the_hole_is_one_name_in_smaps() {
    for (shared, name) in [(false, "[anon:guest-ram]"), (true, "/memfd:guest-ram")] {
        let (space, slots) = space(&MemoryConfig {
            size: 3 * GIB + 4 * MIB,
            shared,
            ..Default::default()
        })
        .unwrap();
        let memory = space.guest().memory();
        memory.write_obj(0x1234_u32, GuestAddress(4 * GIB + 16)).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(4 * GIB + 16)).unwrap(), 0x1234);
        assert!(
            memory.read_obj::<u32>(GuestAddress(3 * GIB)).is_err(),
            "nothing in the hole"
        );
        assert_eq!(
            slots.taken().into_values().collect::<Vec<_>>(),
            [(0, 3 * GIB), (4 * GIB, 4 * MIB)]
        );
        assert_eq!(space.boot_ranges(), [(0, 3 * GIB), (4 * GIB, 4 * MIB)]);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let named = maps.lines().filter(|line| line.contains(name)).count();
        assert!(
            named >= 1 || !shared,
            "{name}: CONFIG_ANON_VMA_NAME may be off, memfd names cannot be"
        );
    }
}

#[test]
fn memory_begins_where_a_huge_page_can() {
    let (space, _) = growing();
    let _region = space.grow(Kind::Dimm, UNIT).unwrap();
    for region in space.guest().memory().iter() {
        assert_eq!(region.as_ptr().addr() % (2 << 20), 0);
    }
}

#[test]
fn ram_beyond_the_address_space_is_refused_with_its_size() {
    let error = space(&MemoryConfig {
        size: 1 << 60,
        ..Default::default()
    })
    .map(drop)
    .unwrap_err();
    let text = error_chain(&error);
    assert!(
        text.starts_with("cannot add 1048576 TiB of guest RAM: the host does not give it"),
        "{text}"
    );
}

#[test]
fn what_grows_is_the_guests_and_the_devices_and_goes_again() {
    for shared in [false, true] {
        let (space, slots) = space(&config(shared)).unwrap();
        let before = seen(&space, &slots);
        assert_eq!(before.committed, 0);
        assert_eq!(
            before.backends,
            [(0, RAM), (BASE, GIB)],
            "back-ends have the reserve from the start"
        );

        let first = space.grow(Kind::Dimm, UNIT).unwrap();
        let second = space.grow(Kind::Dimm, 2 * UNIT).unwrap();
        assert_eq!((first.info().gpa, second.info().gpa), (BASE, BASE + UNIT));
        let both = seen(&space, &slots);
        assert_eq!(both.slots, [(0, RAM), (BASE, UNIT), (BASE + UNIT, 2 * UNIT)]);
        assert_eq!(both.devices, both.slots);
        assert_eq!(both.backends, before.backends, "nothing changes for back-ends");
        let memory = space.guest().memory();
        memory.write_obj(7_u64, GuestAddress(BASE + 3 * UNIT - 8)).unwrap();
        drop(memory);

        second.remove().unwrap();
        assert!(
            space
                .guest()
                .memory()
                .write_obj(7_u64, GuestAddress(BASE + UNIT))
                .is_err()
        );
        drop(first);
        assert_eq!(seen(&space, &slots), before);
    }
}

#[test]
fn what_comes_again_is_empty() {
    for shared in [false, true] {
        let (space, _) = space(&config(shared)).unwrap();
        let at = GuestAddress(BASE + 4096);
        let region = space.grow(Kind::Dimm, UNIT).unwrap();
        space.guest().memory().write_slice(b"secret", at).unwrap();
        drop(region);
        let _region = space.grow(Kind::Dimm, UNIT).unwrap();
        let mut found = [1; 6];
        space.guest().memory().read_slice(&mut found, at).unwrap();
        assert_eq!(found, [0; 6]);
    }
}

#[test]
fn a_request_in_flight_keeps_its_memory_until_it_is_done() {
    for shared in [false, true] {
        let (space, slots) = space(&config(shared)).unwrap();
        let region = space.grow(Kind::Dimm, UNIT).unwrap();
        let in_flight = space.guest().memory();
        drop(region);
        assert_eq!(slots.taken().len(), 1, "the guest has it no longer");
        assert_eq!(committed(&space), usize::try_from(UNIT).unwrap());
        in_flight.write_obj(1_u8, GuestAddress(BASE)).unwrap();

        // What comes in its place is not taken apart with it.
        let again = space.grow(Kind::Dimm, UNIT).unwrap();
        drop(in_flight);
        space.collect();
        space.guest().memory().write_obj(1_u8, GuestAddress(BASE)).unwrap();
        drop(again);
        assert_eq!(committed(&space), 0);
    }
}

#[test]
fn a_file_in_use_is_collected_once_it_is_not() {
    let (space, _) = growing();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BLOCK_BYTES).unwrap();
    let path = file.path().to_str().unwrap();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(path);
    let region = space.add_file(file.reopen().unwrap(), path, BLOCK_BYTES, true).unwrap();
    let in_flight = space.guest().memory();
    drop(region);
    assert!(space.collect() && is_mapped());
    drop(in_flight);
    assert!(!space.collect() && !is_mapped());
}

#[test]
fn a_part_that_is_used_again_is_kept_and_the_rest_goes() {
    let (space, _) = growing();
    let region = space.grow(Kind::Dimm, 4 * UNIT).unwrap();
    let in_flight = space.guest().memory();
    drop(region);
    let _middle = space.grow_at(Kind::Dimm, BASE + UNIT, UNIT).unwrap();
    assert_eq!(committed(&space), usize::try_from(4 * UNIT).unwrap());
    drop(in_flight);
    space.collect();
    assert_eq!(committed(&space), usize::try_from(UNIT).unwrap());
    space
        .guest()
        .memory()
        .write_obj(1_u8, GuestAddress(BASE + UNIT))
        .unwrap();
}

#[test]
fn memory_that_outlives_its_space_stays_mapped() {
    let (space, _) = growing();
    let in_flight = space.guest().memory();
    drop(space);
    in_flight.write_obj(1_u8, GuestAddress(0)).unwrap();
}

#[test]
fn pages_go_back_to_the_host_at_once() {
    for shared in [false, true] {
        let (space, _) = space(&config(shared)).unwrap();
        let region = space.grow(Kind::VirtioMem, UNIT).unwrap();
        let memory = space.guest().memory();
        let host = memory.find_region(GuestAddress(BASE)).unwrap();
        for page in (0..16 * MIB).step_by(4096) {
            memory.write_obj(1_u8, GuestAddress(BASE + page)).unwrap();
        }
        assert!(resident_kib(host) >= 16 << 10);
        region.discard(&(4 * MIB..16 * MIB)).unwrap();
        let kept = resident_kib(host);
        assert!((4 << 10..8 << 10).contains(&kept), "{kept} KiB");
        assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE)).unwrap(), 1);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(BASE + 4 * MIB)).unwrap(), 0);
        region.restore(&(4 * MIB..16 * MIB)).unwrap();
        memory.write_obj(2_u8, GuestAddress(BASE + 8 * MIB)).unwrap();
        // At once, even with somebody who could still use it.
        region.remove().unwrap();
        assert!(resident_kib(host) < 64, "{} KiB", resident_kib(host));
    }
}

#[test]
fn a_guest_gives_back_what_it_does_not_use_of_any_ram() {
    for shared in [false, true] {
        let (space, _) = space(&config(shared)).unwrap();
        let _first = space.grow(Kind::Dimm, UNIT).unwrap();
        let _second = space.grow(Kind::VirtioMem, UNIT).unwrap();
        let _file = space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap();
        let memory = space.guest().memory();
        let border = BASE + UNIT;
        for gpa in [4096, 8192, border - 4096, border, border + 4096] {
            memory.write_obj(1_u8, GuestAddress(gpa)).unwrap();
        }
        space.discard(&(4096..8192)).unwrap();
        space.discard(&(border - 4096..border + 4096)).unwrap();
        let read = |gpa| memory.read_obj::<u8>(GuestAddress(gpa)).unwrap();
        assert_eq!(
            [4096, 8192, border - 4096, border, border + 4096].map(read),
            [0, 1, 0, 0, 1]
        );
        for (start, end) in [
            (RAM - 4096, RAM + 4096),
            (RAM, RAM + 4096),
            (BASE + 4 * UNIT, BASE + 4 * UNIT + 4096),
            (3 << 38, (3 << 38) + 4096),
            (8192, 4096),
            (u64::MAX - 4095, u64::MAX),
            (0, u64::MAX),
        ] {
            let refused = space.discard(&Range { start, end });
            // A range of nothing is nothing.
            assert!(refused.is_err() || start > end, "{start:#x}..{end:#x}");
        }
        assert!(matches!(
            space.discard(&(4096..4100)),
            Err(MemoryError::Unit { unit: 4096, .. })
        ));
        assert_eq!(read(8192), 1, "what is refused is left alone");
    }
}

#[test]
fn ranges_that_are_not_in_a_region_or_no_pages_are_refused() {
    let (space, _) = growing();
    let region = space.grow(Kind::VirtioMem, UNIT).unwrap();
    let say = |from, to| region.discard(&Range { start: from, end: to }).unwrap_err().to_string();
    assert_eq!(
        say(0, UNIT + 4096),
        "134221824 bytes at 0x0 are not in a region of 134217728 bytes"
    );
    assert_eq!(
        say(8192, 4096),
        "0 bytes at 0x2000 are not in a region of 134217728 bytes"
    );
    assert_eq!(
        say(0, 100),
        "100 bytes at 0x100000000 are not whole units of 4096 bytes"
    );
    let file = space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap();
    assert!(file.discard(&(0..4096)).is_err(), "a file's bytes are its owner's");
}

#[test]
fn what_is_no_block_of_the_guest_is_refused() {
    let (space, slots) = growing();
    let before = seen(&space, &slots);
    for bytes in [0, 1, 2 * MIB, UNIT + MIB, u64::MAX] {
        assert!(
            matches!(space.grow(Kind::Dimm, bytes), Err(MemoryError::Unit { unit: UNIT, .. })),
            "{bytes}"
        );
    }
    for (gpa, bytes) in [(BASE + 4096, 2 * MIB), (BASE, MIB), (BASE, 0)] {
        assert!(matches!(
            space.grow_at(Kind::VirtioMem, gpa, bytes),
            Err(MemoryError::Unit { .. })
        ));
    }
    for (gpa, bytes) in [
        (0, 2 * MIB),
        (BASE + GIB, 2 * MIB),
        (BASE + GIB - 2 * MIB, 4 * MIB),
        (u64::MAX << 21, 2 * MIB),
    ] {
        let error = space.grow_at(Kind::VirtioMem, gpa, bytes).unwrap_err();
        assert!(
            error_chain(&error).contains("free there in the hot-plug reserve"),
            "{}",
            error_chain(&error)
        );
    }
    assert_eq!(seen(&space, &slots), before);
}

#[test]
fn blocks_may_be_taken_at_their_address() {
    let (space, _) = growing();
    let region = space.grow_at(Kind::VirtioMem, BASE + 6 * MIB, 2 * MIB).unwrap();
    assert_eq!(space.find(BASE + 7 * MIB).as_ref(), Some(region.info()));
    assert_eq!(space.find(BASE + 8 * MIB), None);
    assert!(space.grow_at(Kind::Dimm, BASE, UNIT).is_err(), "it overlaps");
}

#[test]
fn a_reserve_may_be_larger_than_the_host_and_takes_hundreds_of_blocks() {
    let (space, slots) = space(&MemoryConfig {
        hotplug_size: Some(8 << 40),
        ..config(true)
    })
    .unwrap();
    let regions: Vec<_> = (0..200).map(|_| space.grow(Kind::Dimm, UNIT).unwrap()).collect();
    assert_eq!(slots.taken().len(), 201);
    drop(regions);
    assert_eq!(slots.taken().len(), 1);
}

#[test]
fn a_reserve_that_is_full_says_so_and_has_room_again_when_something_goes() {
    let (space, _) = growing();
    let mut regions: Vec<_> = (0..8).map(|_| space.grow(Kind::Dimm, UNIT).unwrap()).collect();
    let error = space.grow(Kind::Dimm, UNIT).unwrap_err();
    assert_eq!(
        error_chain(&error),
        "cannot add 128 MiB of hot-plugged memory: there is no place for it: no 128 MiB of addresses are free in the hot-plug reserve"
    );
    let gpa = regions.remove(3).info().gpa;
    assert_eq!(space.grow(Kind::Dimm, UNIT).unwrap().info().gpa, gpa);
}

#[test]
fn the_room_is_the_largest_hole_that_is_there() {
    let (space, _) = growing();
    assert_eq!(
        [0, 1, UNIT, GIB, u64::MAX].map(|most| space.room(most)),
        [0, 0, UNIT, GIB, GIB]
    );
    let mut regions: Vec<_> = (0..8).map(|_| space.grow(Kind::Dimm, UNIT).unwrap()).collect();
    assert_eq!(space.room(GIB), 0);
    for (first, last, room) in [(4, 7, 3), (0, 2, 3), (2, 3, 4), (0, 1, 4)] {
        regions.drain(first..last);
        let found = [2 * UNIT, GIB].map(|most| space.room(most) / UNIT);
        assert_eq!(found, [2, room], "{first}..{last}");
    }
    assert_eq!(space.grow(Kind::Dimm, 4 * UNIT).unwrap().info().gpa, BASE + 4 * UNIT);
    let (none, _) = super::super::testing::space(&MemoryConfig::default()).unwrap();
    assert_eq!(none.room(GIB), 0);
}

/// The guest's driver for blocks may come when it has DIMMs.
/// A vhost-user back-end has the whole file, and writes where a guest's descriptor says.
#[test]
fn what_a_back_end_has_filled_before_a_dimm_comes_is_none_of_it() {
    let (space, _) = space(&config(true)).unwrap();
    let memory = space.shared().memory();
    let file = memory
        .find_region(GuestAddress(BASE))
        .unwrap()
        .file_offset()
        .unwrap()
        .clone();
    drop(memory);
    file.file().write_all_at(&[0xff; 4096], file.start()).unwrap();
    assert_eq!(file.file().metadata().unwrap().blocks(), 8);
    let _region = space.grow(Kind::Dimm, UNIT).unwrap();
    assert_eq!(file.file().metadata().unwrap().blocks(), 0);
    let read: u64 = space.guest().memory().read_obj(GuestAddress(BASE)).unwrap();
    assert_eq!(read, 0);
}

#[test]
fn dimms_take_no_addresses_that_are_kept_for_blocks() {
    let either = MemoryConfig {
        acpi_only: false,
        ..config(false)
    };
    let (space, _) = space(&either).unwrap();
    let _first = space.grow(Kind::Dimm, UNIT).unwrap();
    assert!(space.grow(Kind::Dimm, GIB).is_err());
    assert_eq!(space.room(2 * GIB), GIB - UNIT);
    let _rest = space.grow(Kind::Dimm, GIB - UNIT).unwrap();
    assert_eq!(space.room(UNIT), 0);
    space.grow_at(Kind::VirtioMem, BASE + GIB, GIB).unwrap();
}

#[test]
fn what_was_asked_for_fits_when_it_is_no_whole_number_of_blocks() {
    let asked = 31_524_388_864;
    let reserve = Reserved::new(
        &MemoryConfig {
            hotplug_size: Some(asked),
            ..config(false)
        },
        RAM,
        u64::MAX,
    )
    .unwrap();
    assert_eq!((reserve.base, reserve.unit), (BASE, UNIT));
    assert!((asked..asked + UNIT).contains(&reserve.bytes) && reserve.bytes.is_multiple_of(UNIT));
    let huge = MemoryConfig {
        hugepages: true,
        hugepage_size: Some(GIB),
        ..config(false)
    };
    assert_eq!(Reserved::new(&huge, RAM, u64::MAX).unwrap().unit, GIB);
    assert_eq!(Reserved::new(&MemoryConfig::default(), RAM, u64::MAX), None);
}

#[test]
fn both_ways_to_add_memory_have_addresses_for_all_of_it() {
    let either = MemoryConfig {
        acpi_only: false,
        ..config(false)
    };
    let reserve = |config: &MemoryConfig, limit| Reserved::new(config, RAM, limit).unwrap();
    let both = reserve(&either, BASE + 2 * GIB);
    assert_eq!(
        (both.base, both.bytes, both.blocks),
        (BASE, 2 * GIB, Some((BASE + GIB, GIB)))
    );
    let narrow = reserve(&either, BASE + 2 * GIB - 1);
    assert_eq!((narrow.bytes, narrow.blocks), (GIB, None));
    let blocks = MemoryConfig {
        hotplug_method: HotplugMethod::VirtioMem,
        ..either
    };
    let alone = reserve(&blocks, u64::MAX);
    assert_eq!((alone.bytes, alone.blocks), (GIB, Some((BASE, GIB))));
}

#[test]
fn without_a_reserve_nothing_comes() {
    let (space, _) = space(&MemoryConfig {
        hotplug_size: None,
        ..config(false)
    })
    .unwrap();
    let error = space.grow(Kind::Dimm, UNIT).unwrap_err();
    assert_eq!(
        error_chain(&error),
        "cannot add 128 MiB of hot-plugged memory: there is no place for it: the VM has no hot-plug reserve (memory.hotplug_size)"
    );
}

/// Each step that fails, by the name that the answer gives it.
#[test]
fn whatever_step_fails_all_before_it_are_undone() {
    let in_the_way = |space: &AddressSpace, gpa| {
        let region = GuestRegionMmap::from_range(GuestAddress(gpa), 4096, None).unwrap();
        show(&space.devices, &Arc::new(region)).unwrap();
    };
    let pmem = 3 << 38;
    type Breaks<'a> = &'a dyn Fn(&Arc<AddressSpace>, &FakeSlots, &FakeBackend);
    let cases: [(Step, Kind, Breaks<'_>); 7] = [
        (Step::Place, Kind::Dimm, &|space, _, _| {
            std::mem::forget(space.grow(Kind::Dimm, GIB).unwrap());
        }),
        (Step::Host, Kind::Dimm, &|_, _, _| ()),
        (Step::Backends, Kind::Pmem, &|_, _, backend| backend.refuse_more()),
        (Step::Slot, Kind::Dimm, &|_, slots, _| slots.refuse(true, false)),
        (Step::Slot, Kind::Pmem, &|_, slots, _| slots.refuse(true, false)),
        (Step::Devices, Kind::Dimm, &|space, _, _| in_the_way(space, BASE)),
        (Step::Devices, Kind::Pmem, &|space, _, _| in_the_way(space, pmem)),
    ];
    for (step, kind, break_it) in cases {
        let huge = step == Step::Host;
        let (space, slots) = growing();
        // Huge pages of which there are none: the host's own refusal.
        let space = match huge {
            true => Arc::new(AddressSpace {
                reserve: huge_reserve(&space),
                ..Arc::into_inner(space).unwrap()
            }),
            false => space,
        };
        let (backend, _listener) = listen(&space);
        break_it(&space, &slots, &backend);
        let before = seen(&space, &slots);
        let error = match kind {
            Kind::Pmem => space.add_file(file(2 * MIB), "/f", 2 * MIB, true),
            kind => space.grow(kind, UNIT),
        };
        let error = error.unwrap_err();
        assert!(
            matches!(&error, MemoryError::Add { step: failed, kind: of, .. } if (*failed, *of) == (step, kind)),
            "{step:?} {kind:?}: {}",
            error_chain(&error)
        );
        assert_eq!(seen(&space, &slots), before, "{step:?} {kind:?}");
        let known = backend.told().pop();
        assert!(
            known.is_none_or(|known| !known.contains(&pmem)),
            "{step:?}: a back-end still has it"
        );
        slots.refuse(false, false);
        if step != Step::Place && step != Step::Devices && !huge {
            space.grow(Kind::Dimm, GIB).unwrap();
        }
    }
}

/// A reserve whose huge pages nobody has set aside.
fn huge_reserve(space: &AddressSpace) -> Option<(Reserved, Arc<Mapping>)> {
    let config = MemoryConfig {
        hugepages: true,
        ..space.config.clone()
    };
    let reserve = space.reserve().unwrap();
    Some((reserve, map(&space.host, &config, reserve.bytes, Kind::Dimm).unwrap()))
}

/// And not for those of a chunk, which is larger.
#[test]
fn the_host_is_asked_for_the_huge_pages_of_the_blocks_that_are_plugged() {
    let (space, slots) = growing();
    let space = AddressSpace {
        reserve: huge_reserve(&space),
        ..Arc::into_inner(space).unwrap()
    };
    let space = Arc::new(space);
    let mut blocks = Blocks::new(space.clone(), BASE..BASE + GIB, 2 * MIB).unwrap();
    let one = blocks.plug(&(0..2 * MIB)).map_err(|error| error_chain(&error));
    if let Err(error) = one {
        assert!(error.contains(": huge pages of 2 MiB: 1 needed"), "{error}");
        assert_eq!(
            (slots.taken().len(), committed(&space)),
            (1, 0),
            "nothing is left of it"
        );
    }
}

#[test]
fn a_back_end_that_refuses_does_not_lose_what_it_has_and_others_forget_the_rest() {
    let (space, _) = growing();
    let (willing, _first) = listen(&space);
    let (unwilling, _second) = listen(&space);
    let kept = space.add_file(file(2 * MIB), "/a", 2 * MIB, true).unwrap();
    let with_it = unwilling.told().pop().unwrap();
    unwilling.refuse_more();
    space.add_file(file(2 * MIB), "/b", 2 * MIB, true).unwrap_err();
    assert_eq!(willing.told().pop().unwrap(), with_it);
    assert_eq!(unwilling.told().pop().unwrap(), with_it);
    drop(kept);
    assert_eq!(unwilling.told().pop().unwrap(), [0, BASE]);
}

#[test]
fn back_ends_see_new_memory_before_the_guest_does() {
    struct Order(Arc<FakeSlots>, Mutex<Vec<(usize, usize)>>);
    impl MemoryListener for Order {
        fn memory_added(&self, memory: &GuestMemory, _: std::time::Instant) -> io::Result<()> {
            self.memory_removed(memory)
        }

        fn memory_removed(&self, memory: &GuestMemory) -> io::Result<()> {
            let told = memory.memory().iter().count();
            self.1.lock().unwrap().push((told, self.0.taken().len()));
            Ok(())
        }
    }
    let (space, slots) = growing();
    let order = Arc::new(Order(slots, Mutex::default()));
    let listener: Arc<dyn MemoryListener> = order.clone();
    space.listen(&listener);
    drop(space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap());
    assert_eq!(
        *order.1.lock().unwrap(),
        [(3, 1), (2, 1)],
        "regions told, slots that the guest had"
    );
}

#[test]
fn ram_comes_and_goes_and_files_go_while_a_back_end_is_asked_about_a_file() {
    struct Slow(Mutex<(Option<Sender<()>>, Receiver<()>)>);
    impl MemoryListener for Slow {
        fn memory_added(&self, _: &GuestMemory, _: std::time::Instant) -> io::Result<()> {
            let mut ends = self.0.lock().unwrap();
            // That it is asked is said once, and it answers when it may.
            drop(ends.0.take());
            let _ = ends.1.recv();
            Ok(())
        }

        fn memory_removed(&self, _: &GuestMemory) -> io::Result<()> {
            Ok(())
        }
    }
    let (space, slots) = growing();
    let other = space.add_file(file(2 * MIB), "/e", 2 * MIB, true).unwrap();
    let ((asked, is_asked), (may, answer)) = (channel::<()>(), channel::<()>());
    let listener: Arc<dyn MemoryListener> = Arc::new(Slow((Some(asked), answer).into()));
    space.listen(&listener);
    let before = slots.taken().len();
    thread::scope(|scope| {
        let added = scope.spawn(|| space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap());
        is_asked.recv().unwrap_err();
        let ram = space.grow(Kind::Dimm, UNIT).unwrap();
        assert_eq!(slots.taken().len(), before + 1);
        ram.remove().unwrap();
        assert_eq!(slots.taken().len(), before, "the file is not there yet");
        other.remove().unwrap();
        assert_eq!(slots.taken().len(), before - 1);
        drop(may);
        assert_eq!(added.join().unwrap().info().bytes, 2 * MIB);
    });
    assert_eq!(slots.taken().len(), before - 1);
}

#[test]
fn a_back_end_that_has_gone_is_told_nothing() {
    let (space, _) = growing();
    let (backend, listener) = listen(&space);
    drop((listener, space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap()));
    let told = backend.told().len();
    drop(backend);
    space.add_file(file(2 * MIB), "/f", 2 * MIB, true).unwrap();
    assert_eq!(told, 2);
}

#[test]
fn what_kvm_does_not_give_back_stays_whole_and_can_be_tried_again() {
    let (space, slots) = growing();
    let region = space.grow(Kind::Dimm, UNIT).unwrap();
    space.guest().memory().write_obj(5_u8, GuestAddress(BASE)).unwrap();
    let before = seen(&space, &slots);
    slots.refuse(false, true);
    let error = region.remove().unwrap_err();
    assert!(
        error_chain(&error).contains("cannot take 128 MiB of hot-plugged memory back from the guest"),
        "{}",
        error_chain(&error)
    );
    assert_eq!(seen(&space, &slots), before);
    assert_eq!(space.guest().memory().read_obj::<u8>(GuestAddress(BASE)).unwrap(), 5);
    slots.refuse(false, false);
    error.region.remove().unwrap();
    assert_eq!(committed(&space), 0);

    // Nobody can try again what is dropped: it is kept for good.
    let region = space.grow(Kind::Dimm, UNIT).unwrap();
    slots.refuse(false, true);
    drop(region);
    assert_eq!(space.regions().len(), 2);
    assert_eq!(space.grow(Kind::Dimm, UNIT).unwrap().info().gpa, BASE + UNIT);
}

#[test]
fn shared_memory_is_sealed_wherever_it_is() {
    let (space, _) = space(&config(true)).unwrap();
    let _region = space.grow(Kind::Dimm, UNIT).unwrap();
    let (devices, backends) = (space.guest().memory(), space.shared().memory());
    let files: Vec<_> = devices
        .iter()
        .chain(backends.iter())
        .filter_map(|region| region.file_offset())
        .collect();
    assert_eq!(files.len(), 4);
    for file in files {
        // A back-end has the same file by its descriptor.
        let theirs = file.file().try_clone().unwrap();
        assert!(theirs.set_len(0).is_err() && theirs.set_len(1 << 40).is_err());
    }
}

#[test]
fn huge_pages_that_are_not_there_are_refused_with_figures() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
    let total = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").unwrap();
    for (shared, prefault) in [(false, false), (true, false), (false, true), (true, true)] {
        let error = space(&MemoryConfig {
            size: 1 << 40,
            hugepages: true,
            prefault,
            ..config(shared)
        });
        let text = error_chain(&error.map(drop).unwrap_err());
        let end = format!(
            "huge pages of 2 MiB: 524288 needed, {} of {} free (see /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)",
            free.trim(),
            total.trim()
        );
        assert!(
            text.starts_with("cannot add 1 TiB of guest RAM: the host does not give it: ") && text.ends_with(&end),
            "{text}"
        );
    }
}
