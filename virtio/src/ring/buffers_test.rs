use std::io::{Read, Seek, Write};

use super::*;
use crate::iovecs::Iovecs;

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

/// A source of bytes that answers as it is told, one answer a call.
struct Script(Vec<Result<u8, i32>>);

impl ReadVolatile for Script {
    fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let byte = self.0.remove(0).map_err(io::Error::from_raw_os_error);
        slice.copy_from(&vec![byte.map_err(VolatileMemoryError::IOError)?; slice.len()]);
        Ok(slice.len())
    }
}

#[test]
fn what_was_moved_before_an_error_counts_and_a_signal_is_no_error() {
    let mut parts = [vec![0; 2], vec![0; 2]];
    let mut into = writer(&mut parts);
    let mut source = Script(vec![
        Err(libc::EINTR),
        Err(libc::EINTR),
        Ok(7),
        Err(libc::EIO),
        Err(libc::EIO),
    ]);
    assert_eq!(into.write_from(&mut source, 4).unwrap(), 2);
    let error = into.write_from(&mut source, 4).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!((into.bytes_written(), into.available_bytes()), (2, 2));
    assert_eq!(parts, [[7, 7], [0, 0]]);
}

#[test]
fn lent_bytes_are_those_after_the_skipped_ones_and_nothing_is_used_up() {
    let mut parts = [vec![1, 2], vec![], vec![3, 4, 5], vec![6]];
    let mut reader = reader(&mut parts);
    reader.read_obj::<u8>().unwrap();
    for (skip, limit, expected) in [
        (0, 0, vec![]),
        (0, 1, vec![1]),
        (0, 2, vec![1, 1]),
        (1, 3, vec![3]),
        (2, 9, vec![2, 1]),
        (5, 9, vec![]),
    ] {
        let mut array = Iovecs::default();
        let mut lent = array.begin();
        let bytes = reader.lend(skip, limit, &mut lent);
        let lengths: Vec<usize> = lent.buffers().as_slice().iter().map(|entry| entry.iov_len).collect();
        assert_eq!(
            (bytes, &lengths),
            (expected.iter().sum(), &expected),
            "{limit} after {skip}"
        );
    }
    assert_eq!((reader.bytes_read(), reader.available_bytes()), (1, 5));
}

#[test]
fn no_more_is_lent_than_one_call_of_the_kernel_takes() {
    let mut parts = vec![vec![0; 2]; MAX_IOVECS + 1];
    let writer = writer(&mut parts);
    let mut array = Iovecs::default();
    let mut lent = array.begin();
    assert_eq!(writer.lend(0, usize::MAX, &mut lent), 2 * MAX_IOVECS);
    assert_eq!(lent.len(), MAX_IOVECS);
    assert_eq!(writer.lend(0, usize::MAX, &mut lent), 0, "it is full");
    let mut array = Iovecs::default();
    let mut lent = array.begin();
    assert_eq!(writer.lend(1, 4, &mut lent), 4);
}

#[test]
fn a_writer_is_shared_out_as_a_reader_is() {
    let mut parts = [vec![0; 2], vec![0; 3]];
    let mut head = writer(&mut parts);
    let mut tail = head.split_at(3).unwrap();
    assert_eq!((head.available_bytes(), tail.available_bytes()), (3, 2));
    assert_eq!(tail.write(b"tail").unwrap(), 2);
    assert_eq!(head.write(b"head").unwrap(), 3);
    assert!(head.split_at(1).is_err());
    assert_eq!(parts, [b"he".to_vec(), b"ata".to_vec()]);
}

#[test]
fn slices_make_a_reader_or_a_writer_in_their_order() {
    let mut parts = [vec![1, 2], vec![3]];
    let mut read = Vec::new();
    let mut reader: Reader<'_> = parts
        .iter_mut()
        .map(|part| VolatileSlice::from(&mut part[..]))
        .collect();
    assert_eq!(reader.available_bytes(), 3);
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, [1, 2, 3]);
    let mut writer: Writer<'_> = parts
        .iter_mut()
        .map(|part| VolatileSlice::from(&mut part[..]))
        .collect();
    assert_eq!(writer.write(&[7, 8, 9, 10]).unwrap(), 3);
    assert_eq!(parts, [vec![7, 8], vec![9]]);
}
