//! A guest in front of a virtio-pci function: what a driver does, register by register.

use husk_devices::MsiMessage;
use husk_devices::host::fake::FakeHost;
use husk_devices::pci::Bdf;
use husk_devices::testing::{until, until_asleep};

use super::*;
use crate::config::ConfigBytes;
use crate::testing::{Buf, Driver, Echo, EchoControl, memory};

pub(crate) const DATA: u64 = 0x8_0000;
pub(crate) const BASE: u64 = 0xc000_0000;
pub(crate) const DOORBELL_0: u64 = BASE + NOTIFY as u64;

// Common configuration, by offset (virtio 1.2 §4.1.4.3).
pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
pub(crate) const CONFIG_VECTOR: u64 = 0x10;
pub(crate) const STATUS: u64 = 0x14;
pub(crate) const GENERATION: u64 = 0x15;
pub(crate) const QUEUE_SELECT: u64 = 0x16;
pub(crate) const QUEUE_SIZE: u64 = 0x18;
pub(crate) const QUEUE_VECTOR: u64 = 0x1a;
pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
pub(crate) const QUEUE_DESC: u64 = 0x20;

/// A guest in front of a function.
pub(crate) struct Guest {
    pub function: VirtioPci,
    pub host: Arc<FakeHost>,
    pub control: Arc<EchoControl>,
    pub config: Arc<Mutex<ConfigBytes>>,
    pub drivers: Vec<Driver>,
}

pub(crate) fn guest() -> Guest {
    let (mem, host, echo) = (memory(), FakeHost::new(), Echo::new());
    let (control, config) = (echo.control.clone(), echo.config.clone());
    let mut function = VirtioPci::new(Box::new(echo), "echo".into(), host.clone(), mem.clone()).unwrap();
    function.set_bdf(Bdf {
        bus: 0,
        device: 3,
        function: 0,
    });
    let drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    let mut guest = Guest {
        function,
        host,
        control,
        config,
        drivers,
    };
    guest.set_master(true);
    guest
}

impl Guest {
    pub fn get(&mut self, at: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.read_bar(BAR, at, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    pub fn set(&mut self, at: u64, width: usize, value: u64) {
        assert_eq!(
            self.function.write_bar(BAR, at, &value.to_le_bytes()[..width]),
            Effect::None
        );
    }

    pub fn config_get(&mut self, at: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.read_config(at, &mut bytes[..width]);
        u32::from_le_bytes(bytes)
    }

    pub fn config_set(&mut self, at: u16, width: usize, value: u32) {
        let effect = self.function.write_config(at, &value.to_le_bytes()[..width]);
        assert_eq!(effect, Effect::None);
    }

    /// Sets or clears the Bus Master bit, as a driver sets it before all else.
    pub fn set_master(&mut self, on: bool) {
        self.config_set(4, 2, u32::from(on) << 2);
    }

    /// Offset and bytes of every capability.
    pub fn capabilities(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = u16::try_from(self.config_get(0x34, 1)).unwrap();
        while at != 0 {
            let mut bytes = vec![0; 20];
            self.function.read_config(at, &mut bytes);
            let next = bytes[1].into();
            found.push((at, bytes));
            at = next;
        }
        found
    }

    pub fn message(vector: u64) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000,
            data: u32::try_from(0x40 + vector).unwrap(),
        }
    }

    /// MSI-X on, every vector unmasked with a message of its own.
    pub fn enable_msix(&mut self) {
        for vector in 0..3 {
            let entry = u64::from(MSIX_TABLE) + 16 * vector;
            self.set(entry, 8, Self::message(vector).address);
            self.set(entry + 8, 4, Self::message(vector).data.into());
            self.set(entry + 12, 4, 0);
        }
        let (at, _) = self
            .capabilities()
            .into_iter()
            .find(|(_, bytes)| bytes[0] == 0x11)
            .unwrap();
        self.config_set(at + 2, 2, 0x8000);
    }

    pub fn negotiate(&mut self) {
        self.set(STATUS, 1, 1);
        self.set(STATUS, 1, 3);
        for (select, features) in [(0, 1), (1, 1)] {
            self.set(DRIVER_FEATURE_SELECT, 4, select);
            self.set(DRIVER_FEATURE, 4, features);
        }
        self.set(STATUS, 1, 11);
        assert_eq!(self.get(STATUS, 1), 11);
    }

    pub fn set_up(&mut self, queue: usize) {
        let driver = &self.drivers[queue];
        let (size, addresses) = (driver.size, [driver.desc, driver.avail, driver.used]);
        self.set(QUEUE_SELECT, 2, queue as u64);
        self.set(QUEUE_SIZE, 2, size.into());
        self.set(QUEUE_VECTOR, 2, queue as u64 + 1);
        assert_eq!(self.get(QUEUE_VECTOR, 2), queue as u64 + 1);
        for (register, address) in (QUEUE_DESC..).step_by(8).zip(addresses) {
            self.set(register, 4, address & 0xffff_ffff);
            self.set(register + 4, 4, address >> 32);
        }
        self.set(QUEUE_ENABLE, 2, 1);
    }

    /// What Linux does, in its order.
    pub fn bring_up(&mut self) {
        self.enable_msix();
        self.negotiate();
        self.set(CONFIG_VECTOR, 2, 0);
        self.set_up(0);
        self.set_up(1);
        self.set(STATUS, 1, 15);
        assert_eq!(self.get(STATUS, 1), 15);
    }

    pub fn reset(&mut self) {
        self.set(STATUS, 1, 0);
        self.until(|guest| guest.get(STATUS, 1) == 0);
        let mem = self.drivers[0].mem.clone();
        self.drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    }

    #[track_caller]
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        until(|| done(self));
    }

    /// Waits until every I/O thread of the device has seen what was asked of it, and waits for more.
    pub fn until_idle(&self) {
        let threads = || self.control.threads.lock().unwrap().clone();
        until(|| threads().len() == self.control.alive.load(Ordering::SeqCst));
        threads().into_iter().for_each(until_asleep);
    }

    /// One request, kicked by a write that arrives as an exit.
    pub fn echo(&mut self, queue: usize) {
        self.drivers[queue].write(DATA, b"ping");
        self.drivers[queue].write(DATA + 64, &[0; 4]);
        self.drivers[queue].add(&[Buf::Out(DATA, 4), Buf::In(DATA + 64, 4)]);
        self.set(u64::from(NOTIFY) + 4 * queue as u64, 2, queue as u64);
        self.until(|guest| guest.drivers[queue].take_used().is_some());
        assert_eq!(self.drivers[queue].read(DATA + 64, 4), b"ping");
    }
}

/// A failed assertion must not leave an I/O thread waiting.
impl Drop for Guest {
    fn drop(&mut self) {
        self.control.hold_stop.store(false, Ordering::SeqCst);
    }
}
