//! A device configuration space that is nothing but bytes (virtio 1.2 §2.5).

use crate::device::ConfigAccess;

/// Configuration fields as little-endian bytes. The driver reads them; only the device changes them.
#[derive(Debug, Default)]
pub struct ConfigBytes {
    bytes: Vec<u8>,
    generation: u8,
}

impl ConfigBytes {
    /// A configuration space of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            generation: 0,
        }
    }

    /// Replaces the bytes from `offset` and gives the driver a new `config_generation`. What lies
    /// beyond the end is dropped. Raising the configuration change interrupt is the caller's part.
    pub fn update(&mut self, offset: usize, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
        self.generation = self.generation.wrapping_add(1);
    }
}

impl ConfigAccess for ConfigBytes {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut source = self.bytes.iter().skip(offset);
        data.fill_with(|| source.next().copied().unwrap_or(0));
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}

    fn generation(&self) -> u8 {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_zero() {
        let config = ConfigBytes::new([1, 2, 3]);
        let mut data = [0xff; 4];
        config.read(1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        config.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn update_changes_the_generation_and_stays_inside() {
        let mut config = ConfigBytes::new([0; 4]);
        let before = config.generation();
        config.update(2, &[7, 8, 9]);
        let mut data = [0; 5];
        config.read(0, &mut data);
        assert_eq!(data, [0, 0, 7, 8, 0]);
        assert_ne!(config.generation(), before);
    }

    #[test]
    fn driver_writes_are_ignored() {
        let mut config = ConfigBytes::new([1, 2]);
        config.write(0, &[9, 9]);
        let mut data = [0; 2];
        config.read(0, &mut data);
        assert_eq!(data, [1, 2]);
    }
}
