use super::*;
use crate::config::MemoryConfig;
use crate::memory::{Kind, testing};

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 4 << 30;

fn board() -> (Board, Arc<AddressSpace>) {
    let board = Board::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let config = MemoryConfig {
        size: 8 * MIB,
        hotplug_size: Some(1 << 30),
        ..Default::default()
    };
    let (memory, _) = testing::space(&config).unwrap();
    board.set_memory(memory.clone());
    (board, memory)
}

/// Why the VM has ended.
fn why(board: &Board) -> String {
    match board.ending() {
        Some(Ending::Failed(why)) => why.clone(),
        other => panic!("{other:?}"),
    }
}

struct Silent;

impl husk_devices::BusDevice for Silent {
    fn read(&mut self, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: u64, _: &[u8]) -> Effect {
        Effect::None
    }
}

#[test]
fn a_file_that_has_no_page_there_ends_the_vm_with_its_name_and_place() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * MIB).unwrap();
    let told = [
        |board: &Board, gpa| board.answer(Port::Missing(Some(gpa)), board.era()),
        |board: &Board, gpa| board.answer(Port::Load(gpa, &mut [0; 4]), board.era()),
        |board: &Board, gpa| board.answer(Port::Store(gpa, &[0; 8]), board.era()),
    ];
    for tell in told {
        let (board, memory) = board();
        let handle = file.reopen().unwrap();
        let region = memory.add_file(handle, "/data/store", 4 * MIB, true).unwrap();
        let gpa = region.info().gpa + 2 * MIB + 8;
        assert!(!tell(&board, gpa), "the guest does not go on");
        assert_eq!(
            why(&board),
            format!(
                "persistent memory /data/store: byte 2097160 (guest address {gpa:#x}) has nothing behind it: the file was shortened, \
                 or its file system is full"
            )
        );
        assert_eq!(board.ended.read().unwrap(), 1);
    }
}

#[test]
fn a_file_that_was_shortened_ends_the_vm_whoever_waits_for_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * MIB).unwrap();
    let (board, memory) = board();
    let region = memory
        .add_file(file.reopen().unwrap(), "/data/store", 4 * MIB, true)
        .unwrap();
    assert!(board.answer(Port::Look, board.era()));
    file.as_file().set_len(4 * MIB - 4095).unwrap();
    assert!(
        board.answer(Port::Look, board.era()),
        "every page is there, the last one in part"
    );
    file.as_file().set_len(MIB + 1).unwrap();
    assert!(!board.answer(Port::Look, board.era()));
    let gpa = region.info().gpa + MIB + 4096;
    let expected =
        format!("persistent memory /data/store: byte 1052672 (guest address {gpa:#x}) has nothing behind it");
    assert!(why(&board).starts_with(&expected), "{}", why(&board));
}

#[test]
fn ram_that_the_host_has_no_page_for_ends_the_vm_with_its_place() {
    let (board, memory) = board();
    let _region = memory.grow(Kind::Dimm, 128 * MIB).unwrap();
    assert!(!board.answer(Port::Missing(Some(RESERVE + 4096)), board.era()));
    assert_eq!(
        why(&board),
        "hot-plugged memory at 0x100001000: the host has no page for it"
    );
    let (board, _memory) = self::board();
    assert!(!board.answer(Port::Missing(None), board.era()));
    assert_eq!(why(&board), "the guest touched memory that the host has no page for");
}

/// KVM had no slot for it when the guest touched it, and husk has one when it looks.
#[test]
fn a_guest_that_touches_memory_on_its_way_finds_nobody_there_and_lives() {
    let (board, memory) = board();
    let entered = board.era();
    let _region = memory.grow(Kind::Dimm, 128 * MIB).unwrap();
    let mut data = [0; 4];
    assert!(board.answer(Port::Load(RESERVE, &mut data), entered));
    assert_eq!(data, [0xff; 4]);
    assert!(board.answer(Port::Store(RESERVE, &data), entered));
    assert_eq!(board.ending(), None);
    // Another vCPU, or this one again: now it is memory, and if KVM finds no page there is none.
    assert!(!board.answer(Port::Load(RESERVE, &mut data), board.era()));
    assert_eq!(
        why(&board),
        "hot-plugged memory at 0x100000000: the host has no page for it"
    );
}

#[test]
fn devices_and_addresses_of_nobody_are_no_missing_memory() {
    let (board, memory) = board();
    board
        .mmio()
        .insert(0xfeb0_0000, 0x1000, Arc::new(Mutex::new(Silent)))
        .unwrap();
    let region = memory.grow(Kind::Dimm, 128 * MIB).unwrap();
    region.remove().unwrap();
    // A device; a hole; memory that may come; memory that has gone.
    for gpa in [0xfeb0_0000, 0xd000_0000, RESERVE + (512 << 20), RESERVE, u64::MAX] {
        let mut data = [0; 4];
        assert!(
            board.answer(Port::Load(gpa, &mut data), board.era()) && board.answer(Port::Store(gpa, &data), board.era()),
            "{gpa:#x}"
        );
    }
    assert_eq!(board.ending(), None);
}
