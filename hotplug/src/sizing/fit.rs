//! The size that a running pod's containers need, memory that is no longer needed given back.
//!
//! The shims never ask for less memory; whoever resizes a pod by [`Sizing::fitted`] does.

use super::resources::Resources;
use super::{Change, PodSize, Sizing, SizingError};

impl Sizing {
    /// As [`Sizing::resized`], but an update and an exit also take whole blocks of memory away that
    /// the containers do not need, down to the `boot_bytes` that the guest started with, and give
    /// the pod the vCPUs that they need.
    ///
    /// # Errors
    /// As [`Sizing::resized`].
    pub fn fitted(
        &self,
        now: PodSize,
        containers: &[Resources],
        change: Change,
        boot_bytes: u64,
        block_bytes: u64,
    ) -> Result<PodSize, SizingError> {
        let rule = match change {
            Change::Add => Change::Add,
            // What all containers need, whatever there is now: another one may have come beside it, and found the pod
            // too small.
            Change::Update | Change::Exit => Change::Update,
        };
        let size = self.resized(now, containers, rule, block_bytes)?;
        if change == Change::Add {
            return Ok(size);
        }
        let needed = self.wanted_memory(containers).max(boot_bytes);
        let spare = size.memory_bytes.saturating_sub(needed);
        let given_back = spare.saturating_sub(spare.checked_rem(block_bytes).ok_or(SizingError::NoBlocks)?);
        Ok(PodSize {
            memory_bytes: size.memory_bytes.saturating_sub(given_back),
            ..size
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MIB, Shim};
    use super::*;

    const BLOCK: u64 = 128 * MIB;

    fn memory(mib: u64) -> Resources {
        Resources {
            memory_limit_bytes: Some(mib * MIB),
            ..Resources::default()
        }
    }

    fn fitted(now_mib: u64, containers: &[Resources], change: Change) -> u64 {
        fitted_by(now_mib, containers, change, 512, BLOCK).unwrap()
    }

    /// Of a guest that has started with `boot_mib`, and takes memory in blocks of `block` bytes.
    fn fitted_by(
        now_mib: u64,
        containers: &[Resources],
        change: Change,
        boot_mib: u64,
        block: u64,
    ) -> Result<u64, SizingError> {
        let sizing = Sizing {
            default_memory_bytes: 512 * MIB,
            ..Sizing::new(Shim::Rust, 16, 32 << 30)
        };
        let now = PodSize {
            vcpus: 1,
            max_vcpus: 8,
            memory_bytes: now_mib * MIB,
        };
        let size = sizing.fitted(now, containers, change, boot_mib * MIB, block)?;
        Ok(size.memory_bytes / MIB)
    }

    #[test]
    fn what_a_container_had_is_given_back_in_whole_blocks() {
        assert_eq!(fitted(768, &[], Change::Exit), 512);
        assert_eq!(fitted(1024, &[memory(200)], Change::Exit), 768);
        assert_eq!(fitted(1024, &[memory(200)], Change::Update), 768);
        assert_eq!(fitted(512, &[memory(200)], Change::Update), 768);
    }

    #[test]
    fn an_added_container_takes_nothing_from_the_others() {
        assert_eq!(fitted(1024, &[memory(128)], Change::Add), 1024);
    }

    #[test]
    fn the_memory_of_the_boot_stays() {
        assert_eq!(fitted(512, &[], Change::Exit), 512);
        assert_eq!(fitted(600, &[], Change::Exit), 600, "less than a block");
        assert_eq!(
            fitted_by(2048, &[], Change::Exit, 1024, BLOCK),
            Ok(1024),
            "more than the default"
        );
    }

    #[test]
    fn a_guest_without_blocks_gives_nothing_back() {
        assert_eq!(fitted_by(1024, &[], Change::Exit, 512, 0), Err(SizingError::NoBlocks));
    }
}
