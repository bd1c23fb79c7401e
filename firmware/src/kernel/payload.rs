//! The compressed vmlinux of a bzImage, as a stream.
//!
//! The kernel's build appends the decompressed size to whatever the compressor wrote, as four
//! bytes; with gzip, which ends in its own size, it lets that stand for it (Linux
//! `scripts/Makefile.lib`, `size_append`). So the size is known before the first byte is
//! decompressed, and no payload can grow beyond what it declares.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use liblzma::bufread::XzDecoder;
use liblzma::stream::Stream;
use vm_memory::GuestMemoryError;

use super::elf::HEAD_LEN;

/// Bytes read, and decompressed, at a time.
pub(super) const CHUNK: usize = 128 << 10;
/// Bytes at the end of the payload that tell the decompressed size.
const SIZE_LEN: u64 = 4;
/// Largest dictionary of a kernel's build (128 MiB, Linux `scripts/xz_wrap.sh`), and some for the decoder.
const XZ_MEMORY_MAX: u64 = 192 << 20;

const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

/// Compression of a bzImage's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// gzip (RFC 1952).
    Gzip,
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
    /// xz.
    Xz,
}

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// A compression that husk does not read.
    #[error("payload is compressed with {0}; gzip, LZ4, zstd and xz are supported")]
    Unsupported(&'static str),
    /// No compression at all, or an unknown one.
    #[error("payload starts with bytes {0:02x?}; gzip, LZ4, zstd and xz are supported")]
    Unknown([u8; 6]),
    /// The compressed data is damaged.
    #[error("payload does not decompress")]
    Decompress(#[source] io::Error),
    /// It would never fit.
    #[error("payload declares {declared:#x} bytes; there are {ram:#x} bytes of RAM below 3 GiB")]
    ExceedsRam {
        /// Decompressed size by its own account.
        declared: u64,
        /// Bytes of RAM.
        ram: u64,
    },
    /// It grows beyond what it declares.
    #[error("payload decompresses to more than the {declared:#x} bytes that it declares")]
    Long {
        /// Decompressed size by its own account.
        declared: u64,
    },
    /// It ends before what it declares.
    #[error("payload decompresses to {found:#x} bytes; it declares {declared:#x}")]
    Short {
        /// Bytes that came out.
        found: u64,
        /// Decompressed size by its own account.
        declared: u64,
    },
    /// It does not reach RAM.
    #[error("cannot write to guest RAM")]
    Write(#[source] GuestMemoryError),
}

/// A payload of which the first bytes have been decompressed.
pub(super) struct Payload {
    pub(super) codec: Codec,
    /// The compressed bytes.
    pub(super) source: Section,
    /// Decompressed size by its own account.
    pub(super) declared: u64,
    /// The decompressed bytes, from the first on.
    pub(super) stream: Box<dyn BufRead + Send>,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("codec", &self.codec)
            .field("declared", &self.declared)
            .finish_non_exhaustive()
    }
}

impl Payload {
    /// Opens the payload at `offset` of `file`, which holds its `len` bytes; gives it with its
    /// first [`HEAD_LEN`] bytes.
    pub(super) fn open(file: &Arc<File>, offset: u64, len: u64) -> Result<(Self, Vec<u8>), PayloadError> {
        let (mut magic, mut size) = ([0; 6], [0; 4]);
        let size_at = offset.saturating_add(len).saturating_sub(SIZE_LEN);
        file.read_exact_at(&mut magic, offset)
            .map_err(PayloadError::Decompress)?;
        file.read_exact_at(&mut size, size_at)
            .map_err(PayloadError::Decompress)?;
        let codec = Codec::detect(magic)?;
        let end = if codec == Codec::Gzip {
            size_at.saturating_add(SIZE_LEN)
        } else {
            size_at
        };
        let source = Section {
            file: Arc::clone(file),
            position: offset,
            end,
        };
        let mut decoder = codec.decoder(source.clone()).map_err(PayloadError::Decompress)?;
        let mut head = Vec::with_capacity(HEAD_LEN);
        decoder
            .by_ref()
            .take(HEAD_LEN as u64)
            .read_to_end(&mut head)
            .map_err(PayloadError::Decompress)?;
        let stream = Box::new(Cursor::new(head.clone()).chain(decoder));
        Ok((
            Self {
                codec,
                source,
                declared: u32::from_le_bytes(size).into(),
                stream,
            },
            head,
        ))
    }
}

impl Codec {
    /// Recognises the compression by the payload's first bytes.
    fn detect(magic: [u8; 6]) -> Result<Self, PayloadError> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Ok(Self::Xz),
            [b'B', b'Z', b'h', ..] => Err(PayloadError::Unsupported("bzip2")),
            [0x5d, 0, 0, ..] => Err(PayloadError::Unsupported("lzma")),
            [0x89, b'L', b'Z', b'O', ..] => Err(PayloadError::Unsupported("lzo")),
            _ if magic.starts_with(LZ4_LEGACY_MAGIC) => Ok(Self::Lz4),
            _ => Err(PayloadError::Unknown(magic)),
        }
    }

    fn decoder(self, source: Section) -> io::Result<Box<dyn BufRead + Send>> {
        let buffered = |source| BufReader::with_capacity(CHUNK, source);
        Ok(match self {
            Self::Gzip => Box::new(BufReader::with_capacity(
                CHUNK,
                flate2::bufread::GzDecoder::new(buffered(source)),
            )),
            // It gives out whole blocks, so that nothing is gained by a buffer of ours.
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
            Self::Zstd => Box::new(BufReader::with_capacity(
                CHUNK,
                zstd::Decoder::with_buffer(buffered(source))?,
            )),
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, 0)?;
                Box::new(BufReader::with_capacity(
                    CHUNK,
                    XzDecoder::new_stream(buffered(source), stream),
                ))
            }
        })
    }
}

/// Part of a file, read without moving the file's cursor.
#[derive(Clone, Debug)]
pub(super) struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let len = left.min(buffer.len());
        let read = self
            .file
            .read_at(buffer.get_mut(..len).unwrap_or_default(), self.position)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
#[path = "payload_test.rs"]
mod tests;
