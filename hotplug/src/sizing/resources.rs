//! What containers ask for, in the terms of the OCI runtime specification (`linux.resources`).

use std::collections::BTreeSet;
use std::fmt;

const NANOS: u128 = 1_000_000_000;
/// cgroup v1, `cpu.shares`, as Kubernetes counts them.
const SHARES_OF_A_CPU: u64 = 1024;

/// An amount of CPU, in billionths of one: exact enough that thirds of a CPU add up to whole ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuTime {
    nanos: u64,
}

impl CpuTime {
    /// Whole vCPUs.
    pub fn from_vcpus(vcpus: u32) -> Self {
        Self {
            nanos: u64::from(vcpus).saturating_mul(1_000_000_000),
        }
    }

    /// `millis` thousandths of a CPU (Kubernetes' `m`).
    pub fn from_millis(millis: u32) -> Self {
        Self {
            nanos: u64::from(millis).saturating_mul(1_000_000),
        }
    }

    /// A CFS quota per period, both in microseconds (cgroup `cpu.max`). `None` if that is no limit:
    /// a quota of 0 or less, or no period.
    pub fn from_quota(quota_us: i64, period_us: u64) -> Option<Self> {
        let quota = u128::try_from(quota_us).ok().filter(|quota| *quota > 0)?;
        let nanos = quota.saturating_mul(NANOS).checked_div(u128::from(period_us))?;
        Some(Self {
            nanos: u64::try_from(nanos).unwrap_or(u64::MAX),
        })
    }

    /// A decimal number of vCPUs such as `1` or `0.25`, to nine decimals. `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return None;
        }
        let nanos = format!("{fraction:0<9}").parse::<u64>().ok()?;
        let whole = whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?;
        Some(Self {
            nanos: whole.checked_add(nanos)?,
        })
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
        }
    }

    /// How many vCPUs it takes.
    pub fn vcpus(self) -> u32 {
        u32::try_from(self.nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
    }
}

/// What [`CpuTime::parse`] reads, without needless digits.
impl fmt::Display for CpuTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.nanos / 1_000_000_000, self.nanos % 1_000_000_000);
        let fraction = format!("{fraction:09}");
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            fraction => write!(f, "{whole}.{fraction}"),
        }
    }
}

/// A set of the host's CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u16>);

impl CpuSet {
    /// A list such as `0-3,8`, as in cgroup `cpuset.cpus`. Empty is the empty set. `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
            if last < first {
                return None;
            }
            cpus.extend(first..=last);
        }
        Some(Self(cpus))
    }

    /// The CPUs in either.
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What one container asks for, or a whole pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `cpu.quota`, in microseconds. 0 and less: no limit.
    pub cpu_quota_us: i64,
    /// `cpu.period`, in microseconds. 0: no limit.
    pub cpu_period_us: u64,
    /// `cpu.cpus`: the host's CPUs that the container may run on; empty for no restriction.
    pub cpus: CpuSet,
    /// `cpu.shares`, of a sandbox, as the CRI announces them. 0: not announced.
    pub cpu_shares: u64,
    /// `memory.limit`, if there is one.
    pub memory_limit_bytes: Option<u64>,
    /// The sum of `hugepageLimits`.
    pub hugepage_bytes: u64,
}

impl Resources {
    /// `memory.limit` as the specification has it, where 0 and less mean none.
    pub fn memory_limit(limit: i64) -> Option<u64> {
        u64::try_from(limit).ok().filter(|limit| *limit > 0)
    }

    /// How much CPU the quota allows, or `None` if it does not limit.
    pub fn cpu_time(&self) -> Option<CpuTime> {
        CpuTime::from_quota(self.cpu_quota_us, self.cpu_period_us)
    }

    /// The CPUs of the set, if there is one.
    pub fn cpuset_time(&self) -> Option<CpuTime> {
        (!self.cpus.is_empty()).then(|| CpuTime::from_vcpus(self.cpus.len()))
    }

    /// Whole CPUs of the shares, 1024 each, where a negative quota says that a set which is still to come has them: so
    /// does the kubelet with its CPU manager's policy `static`. Any other sandbox has shares as well, and these limit
    /// nothing.
    pub fn shares_time(&self) -> Option<CpuTime> {
        let cpus = u32::try_from(self.cpu_shares.div_ceil(SHARES_OF_A_CPU)).unwrap_or(u32::MAX);
        (self.cpu_quota_us < 0 && cpus > 0).then(|| CpuTime::from_vcpus(cpus))
    }

    /// `memory_limit_bytes` and `hugepage_bytes` together; an absent limit counts as 0.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_limit_bytes.unwrap_or(0).saturating_add(self.hugepage_bytes)
    }
}
