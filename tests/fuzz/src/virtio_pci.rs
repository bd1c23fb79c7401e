//! The registers of a virtio-pci function, in configuration space and BAR, in every state of the device.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | offset, width | configuration space is read |
//! | 1 | offset, bytes | configuration space is written |
//! | 2 | offset, width | the BAR is read |
//! | 3 | offset, bytes | the BAR is written |
//! | 4 | flag, address | the BAR moves, or goes |
//! | 5 | flag | the host refuses everything from now on, or no longer |
//! | 6 | register, value | one common configuration register is written in its own width |
//! | 7 | vector, address, data, control | an MSI-X entry is written |
//! | 8 | queue, size, base | a queue is set up and enabled |
//! | 9 | status | the device status is written |

use std::sync::Arc;

use husk_devices::Effect;
use husk_devices::host::fake::FakeHost;
use husk_devices::pci::PciFunction;
use husk_virtio::transport::VirtioPci;

use crate::Seeds;
use crate::guest::memory;
use crate::inert_device::{InertDevice, QUEUE_SIZES};
use crate::script::{Recorder, Script};

/// Offsets of the BAR's parts.
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const BAR_BYTES: u64 = 0x8000;

/// Common configuration registers that can be written (virtio 1.2 §4.1.4.3): offset, width.
const REGISTERS: [(u16, u8); 16] = [
    (0x00, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x14, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 8),
    (0x30, 8),
    (0x38, 2),
    (0x3a, 2),
    (0x20, 8),
];
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;

/// Status bits (virtio 1.2 §2.1).
const DRIVER_OK: u64 = 4;
const BEFORE_DRIVER_OK: u64 = 1 | 2 | 8;
const KNOWN: u64 = 1 | 2 | 4 | 8 | 64 | 128;

pub fn run(input: &[u8]) {
    let host = FakeHost::new();
    let mut guest = Guest {
        function: VirtioPci::new(Box::new(InertDevice::new()), "still".into(), host.clone(), memory()).unwrap(),
        host: host.clone(),
        base: None,
        refused: false,
    };
    // As a driver does first: without bus mastering the device would do nothing.
    let _ = guest.function.write_config(4, &[4, 0]);
    let mut script = Script::new(input);
    while guest.step(&mut script).is_some() {
        guest.check();
    }
    guest.begin_anew();
    let _ = guest.function.bar_moved(0, None);
    let refused = guest.refused;
    drop(guest);
    assert!(host.gsis().is_empty(), "interrupts outlive the function");
    assert!(refused || host.doorbells().is_empty(), "doorbells outlive the function");
}

struct Guest {
    function: VirtioPci,
    host: Arc<FakeHost>,
    base: Option<u64>,
    /// The host has refused something, or could have.
    refused: bool,
}

impl Guest {
    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let mut data = [0xee; 8];
        match script.u8()? % 10 {
            0 => {
                let (offset, width) = (script.u16()? & 0xfff, script.width()?);
                self.function.read_config(offset, &mut data[..width]);
            }
            1 => {
                let (offset, bytes) = (script.u16()? & 0xfff, script.bytes()?);
                let effect = self.function.write_config(offset, &bytes[..bytes.len().min(8)]);
                assert!(matches!(effect, Effect::None | Effect::Remap(_)));
                assert!(self.function.decoded().len() <= 1);
            }
            2 => {
                let (offset, width) = (script.u16()?, script.width()?);
                self.function.read_bar(0, offset.into(), &mut data[..width]);
            }
            3 => {
                let (offset, bytes) = (script.u16()?, script.bytes()?);
                self.set(offset.into(), &bytes[..bytes.len().min(8)]);
            }
            4 => {
                // The machine hands out ranges that decode a whole BAR.
                let base = script.u64()? & !(BAR_BYTES - 1);
                self.base = (base != 0 && base.checked_add(BAR_BYTES).is_some()).then_some(base);
                let _ = self.function.bar_moved(0, self.base);
            }
            5 => {
                let refuse = script.u8()? & 1 != 0;
                self.refused |= refuse;
                self.host.refuse(refuse);
            }
            6 => {
                let (register, value) = (script.u8()?, script.u64()?);
                let (offset, width) = REGISTERS[usize::from(register) % REGISTERS.len()];
                self.set(offset.into(), &value.to_le_bytes()[..width.into()]);
            }
            7 => {
                let at = TABLE + 16 * u64::from(script.u8()? & 7);
                self.set(at, &script.u64()?.to_le_bytes());
                self.set(at + 8, &script.u32()?.to_le_bytes());
                self.set(at + 12, &script.u32()?.to_le_bytes());
            }
            8 => {
                let (queue, shift, base) = (script.u8()?, script.u8()?, script.u32()?);
                self.set_up((queue & 3).into(), 1 << (shift & 15), base.into());
            }
            _ => self.set(STATUS, &[script.u8()?]),
        }
        Some(())
    }

    /// What holds between any two accesses.
    fn check(&mut self) {
        let status = self.get(STATUS, 1);
        assert_eq!(status & !KNOWN, 0, "status {status:#x}");
        let ready = status & BEFORE_DRIVER_OK == BEFORE_DRIVER_OK;
        assert!(status & DRIVER_OK == 0 || ready, "status {status:#x}");
        assert!(self.host.gsis().len() <= QUEUE_SIZES.len() + 1);
        for at in self.host.doorbells().keys() {
            let first = self.base.map(|base| base + NOTIFY);
            let inside = first.is_some_and(|first| (first..first + 4 * QUEUE_SIZES.len() as u64).contains(at));
            // A host that refuses to disconnect one is not asked again.
            assert!(inside || self.refused, "doorbell at {at:#x}, BAR at {:x?}", self.base);
        }
    }

    /// Whatever happened, a driver that follows the rules gets a working device.
    fn begin_anew(&mut self) {
        self.host.refuse(false);
        self.set(STATUS, &[0]);
        assert_eq!(self.get(STATUS, 1), 0);
        for status in [1, 3] {
            self.set(STATUS, &[status]);
        }
        // VIRTIO_F_VERSION_1.
        for select in [0, 1_u32] {
            self.set(0x08, &select.to_le_bytes());
            self.set(0x0c, &select.to_le_bytes());
        }
        self.set(STATUS, &[11]);
        for (queue, largest) in (0..).zip(QUEUE_SIZES) {
            self.set(QUEUE_SELECT, &u16::to_le_bytes(queue));
            assert_eq!(
                self.get(QUEUE_SIZE, 2),
                u64::from(largest),
                "queue {queue} after a reset"
            );
            assert_eq!(self.get(QUEUE_ENABLE, 2), 0, "queue {queue} after a reset");
            self.set_up(queue, largest, 0x1000 * (u64::from(queue) + 1));
        }
        self.set(STATUS, &[15]);
        assert_eq!(self.get(STATUS, 1), 15);
        self.set(NOTIFY, &[0, 0]);
        self.get(DEVICE, 8);
    }

    fn set_up(&mut self, queue: u16, size: u16, base: u64) {
        self.set(QUEUE_SELECT, &queue.to_le_bytes());
        self.set(QUEUE_SIZE, &size.to_le_bytes());
        for (at, offset) in [(0, 0), (8, 0x400), (16, 0x800)] {
            self.set(QUEUE_DESC + at, &(base + offset).to_le_bytes());
        }
        self.set(QUEUE_ENABLE, &[1, 0]);
    }

    fn get(&mut self, at: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.read_bar(0, at, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn set(&mut self, at: u64, bytes: &[u8]) {
        assert_eq!(self.function.write_bar(0, at, bytes), Effect::None);
    }
}

pub fn seeds() -> Seeds {
    let mut recorder = Recorder::default();
    // What Linux does.
    recorder.u8(4).u64(0xc000_0000);
    for vector in 0..4 {
        recorder.u8(7).u8(vector).u64(0xfee0_0000).u32(0x40).u32(0);
    }
    recorder.u8(1).u16(4).bytes(&[6, 0]);
    for status in [0, 1, 3] {
        recorder.u8(9).u8(status);
    }
    for select in [0, 1] {
        recorder.u8(6).u8(1).u64(select).u8(6).u8(2).u64(select);
    }
    recorder.u8(9).u8(11);
    for (queue, shift) in [(0, 4), (1, 6), (2, 1)] {
        recorder.u8(8).u8(queue).u8(shift).u32(0x1000 * (u32::from(queue) + 1));
        recorder.u8(6).u8(7).u64(u64::from(queue) + 1);
    }
    recorder
        .u8(9)
        .u8(15)
        .u8(3)
        .u16(0x3004)
        .bytes(&[1, 0])
        .u8(2)
        .u16(0x1000)
        .u8(0);
    let live = recorder.clone().take();
    recorder.u8(5).u8(1).u8(9).u8(0).u8(5).u8(0).u8(9).u8(0).u8(4).u64(0);
    let refused = recorder.take();
    // The window in configuration space: BAR 0, offset 0x14, one byte.
    for at in (0x40..0xa0).step_by(4) {
        recorder.u8(1).u16(at).bytes(&[0x14, 0, 0, 0]).u8(0).u16(at).u8(2);
    }
    vec![("live", live), ("refused", refused), ("window", recorder.take())]
}
