//! The VM that a sandbox boots with.
//!
//! | | said by | else |
//! |---|---|---|
//! | workload | `io.kubernetes.cri.sandbox-*` | `linux.resources`, else none |
//! | vCPUs | workload and 0.2, rounded up | `default_vcpus`, else 1 |
//! | memory | workload, and `memory_overhead` (32 MiB) | `default_memory`, else 2 GiB |
//! | vCPUs that may come | up to `default_max_vcpus` | without a workload up to the host's, else none |
//! | memory that may come | up to the host's, unless `memory_slots` is 0 | without a workload the same, else none |
//!
//! A pod whose workload is known has its size; one without grows with its containers.

use std::path::Path;

use husk_firmware::layout;
use husk_hotplug::sizing::annotation::{Features, HYPERVISOR};
use husk_hotplug::sizing::resources::Resources;
use husk_hotplug::sizing::{Shim, Sizing};

use super::{Node, PodError, Policy, Spec};
use crate::config::{CpusConfig, HUGE_PAGE_BYTES, HotplugMethod, MemoryConfig};

/// What a sandbox asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// vCPUs at the start, and at most.
    pub cpus: CpusConfig,
    /// Memory at the start, and what may come.
    pub memory: MemoryConfig,
    /// More words for the kernel's command line; may be empty.
    pub kernel_params: String,
}

impl Pod {
    /// Reads a sandbox's `config.json` at `path`.
    ///
    /// # Errors
    /// It cannot be read, or asks for what `policy` or `node` do not give.
    pub fn read(path: &Path, policy: &Policy, node: Node) -> Result<Self, PodError> {
        Self::of(&Spec::read(path)?, policy, node)
    }

    /// The VM for a sandbox of `spec`.
    ///
    /// # Errors
    /// It asks for what `policy` or `node` do not give.
    pub fn of(spec: &Spec, policy: &Policy, node: Node) -> Result<Self, PodError> {
        policy.check(spec.annotations())?;
        let mut sizing = Sizing::new(Shim::Rust, node.vcpus, node.memory_bytes);
        let features = sizing.annotate(spec.annotations())?;
        let workload = workload(&sizing, spec)?;
        let start = sizing.static_start(&workload)?;
        let is_open = workload.cpu_time().is_none() && workload.memory_limit_bytes.is_none();

        let max_key = format!("{HYPERVISOR}default_max_vcpus");
        let max_vcpus = if is_open || spec.annotations().any(|(key, _)| key == max_key) {
            sizing.dynamic_start()?.max_vcpus.max(start.vcpus)
        } else {
            start.vcpus
        };
        let cpus = CpusConfig {
            max_vcpus,
            ..CpusConfig::fixed(start.vcpus)
        };
        let grows = features.memory_slots.map_or(is_open, |slots| slots > 0);
        Ok(Self {
            cpus,
            memory: memory(start.memory_bytes, grows, &features, node),
            kernel_params: features.kernel_params,
        })
    }
}

/// What the CRI announces; what it leaves open, the spec of a pod of one container may say.
fn workload(sizing: &Sizing, spec: &Spec) -> Result<Resources, PodError> {
    let announced = sizing.workload(spec.annotations())?;
    // Read before, so it has a meaning.
    let own = spec.resources().sized().unwrap_or_default();
    let cpu = if announced.cpu_time().is_some() {
        &announced
    } else {
        &own
    };
    Ok(Resources {
        cpu_quota_us: cpu.cpu_quota_us,
        cpu_period_us: cpu.cpu_period_us,
        memory_limit_bytes: announced.memory_limit_bytes.or(own.memory_limit_bytes),
        ..Resources::default()
    })
}

fn memory(bytes: u64, grows: bool, features: &Features, node: Node) -> MemoryConfig {
    let [page, _] = HUGE_PAGE_BYTES;
    let size = if features.hugepages {
        bytes.checked_next_multiple_of(page).unwrap_or(bytes)
    } else {
        bytes
    };
    let room = node.memory_bytes.saturating_sub(size);
    let room = room - room % layout::memory_block_of(size);
    let is_known = node.memory_bytes != u64::MAX;
    let mut memory = MemoryConfig {
        size,
        hugepages: features.hugepages,
        prefault: features.prealloc,
        hotplug_size: (grows && is_known && room > 0).then_some(room),
        ..MemoryConfig::default()
    };
    if features.virtio_mem {
        memory.hotplug_method = HotplugMethod::VirtioMem;
    }
    memory
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
