//! MSI-X against a model: the specification in its shortest form, driven by the same steps.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Bench, ENABLE, FUNCTION_MASK, bench};
use crate::host::MsiMessage;
use crate::host::fake::FIRST_MSI;

const VECTORS: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    Signal(u16),
    Control(u16),
    Mask(u64, bool),
    Message(u64, MsiMessage),
    Write(u64, Vec<u8>),
    ConfigWrite(u16, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let vector = 0..u64::from(VECTORS);
    let message = (0_u64..3, any::<u32>()).prop_map(|(page, data)| MsiMessage {
        address: page << 12,
        data,
    });
    prop_oneof![
        6 => (0..VECTORS).prop_map(Step::Signal),
        3 => prop_oneof![Just(ENABLE), Just(ENABLE), Just(ENABLE | FUNCTION_MASK), any::<u16>()].prop_map(Step::Control),
        6 => (vector.clone(), any::<bool>()).prop_map(|(vector, masked)| Step::Mask(vector, masked)),
        4 => (vector, message).prop_map(|(vector, message)| Step::Message(vector, message)),
        2 => (0..u64::from(VECTORS) * 16 + 4, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => (0_u16..0x60, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, data)| Step::ConfigWrite(at, data)),
    ]
}

/// Stands in message control, where nothing is, for a function that is not bus master.
const NO_MASTER: u16 = 1 << 11;

/// Message control, and whether anything may be sent at all.
fn control(bench: &Bench) -> u16 {
    let no_master = bench.config.u16_at(4) & 4 == 0;
    bench.config.u16_at(bench.capability + 2) | if no_master { NO_MASTER } else { 0 }
}

/// A table of bytes, what is pending, what has been sent.
#[derive(Default)]
struct Model {
    table: [[u8; 16]; VECTORS as usize],
    pending: [bool; VECTORS as usize],
    gsi: [Option<u32>; VECTORS as usize],
    routes: BTreeMap<u32, MsiMessage>,
    sent: BTreeMap<u32, u64>,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        model.table.iter_mut().for_each(|entry| entry[12] = 1);
        model
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (usize::try_from(offset).unwrap()..).zip(data) {
            let Some(entry) = self.table.get_mut(at / 16) else {
                continue;
            };
            entry[at % 16] = *byte;
            entry[0] &= 0xfc;
            entry[12] &= 1;
            entry[13..].fill(0);
        }
    }

    fn message(&self, vector: usize) -> MsiMessage {
        let entry = &self.table[vector];
        MsiMessage {
            address: u64::from_le_bytes(entry[..8].try_into().unwrap()),
            data: u32::from_le_bytes(entry[8..12].try_into().unwrap()),
        }
    }

    fn is_live(&self, vector: usize, control: u16) -> bool {
        control & (ENABLE | FUNCTION_MASK | NO_MASTER) == ENABLE
            && self.table[vector][12] == 0
            && self.message(vector).address != 0
    }

    /// Connects and sends what has become possible after a write.
    fn settle(&mut self, control: u16) {
        for vector in 0..usize::from(VECTORS) {
            if self.is_live(vector, control) {
                let next = FIRST_MSI + u32::try_from(self.gsi.iter().flatten().count()).unwrap();
                let gsi = *self.gsi[vector].get_or_insert(next);
                self.routes.insert(gsi, self.message(vector));
                *self.sent.entry(gsi).or_default() += u64::from(std::mem::take(&mut self.pending[vector]));
            }
        }
    }

    fn signal(&mut self, vector: usize, control: u16) {
        self.pending[vector] = true;
        self.settle(control);
    }
}

proptest! {
    #[test]
    fn msix_does_what_the_model_does(steps in prop::collection::vec(step(), 1..120)) {
        let (mut bench, mut model) = (bench(VECTORS), Model::new());
        for step in steps {
            match step {
                Step::Signal(vector) => {
                    bench.signal(vector);
                    model.signal(usize::from(vector), control(&bench));
                }
                Step::Control(control) => bench.control(control),
                Step::Mask(vector, masked) => {
                    bench.mask(vector, masked);
                    model.write(vector * 16 + 12, &u32::from(masked).to_le_bytes());
                }
                Step::Message(vector, message) => {
                    bench.message(vector, message);
                    // Two writes, each of which may reach a live vector.
                    model.write(vector * 16, &message.address.to_le_bytes());
                    model.settle(control(&bench));
                    model.write(vector * 16 + 8, &message.data.to_le_bytes());
                }
                Step::Write(offset, data) => {
                    bench.msix.write_table(offset, &data);
                    model.write(offset, &data);
                }
                Step::ConfigWrite(offset, data) => {
                    let _ = bench.config.write(offset, &data);
                    bench.msix.config_written(&bench.config);
                }
            }
            model.settle(control(&bench));
            let mut table = [0; VECTORS as usize * 16];
            bench.msix.read_table(0, &mut table);
            prop_assert_eq!(&table[..], model.table.as_flattened());
            let pending = model.pending.iter().rev().fold(0, |bits, bit| bits << 1 | u64::from(*bit));
            prop_assert_eq!(bench.pending(), pending);
            prop_assert_eq!(&bench.host.routes(), &model.routes);
            for gsi in bench.host.gsis() {
                prop_assert_eq!(bench.host.take_raised(gsi), model.sent.remove(&gsi).unwrap_or(0));
            }
        }
    }
}
