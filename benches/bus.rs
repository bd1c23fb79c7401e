//! What a register access costs between the vCPU's exit and the device: the bus, and below it the PCI root.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use criterion::{Criterion, criterion_group, criterion_main};
use husk_devices::pci::{Bdf, ConfigSpace, ECAM_SIZE, Ecam, Identity, PciFunction, PciRoot};
use husk_devices::{Bus, BusDevice, Effect};

/// Bytes that each device answers.
const WINDOW: u64 = 0x1000;
const ECAM: u64 = 0xe800_0000;

struct Register(u8);

impl BusDevice for Register {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        self.0 = data.first().copied().unwrap_or_default();
        Effect::None
    }
}

struct Function(ConfigSpace);

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn set_bdf(&mut self, bdf: Bdf) {
        self.0.set_bdf(bdf);
    }

    fn read_bar(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Effect {
        Effect::None
    }
}

fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus");
    for devices in [1, 32] {
        let bus = Bus::default();
        for device in 0..devices {
            let register = Arc::new(Mutex::new(Register(0)));
            bus.insert(device * WINDOW, WINDOW, register)
                .expect("windows are disjoint");
        }
        let last = (devices - 1) * WINDOW + 8;
        group.bench_function(format!("read, {devices} devices"), |b| {
            let mut data = [0; 4];
            b.iter(|| {
                bus.read(black_box(last), &mut data);
                data
            });
        });
        group.bench_function(format!("write, {devices} devices"), |b| {
            b.iter(|| bus.write(black_box(last), &[1, 2, 3, 4]));
        });
    }
    group.finish();
}

fn pci_config(c: &mut Criterion) {
    let mut root = PciRoot::new();
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        ..Identity::default()
    };
    for _ in 0..31 {
        let function = Arc::new(Mutex::new(Function(ConfigSpace::new(&identity))));
        root.insert(None, function).expect("31 slots are free");
    }
    let bus = Bus::default();
    let ecam = Ecam::new(Arc::new(Mutex::new(root)));
    bus.insert(ECAM, ECAM_SIZE, Arc::new(Mutex::new(ecam)))
        .expect("an empty bus");
    let last = ECAM + (31 << 15);
    let mut id = [0; 4];
    bus.read(last, &mut id);
    assert_eq!(id, [0xf4, 0x1a, 0x42, 0x10], "the function answers");
    c.bench_function("pci config read", |b| {
        b.iter(|| {
            bus.read(black_box(last), &mut id);
            id
        });
    });
}

criterion_group!(benches, dispatch, pci_config);
criterion_main!(benches);
