//! The VM that a sandbox boots with: the Rust shim's static size ([`Sizing::static_start`]) if its workload is known,
//! else its dynamic one.
//!
//! | | said by | else |
//! |---|---|---|
//! | workload's CPU | `io.kubernetes.cri.sandbox-cpu-quota`; if that is -1, `-cpu-shares` | quota, else cpuset of the spec |
//! | workload's memory | `io.kubernetes.cri.sandbox-memory` | limit of the spec |
//! | vCPUs | workload and 0.2, rounded up | of a workload of memory alone 1, without one `default_vcpus`, else 1 |
//! | memory | workload, and `memory_overhead` (32 MiB) | `default_memory`, else 2 GiB |
//! | vCPUs that may come | up to `default_max_vcpus` | without a workload up to the host's, else none |
//! | memory that may come | up to the host's, unless `memory_slots` is 0 | without a workload the same, else none |
//!
//! A pod whose workload is known has its size, with its containers in it; one without grows with its containers. Not
//! the Rust shim's are the shares, which are the Go shim's, and the memory beside a workload of CPU alone: no guest
//! boots in the 32 MiB of the overhead.

use std::path::Path;

use husk_firmware::layout;
use husk_hotplug::sizing::annotation::{Features, HYPERVISOR};
use husk_hotplug::sizing::resources::Resources;
use husk_hotplug::sizing::{Shim, Sizing};

use super::{Node, PodBaseSize, PodContainers, PodError, Policy, Spec, SpecError};
use crate::config::{CpusConfig, HUGE_PAGE_BYTES, HotplugMethod, MemoryConfig};

/// In which the CPUs of shares are counted.
const PERIOD_US: u32 = 100_000;

/// What a sandbox asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// vCPUs at the start, and at most.
    pub cpus: CpusConfig,
    /// Memory at the start, and what may come.
    pub memory: MemoryConfig,
    /// More words for the kernel's command line; may be empty.
    pub kernel_params: String,
    /// What it has without its containers, if the workload is known; else its first container says that.
    base: Option<PodBaseSize>,
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
        let mut start = sizing.static_start(&workload)?;
        if workload.memory_limit_bytes.is_none() {
            start.memory_bytes = sizing.static_start(&Resources::default())?.memory_bytes;
        }
        let has_cpu = workload.cpu_time().or_else(|| workload.cpuset_time()).is_some();
        let is_open = !has_cpu && workload.memory_limit_bytes.is_none();

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
            base: (!is_open).then(|| PodBaseSize {
                default_vcpus: sizing.overhead_vcpus.to_string(),
                max_vcpus: 0,
                default_memory_bytes: sizing.overhead_memory_bytes,
                least_vcpus: 0,
                is_orphaned: false,
            }),
        })
    }

    /// What is noted of it while it has no containers, in a VM that boots with `vcpus`; nothing if its first container
    /// will say.
    pub fn list(&self, vcpus: u32) -> Option<PodContainers> {
        let base = self.base.clone()?;
        Some(PodContainers {
            pod: Some(PodBaseSize {
                least_vcpus: vcpus,
                ..base
            }),
            ..PodContainers::default()
        })
    }
}

/// What the CRI announces; what it leaves open, the spec of a pod of one container may say.
fn workload(sizing: &Sizing, spec: &Spec) -> Result<Resources, PodError> {
    let announced = sizing.workload(spec.annotations())?;
    // Read before, so it has a meaning.
    let own = spec.resources().sized().unwrap_or_default();
    let memory_limit_bytes = announced.memory_limit_bytes.or(own.memory_limit_bytes);
    let cpu = if announced.cpu_time().is_some() {
        announced
    } else if let Some(time) = announced.shares_time() {
        Resources {
            cpu_quota_us: i64::from(time.vcpus()).saturating_mul(PERIOD_US.into()),
            cpu_period_us: PERIOD_US.into(),
            ..Resources::default()
        }
    } else {
        within(own, sizing.host_vcpus)?
    };
    Ok(Resources {
        memory_limit_bytes,
        hugepage_bytes: 0,
        ..cpu
    })
}

/// `resources`, if their quota is one of `host_vcpus` at most.
fn within(resources: Resources, host_vcpus: u32) -> Result<Resources, SpecError> {
    if resources.cpu_time().is_none_or(|time| time.vcpus() <= host_vcpus) {
        return Ok(resources);
    }
    Err(SpecError::Field {
        field: "linux.resources.cpu.quota",
        found: format!("{} in a period of {}", resources.cpu_quota_us, resources.cpu_period_us),
        allowed: format!("as many periods as this host has CPUs, {host_vcpus}"),
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
