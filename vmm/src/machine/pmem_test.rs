use husk_devices::error_chain;
use husk_devices::testing::Loop;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::config::MemoryConfig;
use crate::memory::testing;

const RAM: u64 = 4 << 20;

fn space() -> Arc<AddressSpace> {
    let config = MemoryConfig {
        size: RAM,
        ..Default::default()
    };
    testing::space(&config).unwrap().0
}

fn config(file: &Path) -> PmemConfig {
    PmemConfig {
        file: file.into(),
        size: None,
        discard_writes: false,
        id: None,
        extra: crate::config::ExtraFields::default(),
    }
}

fn file(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

/// Where the only device of `space` lies.
fn base(space: &AddressSpace) -> GuestAddress {
    space.guest().memory().iter().last().unwrap().start_addr()
}

#[test]
fn what_devices_write_there_is_in_the_file_and_goes_with_the_device() {
    let space = space();
    let file = file(BLOCK_BYTES);
    let device = open(&config(file.path()), &space).unwrap();
    let at = base(&space);
    assert!(at.0 > RAM && at.0.is_multiple_of(BLOCK_BYTES));
    space.guest().memory().write_slice(b"kept", at).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap()[..4], *b"kept");
    drop(device);
    assert!(space.guest().memory().write_slice(b"gone", at).is_err());
    open(&config(file.path()), &space).unwrap();
}

#[test]
fn discarded_writes_do_not_reach_the_file() {
    let space = space();
    let file = file(BLOCK_BYTES);
    let config = PmemConfig {
        discard_writes: true,
        ..config(file.path())
    };
    let _device = open(&config, &space).unwrap();
    space.guest().memory().write_slice(b"lost", base(&space)).unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap()[..4], [0; 4]);
}

#[test]
fn several_lie_side_by_side_and_what_is_freed_is_used_again() {
    let space = space();
    let files = [(); 3].map(|()| file(2 * BLOCK_BYTES));
    let all = || -> Vec<_> {
        files
            .iter()
            .map(|file| open(&config(file.path()), &space).unwrap())
            .collect()
    };
    let devices = all();
    assert_eq!(space.guest().memory().iter().count(), 4);
    let last = base(&space);
    drop(devices);
    assert_eq!(space.guest().memory().iter().count(), 1);
    let devices = all();
    assert_eq!(base(&space), last);
    drop(devices);
}

#[test]
fn files_that_cannot_be_are_named() {
    let space = space();
    let error = |config: &PmemConfig| {
        let error = open(config, &space).err().unwrap();
        error_chain(&error)
    };
    let odd = file(BLOCK_BYTES + 4096);
    assert!(error(&config(odd.path())).contains("2101248 bytes are not a multiple of 2097152"));
    assert!(error(&config(file(0).path())).contains("0 bytes are not a multiple of 2097152"));
    let long = PmemConfig {
        size: Some(2 * BLOCK_BYTES),
        ..config(odd.path())
    };
    assert!(error(&long).ends_with("size is 4194304 bytes, the file has 2101248"));
    assert!(error(&config(Path::new("/nowhere/file"))).starts_with("pmem /nowhere/file: cannot open it"));
    assert_eq!(space.guest().memory().iter().count(), 1, "nothing is left behind");
}

#[test]
fn a_device_that_gets_no_slot_leaves_back_ends_as_they_were() {
    let space = space();
    let (backend, _listener) = testing::listen(&space);
    let file = file(BLOCK_BYTES);
    // Whoever cannot put the device into a slot drops it.
    drop(open(&config(file.path()), &space).unwrap());
    let told = backend.told();
    assert_eq!((told.len(), told.last()), (2, Some(&vec![0])));
    assert_eq!(space.regions().len(), 1);
}

#[test]
fn a_back_end_that_does_not_take_it_refuses_the_device_and_is_named_as_the_reason() {
    let space = space();
    let (backend, _listener) = testing::listen(&space);
    backend.refuse_more();
    let file = file(BLOCK_BYTES);
    let error = open(&config(file.path()), &space).err().unwrap();
    let text = error_chain(&error);
    assert!(
        text.ends_with(
            "cannot add 2 MiB of persistent memory: a vhost-user back-end does not take it: it takes no more regions"
        ),
        "{text}"
    );
}

#[test]
fn a_path_that_is_no_file_is_refused_without_being_opened() {
    use rustix::fs::inotify;
    let folder = tempfile::tempdir().unwrap();
    let path = crate::terminal::testing::fifo(&folder);
    let opens = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&opens, &path, inotify::WatchFlags::OPEN).unwrap();
    for discard_writes in [false, true] {
        let config = PmemConfig {
            discard_writes,
            ..config(&path)
        };
        let error = open(&config, &space()).err().unwrap();
        let text = error_chain(&error);
        assert!(
            text.ends_with("cannot open it: it is no file and no block device"),
            "{text}"
        );
    }
    let told = rustix::io::read(&opens, &mut [0; 256]);
    assert_eq!(told, Err(rustix::io::Errno::AGAIN), "a device would have acted");
}

#[test]
fn a_file_has_one_writer_or_readers_whatever_kind_of_device_they_are() {
    let file = file(BLOCK_BYTES);
    let pmem = |discard_writes| {
        let config = PmemConfig {
            discard_writes,
            ..config(file.path())
        };
        open(&config, &space())
    };
    let disk = |readonly| {
        let mut config = husk_virtio::block::BlockConfig::new(file.path());
        config.readonly = readonly;
        husk_virtio::block::Block::open(config)
    };
    for (first_reads, second_reads) in [(true, true), (true, false), (false, true), (false, false)] {
        let both = first_reads && second_reads;
        let first = pmem(first_reads).unwrap();
        let second = pmem(second_reads);
        assert_eq!(second.is_ok(), both, "{first_reads} {second_reads}");
        if let Err(error) = second {
            assert!(crate::control::is_in_use(&error), "{error:?}");
        }
        assert_eq!(
            disk(second_reads).is_ok(),
            both,
            "a disk comes second: {first_reads} {second_reads}"
        );
        drop(first);
        let first = disk(first_reads).unwrap();
        assert_eq!(
            pmem(second_reads).is_ok(),
            both,
            "a disk was first: {first_reads} {second_reads}"
        );
        drop(first);
    }
}

fn cannot_be_written(path: &Path) {
    let space = space();
    let error = open(&config(path), &space).err().unwrap();
    assert!(
        error_chain(&error).contains("it cannot be written, with discard_writes=on it can be read: "),
        "{}",
        error_chain(&error)
    );
    let discarding = PmemConfig {
        discard_writes: true,
        size: Some(BLOCK_BYTES),
        ..config(path)
    };
    open(&discarding, &space).unwrap();
}

#[test]
fn a_file_that_cannot_be_written_keeps_nothing() {
    // A program that runs: not even root may write it.
    cannot_be_written(&std::env::current_exe().unwrap());
}

#[test]
fn a_device_that_is_read_only_keeps_nothing() {
    let file = file(BLOCK_BYTES);
    let Some(device) = Loop::attach(file.path(), &["--read-only"]) else {
        return;
    };
    cannot_be_written(&device.0);
}
