use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use husk_devices::pci::{Bar, ConfigSpace, Identity};

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
        |board: &Board, gpa| board.answer(Port::Missing(Some(gpa)), board.memory_generation()),
        |board: &Board, gpa| board.answer(Port::Load(gpa, &mut [0; 4]), board.memory_generation()),
        |board: &Board, gpa| board.answer(Port::Store(gpa, &[0; 8]), board.memory_generation()),
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

/// How long a file is, its file system says, in its own time.
#[test]
fn a_vcpu_asks_for_a_look_at_files_and_goes_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 * MIB).unwrap();
    let (board, memory) = board();
    let looker = Arc::new(Looker::default());
    board.set_looker(looker.clone().into());
    assert!(board.answer(Port::Look, board.memory_generation()));
    assert!(!board.take_look(), "there is no file");
    let region = memory
        .add_file(file.reopen().unwrap(), "/data/store", 4 * MIB, true)
        .unwrap();
    let shortened = || memory.files().unwrap().shortened();
    assert_eq!(shortened(), None);
    file.as_file().set_len(4 * MIB - 4095).unwrap();
    assert_eq!(shortened(), None, "every page is there, the last one in part");
    file.as_file().set_len(MIB + 1).unwrap();
    for _ in 0..2 {
        assert!(board.answer(Port::Look, board.memory_generation()));
    }
    assert_eq!(looker.0.load(Ordering::Relaxed), 1, "once");
    assert!(board.ending().is_none() && board.take_look() && !board.take_look());
    let gpa = region.info().gpa + MIB + 4096;
    assert_eq!(shortened(), Some(gpa));
    board.end_without(Some(gpa));
    let expected =
        format!("persistent memory /data/store: byte 1052672 (guest address {gpa:#x}) has nothing behind it");
    assert!(why(&board).starts_with(&expected), "{}", why(&board));
}

#[derive(Default)]
struct Looker(AtomicUsize);

impl Wake for Looker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn ram_that_the_host_has_no_page_for_ends_the_vm_with_its_place() {
    let (board, memory) = board();
    let _region = memory.grow(Kind::Dimm, 128 * MIB).unwrap();
    assert!(!board.answer(Port::Missing(Some(RESERVE + 4096)), board.memory_generation()));
    assert_eq!(
        why(&board),
        "hot-plugged memory at 0x100001000: the host has no page for it"
    );
    let (board, _memory) = self::board();
    assert!(!board.answer(Port::Missing(None), board.memory_generation()));
    assert_eq!(why(&board), "the guest touched memory that the host has no page for");
}

/// KVM had no slot for it when the guest touched it, and husk has one when it looks.
#[test]
fn a_guest_that_touches_memory_on_its_way_finds_nobody_there_and_lives() {
    let (board, memory) = board();
    let entered = board.memory_generation();
    let _region = memory.grow(Kind::Dimm, 128 * MIB).unwrap();
    let mut data = [0; 4];
    assert!(board.answer(Port::Load(RESERVE, &mut data), entered));
    assert_eq!(data, [0xff; 4]);
    assert!(board.answer(Port::Store(RESERVE, &data), entered));
    assert_eq!(board.ending(), None);
    // Another vCPU, or this one again: now it is memory, and if KVM finds no page there is none.
    assert!(!board.answer(Port::Load(RESERVE, &mut data), board.memory_generation()));
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
            board.answer(Port::Load(gpa, &mut data), board.memory_generation())
                && board.answer(Port::Store(gpa, &data), board.memory_generation()),
            "{gpa:#x}"
        );
    }
    assert_eq!(board.ending(), None);
}

/// A function with one BAR, whose registers read as its number.
struct Numbered(u8, ConfigSpace);

impl PciFunction for Numbered {
    fn config(&self) -> &ConfigSpace {
        &self.1
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.1
    }

    fn read_bar(&mut self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write_bar(&mut self, _: u8, _: u64, _: &[u8]) -> Effect {
        Effect::None
    }
}

/// Offset of the command register and its bit 1, memory space (PCIe 5.0 §7.5.1.1.3), and of BAR 0.
const COMMAND: (u16, u8) = (4, 2);
const BAR_0: u16 = 0x10;

/// A function, and where it is.
type Placed = (Bdf, Arc<Mutex<dyn PciFunction>>);

/// A board with functions that are called 1, 2 and so on, at these addresses.
fn board_with(bases: &[u32]) -> (Board, Vec<Placed>) {
    let (board, _) = board();
    let add = |(number, base): (u8, &u32)| {
        let mut config = ConfigSpace::new(&Identity::default());
        config.add_bar(0, Bar::memory32(0x1000)).unwrap();
        let function: Arc<Mutex<dyn PciFunction>> = Arc::new(Mutex::new(Numbered(number, config)));
        let bdf = lock(board.pci()).insert(None, function.clone()).unwrap();
        let _ = lock(&function).write_config(COMMAND.0, &[COMMAND.1]);
        move_to(&board, &(bdf, function.clone()), *base);
        (bdf, function)
    };
    let functions = (1..).zip(bases).map(add).collect();
    (board, functions)
}

fn move_to(board: &Board, (bdf, function): &Placed, base: u32) {
    let _ = lock(function).write_config(BAR_0, &base.to_le_bytes());
    board.remap(*bdf);
}

/// Who answers at `gpa`.
fn at(board: &Board, gpa: u32) -> u8 {
    let mut data = [0];
    board.mmio().read(gpa.into(), &mut data);
    data[0]
}

const A: u32 = 0xc000_0000;
const B: u32 = 0xc000_1000;
const C: u32 = 0xc000_2000;
const NOBODY: u8 = 0xff;

#[test]
fn a_window_that_found_no_place_gets_it_when_the_other_one_moves_away() {
    let (board, functions) = board_with(&[A, B]);
    move_to(&board, &functions[0], B);
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [NOBODY, 2, NOBODY]);
    move_to(&board, &functions[1], C);
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [NOBODY, 1, 2]);
    // Two that change places, as a guest does that reassigns all of them.
    move_to(&board, &functions[0], C);
    move_to(&board, &functions[1], B);
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [NOBODY, 2, 1]);
}

#[test]
fn a_window_that_found_no_place_gets_it_when_the_other_one_is_unplugged_or_switched_off() {
    let (board, functions) = board_with(&[A, B, C]);
    move_to(&board, &functions[0], B);
    let (bdf, second) = &functions[1];
    let _ = lock(second).write_config(COMMAND.0, &[0]);
    board.remap(*bdf);
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [NOBODY, 1, 3]);

    move_to(&board, &functions[0], C);
    let (bdf, _) = functions[2];
    lock(board.pci()).remove(bdf).unwrap();
    board.remap(bdf);
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [NOBODY, NOBODY, 1]);
}

#[test]
fn windows_that_wait_for_one_another_are_all_placed() {
    let (board, functions) = board_with(&[A, B, C]);
    // Each moves onto the next one's place before that is left.
    for (function, base) in functions.iter().zip([B, C, A]) {
        move_to(&board, function, base);
    }
    assert_eq!([A, B, C].map(|gpa| at(&board, gpa)), [3, 1, 2]);
}
