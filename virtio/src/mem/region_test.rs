#![expect(clippy::cast_possible_truncation, reason = "numbers of blocks are small here")]

use proptest::prelude::*;

use super::*;

const UNIT: u64 = 2 << 20;
const BASE: u64 = 0x1_4000_0000;

fn region(blocks: u64) -> Region {
    Region::new(MemConfig {
        base: BASE,
        region_bytes: blocks * UNIT,
        block_bytes: UNIT,
    })
    .unwrap()
}

#[test]
fn blocks_are_whole_and_inside() {
    let region = region(100);
    assert_eq!(region.blocks(BASE, 100), Some(0..100));
    assert_eq!(region.blocks(BASE + 99 * UNIT, 1), Some(99..100));
    for (addr, count) in [
        (BASE, 0),
        (BASE, 101),
        (BASE + 99 * UNIT, 2),
        (BASE + 100 * UNIT, 1),
        (BASE + 1, 1),
        (BASE - UNIT, 1),
        (0, 1),
        (u64::MAX, u16::MAX),
    ] {
        assert_eq!(region.blocks(addr, count), None, "{count} from {addr:#x}");
    }
}

#[test]
fn no_more_is_plugged_than_was_asked_for() {
    let mut region = region(100);
    assert_eq!(region.may_plug(&(0..1)), Err(Denied::Nack));
    region.request(10 * UNIT);
    assert_eq!(region.may_plug(&(90..100)), Ok(()));
    assert_eq!(region.may_plug(&(80..91)), Err(Denied::Nack));
    region.set(&(90..100), true);
    assert_eq!(region.may_plug(&(0..1)), Err(Denied::Nack));
    assert_eq!(region.may_plug(&(95..96)), Err(Denied::Error), "plugged already");
    assert_eq!(region.may_unplug(&(95..96)), Ok(()));
    assert_eq!(
        region.may_unplug(&(89..91)),
        Err(Denied::Error),
        "half of it is not there"
    );
}

#[test]
fn the_configuration_space_is_that_of_the_specification() {
    let mut region = region(8);
    region.request(4 * UNIT);
    region.set(&(1..3), true);
    let bytes = region.config_bytes();
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(bytes.len(), CONFIG_BYTES);
    let fields = [0, 8, 16, 24, 32, 40, 48].map(field);
    assert_eq!(fields, [UNIT, 0, BASE, 8 * UNIT, 8 * UNIT, 2 * UNIT, 4 * UNIT]);
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let config = |base, region_bytes, block_bytes| MemConfig {
        base,
        region_bytes,
        block_bytes,
    };
    for (wrong, why) in [
        (
            config(0, 6 << 20, 3 << 20),
            "a block of 3145728 bytes is not a power of two",
        ),
        (config(0, 6 << 20, 0), "a block of 0 bytes is not a power of two"),
        (
            config(0, 3 << 20, UNIT),
            "3145728 bytes at 0x0 are not whole blocks of 2097152 bytes",
        ),
        (
            config(1 << 20, UNIT, UNIT),
            "2097152 bytes at 0x100000 are not whole blocks of 2097152 bytes",
        ),
        (
            config(0, 0, UNIT),
            "0 bytes at 0x0 are not whole blocks of 2097152 bytes",
        ),
    ] {
        assert_eq!(Region::new(wrong).unwrap_err().to_string(), why);
    }
    assert!(Region::new(config(0u64.wrapping_sub(UNIT), 2 * UNIT, UNIT)).is_err());
}

proptest! {
    /// The account agrees with a list of booleans, whatever is plugged and unplugged in whatever order.
    #[test]
    fn the_account_agrees_with_a_model(acts in proptest::collection::vec((0..200_u64, 1..70_u64, any::<bool>()), 1..60)) {
        let mut region = region(200);
        let mut model = [false; 200];
        for (start, count, plugged) in acts {
            let blocks = start..(start + count).min(200);
            region.set(&blocks, plugged);
            model[start as usize..blocks.end as usize].fill(plugged);
            let there = model.iter().filter(|plugged| **plugged).count() as u64;
            prop_assert_eq!(region.plugged_bytes(), there * UNIT);
        }
        let mut runs = [false; 200];
        let mut from = 0;
        while let Some(run) = region.next_plugged(from) {
            prop_assert!(run.start >= from && !run.is_empty());
            runs[run.start as usize..run.end as usize].fill(true);
            from = run.end;
        }
        prop_assert_eq!(&runs[..], &model[..]);
        for start in 0..200_usize {
            let end = (start + 3).min(200);
            let expected = match model[start..end].iter().filter(|plugged| **plugged).count() {
                0 => BlockState::Unplugged,
                all if all == end - start => BlockState::Plugged,
                _ => BlockState::Mixed,
            };
            prop_assert_eq!(region.state(&(start as u64..end as u64)), expected);
        }
    }
}
