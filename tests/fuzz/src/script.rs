//! An input read as a script: little-endian numbers and counted bytes, one after the other, until there are no more.
//!
//! What a target reads by [`Script`] its seeds write by [`Recorder`], so a seed is a list of calls and not of bytes.

/// The rest of an input. Every method gives `None` when too little is left, and that ends the script.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// All of `input`.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// As many bytes as the next one says, or all there are.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let wanted = usize::from(self.u8()?);
        let (bytes, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        Some(bytes)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// The width of a register access, 1 to 8 bytes: mostly those that a processor makes.
    pub fn width(&mut self) -> Option<usize> {
        let choice = self.u8()?;
        Some(match choice & 7 {
            0..=3 => 1 << (choice & 3),
            odd => usize::from(odd.wrapping_sub(3)) * 2 - 1,
        })
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

/// Writes what [`Script`] reads.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Vec<u8>);

impl Recorder {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// At most 255 bytes with their number.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let count = u8::try_from(bytes.len()).expect("seeds are written by hand");
        self.u8(count).raw(bytes)
    }

    /// Bytes without their number: the end of a script.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// What was written.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_read() {
        let mut recorder = Recorder::default();
        let input = recorder.u8(1).u16(2).u32(3).u64(4).bytes(b"five").raw(b"x").take();
        let mut script = Script::new(&input);
        assert_eq!((script.u8(), script.u16()), (Some(1), Some(2)));
        assert_eq!((script.u32(), script.u64()), (Some(3), Some(4)));
        assert_eq!(script.bytes(), Some(&b"five"[..]));
        assert_eq!((script.u16(), script.u8(), script.u8()), (None, Some(b'x'), None));
    }

    #[test]
    fn every_width_up_to_eight_comes_up() {
        let widths: Vec<_> = (0..8).filter_map(|choice| Script::new(&[choice]).width()).collect();
        assert_eq!(widths, [1, 2, 4, 8, 1, 3, 5, 7]);
    }
}
