//! What a pod is to become next: chosen at random, the same for the same seed.

use husk_guest::pattern::Stream;
use husk_tests::resize::Size;

/// vCPUs that a pod may have.
pub const MAX_VCPUS: u32 = 8;

/// Memory comes in steps of this size, so many of them at most.
const STEP_BYTES: u64 = 128 << 20;
const MAX_STEPS: u64 = 6;

/// Disks that a pod may have at a time.
const MAX_DISKS: usize = 4;

/// What a pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of memory that were asked for last.
    pub memory: u64,
    /// How many disks.
    pub disks: usize,
}

/// One thing to do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Another size.
    Resize(Size),
    /// One more disk.
    AddDisk,
    /// Without one of its disks, by its number.
    RemoveDisk(usize),
}

/// An endless plan.
pub struct Plan {
    random: Stream,
    boot_bytes: u64,
}

impl Plan {
    /// The plan of `seed` for a pod that has booted with `boot_bytes` of memory.
    pub fn new(seed: u64, boot_bytes: u64) -> Self {
        Self {
            random: Stream::new(seed),
            boot_bytes,
        }
    }

    /// What to do to a pod that has `state`: always something that changes it.
    pub fn next(&mut self, state: &State) -> Action {
        match self.below(8) {
            0..=2 => Action::Resize(Size::Vcpus(self.vcpus(state.vcpus))),
            3..=5 => Action::Resize(Size::Memory(self.memory(state.memory))),
            _ if state.disks == 0 => Action::AddDisk,
            6 if state.disks < MAX_DISKS => Action::AddDisk,
            _ => {
                let disks = u64::try_from(state.disks).unwrap_or(1);
                Action::RemoveDisk(usize::try_from(self.below(disks)).unwrap_or(0))
            }
        }
    }

    /// The largest size there is.
    pub fn largest(&self) -> [Size; 2] {
        [
            Size::Vcpus(MAX_VCPUS),
            Size::Memory(self.boot_bytes + MAX_STEPS * STEP_BYTES),
        ]
    }

    fn vcpus(&mut self, now: u32) -> u32 {
        let other = 1 + u32::try_from(self.below(u64::from(MAX_VCPUS) - 1)).unwrap_or(0);
        if other < now { other } else { other + 1 }
    }

    fn memory(&mut self, now: u64) -> u64 {
        let there = now.saturating_sub(self.boot_bytes) / STEP_BYTES;
        let other = self.below(MAX_STEPS);
        let steps = if other < there { other } else { other + 1 };
        self.boot_bytes + steps * STEP_BYTES
    }

    /// A number from 0 to `end`, which is not one of them.
    fn below(&mut self, end: u64) -> u64 {
        let bytes = self.random.take(8);
        let number = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        number % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: u64 = 256 << 20;

    /// Follows a plan, as if all went well.
    fn follow(seed: u64, count: usize) -> Vec<(State, Action)> {
        let mut plan = Plan::new(seed, BOOT);
        let mut state = State {
            vcpus: 1,
            memory: BOOT,
            disks: 0,
        };
        let mut step = || {
            let action = plan.next(&state);
            let before = state.clone();
            match action {
                Action::Resize(Size::Vcpus(vcpus)) => state.vcpus = vcpus,
                Action::Resize(Size::Memory(bytes)) => state.memory = bytes,
                Action::AddDisk => state.disks += 1,
                Action::RemoveDisk(number) => {
                    assert!(number < state.disks);
                    state.disks -= 1;
                }
            }
            assert_ne!(state, before, "{action:?} changes nothing");
            assert!((1..=MAX_VCPUS).contains(&state.vcpus) && state.disks <= MAX_DISKS);
            let more = state.memory - BOOT;
            assert!(more.is_multiple_of(STEP_BYTES) && more <= MAX_STEPS * STEP_BYTES);
            (before, action)
        };
        (0..count).map(|_| step()).collect()
    }

    #[test]
    fn a_seed_has_one_plan_and_another_seed_another() {
        assert_eq!(follow(7, 50), follow(7, 50));
        assert_ne!(follow(7, 50), follow(8, 50));
    }

    #[test]
    fn every_size_is_reached_and_everything_goes_both_ways() {
        let actions: Vec<_> = follow(1, 1000).into_iter().map(|(_, action)| action).collect();
        for vcpus in 1..=MAX_VCPUS {
            assert!(actions.contains(&Action::Resize(Size::Vcpus(vcpus))), "{vcpus} vCPUs");
        }
        for steps in 0..=MAX_STEPS {
            let size = Size::Memory(BOOT + steps * STEP_BYTES);
            assert!(actions.contains(&Action::Resize(size)), "{size:?}");
        }
        for disk in 0..MAX_DISKS {
            assert!(actions.contains(&Action::RemoveDisk(disk)), "disk {disk}");
        }
    }
}
