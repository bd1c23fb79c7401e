//! How large a pod should be: OCI resources and `io.katacontainers` annotations in, vCPUs and bytes out.
//!
//! The rules are those of the Kata shims, so that husk can say beforehand what a shim will ask for.
//! Both shims size a pod either once, before it starts (static), or with every container (dynamic):
//!
//! | | Rust shim | Go shim |
//! |---|---|---|
//! | static vCPUs | overhead + workload, at least 1 | default + workload, at least 1 |
//! | the workload's CPU | quota/period, else the CPUs of its cpuset | quota/period; with quota -1 a sandbox's shares/1024 |
//! | static memory | overhead + whole MiB of the workload, an even number | default + whole MiB of the workload |
//! | only one of both is known | the other is the overhead alone | the other is the default |
//! | neither is known | the defaults | the defaults |
//! | dynamic vCPUs | sum of quota/period + default | the same |
//! | only cpusets | CPUs in their union | the sum of their CPUs + default |
//! | dynamic memory | whole MiB of the sum of limits and huge pages + default | the same |
//! | too much memory | an error | cut to what is possible |
//! | step | any | at most 48 times the present size |
//!
//! vCPUs are rounded up at the very end. Dynamic ones are cut to the maximum, static ones are the maximum; memory grows
//! by whole blocks of the guest and never shrinks. husk's own client gives it back all the same: [`Sizing::fitted`].
//!
//! Four things are not the shims': static vCPUs are cut to what the host has, which the shims leave to the VMM; a quota
//! of 0 limits nothing, where the shims count it as no CPU and pass over the cpuset beside it; negative limits of
//! memory count for none, where the Rust shim adds them up; and huge pages count without a `memory` beside them, as
//! with the Rust shim.
//!
//! One is theirs and not runc's: a quota without a period limits nothing, where runc applies it to
//! the kernel's period of 100 ms. That period bounds what such a quota may be, so that a number of
//! no meaning in any period is refused.

use crate::sizing::annotation::AnnotationError;
use crate::sizing::resources::{CpuSet, CpuTime, Resources};

pub mod annotation;
mod fit;
pub mod resources;

const MIB: u64 = 1 << 20;

/// More vCPUs than this are refused by the shims.
pub const MAX_VCPUS: u32 = 256;

/// The Go shim grows memory by at most this factor at once, since the guest needs memory to describe memory.
const GO_GROWTH: u64 = 48;

/// Which Kata runtime's sizing rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// runtime-rs, the default one.
    Rust,
    /// The Go runtime.
    Go,
}

/// What happened to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// One more: the pod does not get fewer vCPUs.
    Add,
    /// Other limits: anything may come of it.
    Update,
    /// One less: the pod does not get more vCPUs.
    Exit,
}

/// The configuration that the shim sizes pods by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// Whose sizing rules apply: the two runtimes round and add differently.
    pub shim: Shim,
    /// `default_vcpus`.
    pub default_vcpus: CpuTime,
    /// `default_maxvcpus`; 0 = as many as the host has.
    pub max_vcpus: u32,
    /// `default_memory`, in bytes.
    pub default_memory_bytes: u64,
    /// `default_maxmemory`, in bytes; 0 = as much as the host has.
    pub max_memory_bytes: u64,
    /// `overhead_vcpus`, for static sizing by the Rust shim.
    pub overhead_vcpus: CpuTime,
    /// `overhead_memory`, in bytes, likewise.
    pub overhead_memory_bytes: u64,
    /// CPUs that the host has: no pod gets more vCPUs than that.
    pub host_vcpus: u32,
    /// Bytes of memory that the host has: the bound where `max_memory_bytes` is 0.
    pub host_memory_bytes: u64,
}

/// How large a pod is or should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSize {
    /// vCPUs now.
    pub vcpus: u32,
    /// vCPUs that it may ever have.
    pub max_vcpus: u32,
    /// Memory now.
    pub memory_bytes: u64,
}

/// The pod cannot have a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizingError {
    /// An annotation does not say what it should.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// More memory than allowed.
    #[error("memory of {wanted_bytes} bytes wanted, at most {allowed_bytes} allowed")]
    TooMuchMemory {
        /// What the containers add up to.
        wanted_bytes: u64,
        /// The configured maximum, or the host's memory.
        allowed_bytes: u64,
    },
    /// More vCPUs than any shim allows.
    #[error("default_maxvcpus is {found}, at most {MAX_VCPUS} allowed")]
    TooManyVcpus {
        /// The configured maximum.
        found: u32,
    },
    /// Memory comes in blocks, and a block of no bytes is none.
    #[error("the guest's memory block size is 0 bytes")]
    NoBlocks,
}

impl Sizing {
    /// The Rust shim's built-in configuration: 1 vCPU and 2 GiB by default, 0.2 vCPUs and 32 MiB of overhead.
    pub fn new(shim: Shim, host_vcpus: u32, host_memory_bytes: u64) -> Self {
        Self {
            shim,
            default_vcpus: CpuTime::from_vcpus(1),
            max_vcpus: 0,
            default_memory_bytes: 2048 * MIB,
            max_memory_bytes: 0,
            overhead_vcpus: CpuTime::from_millis(200),
            overhead_memory_bytes: 32 * MIB,
            host_vcpus,
            host_memory_bytes,
        }
    }

    /// The size at start when pods are resized later: the defaults.
    ///
    /// # Errors
    /// The maximum of vCPUs is out of range.
    pub fn dynamic_start(&self) -> Result<PodSize, SizingError> {
        let max_vcpus = self.max_vcpus()?;
        let vcpus = self.default_vcpus.vcpus().clamp(1, max_vcpus);
        Ok(PodSize {
            vcpus,
            max_vcpus,
            memory_bytes: self.default_memory_bytes,
        })
    }

    /// The size at start, and for good, of a pod of this workload.
    ///
    /// # Errors
    /// The maximum of vCPUs is out of range, or the memory above its maximum.
    pub fn static_start(&self, workload: &Resources) -> Result<PodSize, SizingError> {
        let max_vcpus = self.max_vcpus()?;
        let memory_bytes = whole_mib(workload.memory_limit_bytes.unwrap_or(0));
        let time = self.static_time(workload);
        let (vcpus, memory_bytes) = match self.shim {
            Shim::Rust if time.is_none() && memory_bytes == 0 => {
                let vcpus = self.default_vcpus.vcpus().clamp(1, max_vcpus);
                (vcpus, self.default_memory_bytes)
            }
            Shim::Rust => {
                let even = memory_bytes.checked_next_multiple_of(2 * MIB).unwrap_or(u64::MAX);
                let time = self.overhead_vcpus.plus(time.unwrap_or_default());
                (time.vcpus(), even.saturating_add(self.overhead_memory_bytes))
            }
            Shim::Go => {
                let time = self.default_vcpus.plus(time.unwrap_or_default());
                (time.vcpus(), memory_bytes.saturating_add(self.default_memory_bytes))
            }
        };
        let vcpus = vcpus.clamp(1, self.host_vcpus.clamp(1, MAX_VCPUS));
        let memory_bytes = self.allow(memory_bytes)?;
        Ok(PodSize {
            vcpus,
            max_vcpus: vcpus,
            memory_bytes,
        })
    }

    /// The CPU that a static pod of this workload has for it.
    fn static_time(&self, workload: &Resources) -> Option<CpuTime> {
        workload.cpu_time().or_else(|| match self.shim {
            Shim::Rust => workload.cpuset_time(),
            Shim::Go => workload.shares_time(),
        })
    }

    /// The size that a running pod of size `now` should have after `change`, given all its containers.
    ///
    /// # Errors
    /// The maximum of vCPUs is out of range, the memory above its maximum, or `block_bytes`, the
    /// unit in which the guest takes memory, is 0.
    pub fn resized(
        &self,
        now: PodSize,
        containers: &[Resources],
        change: Change,
        block_bytes: u64,
    ) -> Result<PodSize, SizingError> {
        let max_vcpus = now.max_vcpus.min(self.max_vcpus()?).max(1);
        let wanted = self.wanted_vcpus(containers).clamp(1, max_vcpus);
        let vcpus = match change {
            Change::Add => wanted.max(now.vcpus),
            Change::Update => wanted,
            Change::Exit => wanted.min(now.vcpus),
        };
        let memory_bytes = self.grown_memory(now.memory_bytes, containers, block_bytes)?;
        Ok(PodSize {
            vcpus,
            max_vcpus: now.max_vcpus,
            memory_bytes,
        })
    }

    fn wanted_vcpus(&self, containers: &[Resources]) -> u32 {
        let quota = containers.iter().filter_map(Resources::cpu_time).reduce(CpuTime::plus);
        if let Some(quota) = quota {
            return quota.plus(self.default_vcpus).vcpus();
        }
        let sets = containers.iter().map(|container| &container.cpus);
        match self.shim {
            Shim::Rust => match sets.fold(CpuSet::default(), |all, one| all.union(one)).len() {
                0 => self.default_vcpus.vcpus(),
                cpus => cpus,
            },
            Shim::Go => {
                let cpus = sets.map(CpuSet::len).fold(0, u32::saturating_add);
                CpuTime::from_vcpus(cpus).plus(self.default_vcpus).vcpus()
            }
        }
    }

    fn wanted_memory(&self, containers: &[Resources]) -> u64 {
        let bytes = containers.iter().map(Resources::memory_bytes);
        whole_mib(bytes.fold(0, u64::saturating_add)).saturating_add(self.default_memory_bytes)
    }

    fn grown_memory(&self, now: u64, containers: &[Resources], block_bytes: u64) -> Result<u64, SizingError> {
        let wanted = self.allow(self.wanted_memory(containers))?;
        let step = wanted.saturating_sub(now);
        if step == 0 {
            return Ok(now);
        }
        let blocks = |bytes: u64| bytes.checked_div(block_bytes).ok_or(SizingError::NoBlocks);
        let whole = |blocks: u64| blocks.saturating_mul(block_bytes);
        let step = match self.shim {
            Shim::Rust => step,
            Shim::Go => step.min(now.saturating_mul(GO_GROWTH)),
        };
        let up = whole(blocks(step.saturating_sub(1))?.saturating_add(1));
        let room = self.max_memory_bytes().saturating_sub(now);
        let allowed = if up <= room { up } else { whole(blocks(room)?) };
        match self.shim {
            Shim::Rust if up > room => Err(self.too_much(now.saturating_add(up))),
            _ => Ok(now.saturating_add(allowed)),
        }
    }

    /// `wanted_bytes`, if the pod may have them.
    fn allow(&self, wanted_bytes: u64) -> Result<u64, SizingError> {
        let allowed_bytes = self.max_memory_bytes();
        match self.shim {
            Shim::Rust if wanted_bytes > allowed_bytes => Err(self.too_much(wanted_bytes)),
            _ => Ok(wanted_bytes.min(allowed_bytes)),
        }
    }

    fn too_much(&self, wanted_bytes: u64) -> SizingError {
        SizingError::TooMuchMemory {
            wanted_bytes,
            allowed_bytes: self.max_memory_bytes(),
        }
    }

    fn max_memory_bytes(&self) -> u64 {
        if self.max_memory_bytes == 0 {
            self.host_memory_bytes
        } else {
            self.max_memory_bytes
        }
    }

    fn max_vcpus(&self) -> Result<u32, SizingError> {
        match self.max_vcpus {
            found if found > MAX_VCPUS => Err(SizingError::TooManyVcpus { found }),
            0 => Ok(self.host_vcpus.clamp(1, MAX_VCPUS)),
            limit => Ok(limit.min(self.host_vcpus).clamp(1, MAX_VCPUS)),
        }
    }
}

/// What there is of whole MiB, in bytes: the shims count in those.
fn whole_mib(bytes: u64) -> u64 {
    bytes & !(MIB - 1)
}

#[cfg(test)]
#[path = "sizing_test.rs"]
mod tests;
