use super::*;
use crate::testing::{bzimage_of, setup};

fn parse(change: impl FnOnce(&mut setup_header)) -> Option<Result<Setup, BzImageError>> {
    let mut header = setup(64);
    change(&mut header);
    let file = bzimage_of(&header, &[0; 64]);
    Setup::parse(&file, file.len() as u64)
}

#[test]
fn the_payload_is_where_the_header_says() {
    let setup = parse(|_| ()).unwrap().unwrap();
    assert_eq!((setup.payload_offset, setup.payload_len), (5 * 512 + 0x100, 64));
    let setup = parse(|header| header.setup_sects = 0).unwrap().unwrap();
    assert_eq!(setup.payload_offset, 5 * 512 + 0x100, "0 sectors mean 4");
}

#[test]
fn without_its_magic_numbers_it_is_no_bzimage() {
    assert!(parse(|header| header.header = 0).is_none());
    assert!(parse(|header| header.boot_flag = 0).is_none());
    assert!(Setup::parse(&[0; 0x200], 0x200).is_none());
}

#[test]
fn old_protocols_are_refused_by_number() {
    let error = parse(|header| header.version = 0x0207).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "boot protocol 2.07; at least 2.08 is needed");
}

#[test]
fn payloads_outside_the_file_are_refused() {
    let error = parse(|header| header.payload_length = 65).unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "payload of 0x41 bytes at offset 0xb00; the file has 0xb40 bytes"
    );
    for offset in [0x101, u32::MAX] {
        let error = parse(|header| header.payload_offset = offset).unwrap().unwrap_err();
        assert!(matches!(error, BzImageError::PayloadOutside { .. }));
    }
    let error = parse(|header| header.payload_length = 15).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "payload of 15 bytes; at least 16 are needed");
}
