use super::*;
use crate::config::MemoryConfig;

fn mapping(bytes: u64) -> Mapping {
    let backing = Backing::new(&MemoryConfig::default(), bytes, c"test").unwrap();
    Mapping::reserve(backing, bytes).unwrap()
}

#[test]
fn a_mapping_begins_where_its_pages_can() {
    let mut backing = Backing::new(&MemoryConfig::default(), 4096, c"test").unwrap();
    assert_eq!(mapping(4096).start.addr() % (2 << 20), 0);
    backing.pages = Pages::Huge { bytes: 1 << 30 };
    assert_eq!(Mapping::reserve(backing, 1 << 30).unwrap().start.addr() % (1 << 30), 0);
}

#[test]
fn nothing_outside_a_mapping_is_touched() {
    let mapping = mapping(8192);
    for part in [
        0..12288,
        4096..12288,
        12288..16384,
        Range { start: 4096, end: 0 },
        0..u64::MAX,
    ] {
        assert!(mapping.commit(&part).is_err(), "{part:?}");
        assert!(mapping.discard(&part).is_err(), "{part:?}");
        assert!(mapping.decommit(&part).is_err(), "{part:?}");
        assert!(mapping.region(&part, 0).is_none(), "{part:?}");
    }
}

#[test]
fn a_mapping_that_is_in_use_stays() {
    let mapping = mapping(4096);
    mapping.commit(&(0..4096)).unwrap();
    let region = mapping.region(&(0..4096), 0).unwrap();
    drop(mapping);
    vm_memory::Bytes::write_obj(&*region, 1_u8, vm_memory::MemoryRegionAddress(0)).unwrap();
}

#[test]
fn addresses_that_no_process_has_are_refused() {
    let backing = Backing::new(&MemoryConfig::default(), 4096, c"test").unwrap();
    for bytes in [1 << 60, u64::MAX] {
        let error = Mapping::reserve(backing.clone(), bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{bytes}");
    }
}
