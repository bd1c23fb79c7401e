//! Bytes that both sides can produce and recognise without sending them.

/// `length` bytes that depend on every bit of `seed`, in no short period: xorshift64* (Vigna 2016), eight bytes a turn.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length.next_multiple_of(8));
    while out.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// 64-bit FNV-1a of `data`: enough to notice a misplaced, torn or stale block.
pub fn checksum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_fnv_1a() {
        // The reference vectors of the FNV authors for "" and "foobar".
        assert_eq!(checksum(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn seeds_give_different_bytes_and_a_shorter_pattern_is_a_prefix() {
        assert_ne!(bytes(1, 64), bytes(2, 64));
        assert_eq!(bytes(9, 13), bytes(9, 64)[..13]);
        assert_ne!(bytes(9, 4096)[..2048], bytes(9, 4096)[2048..]);
    }
}
