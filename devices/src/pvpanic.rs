//! pvpanic: how a guest kernel says that it has crashed (QEMU `docs/specs/pvpanic`).
//!
//! | offset | bytes | R/W | meaning |
//! |---|---|---|---|
//! | 0 | 1 | R | events that the machine understands |
//! | 0 | 1 | W | events that have happened: bit 0 panicked, bit 1 crashed with a crash kernel to take over |

use acpi_tables::Aml;
use acpi_tables::aml::{Device, IO, Name, Path, ResourceTemplate};

use crate::bus::{BusDevice, Effect};
use crate::log_once::LogOnce;

/// The I/O port at which guests have found the device since before it was described by ACPI.
pub const PORT: u16 = 0x505;
/// Length of the register block.
pub const SIZE: u64 = 1;

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;
/// `_STA`: present, enabled, shown, working (ACPI 6.5 §6.3.7).
const STA_WORKING: u8 = 0xf;

/// The pvpanic device.
#[derive(Debug, Default)]
pub struct PvPanic {
    crashed: LogOnce,
}

impl PvPanic {
    /// The device `PEVT` at I/O port `port`. For `\_SB`.
    pub fn aml(port: u16) -> Vec<u8> {
        let mut aml = Vec::new();
        Device::new(
            Path::new("PEVT"),
            vec![
                &Name::new(Path::new("_HID"), &"QEMU0001"),
                &Name::new(Path::new("_STA"), &STA_WORKING),
                &Name::new(
                    Path::new("_CRS"),
                    &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)]),
                ),
            ],
        )
        .to_aml_bytes(&mut aml);
        aml
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(events)) = (offset, data.first_mut()) {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data.first()) {
            (0, Some(events)) if events & PANICKED != 0 => Effect::Panic,
            (0, Some(events)) if events & CRASH_LOADED != 0 => {
                // A guest can say so at will.
                if self.crashed.is_first() {
                    log::warn!("the guest kernel crashed and hands over to its crash kernel");
                }
                Effect::None
            }
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_machine_and_a_crash_kernel_does_not() {
        let mut device = PvPanic::default();
        assert_eq!(device.write(0, &[1]), Effect::Panic);
        assert_eq!(device.write(0, &[3]), Effect::Panic);
        assert_eq!(device.write(0, &[4]), Effect::None);
        assert_eq!(device.write(1, &[1]), Effect::None);
        assert_eq!(device.write(0, &[2]), Effect::None);
        assert!(!device.crashed.is_first(), "told, and not again");
        assert_eq!(device.write(0, &[2]), Effect::None);
    }

    #[test]
    fn both_events_are_supported() {
        let mut data = [0; 2];
        PvPanic::default().read(0, &mut data);
        assert_eq!(data, [3, 0xff]);
    }

    #[test]
    fn aml_names_the_device_and_its_port() {
        let aml = PvPanic::aml(PORT);
        assert!(aml.windows(9).any(|bytes| bytes == b"QEMU0001\0"));
        // I/O port descriptor, 16-bit decode, minimum, maximum, alignment, length (ACPI 6.5 §6.4.2.5).
        assert!(
            aml.windows(8)
                .any(|bytes| bytes == [0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1])
        );
    }
}
