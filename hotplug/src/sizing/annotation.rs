//! Annotations that say how large a pod should be: those of the CRI for its workload, and Kata's for its configuration.
//!
//! | key | value |
//! |---|---|
//! | `io.kubernetes.cri.sandbox-cpu-quota` | microseconds, 0 or -1 for no limit; per period at most the host's CPUs |
//! | `io.kubernetes.cri.sandbox-cpu-period` | microseconds |
//! | `io.kubernetes.cri.sandbox-cpu-shares` | a whole number, 1024 for a CPU |
//! | `io.kubernetes.cri.sandbox-memory` | bytes, 0 or -1 for no limit, at most the host's memory |
//! | `io.katacontainers.config.hypervisor.default_vcpus` | vCPUs, decimal, at most the host's CPUs |
//! | `….default_max_vcpus` | vCPUs, 0 for the host's count, at most that |
//! | `….default_memory` | MiB, or a number with its unit such as `2GiB`; at least 64 MiB, at most the host's memory |
//! | `….memory_overhead` | MiB, at most the host's memory |
//! | `….memory_slots` | a number; 0 means that memory is never added |
//! | `….enable_hugepages`, `….enable_virtio_mem`, `….enable_mem_prealloc` | `true` or `false` |
//! | `….kernel_params` | printable text of at most 2047 bytes |
//!
//! Any other key below `io.katacontainers.config.hypervisor.` asks for what would not be given, and
//! is refused. What is not below it, nor the CRI's of this list, is for others.

use super::resources::{CpuTime, Resources};
use super::{MAX_VCPUS, MIB, Sizing};

/// What all keys of a pod's configuration begin with.
pub const HYPERVISOR: &str = "io.katacontainers.config.hypervisor.";

/// Every key of a pod's configuration, without [`HYPERVISOR`].
pub const HYPERVISOR_KEYS: [&str; 9] = [
    "default_vcpus",
    "default_max_vcpus",
    "default_memory",
    "memory_overhead",
    "memory_slots",
    "enable_hugepages",
    "enable_virtio_mem",
    "enable_mem_prealloc",
    "kernel_params",
];

const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

const MIN_MEMORY_MIB: u64 = 64;
/// The kernel's own limit of a command line, without its end (Linux `COMMAND_LINE_SIZE` on x86).
const COMMAND_LINE_BYTES: usize = 2047;
/// The period of the kernel where none is given (cgroup `cpu.max`).
const USUAL_PERIOD_US: u64 = 100_000;
/// More of a wrong value is not repeated.
const SHOWN_CHARACTERS: usize = 64;

/// An annotation does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Not a value that the key can have.
    #[error("annotation {key} is {found:?}, allowed: {allowed}")]
    Value {
        /// Which annotation.
        key: String,
        /// What it says, or the beginning of it.
        found: String,
        /// What it may say.
        allowed: String,
    },
    /// A key of a pod's configuration that means nothing here.
    #[error("annotation {key} is unknown, allowed below {HYPERVISOR}: {}", HYPERVISOR_KEYS.join(", "))]
    Unknown {
        /// Which annotation.
        key: String,
    },
}

/// What a pod's annotations ask for beside sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Memory from the host's huge pages.
    pub hugepages: bool,
    /// Memory that comes later comes by virtio-mem.
    pub virtio_mem: bool,
    /// Every page is allocated at the start.
    pub prealloc: bool,
    /// In how many steps memory may be added; 0: never.
    pub memory_slots: Option<u32>,
    /// More words for the kernel's command line.
    pub kernel_params: String,
}

impl Sizing {
    /// The pod's workload as the CRI announces it.
    ///
    /// # Errors
    /// A value is no number, negative where that means nothing, or above what the host has.
    pub fn workload<'a>(
        &self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Resources, AnnotationError> {
        let mut pod = Resources::default();
        let mut quota = None;
        for (key, value) in annotations {
            match key {
                CPU_QUOTA => quota = Some(value),
                CPU_SHARES => pod.cpu_shares = number(key, value, "a whole number")?,
                CPU_PERIOD => pod.cpu_period_us = number(key, value, "a whole number of microseconds")?,
                MEMORY => pod.memory_limit_bytes = Resources::memory_limit(self.limit(key, value)?),
                _ => {}
            }
        }
        if let Some(value) = quota {
            pod.cpu_quota_us = self.quota(value, pod.cpu_period_us)?;
        }
        Ok(pod)
    }

    /// Takes over what a pod's annotations say about its configuration, all or nothing. Which of
    /// them a pod may use is the node's to decide beforehand.
    ///
    /// # Errors
    /// A key below [`HYPERVISOR`] is unknown; a value is none, or out of range.
    pub fn annotate<'a>(
        &mut self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Features, AnnotationError> {
        let (mut sizing, mut features) = (self.clone(), Features::default());
        for (key, value) in annotations {
            match key.strip_prefix(HYPERVISOR) {
                None => {}
                Some("default_vcpus") => sizing.default_vcpus = self.vcpus(key, value)?,
                Some("default_max_vcpus") => sizing.max_vcpus = self.max_vcpus_of(key, value)?,
                Some("default_memory") => sizing.default_memory_bytes = self.default_memory(key, value)?,
                Some("memory_overhead") => sizing.overhead_memory_bytes = self.memory(key, value, 0)?,
                Some("memory_slots") => features.memory_slots = Some(number(key, value, "a whole number")?),
                Some("enable_hugepages") => features.hugepages = switch(key, value)?,
                Some("enable_virtio_mem") => features.virtio_mem = switch(key, value)?,
                Some("enable_mem_prealloc") => features.prealloc = switch(key, value)?,
                Some("kernel_params") => features.kernel_params = words(key, value)?,
                Some(_) => return Err(AnnotationError::Unknown { key: shorten(key) }),
            }
        }
        *self = sizing;
        Ok(features)
    }

    fn vcpus(&self, key: &str, value: &str) -> Result<CpuTime, AnnotationError> {
        let most = self.host_vcpus.min(MAX_VCPUS);
        CpuTime::parse(value.trim())
            .filter(|time| time.vcpus() <= most)
            .ok_or_else(|| error(key, value, format!("a decimal number from 0 to {most}")))
    }

    fn max_vcpus_of(&self, key: &str, value: &str) -> Result<u32, AnnotationError> {
        let most = self.host_vcpus.min(MAX_VCPUS);
        within(key, value, 0, most, "a whole number")
    }

    fn memory(&self, key: &str, value: &str, least_mib: u64) -> Result<u64, AnnotationError> {
        let mib = within(
            key,
            value,
            least_mib,
            self.host_memory_bytes / MIB,
            "a whole number of MiB",
        )?;
        Ok(mib.saturating_mul(MIB))
    }

    /// MiB, or a number with its unit, as Kata's Rust shim takes it.
    fn default_memory(&self, key: &str, value: &str) -> Result<u64, AnnotationError> {
        let most = self.host_memory_bytes / MIB;
        let found = mib(value.trim()).filter(|mib| (MIN_MEMORY_MIB..=most).contains(mib));
        let mib = found.ok_or_else(|| {
            let range = format!("from {MIN_MEMORY_MIB} to {most}");
            error(
                key,
                value,
                format!("a whole number of MiB {range}, or as much in another unit such as GiB"),
            )
        })?;
        Ok(mib.saturating_mul(MIB))
    }

    /// A limit of the workload's memory.
    fn limit(&self, key: &str, value: &str) -> Result<i64, AnnotationError> {
        let most = i64::try_from(self.host_memory_bytes).unwrap_or(i64::MAX);
        within(key, value, -1, most, "a whole number of bytes")
    }

    /// A quota that is no limit, or one of no more CPUs than there are.
    fn quota(&self, value: &str, period_us: u64) -> Result<i64, AnnotationError> {
        let period = if period_us == 0 { USUAL_PERIOD_US } else { period_us };
        let most = period.saturating_mul(u64::from(self.host_vcpus));
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        within(CPU_QUOTA, value, -1, most, "a whole number of microseconds")
    }
}

/// Whole MiB: digits are MiB; a decimal number with a unit is that much. Units are `B`, and `K`, `M`, `G` and `T`,
/// which are powers of 1000 alone or before `B`, and of 1024 before `i` or `iB`, in letters of either case.
fn mib(text: &str) -> Option<u64> {
    let unit = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(unit)?;
    let unit = unit.trim().to_ascii_lowercase();
    if unit.is_empty() {
        return text.parse().ok();
    }
    let factor: u64 = match unit.as_str() {
        "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let (whole, part) = (whole.parse::<u64>().ok()?, fraction.parse::<u64>().ok()?);
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let bytes = |number: u64| u128::from(number).checked_mul(factor.into());
    let bytes = bytes(whole)?.checked_add(bytes(part)?.checked_div(scale.into())?)?;
    u64::try_from(bytes.checked_div(MIB.into())?).ok()
}

fn within<T>(key: &str, value: &str, least: T, most: T, what: &str) -> Result<T, AnnotationError>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let allowed = format!("{what} from {least} to {most}");
    let found = number(key, value, &allowed)?;
    if (least..=most).contains(&found) {
        Ok(found)
    } else {
        Err(error(key, value, allowed))
    }
}

/// Digits, and a minus sign where `T` has one.
fn number<T: std::str::FromStr>(key: &str, value: &str, allowed: &str) -> Result<T, AnnotationError> {
    let text = value.trim();
    let parsed = if text.starts_with('+') { None } else { text.parse().ok() };
    parsed.ok_or_else(|| error(key, value, allowed.to_owned()))
}

fn switch(key: &str, value: &str) -> Result<bool, AnnotationError> {
    match value.trim() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(error(key, value, "true, false".to_owned())),
    }
}

fn words(key: &str, value: &str) -> Result<String, AnnotationError> {
    let text = value.trim();
    if text.len() > COMMAND_LINE_BYTES || text.chars().any(char::is_control) {
        let allowed = format!("printable text of at most {COMMAND_LINE_BYTES} bytes");
        return Err(error(key, value, allowed));
    }
    Ok(text.to_owned())
}

fn error(key: &str, found: &str, allowed: String) -> AnnotationError {
    AnnotationError::Value {
        key: key.to_owned(),
        found: shorten(found),
        allowed,
    }
}

/// The beginning of a text that anybody may have written, in one line.
fn shorten(text: &str) -> String {
    let text = text.chars().take(SHOWN_CHARACTERS);
    text.map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
#[path = "annotation_test.rs"]
mod tests;
