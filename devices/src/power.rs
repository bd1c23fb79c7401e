//! ACPI power-off and reset of a hardware-reduced machine (ACPI 6.5 §4.8.3.7, §4.8.3.6).
//!
//! | offset | bytes | R/W | meaning |
//! |---|---|---|---|
//! | 0 | 1 | RW | sleep control: bits 4:2 `SLP_TYP`, bit 5 `SLP_EN` (reads as 0) |
//! | 1 | 1 | RW | sleep status: bit 7 `WAK_STS`, always 0 as the machine only ever wakes by starting |
//! | 2 | 1 | W | reset: [`RESET_VALUE`] resets |

use crate::bus::{BusDevice, Effect};

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Length of the register block.
pub const SIZE: u64 = 3;
/// What resets the machine when written to the reset register (`RESET_VALUE` of the FADT, ACPI 6.5 §5.2.9).
pub const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of S5, soft off: the first element of `_S5` must say the same (ACPI 6.5 §7.4.2.6).
pub const SLP_TYP_S5: u8 = 5;

const SLP_TYP_MASK: u8 = 0b111 << 2;
const SLP_EN: u8 = 1 << 5;

/// The registers by which the guest powers itself off or resets itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    sleep_type: u8,
}

impl Power {
    fn write_byte(&mut self, offset: u64, value: u8) -> Effect {
        match offset {
            SLEEP_CONTROL => {
                self.sleep_type = value & SLP_TYP_MASK;
                let off = value & (SLP_EN | SLP_TYP_MASK) == SLP_EN | (SLP_TYP_S5 << 2);
                if off { Effect::Shutdown } else { Effect::None }
            }
            RESET if value == RESET_VALUE => Effect::Reboot,
            _ => Effect::None,
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = match at {
                SLEEP_CONTROL => self.sleep_type,
                SLEEP_STATUS => 0,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let effects = data
            .iter()
            .zip(offset..=u64::MAX)
            .map(|(byte, at)| self.write_byte(at, *byte));
        effects.fold(
            Effect::None,
            |first, next| if first == Effect::None { next } else { first },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        for value in 0..=0xff_u8 {
            let off = value & 0x3c == 0x34;
            let expected = if off { Effect::Shutdown } else { Effect::None };
            assert_eq!(Power::default().write(SLEEP_CONTROL, &[value]), expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        for value in 0..=0xff_u8 {
            let expected = if value == RESET_VALUE {
                Effect::Reboot
            } else {
                Effect::None
            };
            assert_eq!(Power::default().write(RESET, &[value]), expected, "{value:#x}");
            assert_eq!(Power::default().write(SLEEP_STATUS, &[value]), Effect::None);
        }
    }

    #[test]
    fn the_sleep_type_reads_back_without_the_enable_bit() {
        let mut power = Power::default();
        assert_eq!(power.write(SLEEP_CONTROL, &[SLP_EN | (3 << 2) | 0xc3]), Effect::None);
        let mut data = [0x55; 4];
        power.read(SLEEP_CONTROL, &mut data);
        assert_eq!(data, [3 << 2, 0, 0xff, 0xff]);
    }

    #[test]
    fn the_last_offset_is_harmless() {
        assert_eq!(Power::default().write(u64::MAX, &[0x34; 8]), Effect::None);
        Power::default().read(u64::MAX, &mut [0; 8]);
    }

    #[test]
    fn of_a_wide_write_the_first_effect_counts() {
        assert_eq!(Power::default().write(0, &[0x34, 0, RESET_VALUE]), Effect::Shutdown);
        assert_eq!(Power::default().write(0, &[0, 0, RESET_VALUE]), Effect::Reboot);
    }
}
