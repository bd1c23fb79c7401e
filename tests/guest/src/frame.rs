//! The standard streams of a program on one connection.
//!
//! | offset | bytes | meaning                                                                    |
//! |--------|-------|----------------------------------------------------------------------------|
//! | 0      | 1     | what it is: [`Kind`]                                                       |
//! | 1      | 4     | length of what follows, little-endian, at most [`MAX_BYTES`]               |
//! | 5      | n     | bytes of a stream, none at its end; for `Exit` the exit code, little-endian |

use std::io::{self, ErrorKind, Read, Write};

/// The most that one frame carries.
pub const MAX_BYTES: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To the program's standard input.
    Input = 0,
    /// From its standard output.
    Output = 1,
    /// From its standard error.
    Errors = 2,
    /// The exit code, or 128 and the signal. The last frame.
    Exit = 3,
}

/// Writes one frame.
///
/// # Errors
///
/// The stream's, or `content` is longer than [`MAX_BYTES`].
pub fn write(to: &mut impl Write, kind: Kind, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= MAX_BYTES);
    let length = length.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "too long for a frame"))?;
    let mut frame = Vec::with_capacity(5 + content.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(content);
    to.write_all(&frame)
}

/// Reads one frame; `None` where the stream ends between two.
///
/// # Errors
///
/// The stream's, or what comes is no frame.
pub fn read(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0];
    if from.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let kind = match kind {
        [0] => Kind::Input,
        [1] => Kind::Output,
        [2] => Kind::Errors,
        [3] => Kind::Exit,
        [other] => {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("no frame is of kind {other}"),
            ));
        }
    };
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_BYTES {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a frame of {length} bytes"),
        ));
    }
    let mut content = vec![0; length];
    from.read_exact(&mut content)?;
    Ok(Some((kind, content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_back_as_they_were_written_and_end_between_two() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Output, b"one").unwrap();
        write(&mut bytes, Kind::Input, b"").unwrap();
        let mut rest = bytes.as_slice();
        assert_eq!(read(&mut rest).unwrap(), Some((Kind::Output, b"one".to_vec())));
        assert_eq!(read(&mut rest).unwrap(), Some((Kind::Input, Vec::new())));
        assert_eq!(read(&mut rest).unwrap(), None);
    }

    #[test]
    fn what_is_torn_too_long_or_unknown_is_no_frame() {
        for bytes in [&[1, 3, 0, 0, 0, b'x'][..], &[1, 1, 0, 1, 0], &[9, 0, 0, 0, 0], &[1, 0]] {
            let mut rest = bytes;
            read(&mut rest).expect_err("not a frame");
        }
        write(&mut Vec::new(), Kind::Output, &vec![0; MAX_BYTES + 1]).expect_err("too long");
    }
}
