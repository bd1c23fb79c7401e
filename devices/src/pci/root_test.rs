use std::sync::mpsc::channel;
use std::thread;

use proptest::prelude::*;
use rustix::thread::gettid;

use super::*;
use crate::pci::{Bar, BarRange, BarWindow, Window};
use crate::testing::until_asleep;

/// A function with one BAR, whose registers read as the offset.
struct Probe(ConfigSpace);

impl PciFunction for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap() | (bar << 4));
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Effect {
        Effect::Reboot
    }
}

fn probe() -> Arc<Mutex<dyn PciFunction>> {
    let mut config = ConfigSpace::new(&Identity {
        vendor: 0x1af4,
        device: 0x1044,
        ..Identity::default()
    });
    config.add_bar(1, Bar::memory32(0x1000)).unwrap();
    Arc::new(Mutex::new(Probe(config)))
}

/// A root and its window.
fn root() -> (Arc<Mutex<PciRoot>>, Ecam) {
    let root = Arc::new(Mutex::new(PciRoot::new()));
    (root.clone(), Ecam::new(root))
}

fn read<const N: usize>(ecam: &mut Ecam, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    ecam.read(offset, &mut data);
    data
}

fn on_bus_0(device: u8) -> Bdf {
    Bdf {
        bus: 0,
        device,
        function: 0,
    }
}

#[test]
fn slot_0_is_a_host_bridge_and_stays() {
    let (root, mut ecam) = root();
    assert_eq!(read(&mut ecam, 0), [0x36, 0x1b, 0x08, 0x00]);
    assert_eq!(read(&mut ecam, 0x0a), [0x00, 0x06], "class host bridge");
    assert!(lock(&root).remove(on_bus_0(0)).is_none());
    assert!(lock(&root).function(on_bus_0(0)).is_some());
}

#[test]
fn functions_go_where_they_are_wanted_or_into_the_first_free_slot() {
    let mut root = PciRoot::new();
    assert_eq!(root.insert(Some(2), probe()), Ok(on_bus_0(2)));
    assert_eq!(root.insert(None, probe()), Ok(on_bus_0(1)));
    assert_eq!(root.insert(None, probe()), Ok(on_bus_0(3)));
    assert_eq!(root.insert(Some(2), probe()), Err(PciError::Taken(2)));
    assert_eq!(root.insert(Some(0), probe()), Err(PciError::NoSlot(0)));
    assert_eq!(root.insert(Some(32), probe()), Err(PciError::NoSlot(32)));
    assert!(root.remove(on_bus_0(2)).is_some());
    assert!(root.remove(on_bus_0(2)).is_none());
    assert_eq!(root.insert(None, probe()), Ok(on_bus_0(2)));
    (4..32).for_each(|device| assert_eq!(root.insert(None, probe()), Ok(on_bus_0(device))));
    assert_eq!(root.insert(None, probe()), Err(PciError::Full));
}

#[test]
fn an_ecam_offset_is_device_and_register() {
    let (root, mut ecam) = root();
    lock(&root).insert(Some(31), probe()).unwrap();
    let device = 31 << 15;
    assert_eq!(read(&mut ecam, device), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(read(&mut ecam, device | 2), [0x44, 0x10]);
    assert_eq!(read(&mut ecam, device | 0x100), [0; 4], "no extended capabilities");
    assert_eq!(read(&mut ecam, device | 0x1000), [0xff; 4], "no function 1");
    assert_eq!(read(&mut ecam, 30 << 15), [0xff; 4], "an empty slot");
    assert_eq!(read(&mut ecam, ECAM_SIZE), [0xff; 4], "no bus 1");
    assert_eq!(read(&mut ecam, device | 0xffe), [0, 0, 0xff, 0xff], "function 1 again");
}

/// A function that a vCPU does not come back from, as long as the test has the function's lock.
#[test]
fn a_vcpu_that_stays_in_a_function_keeps_nobody_from_the_root() {
    let (root, mut ecam) = root();
    let bdf = lock(&root).insert(Some(5), probe()).unwrap();
    let function = lock(&root).function(bdf).unwrap();
    let inside = lock(&function);
    let (id, ids) = channel();
    let vcpu = thread::spawn(move || {
        id.send(gettid().as_raw_nonzero().get()).unwrap();
        read::<4>(&mut ecam, 5 << 15)
    });
    until_asleep(ids.recv().unwrap());
    assert_eq!(root.try_lock().unwrap().insert(Some(6), probe()), Ok(on_bus_0(6)));
    assert!(root.try_lock().unwrap().remove(bdf).is_some());
    drop(inside);
    assert_eq!(vcpu.join().unwrap(), [0xf4, 0x1a, 0x44, 0x10]);
}

#[test]
fn turning_memory_space_on_asks_for_the_window_of_that_very_function() {
    let (root, mut ecam) = root();
    let bdf = lock(&root).insert(Some(5), probe()).unwrap();
    let function = lock(&root).function(bdf).unwrap();
    lock(&function).config_mut().place_bar(1, 0xc000_0000).unwrap();
    assert_eq!(ecam.write((5 << 15) | 4, &[2, 0]), Effect::Remap(bdf));
    assert_eq!(
        lock(&function).decoded(),
        [BarRange {
            bar: 1,
            base: 0xc000_0000,
            size: 0x1000
        }]
    );
    assert_eq!(ecam.write((6 << 15) | 4, &[2, 0]), Effect::None, "an empty slot");
    assert_eq!(bdf.to_string(), "0000:00:05.0");
}

#[test]
fn a_window_reaches_its_bar() {
    let mut window = BarWindow::new(probe(), 1);
    let mut data = [0; 2];
    window.read(3, &mut data);
    assert_eq!(data, [0x13; 2]);
    assert_eq!(window.write(3, &[0]), Effect::Reboot);
}

fn contains(aml: &[u8], wanted: &[u8]) -> bool {
    aml.windows(wanted.len()).any(|bytes| bytes == wanted)
}

/// The fields of a memory resource after its flags (ACPI 6.5 §6.4.3.5.1): granularity, first, last,
/// translation, length.
fn qword_memory(base: u64, size: u64) -> Vec<u8> {
    [0, base, base + size - 1, 0, size]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

#[test]
fn aml_describes_the_bridge_its_windows_and_the_reserved_ecam() {
    let ecam = Window {
        base: 0xe800_0000,
        size: ECAM_SIZE,
    };
    let low = Window {
        base: 0xc000_0000,
        size: 0x2000_0000,
    };
    let high = Window {
        base: 0x40_0000_0000,
        size: 0x10_0000_0000,
    };
    let aml = PciRoot::aml(ecam, low, high);
    assert!(contains(&aml, &[0x41, 0xd0, 0x0a, 0x08]), "PNP0A08");
    assert!(contains(&aml, &[0x41, 0xd0, 0x0a, 0x03]), "PNP0A03");
    assert!(contains(&aml, &[0x41, 0xd0, 0x0c, 0x02]), "PNP0C02");
    assert!(contains(&aml, &qword_memory(low.base, low.size)));
    assert!(contains(&aml, &qword_memory(high.base, high.size)));
    // Fixed 32-bit memory (ACPI 6.5 §6.4.3.4), writable.
    assert!(contains(&aml, &[0x86, 9, 0, 1, 0, 0, 0, 0xe8, 0, 0, 0x10, 0]));
    // Word address space (ACPI 6.5 §6.4.3.5.3), bus numbers 0 to 0.
    assert!(contains(&aml, &[0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
    // The UUID of PCI's _OSC in its mixed byte order (ACPI 6.5 §19.6.145).
    assert!(contains(
        &aml,
        &[
            0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66
        ]
    ));
}

#[test]
fn a_window_without_bytes_is_left_out() {
    let (none, ecam) = (
        Window {
            base: 0x40_0000_0000,
            size: 0,
        },
        Window {
            base: 0xe800_0000,
            size: ECAM_SIZE,
        },
    );
    let with = PciRoot::aml(
        ecam,
        Window {
            base: 0xc000_0000,
            size: 0x1000,
        },
        none,
    );
    let descriptors = with.windows(3).filter(|bytes| *bytes == [0x8a, 43, 0]).count();
    assert_eq!(descriptors, 1, "one 64-bit address space descriptor");
}

proptest! {
    #[test]
    fn any_access_to_the_ecam_window_is_harmless(
        accesses in prop::collection::vec((0_u64..ECAM_SIZE + 16, prop::collection::vec(any::<u8>(), 0..9)), 1..80),
    ) {
        let (root, mut ecam) = root();
        lock(&root).insert(Some(1), probe()).unwrap();
        for (offset, mut data) in accesses {
            let effect = ecam.write(offset, &data);
            prop_assert!(effect == Effect::None || effect == Effect::Remap(on_bus_0(1)));
            ecam.read(offset, &mut data);
        }
    }
}
