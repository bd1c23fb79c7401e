//! The part of a PC's keyboard controller that resets the CPU, I/O ports 0x60 to 0x64 (Intel 8042).
//!
//! | offset | bytes | R/W | meaning |
//! |---|---|---|---|
//! | 4 | 1 | R | status: bit 0 output buffer full, bit 1 input buffer full |
//! | 4 | 1 | W | command: 0xfe pulses the CPU's reset line |
//!
//! Everything else reads as all ones and ignores writes, port 0x61 too, which is not part of the
//! controller: a driver that waits there for a timer to run out must not wait for ever.
//!
//! The status is always 1. The input buffer is empty, so that a reset does not wait. The output
//! buffer never becomes empty, by which Linux's driver finds after 16 reads that there is no
//! keyboard controller, where otherwise it would wait half a second for the answer to a command.
//! vm-superio's device has a constant status of 0 and reports the reset to an eventfd instead of
//! returning it.

use crate::bus::{BusDevice, Effect};

/// Where the command register is, relative to port 0x60.
const COMMAND: u64 = 4;
/// Pulse output port bit 0, the reset line.
const RESET_CPU: u8 = 0xfe;
/// Output buffer full, input buffer empty.
const STATUS: u8 = 1;

/// Resets the machine when told to.
#[derive(Clone, Copy, Debug, Default)]
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (byte, _) in data.iter_mut().zip(offset..=u64::MAX).filter(|(_, at)| *at == COMMAND) {
            *byte = STATUS;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let reset = data
            .iter()
            .zip(offset..=u64::MAX)
            .any(|(byte, at)| at == COMMAND && *byte == RESET_CPU);
        if reset { Effect::Reboot } else { Effect::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        for offset in 0..6 {
            for value in 0..=0xff {
                let expected = if (offset, value) == (4, 0xfe) {
                    Effect::Reboot
                } else {
                    Effect::None
                };
                assert_eq!(I8042.write(offset, &[value]), expected, "{value:#x} at {offset}");
            }
        }
        assert_eq!(
            I8042.write(3, &[0, 0xfe]),
            Effect::Reboot,
            "a wide write is one write to each port"
        );
    }

    #[test]
    fn the_last_offset_is_harmless() {
        assert_eq!(I8042.write(u64::MAX, &[0xfe; 8]), Effect::None);
        I8042.read(u64::MAX, &mut [0; 8]);
    }

    #[test]
    fn the_input_buffer_is_always_empty() {
        let mut ports = [0; 5];
        I8042.read(0, &mut ports);
        assert_eq!(ports, [0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(ports[4] & 2, 0);
    }
}
