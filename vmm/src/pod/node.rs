//! What this host has: the CPUs and the memory that a pod cannot exceed.

use std::fs;
use std::path::Path;

use husk_hotplug::sizing::resources::CpuSet;

use crate::procfs::meminfo_bytes;

/// What the host has that pods are sized by: on-line CPUs and RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// CPUs that are on-line.
    pub vcpus: u32,
    /// Bytes of RAM.
    pub memory_bytes: u64,
}

impl Node {
    /// The host whose files lie under `root`. What they do not say is taken to be without limit: it
    /// is for the kernel to refuse then.
    pub fn of(root: &Path) -> Self {
        Self {
            vcpus: cpus(root).unwrap_or(u32::MAX),
            memory_bytes: memory(root).unwrap_or(u64::MAX),
        }
    }
}

fn cpus(root: &Path) -> Option<u32> {
    let list = fs::read_to_string(root.join("sys/devices/system/cpu/online")).ok()?;
    CpuSet::parse(list.trim())
        .map(|cpus| cpus.len())
        .filter(|cpus| *cpus > 0)
}

fn memory(root: &Path) -> Option<u64> {
    meminfo_bytes(&fs::read_to_string(root.join("proc/meminfo")).ok()?, "MemTotal:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_cpus_that_are_on_line_and_its_ram() {
        let root = tempfile::tempdir().unwrap();
        let unknown = Node {
            vcpus: u32::MAX,
            memory_bytes: u64::MAX,
        };
        assert_eq!(Node::of(root.path()), unknown);
        for (file, text) in [
            ("sys/devices/system/cpu/online", "0-3,6\n"),
            ("proc/meminfo", "MemTotal:       32768 kB\nMemFree: 1 kB\n"),
        ] {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let node = Node {
            vcpus: 5,
            memory_bytes: 32 << 20,
        };
        assert_eq!(Node::of(root.path()), node);
        let here = Node::of(Path::new("/"));
        assert!(here.vcpus < 10_000 && here.memory_bytes < 1 << 50, "{here:?}");
    }
}
