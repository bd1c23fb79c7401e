use std::os::fd::AsRawFd;

use husk_devices::host::fake::FakeHost;
use husk_devices::pci::{Bdf, CAP_VENDOR};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::*;
use super::layout::BAR_BYTES;
use super::*;
use crate::testing::{Buf, Echo, memory};

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
fn the_kernel_signals_what_the_device_says_and_other_kicks_stay_in_this_process() {
    let mut guest = guest();
    let lent = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    guest.control.doorbell.set(lent.clone()).unwrap();
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    guest.bring_up();
    assert_eq!(
        guest.host.doorbells().into_values().collect::<Vec<_>>(),
        [lent.as_raw_fd(); 2]
    );
    // By exits.
    guest.echo(0);
    guest.echo(1);
    assert!(lent.read().is_err(), "nobody here writes to it");
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
fn configuration_change_is_told_by_message_and_isr() {
    let mut guest = guest();
    guest.bring_up();
    guest.drivers[0].offer(999);
    guest.set(NOTIFY.into(), 4, 0);
    guest.until(|guest| guest.get(STATUS, 1) == 15 | 0x40);
    guest.until(|guest| guest.host.take_sent(Guest::message(0)) == 1);
    assert_eq!(guest.get(ISR.into(), 4), 2);
    assert_eq!(guest.get(ISR.into(), 1), 0, "reading clears");
    assert_eq!(guest.function.failures().get(), 1);
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
fn without_bus_mastering_nothing_is_used_or_sent_and_afterwards_all_of_it() {
    let mut guest = guest();
    guest.bring_up();
    guest.echo(0);
    assert_eq!(guest.host.take_sent(Guest::message(1)), 1);
    guest.set_master(false);
    guest.drivers[0].add(&[Buf::In(DATA, 4)]);
    guest.set(DOORBELL_0 - BASE, 2, 0);
    guest.config.lock().unwrap().update(0, &[9]);
    guest.until_idle();
    assert_eq!(guest.drivers[0].take_used(), None);
    assert_eq!(guest.host.take_sent(Guest::message(1)), 0);
    guest.set_master(true);
    guest.until(|guest| guest.drivers[0].take_used().is_some());
    guest.until(|guest| guest.host.take_sent(Guest::message(1)) == 1);
    guest.echo(0);
}

#[test]
fn a_device_that_starts_without_bus_mastering_waits_for_it() {
    let mut guest = guest();
    guest.set_master(false);
    guest.drivers[0].add(&[Buf::In(DATA, 4)]);
    guest.bring_up();
    guest.until_idle();
    assert_eq!(guest.drivers[0].take_used(), None);
    guest.set_master(true);
    guest.until(|guest| guest.drivers[0].take_used().is_some());
}

#[test]
fn a_device_without_bus_mastering_can_be_reset_and_held() {
    let mut guest = guest();
    guest.bring_up();
    guest.set_master(false);
    guest.set(DOORBELL_0 - BASE, 2, 0);
    guest.function.workers().hold();
    guest.function.workers().release();
    guest.reset();
    guest.set_master(true);
    guest.bring_up();
    guest.echo(0);
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
            .source
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
