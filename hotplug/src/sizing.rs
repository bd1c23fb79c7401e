//! How large a pod should be: OCI resources and `io.katacontainers` annotations in, vCPUs and bytes out.
//!
//! The rules are those of the Kata shims, so that husk can say beforehand what a shim will ask for. Both shims size a pod either
//! once, before it starts (static), or with every container (dynamic):
//!
//! | | Rust shim | Go shim |
//! |---|---|---|
//! | static vCPUs | overhead + workload, at least 1 | default + workload, at least 1 |
//! | static memory | overhead + workload, which is rounded up to an even number of MiB | default + workload, likewise |
//! | dynamic vCPUs | sum of quota/period + default | the same |
//! | only cpusets | CPUs in their union | CPUs in their union + default |
//! | dynamic memory | sum of limits and huge pages + default | the same |
//! | too much memory | an error | cut to what is possible |
//! | step | any | at most 48 times the present size |
//!
//! vCPUs are rounded up at the very end and cut to the maximum; memory grows by whole blocks of the guest and never shrinks.
//! husk's own client gives it back all the same: [`Sizing::fitted`].

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

/// Whose rules.
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
    /// Whose rules.
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
    /// The host's CPUs.
    pub host_vcpus: u32,
    /// The host's memory.
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

    /// The size at start, and for good, of a pod of this workload. What the workload leaves open is the default.
    ///
    /// # Errors
    /// The maximum of vCPUs is out of range, or the memory above its maximum.
    pub fn static_start(&self, workload: &Resources) -> Result<PodSize, SizingError> {
        let (base_vcpus, base_memory) = match self.shim {
            Shim::Rust => (self.overhead_vcpus, self.overhead_memory_bytes),
            Shim::Go => (self.default_vcpus, self.default_memory_bytes),
        };
        let time = workload
            .cpu_time()
            .map_or(self.default_vcpus, |time| time.plus(base_vcpus));
        let vcpus = time.vcpus().clamp(1, self.max_vcpus()?);
        let even = |bytes: u64| bytes.checked_next_multiple_of(2 * MIB).unwrap_or(u64::MAX);
        let memory_bytes = workload.memory_limit_bytes.map_or(self.default_memory_bytes, |bytes| {
            even(bytes).saturating_add(base_memory)
        });
        let memory_bytes = self.allow(memory_bytes)?;
        Ok(PodSize {
            vcpus,
            max_vcpus: vcpus,
            memory_bytes,
        })
    }

    /// The size that a running pod of size `now` should have after `change`, given all its containers.
    ///
    /// # Errors
    /// The maximum of vCPUs is out of range, the memory above its maximum, or `block_bytes`, the unit in which the guest takes
    /// memory, is 0.
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
        let cpus = containers
            .iter()
            .fold(CpuSet::default(), |all, one| all.union(&one.cpus))
            .len();
        match (quota, self.shim) {
            (Some(quota), _) => quota.plus(self.default_vcpus).vcpus(),
            (None, Shim::Rust) if cpus > 0 => cpus,
            (None, _) => CpuTime::from_vcpus(cpus).plus(self.default_vcpus).vcpus(),
        }
    }

    fn wanted_memory(&self, containers: &[Resources]) -> u64 {
        let bytes = containers.iter().map(Resources::memory_bytes);
        bytes.fold(self.default_memory_bytes, u64::saturating_add)
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

#[cfg(test)]
#[path = "sizing_test.rs"]
mod tests;
