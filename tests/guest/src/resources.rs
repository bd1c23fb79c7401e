//! Processors and memory of a guest at one moment, as its kernel lists them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What there is, and what of it is online.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Resources {
    /// When, by the guest's monotonic clock.
    pub nanoseconds: u64,
    /// Processors that there may ever be, as a list such as `0-3`.
    pub possible: String,
    /// Processors that the kernel knows of.
    pub present: String,
    /// Processors that run.
    pub online: String,
    /// `MemTotal` in KiB.
    pub memory_kib: u64,
    /// `MemAvailable` in KiB.
    pub available_kib: u64,
    /// Bytes of a memory block.
    pub block_bytes: u64,
    /// How many memory blocks are in each state that occurs: `online`, `offline`, `going-offline`.
    pub blocks: BTreeMap<String, u64>,
    /// What becomes of memory that is added: `memhp_default_state`, such as `offline` or `online`.
    pub auto_online: String,
}

impl Resources {
    /// How many processors run.
    pub fn online_cpus(&self) -> usize {
        count(&self.online)
    }

    /// How many processors the kernel knows of.
    pub fn present_cpus(&self) -> usize {
        count(&self.present)
    }

    /// How many memory blocks are in `state`.
    pub fn blocks_in(&self, state: &str) -> u64 {
        self.blocks.get(state).copied().unwrap_or(0)
    }
}

/// How many numbers a list such as `0-3,7` has. What is no list has none.
pub fn count(list: &str) -> usize {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_counted() {
        for (list, expected) in [
            ("0", 1),
            ("0-3", 4),
            ("0-3,7,9-10\n", 7),
            ("", 0),
            ("\n", 0),
            ("3-1", 0),
        ] {
            assert_eq!(count(list), expected, "{list:?}");
        }
    }
}
