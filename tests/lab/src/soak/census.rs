//! What there is on the host, counted before and after: anything that is more afterwards was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// What pods could leave behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceCensus {
    /// User processes, by name. Kernel threads are not counted: they come and go.
    pub processes: Vec<String>,
    /// Unix sockets of all processes in this network namespace.
    pub sockets: usize,
    /// This process's descriptors.
    pub descriptors: usize,
    /// Network interfaces of this namespace.
    pub interfaces: BTreeSet<String>,
    /// Network namespaces that processes are in.
    pub namespaces: usize,
    /// Mounts of this process.
    pub mounts: usize,
    /// Files in the folder of the pods.
    pub files: Vec<String>,
}

impl ResourceCensus {
    /// Counts. `pods` is where the pods have their folders.
    ///
    /// # Errors
    ///
    /// There is no `/proc`.
    pub fn take(pods: &Path) -> Result<Self> {
        let mut processes = Vec::new();
        let mut namespaces = BTreeSet::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let path = entry.path();
            // A kernel thread has no command line, and neither has a process that is no more than an exit code.
            let cmdline = fs::read(path.join("cmdline")).unwrap_or_default();
            let zombie = fs::read_to_string(path.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
            if cmdline.is_empty() && !zombie {
                continue;
            }
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            processes.push(name.trim_end().to_string());
            namespaces.extend(fs::read_link(path.join("ns/net")));
        }
        processes.sort();
        let lines = |path: &str| -> Result<usize> {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
            Ok(text.lines().count())
        };
        Ok(Self {
            processes,
            sockets: lines("/proc/net/unix")?,
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            interfaces: names(Path::new("/sys/class/net")).into_iter().collect(),
            namespaces: namespaces.len(),
            mounts: lines("/proc/self/mounts")?,
            files: names(pods),
        })
    }

    /// What there is more of than `before`, one line each.
    pub fn more_than(&self, before: &Self) -> Vec<String> {
        let mut more = Vec::new();
        let mut left = self.processes.clone();
        for name in &before.processes {
            if let Some(index) = left.iter().position(|other| other == name) {
                left.remove(index);
            }
        }
        if !left.is_empty() {
            more.push(format!("processes: {}", left.join(", ")));
        }
        let counts = [
            ("unix sockets", before.sockets, self.sockets),
            ("descriptors of this process", before.descriptors, self.descriptors),
            ("network namespaces", before.namespaces, self.namespaces),
            ("mounts", before.mounts, self.mounts),
        ];
        for (what, before, after) in counts {
            if after > before {
                more.push(format!("{what}: {after}, {before} before"));
            }
        }
        let taps: Vec<_> = self.interfaces.difference(&before.interfaces).cloned().collect();
        if !taps.is_empty() {
            more.push(format!("network interfaces: {}", taps.join(", ")));
        }
        if self.files.len() > before.files.len() {
            more.push(format!("files: {}", self.files.join(", ")));
        }
        more
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// `MemAvailable` in KiB.
///
/// # Errors
///
/// There is no such line in `/proc/meminfo`.
pub fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    number.context("no MemAvailable in /proc/meminfo")
}

/// How much memory each pod has cost in the end, in KiB: the median of all slopes between two
/// measurements (Theil 1950, Sen 1968), which a few outliers do not bend. Negative if there was
/// more in the end.
pub fn cost_per_pod(available: &[u64]) -> f64 {
    let points = || available.iter().zip(0_u32..);
    let slope = |(a, i): (&u64, u32), (b, j): (&u64, u32)| -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "KiB of a host's memory fit")]
        let lost = *a as f64 - *b as f64;
        lost / f64::from(j - i)
    };
    let pairs = points().flat_map(|from| {
        points()
            .skip_while(move |to| to.1 <= from.1)
            .map(move |to| slope(from, to))
    });
    let mut slopes: Vec<f64> = pairs.collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_more_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let before = ResourceCensus::take(folder.path()).unwrap();
        assert_eq!(before.more_than(&before), Vec::<String>::new());
        let after = ResourceCensus {
            processes: [before.processes.clone(), vec!["husk".into()]].concat(),
            sockets: before.sockets + 2,
            descriptors: before.descriptors.saturating_sub(1),
            files: vec!["api.sock".into()],
            ..before.clone()
        };
        let more = after.more_than(&before);
        assert_eq!(more.len(), 3, "{more:?}");
        assert!(more.iter().any(|line| line == "processes: husk"), "{more:?}");
        assert!(more.iter().any(|line| line == "files: api.sock"), "{more:?}");
    }

    #[test]
    fn a_slope_is_not_bent_by_an_outlier() {
        let mut available: Vec<u64> = (0..20).map(|pod| 1_000_000 - 100 * pod).collect();
        available[7] = 100;
        assert!((cost_per_pod(&available) - 100.0).abs() < 10.0);
        assert!(cost_per_pod(&[5, 5, 5]).abs() < 0.1);
        assert!(cost_per_pod(&[]).abs() < 0.1);
    }
}
