use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Answers reads with its number and remembers the last write.
struct Echo {
    number: u8,
    written: Option<(u64, Vec<u8>)>,
}

impl BusDevice for Echo {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.number);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.written = Some((offset, data.to_vec()));
        Effect::Reboot
    }
}

fn echo(number: u8) -> Arc<Mutex<Echo>> {
    Arc::new(Mutex::new(Echo { number, written: None }))
}

fn read<const N: usize>(bus: &Bus, addr: u64) -> [u8; N] {
    let mut data = [0; N];
    bus.read(addr, &mut data);
    data
}

#[test]
fn a_write_reaches_its_device_at_the_offset_and_its_effect_comes_back() {
    let (bus, device) = (Bus::default(), echo(1));
    bus.insert(0x100, 0x10, device.clone()).unwrap();
    assert_eq!(bus.write(0x10c, &[1, 2, 3, 4]), Effect::Reboot);
    assert_eq!(lock(&device).written, Some((0xc, vec![1, 2, 3, 4])));
}

#[test]
fn nothing_is_there_where_nothing_answers() {
    let bus = Bus::default();
    bus.insert(0x100, 0x10, echo(1)).unwrap();
    for addr in [0, 0xff, 0x110, u64::MAX] {
        assert_eq!(read(&bus, addr), [0xff]);
        assert_eq!(bus.write(addr, &[0]), Effect::None);
    }
}

#[test]
fn an_access_that_leaves_its_window_is_cut_at_the_end() {
    let (bus, first, second) = (Bus::default(), echo(1), echo(2));
    bus.insert(0x100, 0x10, first.clone()).unwrap();
    bus.insert(0x110, 0x10, second.clone()).unwrap();
    assert_eq!(
        read(&bus, 0x10e),
        [1, 1, 0xff, 0xff],
        "also where another window follows"
    );
    assert_eq!(bus.write(0x10d, &[1, 2, 3, 4]), Effect::Reboot);
    assert_eq!(lock(&first).written, Some((0xd, vec![1, 2, 3])));
    assert_eq!(lock(&second).written, None);
}

#[test]
fn an_access_that_begins_outside_reaches_no_device() {
    let bus = Bus::default();
    bus.insert(0x100, 0x10, echo(1)).unwrap();
    assert_eq!(read(&bus, 0xfe), [0xff; 4]);
    assert_eq!(bus.write(0xfe, &[0; 4]), Effect::None);
}

#[test]
fn the_last_address_is_an_address() {
    let bus = Bus::default();
    bus.insert(u64::MAX, 1, echo(9)).unwrap();
    assert_eq!(read(&bus, u64::MAX), [9, 0xff]);
    assert!(bus.remove(u64::MAX).is_some());
    bus.insert(0, u64::MAX, echo(3)).unwrap();
    assert_eq!(read(&bus, u64::MAX - 1), [3, 0xff]);
}

#[test]
fn empty_wrapping_and_overlapping_windows_are_refused_by_name() {
    let bus = Bus::default();
    assert_eq!(bus.insert(5, 0, echo(1)), Err(BusError::Empty { base: 5 }));
    assert_eq!(
        bus.insert(u64::MAX, 2, echo(1)),
        Err(BusError::Wraps { base: u64::MAX, len: 2 })
    );
    bus.insert(0x100, 0x10, echo(1)).unwrap();
    let error = bus.insert(0xf8, 0x10, echo(1)).unwrap_err();
    assert_eq!(error.to_string(), "bus window 0xf8..=0x107 overlaps 0x100..=0x10f");
}

#[test]
fn a_device_may_be_removed_while_another_thread_is_in_it() {
    let (bus, device) = (Bus::default(), echo(1));
    bus.insert(0, 8, device.clone()).unwrap();
    let inside = lock(&device);
    assert!(bus.remove(0).is_some(), "takes no device lock");
    drop(inside);
    assert_eq!(read(&bus, 0), [0xff]);
}

proptest! {
    #[test]
    fn a_bus_answers_as_a_map_from_address_to_device_does(
        steps in prop::collection::vec((any::<bool>(), 0_u64..64, 1_u64..9), 1..60),
    ) {
        let bus = Bus::default();
        let mut owner: BTreeMap<u64, u8> = BTreeMap::new();
        let mut lens: BTreeMap<u64, u64> = BTreeMap::new();
        for (number, (insert, base, len)) in (0_u8..).zip(steps) {
            if insert {
                let free = (base..base + len).all(|addr| !owner.contains_key(&addr));
                prop_assert_eq!(bus.insert(base, len, echo(number)).is_ok(), free);
                if free {
                    owner.extend((base..base + len).map(|addr| (addr, number)));
                    lens.insert(base, len);
                }
            } else {
                let len = lens.remove(&base);
                prop_assert_eq!(bus.remove(base).is_some(), len.is_some());
                owner.retain(|addr, _| !(base..base + len.unwrap_or(0)).contains(addr));
            }
            for addr in 0..80 {
                prop_assert_eq!(read(&bus, addr), [owner.get(&addr).copied().unwrap_or(0xff)]);
            }
        }
    }
}
