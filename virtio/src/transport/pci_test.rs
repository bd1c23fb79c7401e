use std::time::{Duration, Instant};

use husk_devices::MsiMessage;
use husk_devices::host::fake::FakeHost;
use husk_devices::pci::Bdf;
use proptest::prelude::*;

use super::common::VIRTIO_MSI_NO_VECTOR;
use super::*;
use crate::config::ConfigBytes;
use crate::testing::{Buf, Driver, Echo, EchoControl, memory};

const DATA: u64 = 0x8_0000;
const BASE: u64 = 0xc000_0000;
const DOORBELL_0: u64 = BASE + NOTIFY as u64;

// Common configuration, by offset (virtio 1.2 §4.1.4.3).
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;

/// A guest in front of a function.
struct Guest {
    function: VirtioPci,
    host: Arc<FakeHost>,
    control: Arc<EchoControl>,
    config: Arc<Mutex<ConfigBytes>>,
    drivers: Vec<Driver>,
}

fn guest() -> Guest {
    let (mem, host, echo) = (memory(), FakeHost::new(), Echo::new());
    let (control, config) = (echo.control.clone(), echo.config.clone());
    let mut function = VirtioPci::new(Box::new(echo), "echo".into(), host.clone(), mem.clone()).unwrap();
    function.set_bdf(Bdf {
        bus: 0,
        device: 3,
        function: 0,
    });
    let drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    Guest {
        function,
        host,
        control,
        config,
        drivers,
    }
}

impl Guest {
    fn get(&mut self, at: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.read_bar(BAR, at, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn set(&mut self, at: u64, width: usize, value: u64) {
        assert_eq!(
            self.function.write_bar(BAR, at, &value.to_le_bytes()[..width]),
            Effect::None
        );
    }

    fn config_get(&mut self, at: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        self.function.read_config(at, &mut bytes[..width]);
        u32::from_le_bytes(bytes)
    }

    fn config_set(&mut self, at: u16, width: usize, value: u32) {
        let effect = self.function.write_config(at, &value.to_le_bytes()[..width]);
        assert_eq!(effect, Effect::None);
    }

    /// Offset and bytes of every capability.
    fn capabilities(&mut self) -> Vec<(u16, Vec<u8>)> {
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

    fn message(vector: u64) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000,
            data: u32::try_from(0x40 + vector).unwrap(),
        }
    }

    /// MSI-X on, every vector unmasked with a message of its own.
    fn enable_msix(&mut self) {
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

    fn negotiate(&mut self) {
        self.set(STATUS, 1, 1);
        self.set(STATUS, 1, 3);
        for (select, features) in [(0, 1), (1, 1)] {
            self.set(DRIVER_FEATURE_SELECT, 4, select);
            self.set(DRIVER_FEATURE, 4, features);
        }
        self.set(STATUS, 1, 11);
        assert_eq!(self.get(STATUS, 1), 11);
    }

    fn set_up(&mut self, queue: usize) {
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
    fn bring_up(&mut self) {
        self.enable_msix();
        self.negotiate();
        self.set(CONFIG_VECTOR, 2, 0);
        self.set_up(0);
        self.set_up(1);
        self.set(STATUS, 1, 15);
        assert_eq!(self.get(STATUS, 1), 15);
    }

    fn reset(&mut self) {
        self.set(STATUS, 1, 0);
        self.until(|guest| guest.get(STATUS, 1) == 0);
        let mem = self.drivers[0].mem.clone();
        self.drivers = vec![Driver::new(&mem, 0x1000, 8), Driver::new(&mem, 0x2000, 4)];
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < Duration::from_secs(60), "timed out");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// One request, kicked by a write that arrives as an exit.
    fn echo(&mut self, queue: usize) {
        self.drivers[queue].write(DATA, b"ping");
        self.drivers[queue].write(DATA + 64, &[0; 4]);
        self.drivers[queue].add(&[Buf::Out(DATA, 4), Buf::In(DATA + 64, 4)]);
        self.set(u64::from(NOTIFY) + 4 * queue as u64, 2, queue as u64);
        self.until(|guest| guest.drivers[queue].take_used().is_some());
        assert_eq!(self.drivers[queue].read(DATA + 64, 4), b"ping");
    }
}

#[test]
fn function_says_what_it_is() {
    let mut guest = guest();
    assert_eq!(
        guest.config_get(0, 4),
        0x106a_1af4,
        "vendor, and 0x1040 plus the virtio ID"
    );
    assert_eq!(
        guest.config_get(8, 4),
        0xff00_0001,
        "class, and a revision of a modern device"
    );
    assert_eq!(guest.config_get(0x3d, 1), 0, "no INTx");
    assert_eq!(guest.config_get(0x10, 4) & 0xf, 4, "a 64-bit memory BAR");
    assert_eq!(guest.get(0x12, 2), 2, "num_queues");
}

#[test]
fn capabilities_lead_to_every_part() {
    let mut guest = guest();
    let le32 = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let found: Vec<_> = guest.capabilities();
    let parts: Vec<_> = found
        .iter()
        .filter(|(_, bytes)| bytes[0] == CAP_VENDOR)
        .map(|(_, bytes)| (bytes[3], bytes[2], bytes[4], le32(bytes, 8), le32(bytes, 12)))
        .collect();
    let expected = [
        (1, 16, 0, 0, 0x3c),
        (3, 16, 0, 0x1000, 1),
        (4, 16, 0, 0x2000, 0x1000),
        (2, 20, 0, 0x3000, 8),
        (5, 20, 0, 0, 0),
    ];
    assert_eq!(parts, expected);
    let notify = &found
        .iter()
        .find(|(_, bytes)| bytes[3] == 2 && bytes[0] == CAP_VENDOR)
        .unwrap()
        .1;
    assert_eq!(le32(notify, 16), 4, "notify_off_multiplier");
    let msix = &found.iter().find(|(_, bytes)| bytes[0] == 0x11).unwrap().1;
    assert_eq!((le32(msix, 4), le32(msix, 8)), (0x4000, 0x5000));
    assert_eq!(u16::from_le_bytes([msix[2], msix[3]]), 2, "one vector more than queues");
}

#[test]
fn driver_brings_the_device_up_and_is_interrupted_by_messages() {
    let mut guest = guest();
    guest.bring_up();
    guest.echo(0);
    guest.echo(1);
    guest.until(|guest| guest.host.take_sent(Guest::message(1)) > 0);
    guest.until(|guest| guest.host.take_sent(Guest::message(2)) > 0);
    assert_eq!(guest.host.take_sent(Guest::message(0)), 0);
    assert_eq!(guest.get(ISR.into(), 1), 0, "messages leave no trace there");
}

#[test]
fn nothing_is_asked_of_the_host_before_the_driver_does() {
    let mut guest = guest();
    assert!(guest.host.gsis().is_empty());
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    guest.negotiate();
    guest.set_up(0);
    assert!(guest.host.doorbells().is_empty(), "doorbells wait for DRIVER_OK");
    guest.set(STATUS, 1, 15);
    assert_eq!(
        guest.host.doorbells().into_keys().collect::<Vec<_>>(),
        [DOORBELL_0],
        "live queues only"
    );
}

#[test]
fn doorbells_follow_the_bar_and_outlive_a_reset() {
    let mut guest = guest();
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    guest.bring_up();
    let both = |base: u64| vec![base, base + 4];
    let connected = |guest: &Guest| guest.host.doorbells().into_keys().collect::<Vec<_>>();
    assert_eq!(connected(&guest), both(DOORBELL_0));

    guest.function.bar_moved(BAR, Some(BASE + 0x8000)).unwrap();
    assert_eq!(connected(&guest), both(DOORBELL_0 + 0x8000));
    guest.function.bar_moved(2, None).unwrap();
    guest.reset();
    assert_eq!(connected(&guest), both(DOORBELL_0 + 0x8000));
    guest.bring_up();
    guest.echo(1);

    guest.function.bar_moved(BAR, None).unwrap();
    assert!(connected(&guest).is_empty());
    guest.echo(0);
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    assert_eq!(connected(&guest), both(DOORBELL_0));
}

#[test]
fn host_without_doorbells_costs_speed_only() {
    let mut guest = guest();
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    guest.host.refuse(true);
    guest.bring_up();
    guest.echo(0);
    assert!(guest.host.doorbells().is_empty());
    assert!(guest.function.bar_moved(BAR, Some(BASE + 0x8000)).is_err());
}

#[test]
fn kicks_before_driver_ok_and_of_absent_queues_are_harmless() {
    let mut guest = guest();
    for offset in 0..0x1000 {
        guest.set(u64::from(NOTIFY) + offset, 4, 0);
    }
    guest.bring_up();
    guest.set(u64::from(NOTIFY) + 8, 4, 2);
    guest.set(u64::from(NOTIFY) + 0xffc, 4, 0xffff);
    guest.set(u64::from(NOTIFY) + 2, 4, 0);
    guest.echo(0);
}

#[test]
fn vectors_out_of_range_cannot_be_had() {
    let mut guest = guest();
    guest.negotiate();
    for vector in 0..=0xffff {
        let expected = if vector < 3 {
            vector
        } else {
            VIRTIO_MSI_NO_VECTOR.into()
        };
        for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
            guest.set(register, 2, vector);
            assert_eq!(guest.get(register, 2), expected);
        }
    }
    guest.set(QUEUE_SELECT, 2, 7);
    guest.set(QUEUE_VECTOR, 2, 1);
    assert_eq!(
        guest.get(QUEUE_VECTOR, 2),
        u64::from(VIRTIO_MSI_NO_VECTOR),
        "no such queue"
    );
}

#[test]
fn queues_that_do_not_exist_read_as_nothing() {
    let mut guest = guest();
    for queue in 2..=0xffff {
        guest.set(QUEUE_SELECT, 2, queue);
        let vector = u64::from(VIRTIO_MSI_NO_VECTOR) << 16;
        assert_eq!(guest.get(QUEUE_SIZE, 8), vector, "queue {queue}");
        assert_eq!(guest.get(QUEUE_DESC, 8), 0);
    }
    guest.set(QUEUE_SELECT, 2, 1);
    assert_eq!((guest.get(QUEUE_SIZE, 2), guest.get(0x1e, 2)), (16, 1));
}

#[test]
fn configuration_change_is_told_by_message_and_isr() {
    let mut guest = guest();
    guest.bring_up();
    guest.drivers[0].offer(999);
    guest.set(NOTIFY.into(), 4, 0);
    guest.until(|guest| guest.get(STATUS, 1) == 15 | 0x40);
    guest.until(|guest| guest.host.take_sent(Guest::message(0)) == 1);
    assert_eq!(guest.get(ISR.into(), 4), 2);
    assert_eq!(guest.get(ISR.into(), 1), 0, "reading clears");
    assert_eq!(guest.function.failures(), 1);
}

#[test]
fn queue_without_vector_shows_in_the_isr() {
    let mut guest = guest();
    guest.negotiate();
    guest.set_up(0);
    guest.reset();
    guest.negotiate();
    let driver = &guest.drivers[0];
    let addresses = [driver.desc, driver.avail, driver.used];
    for (register, address) in (QUEUE_DESC..).step_by(8).zip(addresses) {
        guest.set(register, 8, address);
    }
    assert_eq!(guest.get(QUEUE_VECTOR, 2), 0xffff, "reset took the vector away");
    guest.set(QUEUE_ENABLE, 2, 1);
    guest.set(STATUS, 1, 15);
    guest.echo(0);
    guest.until(|guest| guest.get(ISR.into(), 1) == 1);
}

#[test]
fn device_configuration_is_read_with_its_generation() {
    let mut guest = guest();
    assert_eq!(guest.get(DEVICE.into(), 8), 0x0403_0201, "0 beyond the end");
    let before = guest.get(GENERATION, 1);
    guest.config.lock().unwrap().update(0, &[9]);
    assert_eq!(guest.get(DEVICE.into(), 1), 9);
    assert_ne!(guest.get(GENERATION, 1), before);
    guest.set(DEVICE.into(), 4, 0);
    assert_eq!(guest.get(DEVICE.into(), 1), 9);
}

#[test]
fn nothing_changes_after_driver_ok_but_what_may() {
    let mut guest = guest();
    guest.bring_up();
    for queue in [0, 1, 2, 0xffff] {
        guest.set(QUEUE_SELECT, 2, queue);
        let image: Vec<_> = (0..0x3c).map(|at| guest.get(at, 1)).collect();
        for (at, width) in [
            (CONFIG_VECTOR, 2),
            (QUEUE_SIZE, 2),
            (QUEUE_VECTOR, 2),
            (QUEUE_ENABLE, 2),
            (DRIVER_FEATURE, 4),
        ] {
            for value in [0, 1, 2, 0xffff_ffff] {
                guest.set(at, width, value);
            }
        }
        for at in (QUEUE_DESC..0x38).step_by(4) {
            guest.set(at, 4, 0x1234_5000);
            guest.set(at, 8, 0x1234_5000);
        }
        assert_eq!(
            (0..0x3c).map(|at| guest.get(at, 1)).collect::<Vec<_>>(),
            image,
            "queue {queue}"
        );
    }
    guest.echo(0);
}

#[test]
fn writes_of_the_wrong_width_are_ignored() {
    let mut guest = guest();
    guest.set(STATUS, 2, 1);
    guest.set(STATUS, 4, 1);
    assert_eq!(guest.get(STATUS, 1), 0);
    guest.set(QUEUE_SELECT, 1, 1);
    assert_eq!(guest.get(QUEUE_SELECT, 2), 0);
    guest.negotiate();
    guest.set(QUEUE_DESC + 2, 4, 0xffff_ffff);
    guest.set(QUEUE_DESC + 4, 8, 0xffff_ffff_ffff_ffff);
    assert_eq!(
        guest.get(QUEUE_DESC + 4, 8),
        u64::MAX,
        "two aligned halves are as good as two writes"
    );
    assert_eq!(guest.get(QUEUE_DESC, 4), 0);
}

#[test]
fn device_serves_one_driver_after_the_other() {
    let mut guest = guest();
    for _ in 0..3 {
        guest.bring_up();
        guest.echo(0);
        guest.echo(1);
        guest.reset();
        assert_eq!(guest.get(CONFIG_VECTOR, 2), 0xffff);
    }
    guest.bring_up();
    let used: Vec<_> = guest.function.shutdown().iter().map(|state| state.index).collect();
    assert_eq!(used, [0, 1]);
    assert_eq!(guest.control.alive.load(Ordering::SeqCst), 0);
}

/// A failed assertion must not leave an I/O thread waiting.
impl Drop for Guest {
    fn drop(&mut self) {
        self.control.hold_stop.store(false, Ordering::SeqCst);
    }
}

/// The window's registers: BAR, offset, length, data.
fn aim(guest: &mut Guest, bar: u32, offset: u32, length: u32) -> u16 {
    let (at, _) = guest
        .capabilities()
        .into_iter()
        .find(|(_, bytes)| bytes[0] == CAP_VENDOR && bytes[3] == 5)
        .unwrap();
    guest.config_set(at + 4, 1, bar);
    guest.config_set(at + 8, 4, offset);
    guest.config_set(at + 12, 4, length);
    at + 16
}

#[test]
fn moving_the_bar_asks_the_machine_to_remap() {
    let mut guest = guest();
    guest.config_set(0x10, 4, 0xc000_0000);
    let bdf = Bdf {
        bus: 0,
        device: 3,
        function: 0,
    };
    assert_eq!(guest.function.write_config(4, &[6, 0]), Effect::Remap(bdf));
    let ranges = guest.function.decoded();
    assert_eq!((ranges.len(), ranges[0].base, ranges[0].size), (1, BASE, BAR_BYTES));
}

#[test]
fn window_in_configuration_space_reaches_the_registers() {
    let mut guest = guest();
    let data = aim(&mut guest, 0, 0x14, 1);
    guest.config_set(data, 1, 1);
    guest.config_set(data, 4, 3);
    assert_eq!(guest.get(STATUS, 1), 3);
    assert_eq!(guest.config_get(data, 1), 3);
    let data = aim(&mut guest, 0, 0x12, 2);
    assert_eq!(guest.config_get(data, 4) & 0xffff, 2);
    let data = aim(&mut guest, 0, DEVICE, 4);
    assert_eq!(guest.config_get(data, 4), 0x0403_0201);
    assert_eq!(guest.config_get(data + 2, 1), 3, "a byte of the answer");
}

#[test]
fn window_aimed_at_nothing_is_inert() {
    let mut guest = guest();
    let wrong = [
        (1, 0x14, 1),
        (0, 0x14, 0),
        (0, 0x14, 3),
        (0, 0x14, 8),
        (0, 0x16, 4),
        (0, 0x8000, 1),
        (0, u32::MAX, 1),
        (0, 0x7fff, 2),
    ];
    for (bar, offset, length) in wrong {
        let data = aim(&mut guest, bar, offset, length);
        guest.config_set(data, 4, 0x0101_0101);
        assert_eq!(
            guest.config_get(data, 4),
            0x0101_0101,
            "only what was written: {bar} {offset:#x} {length}"
        );
        assert_eq!(guest.get(STATUS, 1), 0);
    }
}

#[test]
fn profile_without_a_place_is_refused() {
    let refuse = |echo: Echo| {
        VirtioPci::new(Box::new(echo), "echo".into(), FakeHost::new(), memory())
            .err()
            .unwrap()
            .to_string()
    };
    let many = Echo {
        queue_sizes: vec![8; 256],
        ..Echo::new()
    };
    assert_eq!(refuse(many), "echo: 256 queues: at most 255 are allowed");
    let odd = Echo {
        queue_sizes: vec![9],
        ..Echo::new()
    };
    assert!(refuse(odd).starts_with("echo: queue 0 has 9 descriptors"));
    let most = Echo {
        queue_sizes: vec![8; 255],
        ..Echo::new()
    };
    VirtioPci::new(Box::new(most), "echo".into(), FakeHost::new(), memory()).unwrap();
}

/// A state that a driver can bring the device into.
fn in_state(state: u8) -> Guest {
    let mut guest = guest();
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    match state {
        0 => {}
        1 => guest.set(STATUS, 1, 1),
        2 => guest.negotiate(),
        3 => guest.bring_up(),
        4 => {
            guest.control.fail_start.store(true, Ordering::SeqCst);
            guest.negotiate();
            guest.set(STATUS, 1, 15);
        }
        _ => {
            guest.bring_up();
            guest.control.hold_stop.store(true, Ordering::SeqCst);
            guest.set(STATUS, 1, 0);
        }
    }
    guest
}

/// An access by the guest: `true` is to configuration space.
fn access() -> impl Strategy<Value = (bool, u64, usize, u64)> {
    let offset = prop_oneof![4 => 0u64..0x40, 1 => 0u64..BAR_BYTES + 16, 1 => any::<u64>()];
    let value = prop_oneof![
        any::<u64>(),
        0u64..16,
        Just(u64::MAX),
        (0u64..0x20_0000).prop_map(|gpa| gpa & !15)
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0usize..9];
    (prop::bool::weighted(0.2), offset, width, value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_access_in_any_state_is_harmful(state in 0u8..6, accesses in prop::collection::vec(access(), 1..80)) {
        let mut guest = in_state(state);
        let control = guest.control.clone();
        for (config, offset, width, value) in accesses {
            let bytes = &value.to_le_bytes()[..width];
            let mut back = vec![0xaa; width];
            if config {
                let offset = u16::try_from(offset % 4096).unwrap();
                let _ = guest.function.write_config(offset, bytes);
                guest.function.read_config(offset, &mut back);
            } else {
                let _ = guest.function.write_bar(BAR, offset, bytes);
                guest.function.read_bar(BAR, offset, &mut back);
            }
            let status = guest.get(STATUS, 1);
            prop_assert!([0, 1, 3, 11, 15].contains(&(status & 0xf)), "{:#x}", status);
            prop_assert!(guest.get(0x12, 2) == 2);
        }
        control.hold_stop.store(false, Ordering::SeqCst);
        // Whatever happened, a driver that begins anew gets a working device.
        control.fail_start.store(false, Ordering::SeqCst);
        guest.reset();
        guest.bring_up();
        guest.echo(0);
    }

    #[test]
    fn every_register_takes_every_width_in_every_state(state in 0u8..6, queue in any::<u16>(), value in any::<u64>()) {
        let mut guest = in_state(state);
        let control = guest.control.clone();
        for at in (0u64..0x3c).filter(|at| *at != STATUS) {
            for width in [1, 2, 4, 8] {
                guest.set(QUEUE_SELECT, 2, queue.into());
                guest.set(at, width, value);
                guest.get(at, width);
            }
        }
        control.hold_stop.store(false, Ordering::SeqCst);
        control.fail_start.store(false, Ordering::SeqCst);
        guest.reset();
        guest.bring_up();
        guest.echo(1);
    }
}
