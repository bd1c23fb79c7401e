#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use super::*;
use crate::testing::{file, payload};

const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Lz4, Codec::Zstd, Codec::Xz];

fn open(bytes: &[u8], offset: u64, len: u64) -> Result<(Payload, Vec<u8>), PayloadError> {
    let (_dir, path) = file(bytes);
    Payload::open(&Arc::new(File::open(path).unwrap()), offset, len)
}

#[test]
fn the_head_comes_first_and_the_stream_has_it_again() {
    let image: Vec<u8> = (0..200_000u32).map(|index| (index / 7) as u8).collect();
    for codec in CODECS {
        let bytes = [&b"before"[..], &payload(codec, &image), b"after"].concat();
        let (mut opened, head) = open(&bytes, 6, (bytes.len() - 11) as u64).unwrap();
        assert_eq!((opened.codec, opened.declared), (codec, 200_000));
        assert!(head == image[..HEAD_LEN]);
        let mut all = Vec::new();
        opened.stream.read_to_end(&mut all).unwrap();
        assert!(all == image, "{codec:?}");
    }
}

#[test]
fn other_compressions_are_named() {
    for (magic, name) in [
        (&b"BZh91AY"[..], "bzip2"),
        (b"\x5d\0\0\0\x01\0\0", "lzma"),
        (b"\x89LZO\0\r\n", "lzo"),
    ] {
        let bytes = [magic, &[0; 32]].concat();
        let error = open(&bytes, 0, bytes.len() as u64).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("payload is compressed with {name}; gzip, LZ4, zstd and xz are supported")
        );
    }
    let error = open(&[7; 32], 0, 32).unwrap_err();
    assert_eq!(
        error.to_string(),
        "payload starts with bytes [07, 07, 07, 07, 07, 07]; gzip, LZ4, zstd and xz are supported"
    );
}

#[test]
fn a_file_that_has_shrunk_is_an_error() {
    assert!(matches!(
        open(&[0x1f, 0x8b, 0, 0], 0, 4096),
        Err(PayloadError::Decompress(_))
    ));
}
