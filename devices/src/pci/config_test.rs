use proptest::prelude::*;

use super::*;

const BDF: Bdf = Bdf {
    bus: 0,
    device: 3,
    function: 0,
};
const MEMORY_ON: [u8; 2] = [2, 0];

/// BAR 0 with 32 bits, BAR 2 with 64 bits and prefetchable.
fn function() -> ConfigSpace {
    let mut space = ConfigSpace::new(&Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1234,
        subsystem: 0x5678,
    });
    space.add_bar(0, Bar::memory32(0x8000)).unwrap();
    space.add_bar(2, Bar::memory64(0x2_0000_0000).prefetchable()).unwrap();
    space.set_bdf(BDF);
    space
}

#[test]
fn identity_is_read_where_the_specification_puts_it() {
    let space = function();
    assert_eq!(space.u32_at(0x00), 0x1042_1af4);
    assert_eq!(space.u32_at(0x08), 0x0180_0001);
    assert_eq!(space.u32_at(0x2c), 0x5678_1234);
    assert_eq!(space.u32_at(0x0c), 0, "type 0 header, one function, no self test");
    assert_eq!(space.u32_at(0x3c), 0, "no interrupt pin");
    assert_eq!(space.u32_at(0x30), 0, "no expansion ROM");
}

#[test]
fn only_documented_bits_are_writable() {
    let mut space = function();
    for offset in 0..256 {
        let _ = space.write(offset, &[0xff]);
    }
    assert_eq!(space.u32_at(0x00), 0x1042_1af4);
    assert_eq!(
        space.u32_at(0x04),
        0x0000_0406,
        "memory, master, interrupt disable; no capabilities"
    );
    assert_eq!(space.u32_at(0x08), 0x0180_0001);
    assert_eq!(space.u32_at(0x0c), 0x0000_00ff);
    assert_eq!(space.u32_at(0x14), 0, "no BAR 1");
    assert_eq!([space.u32_at(0x20), space.u32_at(0x24)], [0, 0], "no BAR 4, no BAR 5");
    assert_eq!(space.u32_at(0x2c), 0x5678_1234);
    assert_eq!(space.u32_at(0x34), 0, "no capabilities");
    assert_eq!(space.u32_at(0x3c), 0x0000_00ff);
}

#[test]
fn all_ones_written_to_a_bar_read_back_as_its_size() {
    let mut space = function();
    let _ = space.write(0x10, &[0xff; 4]);
    let _ = space.write(0x18, &[0xff; 8]);
    assert_eq!(space.u32_at(0x10), 0xffff_8000);
    assert_eq!(
        space.u32_at(0x18),
        0x0000_000c,
        "64-bit, prefetchable, no address bit below 4 GiB"
    );
    assert_eq!(space.u32_at(0x1c), 0xffff_fffe);
}

#[test]
fn bars_decode_only_while_memory_space_is_on() {
    let mut space = function();
    space.place_bar(0, 0xc000_0000).unwrap();
    space.place_bar(2, 0x40_0000_0000).unwrap();
    assert_eq!(space.decoded(), []);
    assert_eq!(space.write(4, &MEMORY_ON), Effect::Remap(BDF));
    let both = [
        BarRange {
            bar: 0,
            base: 0xc000_0000,
            size: 0x8000,
        },
        BarRange {
            bar: 2,
            base: 0x40_0000_0000,
            size: 0x2_0000_0000,
        },
    ];
    assert_eq!(space.decoded(), both);
    assert_eq!(space.write(4, &[6]), Effect::None, "bus mastering moves nothing");
    assert_eq!(space.write(4, &[0]), Effect::Remap(BDF));
    assert_eq!(space.decoded(), []);
}

#[test]
fn a_bar_that_moves_is_reported_and_one_that_does_not_is_not() {
    let mut space = function();
    space.place_bar(0, 0xc000_0000).unwrap();
    assert_eq!(
        space.write(0x10, &0xd000_0000_u32.to_le_bytes()),
        Effect::None,
        "nothing is decoded"
    );
    let _ = space.write(4, &MEMORY_ON);
    assert_eq!(
        space.write(0x10, &0xd000_7fff_u32.to_le_bytes()),
        Effect::None,
        "the same address"
    );
    assert_eq!(space.write(0x13, &[0xe0]), Effect::Remap(BDF));
    assert_eq!(
        space.decoded(),
        [BarRange {
            bar: 0,
            base: 0xe000_0000,
            size: 0x8000
        }]
    );
}

#[test]
fn unset_and_wrapping_bars_decode_nothing() {
    let mut space = function();
    let _ = space.write(4, &MEMORY_ON);
    assert_eq!(space.decoded(), []);
    let _ = space.write(0x18, &[0xff; 8]);
    assert_eq!(space.decoded(), []);
}

#[test]
fn bars_that_cannot_be_are_refused() {
    let mut space = function();
    let size = |bar, size, max| Err(ConfigError::BarSize { bar, size, max });
    assert_eq!(space.add_bar(4, Bar::memory32(8)), size(4, 8, 1 << 31));
    assert_eq!(space.add_bar(4, Bar::memory32(0)), size(4, 0, 1 << 31));
    assert_eq!(space.add_bar(4, Bar::memory32(1 << 32)), size(4, 1 << 32, 1 << 31));
    assert_eq!(space.add_bar(4, Bar::memory64(0x3000)), size(4, 0x3000, 1 << 51));
    assert_eq!(
        space.add_bar(0, Bar::memory32(16)),
        Err(ConfigError::BarTaken { bar: 0 })
    );
    assert_eq!(
        space.add_bar(1, Bar::memory64(16)),
        Err(ConfigError::BarTaken { bar: 1 }),
        "BAR 2 is in the way"
    );
    assert_eq!(
        space.add_bar(3, Bar::memory32(16)),
        Err(ConfigError::BarTaken { bar: 3 }),
        "upper half of BAR 2"
    );
    assert_eq!(space.add_bar(5, Bar::memory64(16)), Err(ConfigError::NoBar { bar: 5 }));
    assert_eq!(space.add_bar(6, Bar::memory32(16)), Err(ConfigError::NoBar { bar: 6 }));
    assert_eq!(
        space.add_bar(255, Bar::memory64(16)),
        Err(ConfigError::NoBar { bar: 255 })
    );
    assert_eq!(
        space.bars().map(|(index, bar)| (index, bar.size())).collect::<Vec<_>>(),
        [(0, 0x8000), (2, 0x2_0000_0000)]
    );
}

#[test]
fn bars_are_placed_only_where_their_bits_reach() {
    let mut space = function();
    assert_eq!(space.place_bar(1, 0), Err(ConfigError::NoBar { bar: 1 }));
    let error = space.place_bar(0, 0xc000_4000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "BAR 0 cannot be placed at 0xc0004000: its address bits are 0xffff8000"
    );
    assert!(space.place_bar(0, 1 << 32).is_err(), "32 bits");
    assert_eq!(space.u32_at(0x10), 0);
}

#[test]
fn capabilities_form_a_list() {
    let mut space = function();
    assert_eq!(space.add_capability(CAP_VENDOR, &[16; 14], &[]).unwrap(), 0x40);
    assert_eq!(space.add_capability(CAP_VENDOR, &[17; 15], &[]).unwrap(), 0x50);
    assert_eq!(
        space.add_capability(0x11, &[2; 10], &[0, 0xc0]).unwrap(),
        0x64,
        "dword aligned"
    );
    let list = std::iter::successors(Some(space.u16_at(0x34) & 0xff), |at| Some(space.u16_at(*at) >> 8));
    let list: Vec<_> = list
        .take_while(|at| *at != 0)
        .map(|at| (at, space.u16_at(at) & 0xff))
        .collect();
    assert_eq!(list, [(0x40, 9), (0x50, 9), (0x64, 0x11)]);
    assert_eq!(
        space.u16_at(6) & 0x10,
        0x10,
        "the status register says that there is one"
    );
}

#[test]
fn of_a_capability_only_the_bits_it_names_are_writable() {
    let mut space = function();
    let at = space.add_capability(0x11, &[2; 4], &[0, 0xc0, 0, 0, 0xff]).unwrap();
    assert_eq!(space.write(at, &[0xff; 8]), Effect::None);
    let mut data = [0; 8];
    space.read(at, &mut data);
    assert_eq!(data, [0x11, 0, 2, 0xc2, 2, 2, 0, 0], "and none after its body");
}

#[test]
fn capabilities_that_do_not_fit_are_refused() {
    let mut space = function();
    assert!(space.add_capability(CAP_VENDOR, &[0; 191], &[]).is_err());
    assert_eq!(space.add_capability(CAP_VENDOR, &[0; 190], &[]), Ok(0x40));
    let error = space.add_capability(CAP_VENDOR, &[0; 1], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "capability 0x09 of 3 bytes does not fit at offset 0x100; configuration space ends at 0x100"
    );
}

proptest! {
    #[test]
    fn any_access_of_any_width_is_harmless(
        accesses in prop::collection::vec((prop_oneof![0_u16..0x120, any::<u16>()], prop::collection::vec(any::<u8>(), 0..9)), 1..80),
    ) {
        let mut space = function();
        space.add_capability(0x11, &[0; 10], &[0xff; 10]).unwrap();
        for (offset, data) in accesses {
            let before = space.decoded();
            let effect = space.write(offset, &data);
            prop_assert_eq!(effect == Effect::Remap(BDF), space.decoded() != before);
            for range in space.decoded() {
                prop_assert!(range.base % range.size == 0 && range.base.checked_add(range.size).is_some());
            }
            let mut back = vec![0xaa; data.len()];
            space.read(offset, &mut back);
            prop_assert!(offset < 256 || back.iter().all(|byte| *byte == 0));
            prop_assert_eq!(space.u32_at(0), 0x1042_1af4);
        }
    }

    #[test]
    fn a_wide_access_is_the_same_as_one_for_each_byte(
        offset in 0_u16..260, data in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let (mut wide, mut narrow) = (function(), function());
        let _ = wide.write(offset, &data);
        for (at, byte) in (offset..).zip(&data) {
            let _ = narrow.write(at, &[*byte]);
        }
        let (mut of_wide, mut of_narrow) = ([0; 256], [0; 256]);
        wide.read(0, &mut of_wide);
        (0..256).for_each(|at| narrow.read(at, std::slice::from_mut(&mut of_narrow[usize::from(at)])));
        prop_assert_eq!(of_wide, of_narrow);
    }
}
