use std::io::{Read, Seek, Write};

use super::*;

fn reader<'a>(parts: &'a mut [Vec<u8>]) -> Reader<'a> {
    let mut reader = Reader::default();
    parts
        .iter_mut()
        .for_each(|part| reader.push(VolatileSlice::from(&mut part[..])));
    reader
}

fn writer<'a>(parts: &'a mut [Vec<u8>]) -> Writer<'a> {
    let mut writer = Writer::default();
    parts
        .iter_mut()
        .for_each(|part| writer.push(VolatileSlice::from(&mut part[..])));
    writer
}

#[test]
fn value_may_be_split_over_slices() {
    let mut parts = [vec![1], vec![], vec![2, 3], vec![4, 5]];
    let mut reader = reader(&mut parts);
    assert_eq!(reader.read_obj::<u32>().unwrap(), u32::from_ne_bytes([1, 2, 3, 4]));
    assert_eq!((reader.bytes_read(), reader.available_bytes()), (4, 1));
    assert_eq!(
        reader.read_obj::<u16>().unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert_eq!(reader.available_bytes(), 0);
    assert_eq!(reader.read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn writes_fill_the_slices_in_order() {
    let mut parts = [vec![0; 2], vec![0; 3]];
    let mut writer = writer(&mut parts);
    writer.write_obj(u16::from_ne_bytes([7, 8])).unwrap();
    assert_eq!(writer.write(b"abcdef").unwrap(), 3);
    assert_eq!((writer.bytes_written(), writer.available_bytes()), (5, 0));
    assert_eq!(writer.write_obj(1u8).unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert_eq!(parts, [vec![7, 8], b"abc".to_vec()]);
}

#[test]
fn split_shares_the_bytes_out() {
    let mut parts = [vec![1, 2], vec![3, 4, 5]];
    for at in 0..=4 {
        let mut head = reader(&mut parts);
        head.read_obj::<u8>().unwrap();
        let mut tail = head.split_at(at).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        head.read_to_end(&mut a).unwrap();
        tail.read_to_end(&mut b).unwrap();
        assert_eq!(a.len(), at);
        assert_eq!([a, b].concat(), [2, 3, 4, 5]);
        assert_eq!(head.bytes_read(), 1 + at);
    }
    let mut whole = reader(&mut parts);
    let error = whole.split_at(6).err().unwrap();
    assert_eq!(error.to_string(), "offset 6 is beyond the 5 bytes of the buffer");
    assert_eq!(whole.available_bytes(), 5);
}

#[test]
fn file_is_read_without_a_copy_and_within_the_limit() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"abcdefgh").unwrap();
    file.rewind().unwrap();
    let mut parts = [vec![0; 1], vec![0; 9]];
    let mut into = writer(&mut parts);
    assert_eq!(into.write_from(&mut file, 5).unwrap(), 5);
    assert_eq!(
        into.write_from(&mut file, 100).unwrap(),
        3,
        "the end of the file is a short read"
    );
    assert_eq!((into.bytes_written(), into.available_bytes()), (8, 2));
    assert_eq!(parts, [b"a".to_vec(), b"bcdefgh\0\0".to_vec()]);
}

#[test]
fn error_of_the_source_is_reported_when_nothing_was_moved() {
    let mut parts = [vec![0; 4]];
    let mut write_only = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    assert!(writer(&mut parts).write_from(&mut write_only, 4).is_err());
}
