//! 64-bit registers that a driver sees as two dwords.

/// Dword `select` of `value`, 0 beyond.
pub(super) fn get(value: u64, select: u32) -> u32 {
    match select {
        0 => low(value),
        1 => low(value >> 32),
        _ => 0,
    }
}

/// `value` with dword `select` replaced; unchanged beyond.
pub(super) fn with(value: u64, select: u32, word: u32) -> u64 {
    match select {
        0 => (value & !0xffff_ffff) | u64::from(word),
        1 => (value & 0xffff_ffff) | (u64::from(word) << 32),
        _ => value,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_independent() {
        let value = 0x1111_2222_3333_4444;
        assert_eq!(
            [0, 1, 2, u32::MAX].map(|select| get(value, select)),
            [0x3333_4444, 0x1111_2222, 0, 0]
        );
        assert_eq!(with(value, 0, 7), 0x1111_2222_0000_0007);
        assert_eq!(with(value, 1, 7), 0x0000_0007_3333_4444);
        assert_eq!(with(value, 2, 7), value);
    }
}
