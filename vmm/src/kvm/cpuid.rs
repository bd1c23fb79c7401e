//! CPUID of every vCPU: what the host offers, plus identity and topology (AMD APM vol. 3 appendix
//! E, Intel SDM vol. 2A `CPUID`).
//!
//! One package of N cores with one thread each, whatever N. Every leaf that says something about
//! topology says just that:
//!
//! | leaf | field | value |
//! |---|---|---|
//! | 0x1 | EBX 31:24, 23:16; EDX 28 | APIC ID; N; HTT if N > 1 |
//! | 0x4, 0x8000_001d | EAX 25:14, 31:26 | L1 and L2 of one core, L3 of all; cores - 1 |
//! | 0xb, 0x1f | sub-leaves 0, 1; EDX | SMT: 1 thread; core: N; x2APIC ID |
//! | 0x8000_0008 | ECX 7:0, 15:12 | N - 1; bits of an APIC ID |
//! | 0x8000_001e | EAX; EBX; ECX | APIC ID; core ID; node 0 |
//! | 0x8000_0026 | | absent |
//!
//! Guest-physical addresses have no more bits than the VM is given (0x8000_0008, EAX 7:0 and 23:16).
//! A VM whose vCPUs may come lacks MTRR and PAT (0x1 and 0x8000_0001, EDX 12 and 16).
//!
//! KVM lists the leaves of the processor's name, 0x8000_0002 to 0x8000_0004, as zero, and a guest
//! then makes one up of its family: they are the host's.

use std::arch::x86_64::{__cpuid, CpuidResult};

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// First leaf of the hypervisor range: the KVM signature (KVM cpuid.rst).
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// KVM's paravirtual features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Frequencies: EAX is the TSC's in kHz, EBX the local APIC timer's in kHz.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds (`APIC_BUS_CYCLE_NS` is 1).
const APIC_TIMER_KHZ: u32 = 1_000_000;
/// `KVM_FEATURE_MSI_EXT_DEST_ID`: messages may name 15-bit APIC IDs.
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 15;
/// `KVM_FEATURE_ASYNC_PF_INT`: an interrupt tells the guest that a page which the host had to fetch
/// is there. It is not offered: where pages are not there for want of memory alone, each costs the
/// guest two more exits and a switch of tasks, and one that its processes wait for beside other
/// work is not seen by [`super::stuck`].
const KVM_FEATURE_ASYNC_PF_INT: u32 = 14;

/// What SVM can do (AMD APM vol. 3 appendix E).
const SVM_FEATURES: u32 = 0x8000_000a;

/// Leaf whose EAX has the widths of addresses: physical in bits 7:0, linear in 15:8, and in 23:16
/// the physical ones of guests, 0 if those are no other (AMD APM vol. 3 §E.4.7).
pub(super) const ADDRESS_SIZES: u32 = 0x8000_0008;

/// The highest extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// The processor's name: 48 characters, 16 a leaf (AMD APM vol. 3 §E.4.3).
const BRAND: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];

/// Leaf 0x1, ECX.
const FEATURE_VMX: u32 = 1 << 5;
/// Leaf 0x1, EDX, and on AMD the same bits of 0x8000_0001: memory type range registers, and the page attribute table.
const FEATURE_MTRR: u32 = 1 << 12;
const FEATURE_PAT: u32 = 1 << 16;
/// Leaf 0x8000_0001, ECX.
const FEATURE_SVM: u32 = 1 << 2;
const FEATURE_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_HYPERVISOR: u32 = 1 << 31;
const FEATURE_HTT: u32 = 1 << 28;
const AMD_CMP_LEGACY: u32 = 1 << 1;

/// The CPUID leaves common to all vCPUs of a VM, ready to be made each vCPU's own.
#[derive(Clone, Debug)]
pub struct Topology {
    entries: Vec<kvm_cpuid_entry2>,
    vcpus: u32,
}

impl Topology {
    /// Takes what KVM supports, for a VM of `vcpus` vCPUs.
    pub(super) fn new(supported: &CpuId, vcpus: u32, tsc_deadline: bool) -> Self {
        let mut entries: Vec<_> = supported
            .as_slice()
            .iter()
            .copied()
            .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026))
            .collect();
        let highest = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= highest) {
            entries.extend(extended_topology(leaf, vcpus));
        }
        for entry in &mut entries {
            share(entry, vcpus, tsc_deadline);
        }
        Self { entries, vcpus }
    }

    /// The same without VMX and SVM: the guest cannot run guests of its own.
    #[must_use]
    pub fn without_nesting(mut self) -> Self {
        for entry in &mut self.entries {
            match entry.function {
                0x1 => entry.ecx &= !FEATURE_VMX,
                0x8000_0001 => entry.ecx &= !FEATURE_SVM,
                SVM_FEATURES => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                _ => {}
            }
        }
        self
    }

    /// The same without MTRRs and PAT. Whenever a processor comes, a guest that has either sets it
    /// on all of them at one moment (Intel SDM vol. 3A §12.11.8): Linux stops them, and each waits
    /// actively for the others (ADR 24).
    #[must_use]
    pub fn without_cache_control(mut self) -> Self {
        for entry in &mut self.entries {
            // Intel reserves both bits of the second leaf, AMD repeats them there.
            if matches!(entry.function, 0x1 | 0x8000_0001) {
                entry.edx &= !(FEATURE_MTRR | FEATURE_PAT);
            }
        }
        self
    }

    /// The same with guest-physical addresses of `bits` bits at most (AMD APM vol. 3 §E.4.7): those
    /// of the processor, and of what KVM says of its page tables.
    #[must_use]
    pub fn with_phys_bits(mut self, bits: u8) -> Self {
        for entry in self.entries.iter_mut().filter(|entry| entry.function == ADDRESS_SIZES) {
            let [of_processor, linear, of_guests, rest] = entry.eax.to_le_bytes();
            entry.eax = u32::from_le_bytes([of_processor.min(bits), linear, of_guests.min(bits), rest]);
        }
        self
    }

    /// The same with the processor's name.
    #[must_use]
    pub(super) fn with_brand(mut self, brand: [CpuidResult; 3]) -> Self {
        self.entries.retain(|entry| !BRAND.contains(&entry.function));
        for (function, CpuidResult { eax, ebx, ecx, edx }) in BRAND.into_iter().zip(brand) {
            self.entries.push(kvm_cpuid_entry2 {
                function,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            });
        }
        self
    }

    /// CPUID of vCPU `id`, whose TSC runs at `tsc_khz`.
    ///
    /// # Panics
    /// Never: the entries came from a table of the same kind and number.
    pub(super) fn cpuid(&self, id: u32, tsc_khz: Option<u32>) -> CpuId {
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            own(entry, id);
        }
        if let Some(khz) = tsc_khz {
            publish_frequency(&mut entries, khz);
        }
        CpuId::from_entries(&entries)
            .expect("at most seven entries more than KVM gave, whose number has a limit of 256")
    }

    /// How many vCPUs the topology describes.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }
}

/// The name of this machine's processor; `None` if it has none.
pub(super) fn host_brand() -> Option<[CpuidResult; 3]> {
    let has_brand = BRAND.into_iter().all(|leaf| leaf <= __cpuid(EXTENDED).eax);
    has_brand.then(|| BRAND.map(__cpuid))
}

/// Whether this machine's processor shows VMX or SVM.
pub(super) fn host_virtualizes() -> bool {
    /// Leaf with the features of AMD's extension.
    const AMD_FEATURES: u32 = 0x8000_0001;
    let amd = __cpuid(EXTENDED).eax >= AMD_FEATURES && __cpuid(AMD_FEATURES).ecx & FEATURE_SVM != 0;
    amd || __cpuid(1).ecx & FEATURE_VMX != 0
}

/// Bits that number `count` things: 0 for one, 3 for eight, 4 for nine.
fn id_bits(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

/// Leaves 0xb and 0x1f: SMT level, core level, and the end.
fn extended_topology(function: u32, vcpus: u32) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind,
        ..Default::default()
    };
    [
        level(0, 0, 1, SMT),
        level(1, id_bits(vcpus), vcpus.min(0xffff), CORE),
        level(2, 0, 0, 0),
    ]
}

/// What is the same on every vCPU.
fn share(entry: &mut kvm_cpuid_entry2, vcpus: u32, tsc_deadline: bool) {
    let others = vcpus.saturating_sub(1);
    match entry.function {
        0x1 => {
            entry.ecx |= FEATURE_HYPERVISOR;
            entry.ecx = set_if(entry.ecx, FEATURE_TSC_DEADLINE, tsc_deadline);
            entry.edx = set_if(entry.edx, FEATURE_HTT, vcpus > 1);
            entry.ebx = (entry.ebx & 0x0000_ffff) | (vcpus.min(0xff) << 16);
        }
        // Type 0 ends the list. Level 3 is shared by the package, lower levels by nobody.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 0x7 >= 3 {
                others.min(0xfff)
            } else {
                0
            };
            entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14) | (others.min(0x3f) << 26);
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 0x7 >= 3 {
                others.min(0xfff)
            } else {
                0
            };
            entry.eax = (entry.eax & 0x0000_3fff) | (sharing << 14);
        }
        KVM_SIGNATURE => entry.eax = entry.eax.max(KVM_FEATURES),
        KVM_FEATURES => {
            entry.eax &= !(1 << KVM_FEATURE_ASYNC_PF_INT);
            entry.eax = set_if(entry.eax, 1 << KVM_FEATURE_MSI_EXT_DEST_ID, vcpus > 255);
        }
        0x8000_0001 => entry.ecx = set_if(entry.ecx, AMD_CMP_LEGACY, vcpus > 1 && is_amd_leaf(entry)),
        ADDRESS_SIZES => entry.ecx = others.min(0xff) | (id_bits(vcpus) << 12),
        _ => {}
    }
}

/// AMD alone defines ECX of 0x8000_0001 beyond LAHF and LZCNT; bit 2 (SVM) or 6 (SSE4A) tells.
fn is_amd_leaf(entry: &kvm_cpuid_entry2) -> bool {
    entry.ecx & (1 << 2 | 1 << 6) != 0
}

/// What only this vCPU sees.
fn own(entry: &mut kvm_cpuid_entry2, id: u32) {
    match entry.function {
        0x1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | ((id & 0xff) << 24),
        0xb | 0x1f => entry.edx = id,
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaf 0x4000_0010, and 0x15 where the host's CPU has it: the guest need not measure its clocks.
fn publish_frequency(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    entries.retain(|e| e.function != HYPERVISOR_TIMING);
    entries.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_TIMING,
        eax: tsc_khz,
        ebx: APIC_TIMER_KHZ,
        ..Default::default()
    });
    for entry in entries {
        match entry.function {
            KVM_SIGNATURE => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
            0x15 => (entry.eax, entry.ebx, entry.ecx) = (1, 1, tsc_khz.saturating_mul(1000)),
            _ => {}
        }
    }
}

fn set_if(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
