//! Streams to be measured, without a checksum that would be what is measured: a request of nine bytes, then nothing but
//! data.

use std::io::{self, Read, Write};

/// The vsock port of the guest that serves them.
pub const PORT: u32 = 2000;

/// What the host wants of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamRequest {
    /// Everything back.
    Echo,
    /// This many bytes taken, and then one byte back.
    Take(u64),
    /// This many bytes.
    Give(u64),
}

impl StreamRequest {
    /// Says it.
    ///
    /// # Errors
    ///
    /// As the writer's.
    pub fn write(self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Self::Echo => (0, 0),
            Self::Take(bytes) => (1, bytes),
            Self::Give(bytes) => (2, bytes),
        };
        let mut request = [kind; 9];
        for (to, from) in request.iter_mut().skip(1).zip(bytes.to_le_bytes()) {
            *to = from;
        }
        to.write_all(&request)
    }

    /// Hears it.
    ///
    /// # Errors
    ///
    /// As the reader's; `InvalidData` if it is none.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut kind, mut bytes) = ([0], [0; 8]);
        from.read_exact(&mut kind)?;
        from.read_exact(&mut bytes)?;
        let bytes = u64::from_le_bytes(bytes);
        match kind {
            [0] => Ok(Self::Echo),
            [1] => Ok(Self::Take(bytes)),
            [2] => Ok(Self::Give(bytes)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_heard_as_they_were_said() {
        for request in [
            StreamRequest::Echo,
            StreamRequest::Take(0x0102_0304_0506_0708),
            StreamRequest::Give(u64::MAX),
        ] {
            let mut said = Vec::new();
            request.write(&mut said).unwrap();
            assert_eq!(said.len(), 9);
            assert_eq!(StreamRequest::read(&mut said.as_slice()).unwrap(), request);
        }
        assert!(StreamRequest::read(&mut [9; 9].as_slice()).is_err());
    }
}
