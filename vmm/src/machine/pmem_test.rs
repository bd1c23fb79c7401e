use std::collections::BTreeMap;

use husk_devices::memory::GuestMemoryMmap;
use vm_memory::{Bytes, GuestMemoryBackend};

use super::*;

const RAM: u64 = 4 << 20;

/// Knows which slots are taken, as KVM does.
#[derive(Default)]
struct FakeSlots(Mutex<BTreeMap<u32, u64>>);

impl Slots for FakeSlots {
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError> {
        let before = lock(&self.0).insert(slot, region.start_addr().0);
        assert_eq!(before, None, "slot {slot} is taken");
        Ok(())
    }

    fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        lock(&self.0).remove(&slot).expect("a slot in use");
        Ok(())
    }
}

fn space() -> (Arc<PmemSpace>, GuestMemory) {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(RAM).unwrap())]).unwrap();
    let memory = GuestMemory::new(ram);
    let space = PmemSpace::new(Arc::<FakeSlots>::default(), memory.clone(), 40);
    (space, memory)
}

fn config(file: &Path) -> PmemConfig {
    PmemConfig {
        file: file.into(),
        size: None,
        discard_writes: false,
        id: None,
        rest: crate::config::Rest::default(),
    }
}

fn file(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Where the only device of `space` lies.
fn base(memory: &GuestMemory) -> GuestAddress {
    memory.memory().iter().last().unwrap().start_addr()
}

#[test]
fn what_devices_write_there_is_in_the_file_and_goes_with_the_device() {
    let (space, memory) = space();
    let file = file(PMEM_UNIT_BYTES);
    let device = open(&config(file.path()), &space).unwrap();
    let at = base(&memory);
    assert!(at.0 > RAM && at.0.is_multiple_of(PMEM_UNIT_BYTES));
    memory.memory().write_slice(b"kept", at).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap()[..4], *b"kept");
    drop(device);
    assert!(memory.memory().write_slice(b"gone", at).is_err());
    open(&config(file.path()), &space).unwrap();
}

#[test]
fn discarded_writes_do_not_reach_the_file() {
    let (space, memory) = space();
    let file = file(PMEM_UNIT_BYTES);
    let config = PmemConfig {
        discard_writes: true,
        ..config(file.path())
    };
    let _device = open(&config, &space).unwrap();
    memory.memory().write_slice(b"lost", base(&memory)).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap()[..4], [0; 4]);
}

#[test]
fn several_lie_side_by_side_and_what_is_freed_is_used_again() {
    let (space, memory) = space();
    let file = file(2 * PMEM_UNIT_BYTES);
    let devices: Vec<_> = (0..3).map(|_| open(&config(file.path()), &space).unwrap()).collect();
    assert_eq!(memory.memory().iter().count(), 4);
    let last = base(&memory);
    drop(devices);
    assert_eq!(memory.memory().iter().count(), 1);
    let devices: Vec<_> = (0..3).map(|_| open(&config(file.path()), &space).unwrap()).collect();
    assert_eq!(base(&memory), last);
    drop(devices);
}

#[test]
fn files_that_cannot_be_are_named() {
    let (space, memory) = space();
    let error = |config: &PmemConfig| {
        let error = open(config, &space).err().unwrap();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    };
    let odd = file(PMEM_UNIT_BYTES + 4096);
    assert!(error(&config(odd.path())).contains("2101248 bytes are not a multiple of 2097152"));
    assert!(error(&config(file(0).path())).contains("0 bytes are not a multiple of 2097152"));
    let long = PmemConfig {
        size: Some(2 * PMEM_UNIT_BYTES),
        ..config(odd.path())
    };
    assert!(error(&long).ends_with("size is 4194304 bytes, the file has 2101248"));
    assert!(error(&config(Path::new("/nowhere/file"))).starts_with("pmem /nowhere/file: cannot open it"));
    assert_eq!(memory.memory().iter().count(), 1, "nothing is left behind");
}
