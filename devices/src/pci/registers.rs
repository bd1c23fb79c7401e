//! A block of little-endian registers, and which of their bits the guest may change.

/// Bytes with a mask. An access of any width at any offset is harmless: what lies outside is left alone.
#[derive(Clone, Debug)]
pub(super) struct Registers {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
}

impl Registers {
    /// `len` bytes, all zero and read-only.
    pub fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len].into(),
            writable: vec![0; len].into(),
        }
    }

    /// Lets the guest change the bits that are set in `mask`, from `offset` on, and no others there.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        let here = self.writable.get_mut(offset..).unwrap_or_default();
        here.iter_mut().zip(mask).for_each(|(byte, mask)| *byte = *mask);
    }

    /// Sets bytes on the device's own behalf.
    pub fn set(&mut self, offset: usize, data: &[u8]) {
        let here = self.bytes.get_mut(offset..).unwrap_or_default();
        here.iter_mut().zip(data).for_each(|(byte, new)| *byte = *new);
    }

    /// Takes a write from the guest: changes the writable bits.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let bytes = self.bytes.get_mut(offset..).unwrap_or_default();
        let masks = self.writable.get(offset..).unwrap_or_default();
        for ((byte, mask), new) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
    }

    /// Fills `data`; bytes past the end stay as they are.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let here = self.bytes.get(offset..).unwrap_or_default();
        data.iter_mut().zip(here).for_each(|(byte, value)| *byte = *value);
    }

    /// The 16-bit register at `offset`; 0 past the end.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    /// The 32-bit register at `offset`; 0 past the end.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// The 64-bit register at `offset`; 0 past the end.
    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        self.read(offset, &mut array);
        array
    }
}
