//! Buses, PCI root and platform devices together: ports, memory-mapped registers and configuration
//! space as a vCPU reaches them, with BARs that move and functions that come and go.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | port, width | `in` |
//! | 1 | port, bytes | `out` |
//! | 2 | address, width | load |
//! | 3 | address, bytes | store |
//! | 4 | device, register, value | a dword of a function's configuration space is written |
//! | 5 | device, offset, value | a dword where the function's BAR stands is written and read |
//! | 6 | device | the function goes, or one comes |
//! | 7 | pins | lines of the I/O APIC are asked for |

use std::sync::{Arc, Mutex};

use husk::kvm::Port;
use husk::machine::board::{Board, Ending};
use husk_devices::debug_port::DebugPort;
use husk_devices::host::fake::FakeHost;
use husk_devices::i8042::I8042;
use husk_devices::ioapic::{self, Ioapic};
use husk_devices::memory::GuestMemory;
use husk_devices::pci::{Bdf, Ecam, PciFunction};
use husk_devices::power::{self, Power};
use husk_devices::pvpanic::PvPanic;
use husk_devices::serial::Serial;
use husk_devices::{BusDevice, Host};
use husk_firmware::layout;
use husk_virtio::transport::VirtioPci;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Seeds;
use crate::guest::memory;
use crate::inert_device::InertDevice;
use crate::script::{Recorder, Script};

/// Functions that there are at first.
const FUNCTIONS: u8 = 3;
const BAR_BYTES: u64 = 0x8000;

pub fn run(input: &[u8]) {
    let host = FakeHost::new();
    let mut machine = Machine::new(host.clone());
    let mut script = Script::new(input);
    while machine.step(&mut script).is_some() {
        machine.check();
    }
    for device in 1..32 {
        machine.remove(device);
    }
    assert!(host.doorbells().is_empty(), "doorbells outlive their function");
}

struct Machine {
    board: Board,
    host: Arc<FakeHost>,
    memory: GuestMemory,
    ioapic: Arc<Mutex<Ioapic>>,
}

impl Machine {
    fn new(host: Arc<FakeHost>) -> Self {
        let board = Board::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let ioapic = Arc::new(Mutex::new(Ioapic::new(host.clone())));
        let irq = ioapic.lock().unwrap().line(4).unwrap();
        let mmio = board.mmio();
        mmio.insert(layout::ECAM, layout::ECAM_LEN, shared(Ecam::new(board.pci().clone())))
            .unwrap();
        mmio.insert(layout::IOAPIC.into(), ioapic::SIZE, ioapic.clone())
            .unwrap();
        let ports = board.ports();
        let put = |base: u16, len, device: Arc<Mutex<dyn BusDevice>>| ports.insert(base.into(), len, device).unwrap();
        put(layout::SLEEP_CONTROL_PORT, power::SIZE, shared(Power::default()));
        put(layout::I8042_PORT, layout::I8042_PORT_LEN.into(), shared(I8042));
        put(layout::DEBUG_PORT, 1, shared(DebugPort::new(Box::new(drop))));
        put(layout::PVPANIC_PORT, 1, shared(PvPanic::default()));
        let serial = Serial::new(irq, Box::new(std::io::sink()));
        put(layout::COM1_PORT, layout::COM1_PORT_LEN.into(), shared(serial));
        let mut machine = Self {
            board,
            host,
            memory: memory(),
            ioapic,
        };
        (1..=FUNCTIONS).for_each(|device| machine.insert(device));
        machine
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let mut data = [0xee; 8];
        match script.u8()? & 7 {
            0 => {
                let (port, width) = (script.u16()?, script.width()?);
                assert!(
                    self.board
                        .answer(Port::In(port, &mut data[..width]), self.board.memory_generation())
                );
            }
            1 => {
                let (port, bytes) = (script.u16()?, script.bytes()?);
                let on = self.board.answer(
                    Port::Out(port, &bytes[..bytes.len().min(8)]),
                    self.board.memory_generation(),
                );
                assert!(on || self.board.ending().is_some());
            }
            2 => {
                let (gpa, width) = (script.u64()?, script.width()?);
                assert!(
                    self.board
                        .answer(Port::Load(gpa, &mut data[..width]), self.board.memory_generation())
                );
            }
            3 => {
                let (gpa, bytes) = (script.u64()?, script.bytes()?);
                self.store(gpa, &bytes[..bytes.len().min(8)]);
            }
            4 => {
                let (device, register, value) = (script.u8()?, script.u16()?, script.u32()?);
                let at = layout::ECAM + (u64::from(device & 31) << 15) + u64::from(register & 0xffc);
                self.store(at, &value.to_le_bytes());
            }
            5 => {
                let (device, offset, value) = (script.u8()?, script.u16()?, script.u32()?);
                let windows = self.function(device).map(|function| function.lock().unwrap().decoded());
                for window in windows.into_iter().flatten() {
                    let gpa = window.base.saturating_add(offset.into());
                    self.store(gpa, &value.to_le_bytes());
                    self.board
                        .answer(Port::Load(gpa, &mut data[..4]), self.board.memory_generation());
                }
            }
            6 => {
                let device = script.u8()? & 31;
                if self.function(device).is_none() {
                    self.insert(device);
                } else {
                    self.remove(device);
                }
            }
            _ => {
                // Every pin once, later ones are refused.
                let _ = self.ioapic.lock().unwrap().line(script.u8()?);
            }
        }
        Some(())
    }

    /// No store is anything but the end of a function's own registers: nothing memory-mapped ends the machine.
    fn store(&self, gpa: u64, bytes: &[u8]) {
        assert!(
            self.board
                .answer(Port::Store(gpa, bytes), self.board.memory_generation())
        );
    }

    fn check(&self) {
        let ending = self.board.ending();
        assert!(matches!(
            ending,
            None | Some(Ending::PowerOff | Ending::Reset | Ending::Panic)
        ));
        let doorbells = self.host.doorbells().len();
        assert!(
            doorbells <= 31 * crate::inert_device::QUEUE_SIZES.len(),
            "{doorbells} doorbells"
        );
    }

    fn function(&self, device: u8) -> Option<Arc<Mutex<dyn PciFunction>>> {
        self.board.pci().lock().unwrap().function(bdf(device & 31))
    }

    /// As the machine adds a device: with its BAR placed.
    fn insert(&mut self, device: u8) {
        let host: Arc<dyn Host> = self.host.clone();
        let mut function =
            VirtioPci::new(Box::new(InertDevice::new()), "still".into(), host, self.memory.clone()).unwrap();
        let base = layout::PCI32 + u64::from(device) * BAR_BYTES;
        function.config_mut().place_bar(0, base).unwrap();
        // As a driver does first: without bus mastering the device would do nothing.
        let _ = function.write_config(4, &[4, 0]);
        let function = Arc::new(Mutex::new(function));
        let placed = self.board.pci().lock().unwrap().insert(Some(device), function);
        if let Ok(bdf) = placed {
            self.board.remap(bdf);
        }
    }

    fn remove(&mut self, device: u8) {
        let removed = self.board.pci().lock().unwrap().remove(bdf(device));
        self.board.remap(bdf(device));
        if let Some(function) = removed {
            let _ = function.lock().unwrap().bar_moved(0, None);
            assert_eq!(Arc::strong_count(&function), 1, "a window outlives its function");
        }
    }
}

fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

fn bdf(device: u8) -> Bdf {
    Bdf {
        bus: 0,
        device,
        function: 0,
    }
}

pub fn seeds() -> Seeds {
    let mut scan = Recorder::default();
    for device in 0..4 {
        let at = layout::ECAM + (device << 15);
        scan.u8(2).u64(at).u8(2);
        // Sizing and placing of a BAR, then memory space on.
        for value in [u32::MAX, 0xd000_0000 + 0x8000 * u32::try_from(device).unwrap()] {
            scan.u8(3).u64(at + 0x10).bytes(&value.to_le_bytes());
            scan.u8(2).u64(at + 0x10).u8(2);
        }
        scan.u8(4).u8(u8::try_from(device).unwrap()).u16(4).u32(6);
        scan.u8(5).u8(u8::try_from(device).unwrap()).u16(0x14).u32(1);
    }
    scan.u8(6).u8(2).u8(6).u8(9).u8(7).u8(5);
    let mut clash = Recorder::default();
    for device in [1, 2] {
        clash
            .u8(4)
            .u8(device)
            .u16(0x10)
            .u32(0xd000_0000)
            .u8(4)
            .u8(device)
            .u16(4)
            .u32(2);
    }
    clash.u8(6).u8(1).u8(4).u8(2).u16(0x10).u32(layout::IOAPIC);
    let mut ports = Recorder::default();
    for port in [0x60, 0x64, 0x80, 0x3f8, 0x3fd, 0x505, 0x600, 0x601, 0x602_u16] {
        ports.u8(0).u16(port).u8(0).u8(1).u16(port).bytes(&[0x34]);
    }
    let mut interrupts = Recorder::default();
    for register in 0x10..0x20 {
        interrupts
            .u8(3)
            .u64(layout::IOAPIC.into())
            .bytes(&u32::to_le_bytes(register));
        interrupts
            .u8(3)
            .u64(u64::from(layout::IOAPIC) + 0x10)
            .bytes(&[0x24, 0, 0, 0]);
    }
    vec![
        ("scan", scan.take()),
        ("clash", clash.take()),
        ("ports", ports.take()),
        ("interrupts", interrupts.take()),
    ]
}
