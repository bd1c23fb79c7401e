use super::*;
use crate::Codec;
use crate::testing::{Elf, TEXT, assert_kernel_loaded, payload, phdr, ram};

fn plan(elf: &Elf) -> (Plan, Vec<u8>) {
    let image = elf.build();
    (Plan::parse(&image, image.len() as u64).unwrap(), image)
}

#[test]
fn an_image_settles_into_its_segments_and_nothing_else() {
    let (plan, image) = plan(&Elf::kernel());
    let mem = ram(4 << 20);
    let stage = Stage::find(&plan, image.len() as u64, &mem).unwrap();
    stage.fill(&mut &payload(Codec::Zstd, &image)[..]).unwrap();
    assert_kernel_loaded(&mem, 4 << 20);
}

#[test]
fn segments_that_would_move_up_are_not_unpacked_in_place() {
    let mut elf = Elf::kernel();
    elf.programs[1].0.p_paddr = TEXT + 0x8000;
    let (plan, image) = plan(&elf);
    assert!(Stage::find(&plan, image.len() as u64, &ram(4 << 20)).is_none());
}

#[test]
fn segments_in_another_order_are_not_unpacked_in_place() {
    let mut elf = Elf::kernel();
    let text = elf.programs[0].1.clone();
    elf.programs[0] = (phdr(0xc000, TEXT, 0x3000, 0x3000), text);
    let (plan, image) = plan(&elf);
    assert!(Stage::find(&plan, image.len() as u64, &ram(4 << 20)).is_none());
}

#[test]
fn an_image_that_would_start_below_the_kernel_is_not_unpacked_in_place() {
    let mut elf = Elf::kernel();
    elf.programs[0].0.p_paddr = KERNEL_MIN + 0xfff;
    let (plan, image) = plan(&elf);
    assert!(Stage::find(&plan, image.len() as u64, &ram(4 << 20)).is_none());
}

#[test]
fn an_image_longer_than_ram_is_not_unpacked_in_place() {
    let (plan, image) = plan(&Elf::kernel());
    assert!(Stage::find(&plan, image.len() as u64, &ram(0x20_0000)).is_none());
}

#[test]
fn damage_is_found_by_the_frames_checksum() {
    let (plan, image) = plan(&Elf::kernel());
    let mem = ram(4 << 20);
    let mut bytes = payload(Codec::Zstd, &image);
    let at = bytes.len() - 8;
    bytes[at] ^= 1;
    let error = Stage::find(&plan, image.len() as u64, &mem)
        .unwrap()
        .fill(&mut &bytes[..])
        .unwrap_err();
    assert!(matches!(error, PayloadError::Decompress(_)));
}
