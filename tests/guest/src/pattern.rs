//! Bytes that both sides can produce and recognise without sending them.

use std::io::{self, Read, Write};

/// Bytes that are handled at a time.
const CHUNK: usize = 64 << 10;

/// An endless stream of bytes that depend on every bit of a seed, in no short period: xorshift64*
/// (Vigna 2016), eight bytes a turn.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next `length` bytes; what is left of the last eight is skipped.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let Self(state) = self;
        let mut out = Vec::with_capacity(length.next_multiple_of(8));
        while out.len() < length {
            *state ^= *state >> 12;
            *state ^= *state << 25;
            *state ^= *state >> 27;
            out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        out.truncate(length);
        out
    }
}

/// The first `length` bytes of the stream of `seed`.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    Stream::new(seed).take(length)
}

/// 64-bit FNV-1a of what went by: enough to notice a misplaced, torn or stale block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    /// Takes `data` in.
    pub fn update(&mut self, data: &[u8]) {
        self.0 = data.iter().fold(self.0, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// Of everything so far.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// The checksum of `data`.
pub fn checksum(data: &[u8]) -> u64 {
    let mut checksum = Checksum::default();
    checksum.update(data);
    checksum.value()
}

/// Writes `bytes` bytes of the stream of `seed`; their checksum.
///
/// # Errors
///
/// As the writer's.
pub fn write(to: &mut impl Write, seed: u64, bytes: u64) -> io::Result<u64> {
    let (mut stream, mut checksum, mut left) = (Stream::new(seed), Checksum::default(), bytes);
    while left > 0 {
        let chunk = stream.take(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK));
        to.write_all(&chunk)?;
        checksum.update(&chunk);
        left -= chunk.len() as u64;
    }
    Ok(checksum.value())
}

/// Reads to the end; how many bytes there were, and their checksum.
///
/// # Errors
///
/// As the reader's.
pub fn read(from: &mut impl Read) -> io::Result<(u64, u64)> {
    let (mut buffer, mut checksum, mut count) = (vec![0; CHUNK], Checksum::default(), 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((count, checksum.value())),
            Ok(length) => {
                checksum.update(buffer.get(..length).unwrap_or_default());
                count += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_fnv_1a() {
        // The reference vectors of the FNV authors for "" and "foobar".
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_pattern_that_is_written_is_the_one_that_is_read() {
        let mut file = Vec::new();
        let length = 3 * CHUNK + 5;
        let sum = write(&mut file, 7, length as u64).unwrap();
        assert_eq!(file, bytes(7, length));
        assert_eq!((sum, length as u64), (checksum(&file), file.len() as u64));
        assert_eq!(read(&mut file.as_slice()).unwrap(), (length as u64, sum));
    }

    #[test]
    fn seeds_give_different_bytes_and_a_shorter_pattern_is_a_prefix() {
        assert_ne!(bytes(1, 64), bytes(2, 64));
        assert_eq!(bytes(9, 13), bytes(9, 64)[..13]);
        assert_ne!(bytes(9, 4096)[..2048], bytes(9, 4096)[2048..]);
    }
}
