//! Memory statistics of a guest (virtio 1.2 §5.5.6.3), as its balloon driver gives them.

use std::time::Instant;

use crate::ring::Reader;

/// Length of one statistic: `le16 tag`, `le64 val`, packed.
const STAT_BYTES: usize = 10;
/// A driver has ten kinds of them today; no more than this many are read of one buffer.
const STATS_MAX: usize = 64;

/// Names of the tags, in their order (virtio 1.2 §5.5.6.4): bytes but where a name says otherwise.
const NAMES: [&str; 10] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_cache_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
];
const FREE: usize = 4;
const TOTAL: usize = 5;
const AVAILABLE: usize = 6;

/// What the guest has said last. It may say anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// When the last statistics came; `None` before the first.
    pub at: Option<Instant>,
    values: [Option<u64>; NAMES.len()],
}

impl BalloonStats {
    /// Takes in what a driver has put into a buffer. Kinds that are not known are left out.
    pub(super) fn read(&mut self, reader: &mut Reader<'_>, now: Instant) {
        for _ in 0..STATS_MAX {
            let Ok([t0, t1, value @ ..]) = reader.read_obj::<[u8; STAT_BYTES]>() else {
                break;
            };
            let slot = self.values.get_mut(usize::from(u16::from_le_bytes([t0, t1])));
            if let Some(slot) = slot {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        self.at = Some(now);
    }

    /// Memory that nothing uses, in bytes.
    pub fn free_bytes(&self) -> Option<u64> {
        self.get(FREE)
    }

    /// Memory that the guest's kernel manages, in bytes.
    pub fn total_bytes(&self) -> Option<u64> {
        self.get(TOTAL)
    }

    /// Memory that could be had without swapping, in bytes.
    pub fn available_bytes(&self) -> Option<u64> {
        self.get(AVAILABLE)
    }

    /// All that is known, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let named = NAMES.into_iter().zip(&self.values);
        named.filter_map(|(name, value)| Some((name, (*value)?)))
    }

    fn get(&self, tag: usize) -> Option<u64> {
        self.values.get(tag).copied().flatten()
    }
}
