//! What a pod costs beside its guest's memory, measured: VMs are started as Kata starts them, each
//! with its file server, and once they have come to rest the kernel is asked what each process has
//! for itself alone.
//!
//! | part | where from |
//! |---|---|
//! | VMM, file server | private pages of every mapping but guest RAM, swapped ones included (`/proc/PID/smaps`) |
//! | page tables | `VmPTE` of both (`/proc/PID/status`) |
//! | KVM | what `SecPageTables` of `/proc/meminfo` has grown by, over the number of VMs: nested page tables, which have no owner there; Linux 6.0 |
//! | Kata's shim | the same of the largest `containerd-shim-kata-v2` that runs on this host, or as given |
//!
//! What all VMs share, the program's text, is no single pod's. No shim drives these VMs: without
//! one beside them, and without a figure, nothing is measured, since a sum without it kills pods
//! whose cgroup has the shim in it.

mod pods;
mod smaps;

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use smaps::Share;

use crate::install::Overhead;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that is started.
    pub program: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its initial RAM file system, if it has one.
    pub initramfs: Option<PathBuf>,
    /// Guest memory, in bytes.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// How many VMs at once, from 1 on.
    pub pods: usize,
    /// For how long figures have to be at rest.
    pub rest: Duration,
    /// For how long to wait for that.
    pub patience: Duration,
    /// What Kata's shim takes, in MiB; `None` to look at those that run here.
    pub shim_mib: Option<u64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The host failed.
    #[error("cannot {0}")]
    Io(String, #[source] io::Error),
    /// A VM did not start.
    #[error("VM {pod} of {pods} did not start: {said}")]
    Start {
        /// Which.
        pod: usize,
        /// Of how many.
        pods: usize,
        /// Its own words, or the API's.
        said: String,
    },
    /// A VM ended while it was measured.
    #[error("VM {pod} of {pods} ended while it was measured: {said}")]
    Ended {
        /// Which.
        pod: usize,
        /// Of how many.
        pods: usize,
        /// Its own words.
        said: String,
    },
    /// The figures went on growing.
    #[error("figures were not at rest within {0} s: is the guest at work? --rest and --patience say how long to wait")]
    Restless(u64),
    /// Nothing is known of Kata's shim.
    #[error(
        "--shim is missing: no containerd-shim-kata-v2 that may be looked into runs here; allowed: 0 to 4096 MiB, 0 for a figure without the shim"
    )]
    NoShim,
    /// A signal asked for the end.
    #[error("the measurement was ended by a signal")]
    Interrupted,
}

/// One pod's figures, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The VMM's.
    pub vmm: Share,
    /// The file server's.
    pub server: Share,
}

impl Figures {
    const fn sum(self) -> u64 {
        self.vmm.private_bytes + self.vmm.tables_bytes + self.server.private_bytes + self.server.tables_bytes
    }
}

/// What Kata's shim takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shim {
    /// As many MiB, as somebody has said.
    Given(u64),
    /// As many bytes, the most that any of so many has.
    Seen {
        /// What that one has.
        bytes: u64,
        /// How many there are.
        count: usize,
    },
}

impl Shim {
    const fn mib(self) -> u64 {
        match self {
            Self::Given(mib) => mib,
            Self::Seen { bytes, .. } => bytes.div_ceil(1 << 20),
        }
    }

    fn of(options: &Options) -> Result<Self, MeasureError> {
        if let Some(mib) = options.shim_mib {
            return Ok(Self::Given(mib));
        }
        let shares = smaps::shims();
        let count = shares.len();
        let sums = shares.iter().map(|share| share.private_bytes + share.tables_bytes);
        let bytes = sums.max().ok_or(MeasureError::NoShim)?;
        Ok(Self::Seen { bytes, count })
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Measured {
    options: Options,
    shim: Shim,
    pods: Vec<Figures>,
    kvm_bytes: Option<u64>,
}

/// Measures. Everything that was started has ended when this returns, which it does early when the
/// process is asked to end.
///
/// # Errors
///
/// Nothing is known of Kata's shim, a VM did not start or ended, figures did not come to rest, or a
/// signal asked for the end.
pub fn measure(options: &Options) -> Result<Measured, MeasureError> {
    let shim = Shim::of(options)?;
    crate::fatal::note_when_asked();
    let before = smaps::kvm_tables();
    let mut pods = pods::Pods::start(options)?;
    let figures = pods.at_rest(options)?;
    let growth = smaps::kvm_tables()
        .zip(before)
        .map(|(after, before)| after.saturating_sub(before));
    let count = u64::try_from(options.pods).unwrap_or(u64::MAX);
    Ok(Measured {
        options: options.clone(),
        shim,
        pods: figures,
        kvm_bytes: growth.map(|bytes| bytes.div_ceil(count)),
    })
}

impl Measured {
    /// The largest but for one in a hundred, by nearest rank, KVM's part and the shim's added.
    pub fn overhead(&self) -> Overhead {
        let sums = self.pods.iter().map(|pod| pod.sum()).collect();
        let bytes = rank(sums, 99) + self.kvm_bytes.unwrap_or(0);
        let shim = match self.shim {
            Shim::Given(0) => "without Kata's shim".into(),
            Shim::Given(mib) => format!("{mib} MiB for Kata's shim, as given, added"),
            Shim::Seen { count, .. } => {
                format!(
                    "{} MiB for Kata's shim, the largest of {count} here, added",
                    self.shim.mib()
                )
            }
        };
        Overhead {
            memory_mib: bytes.div_ceil(1 << 20) + self.shim.mib(),
            shim_mib: self.shim.mib(),
            cpu_millis: 250,
            method: format!(
                "p99 of {} pods at rest, {} vCPUs and {} MiB each: private memory and page tables of VMM and file server{}; {shim}; cpu is Kata's figure",
                self.options.pods,
                self.options.cpus,
                self.options.memory_bytes >> 20,
                if self.kvm_bytes.is_some() {
                    ", KVM's page tables"
                } else {
                    ""
                },
            ),
        }
    }

    /// As text for a terminal, with a line end after each row.
    pub fn to_table(&self) -> String {
        let mut text = format!("{:<28}{:>10}{:>10}{:>10}   KiB\n", "", "p50", "p99", "most");
        let mut row = |name: &str, of: fn(&Figures) -> u64| {
            let values: Vec<u64> = self.pods.iter().map(of).collect();
            let at = |percent| rank(values.clone(), percent).div_ceil(1024);
            let _ = writeln!(text, "{name:<28}{:>10}{:>10}{:>10}", at(50), at(99), at(100));
        };
        row("VMM, private", |pod| pod.vmm.private_bytes);
        row("VMM, page tables", |pod| pod.vmm.tables_bytes);
        row("file server, private", |pod| pod.server.private_bytes);
        row("file server, page tables", |pod| pod.server.tables_bytes);
        row("all of these", |pod| pod.sum());
        let _ = match self.kvm_bytes {
            Some(bytes) => writeln!(
                text,
                "{:<28}{:>10}   on average",
                "KVM's page tables",
                bytes.div_ceil(1024)
            ),
            None => writeln!(text, "{:<28}   unknown: this kernel does not tell", "KVM's page tables"),
        };
        let _ = match self.shim {
            Shim::Given(mib) => writeln!(text, "{:<28}{:>10}   as given", "Kata's shim", mib << 10),
            Shim::Seen { bytes, count } => {
                let largest = bytes.div_ceil(1024);
                writeln!(text, "{:<28}{largest:>10}   the largest of {count} here", "Kata's shim")
            }
        };
        let overhead = self.overhead();
        let _ = writeln!(text, "\noverhead: {} MiB ({})", overhead.memory_mib, overhead.method);
        text
    }
}

/// The value that `percent` of `values` do not exceed, by nearest rank; 0 of none.
fn rank(mut values: Vec<u64>, percent: usize) -> u64 {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_a_value_that_there_is() {
        assert_eq!(rank(vec![], 99), 0);
        assert_eq!((rank(vec![7], 1), rank(vec![7], 99)), (7, 7));
        assert_eq!((rank(vec![3, 1, 2], 50), rank(vec![3, 1, 2], 99)), (2, 3));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!((rank(hundred.clone(), 99), rank(hundred, 100)), (99, 100));
    }

    #[test]
    fn an_overhead_is_rounded_up_and_tells_its_method() {
        let share = |private_bytes, tables_bytes| Share {
            private_bytes,
            tables_bytes,
        };
        let pod = |extra: u64| Figures {
            vmm: share((3 << 20) + extra, 100 << 10),
            server: share(1 << 20, 50 << 10),
        };
        let mut measured = Measured {
            options: Options {
                program: "/p".into(),
                kernel: "/k".into(),
                initramfs: None,
                memory_bytes: 512 << 20,
                cpus: 2,
                pods: 2,
                rest: Duration::ZERO,
                patience: Duration::ZERO,
                shim_mib: None,
            },
            shim: Shim::Given(0),
            pods: vec![pod(0), pod(1 << 20)],
            kvm_bytes: None,
        };
        let overhead = measured.overhead();
        assert_eq!((overhead.memory_mib, overhead.cpu_millis), (6, 250));
        assert!(
            overhead
                .method
                .starts_with("p99 of 2 pods at rest, 2 vCPUs and 512 MiB each: ")
        );
        assert!(overhead.method.ends_with("; without Kata's shim; cpu is Kata's figure"));
        measured.kvm_bytes = Some(1 << 20);
        measured.shim = Shim::Given(10);
        assert_eq!(measured.overhead().memory_mib, 17);
        assert!(
            measured
                .overhead()
                .method
                .contains("; 10 MiB for Kata's shim, as given, added; ")
        );
        measured.shim = Shim::Seen {
            bytes: (9 << 20) + 1,
            count: 3,
        };
        let overhead = measured.overhead();
        assert_eq!((overhead.memory_mib, overhead.shim_mib), (17, 10));
        assert!(
            overhead
                .method
                .contains("; 10 MiB for Kata's shim, the largest of 3 here, added; ")
        );
        let table = measured.to_table();
        assert!(
            table.contains("VMM, private                      3072      4096      4096\n"),
            "{table}"
        );
        assert!(table.contains("\noverhead: 17 MiB (p99 of 2 pods"), "{table}");
    }
}
