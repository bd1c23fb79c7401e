use std::io::BufReader;

use proptest::prelude::*;

use super::*;
use crate::testing::{Elf, assert_kernel_loaded, ram};

fn plan(image: &[u8]) -> Plan {
    Plan::parse(image, image.len() as u64).unwrap()
}

#[test]
fn pages_of_zeroes_are_left_alone() {
    let mem = ram(4 << 20);
    mem.write_slice(&[0x55; 0x4000], GuestAddress(crate::testing::TEXT))
        .unwrap();
    let image = Elf::kernel().build();
    scatter(&mut &image[..], &plan(&image), image.len() as u64, &mem).unwrap();
    let page = |index: u64| crate::testing::read(&mem, crate::testing::TEXT + index * 0x1000, 0x1000);
    assert_eq!(page(0)[..4], [0, 1, 2, 3]);
    assert!(page(1).iter().all(|byte| *byte == 0x55), "the zero page was written");
}

#[test]
fn a_stream_must_have_its_declared_length() {
    let image = Elf::kernel().build();
    let len = image.len() as u64;
    let run = |declared| scatter(&mut &image[..], &plan(&image), declared, &ram(4 << 20));
    assert!(matches!(run(len - 1), Err(PayloadError::Long { .. })));
    assert!(matches!(run(len + 1), Err(PayloadError::Short { found, .. }) if found == len));
}

#[test]
fn a_segment_outside_ram_is_an_error() {
    let image = Elf::kernel().build();
    let error = scatter(&mut &image[..], &plan(&image), image.len() as u64, &ram(1 << 20)).unwrap_err();
    assert!(matches!(error, PayloadError::Write(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_size_of_the_chunks_does_not_matter(chunk in 1usize..0x5000) {
        let image = Elf::kernel().build();
        let mem = ram(4 << 20);
        let mut stream = BufReader::with_capacity(chunk, &image[..]);
        scatter(&mut stream, &plan(&image), image.len() as u64, &mem).unwrap();
        assert_kernel_loaded(&mem, 4 << 20);
    }
}
