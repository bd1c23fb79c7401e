use linux_loader::elf::PT_NOTE;

use super::*;
use crate::testing::{Elf, TEXT, phdr};

const LEN: u64 = 1 << 20;

fn parse(change: impl FnOnce(&mut Elf)) -> Result<Plan, ElfError> {
    let mut elf = Elf::kernel();
    change(&mut elf);
    Plan::parse(&elf.build(), LEN)
}

fn refusal(change: impl FnOnce(&mut Elf)) -> String {
    parse(change).unwrap_err().to_string()
}

#[test]
fn foreign_files_are_told_apart() {
    let machine = "a vmlinux is 64-bit (2), little-endian (1), x86-64 (62)";
    assert_eq!(
        refusal(|elf| elf.header.e_ident[4] = 1),
        format!("ELF class 1, data 1, machine 62; {machine}")
    );
    assert_eq!(
        refusal(|elf| elf.header.e_ident[5] = 2),
        format!("ELF class 2, data 2, machine 62; {machine}")
    );
    assert_eq!(
        refusal(|elf| elf.header.e_machine = 183),
        format!("ELF class 2, data 1, machine 183; {machine}")
    );
    assert_eq!(
        refusal(|elf| elf.header.e_type = 4),
        "ELF type 4; EXEC (2) and DYN (3) are allowed"
    );
    assert_eq!(
        refusal(|elf| elf.header.e_phentsize = 32),
        "program headers of 32 bytes each; they have 56"
    );
}

#[test]
fn the_number_of_program_headers_is_bounded() {
    assert_eq!(
        refusal(|elf| elf.programs.clear()),
        "0 program headers; 1 to 128 are allowed"
    );
    let many = |elf: &mut Elf| elf.programs = vec![(phdr(0, 0, 0, 0), Vec::new()); 129];
    assert_eq!(refusal(many), "129 program headers; 1 to 128 are allowed");
}

#[test]
fn program_headers_must_lie_in_the_head() {
    let mut file = Elf::kernel().build();
    for offset in [0x1_0000u64, u64::MAX, u64::MAX - 64] {
        file[32..40].copy_from_slice(&offset.to_le_bytes());
        let error = Plan::parse(&file, LEN).unwrap_err();
        assert_eq!(
            error,
            ElfError::HeadersOutside {
                offset,
                available: file.len()
            }
        );
    }
}

#[test]
fn segments_must_have_their_bytes_in_the_image() {
    assert_eq!(
        refusal(|elf| elf.programs[0].0.p_filesz = LEN),
        "segment 0 has 0x100000 bytes at offset 0x1000; the image has 0x100000 bytes"
    );
    let beyond = |elf: &mut Elf| elf.programs[1].0.p_filesz = u64::MAX;
    assert!(matches!(parse(beyond), Err(ElfError::OutsideImage { index: 1, .. })));
}

#[test]
fn segments_must_make_sense_in_memory() {
    assert_eq!(
        refusal(|elf| elf.programs[1].0.p_memsz = 1),
        "segment 1 has 0x2800 bytes in the file but 0x1 in memory"
    );
    let wraps = |elf: &mut Elf| elf.programs[1].0.p_paddr = u64::MAX - 0x1000;
    assert!(matches!(parse(wraps), Err(ElfError::Wraps { index: 1, .. })));
    assert_eq!(
        refusal(|elf| elf.programs[1].0.p_paddr = TEXT + 0x2fff),
        "segments at 0x200000 and 0x202fff overlap"
    );
    assert_eq!(
        refusal(|elf| elf.programs.truncate(0x0)),
        "0 program headers; 1 to 128 are allowed"
    );
    let empty = |elf: &mut Elf| elf.programs.drain(..2).for_each(drop);
    assert_eq!(parse(empty).unwrap_err(), ElfError::NoSegments);
}

#[test]
fn segments_come_out_sorted_by_address() {
    let plan = parse(|elf| elf.programs.swap(0, 1)).unwrap();
    assert!(plan.segments.is_sorted_by_key(|segment| segment.gpa));
    assert_eq!(plan.segments.len(), 2);
}

#[test]
fn an_entry_must_be_in_a_segment() {
    let plan = parse(|elf| elf.header.e_entry = TEXT - 1).unwrap();
    let outside = ElfError::EntryOutside {
        protocol: Protocol::Linux64,
        entry: TEXT - 1,
    };
    assert_eq!(plan.entry(None, None), Err(outside));
    assert_eq!(
        plan.entry(Some(1 << 40), None).unwrap_err().to_string(),
        "PVH entry 0x10000000000 is in no segment"
    );
    assert_eq!(plan.entry(Some(TEXT), None), Ok((Protocol::Pvh, TEXT)));
}

#[test]
fn long_note_segments_are_refused() {
    let long = |elf: &mut Elf| {
        elf.programs[2].0 = Elf64_Phdr {
            p_type: PT_NOTE,
            ..phdr(0, 0, 0x1_0001, 0)
        }
    };
    assert_eq!(
        refusal(long),
        "note segment 2 has 0x10001 bytes; at most 0x10000 are allowed"
    );
}

#[test]
fn an_offset_is_found_in_the_segment_that_holds_it() {
    let plan = parse(|_| ()).unwrap();
    assert_eq!(plan.address_of(0x3000, 0x30), Some(TEXT + 0x2000));
    assert_eq!(plan.address_of(0x3fff, 2), None);
    assert_eq!(plan.address_of(u64::MAX, 2), None);
}
