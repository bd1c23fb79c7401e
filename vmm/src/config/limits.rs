//! How large a VM can be: what the host gives, and what the architecture allows.

use husk_firmware::layout;

use super::MemoryConfig;
use crate::memory::Reserved;

/// The most RAM of a guest: a memory slot of KVM has at most 2^31 - 1 pages
/// (`KVM_MEM_MAX_NR_PAGES`, KVM api.rst 4.35), and what comes later is rounded up to blocks of 2
/// GiB.
const MAX_RAM_BYTES: u64 = (8 << 40) - (2 << 30);

/// What the host, or the architecture, can give a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most vCPUs of one VM: as many as KVM allows (`KVM_CAP_MAX_VCPUS`), at most those of
    /// [`Limits::ARCHITECTURE`].
    pub max_vcpus: u32,
    /// Width of a guest-physical address (CPUID 8000_0008h EAX\[7:0\]).
    pub phys_bits: u8,
}

impl Limits {
    /// What no x86-64 host exceeds: KVM's own bound on vCPUs (`KVM_MAX_VCPUS` of Linux 6.x), for
    /// which there are slots and ACPI tables, and the architecture's on addresses.
    pub const ARCHITECTURE: Self = Self {
        max_vcpus: 4096,
        phys_bits: 52,
    };

    /// The most bytes of RAM: half the guest-physical address space, as the other half is for
    /// devices' 64-bit windows, and no more than KVM has slots for.
    pub fn max_memory_bytes(self) -> u64 {
        let space = 1_u64.checked_shl(self.phys_bits.into());
        space.map_or(MAX_RAM_BYTES, |space| MAX_RAM_BYTES.min(space >> 1))
    }

    /// The most bytes that may come later beside the RAM of `memory`: what that leaves of
    /// [`Limits::max_memory_bytes`], as far as there are addresses for it above RAM and below those
    /// of persistent memory.
    pub(super) fn room_beside(self, memory: &MemoryConfig) -> u64 {
        let (limit, _) = self.pmem_window();
        let left = self.max_memory_bytes().saturating_sub(memory.size);
        left.min(Reserved::room(memory, limit))
    }

    /// Where persistent memory goes (base, bytes); nowhere if addresses are too narrow for any.
    pub(super) fn pmem_window(self) -> (u64, u64) {
        layout::pmem_window(self.phys_bits.into()).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "limits_test.rs"]
mod tests;
