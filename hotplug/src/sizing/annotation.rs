//! Annotations that say how large a pod should be: those of the CRI for its workload, and Kata's for its configuration.
//!
//! | key | value |
//! |---|---|
//! | `io.kubernetes.cri.sandbox-cpu-quota` | microseconds, 0 or less for no limit |
//! | `io.kubernetes.cri.sandbox-cpu-period` | microseconds |
//! | `io.kubernetes.cri.sandbox-memory` | bytes, 0 or less for no limit |
//! | `io.katacontainers.config.hypervisor.default_vcpus` | vCPUs, decimal |
//! | `io.katacontainers.config.hypervisor.default_max_vcpus` | vCPUs, 0 for the host's count |
//! | `io.katacontainers.config.hypervisor.default_memory` | MiB, at least 64 |

use super::resources::{CpuTime, Resources};
use super::{MAX_VCPUS, MIB, Sizing};

const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const DEFAULT_VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";
const DEFAULT_MAX_VCPUS: &str = "io.katacontainers.config.hypervisor.default_max_vcpus";
const DEFAULT_MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";

const MIN_MEMORY_MIB: u64 = 64;

/// An annotation does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} is {found:?}, not {allowed}")]
pub struct AnnotationError {
    /// Which annotation.
    pub key: &'static str,
    /// What it says.
    pub found: String,
    /// What it may say.
    pub allowed: &'static str,
}

impl Resources {
    /// The pod's workload as the CRI announces it. Other annotations are none of our business.
    ///
    /// # Errors
    /// A value is not a number.
    pub fn from_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, AnnotationError> {
        const WHOLE: &str = "a whole number";
        let mut pod = Self::default();
        for (key, value) in annotations {
            match key {
                CPU_QUOTA => pod.cpu_quota_us = number(CPU_QUOTA, value, WHOLE)?,
                CPU_PERIOD => pod.cpu_period_us = number(CPU_PERIOD, value, WHOLE)?,
                MEMORY => pod.memory_limit_bytes = Self::memory_limit(number(MEMORY, value, WHOLE)?),
                _ => {}
            }
        }
        Ok(pod)
    }
}

impl Sizing {
    /// Takes over what a pod's annotations say about its configuration. Which of them a pod may use is the shim's to decide.
    ///
    /// # Errors
    /// A value is not a number, or out of range; some annotations may have been taken over already.
    pub fn annotate<'a>(
        &mut self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), AnnotationError> {
        for (key, value) in annotations {
            match key {
                DEFAULT_VCPUS => self.default_vcpus = vcpus(value)?,
                DEFAULT_MAX_VCPUS => self.max_vcpus = max_vcpus(value)?,
                DEFAULT_MEMORY => self.default_memory_bytes = memory(value)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn vcpus(value: &str) -> Result<CpuTime, AnnotationError> {
    CpuTime::parse(value.trim())
        .filter(|time| time.vcpus() <= MAX_VCPUS)
        .ok_or_else(|| error(DEFAULT_VCPUS, value, "a decimal number from 0 to 256"))
}

fn max_vcpus(value: &str) -> Result<u32, AnnotationError> {
    const ALLOWED: &str = "a whole number from 0 to 256";
    let limit = number(DEFAULT_MAX_VCPUS, value, ALLOWED)?;
    if limit > MAX_VCPUS {
        Err(error(DEFAULT_MAX_VCPUS, value, ALLOWED))
    } else {
        Ok(limit)
    }
}

fn memory(value: &str) -> Result<u64, AnnotationError> {
    const ALLOWED: &str = "a whole number of MiB from 64 on";
    let mib: u64 = number(DEFAULT_MEMORY, value, ALLOWED)?;
    mib.checked_mul(MIB)
        .filter(|_| mib >= MIN_MEMORY_MIB)
        .ok_or_else(|| error(DEFAULT_MEMORY, value, ALLOWED))
}

fn number<T: std::str::FromStr>(key: &'static str, value: &str, allowed: &'static str) -> Result<T, AnnotationError> {
    value.trim().parse().map_err(|_| error(key, value, allowed))
}

fn error(key: &'static str, found: &str, allowed: &'static str) -> AnnotationError {
    AnnotationError {
        key,
        found: found.to_owned(),
        allowed,
    }
}
