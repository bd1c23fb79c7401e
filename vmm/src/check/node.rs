//! What a node has beside its kernel: a container engine, Kata, handlers, memory.

use std::fs;
use std::path::{Path, PathBuf};

use toml_edit::DocumentMut;

use super::facts::read;
use crate::install::{
    CONTAINERD_PACKAGES, CRIO_PACKAGES, DISTRIBUTIONS, Shim, behind, distribution, program_version, runtimes,
};
use crate::procfs::meminfo_bytes;
use crate::regular_file;

/// Where Kata is, unless somebody put it elsewhere.
const KATA: &str = "/opt/kata";
/// Files of the engines, and folders of their drop-ins.
const CONFIGURATIONS: [&str; 4] = [
    "/etc/containerd/config.toml",
    "/etc/containerd/conf.d",
    "/etc/crio/crio.conf",
    "/etc/crio/crio.conf.d",
];

/// The node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Version of containerd, if it is here.
    pub containerd: Option<String>,
    /// Version of CRI-O, if it is here.
    pub crio: Option<String>,
    /// Distribution of Kubernetes that brings a containerd of its own, if one is here.
    pub distribution: Option<&'static str>,
    /// Version of Kata, as its own file says; empty when unknown.
    pub kata: String,
    /// Which of Kata's shims are here: `Rust`, `Go`.
    pub shims: Vec<&'static str>,
    /// Handlers of the engines that start one of Kata's shims.
    pub handlers: Vec<String>,
    /// Memory of the host, in bytes.
    pub total_bytes: u64,
    /// Memory that could be had without swapping (`MemAvailable`), in bytes.
    pub available_bytes: u64,
}

impl Node {
    /// Reads it below `root`; engines of this system are asked for their version.
    pub(super) fn gather(root: &Path) -> Self {
        let meminfo = read(root, "proc/meminfo");
        let bytes = |field: &str| meminfo_bytes(&meminfo, field).unwrap_or(0);
        let has = |shim: &Shim| behind(root, &Path::new(KATA).join(shim.program())).is_file();
        let shims = Shim::ALL.into_iter().filter(has).map(|shim| match shim {
            Shim::Rust => "Rust",
            Shim::Go => "Go",
        });
        let kata = read(root, &format!("{}/VERSION", &KATA[1..]));
        Self {
            containerd: program_version(root, "containerd", &CONTAINERD_PACKAGES),
            crio: program_version(root, "crio", &CRIO_PACKAGES),
            distribution: distribution(root).map(|found| found.name),
            kata: kata.trim().chars().filter(|c| !c.is_control()).take(32).collect(),
            shims: shims.collect(),
            handlers: handlers(root),
            total_bytes: bytes("MemTotal:"),
            available_bytes: bytes("MemAvailable:"),
        }
    }
}

/// Names of the handlers that start a program or shim with `kata` in its name, sorted. A file that
/// cannot be read has none.
fn handlers(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let others = DISTRIBUTIONS
        .iter()
        .flat_map(|distribution| distribution.configurations);
    for path in CONFIGURATIONS
        .iter()
        .chain(others)
        .flat_map(|path| files(&behind(root, Path::new(path))))
    {
        let text = regular_file::read_text(&path).unwrap_or_default();
        let Ok(document) = text.parse::<DocumentMut>() else {
            continue;
        };
        let of_kata = runtimes(&document).into_iter();
        let of_kata = of_kata.filter(|runtime| runtime.program.contains("kata") || runtime.kind.contains("kata"));
        names.extend(of_kata.map(|runtime| runtime.name));
    }
    names.sort();
    names.dedup();
    names
}

/// `path`, or the files in it.
fn files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::testing::host;

    #[test]
    fn a_node_is_read_from_its_files_and_its_engines() {
        let root = host(&[
            ("usr/bin/containerd", ""),
            ("usr/bin/crio", ""),
            (
                "var/lib/dpkg/status",
                "Package: containerd.io\nStatus: install ok installed\nVersion: 2.1.5\n\n\
                 Package: cri-o\nStatus: install ok installed\nVersion: 1.33.1-1.1\n",
            ),
            ("opt/kata/VERSION", "4.1.0\n"),
            ("opt/kata/bin/containerd-shim-kata-v2", ""),
            ("proc/meminfo", "MemTotal:  4194304 kB\nMemAvailable:    2097152 kB\n"),
            (
                "etc/containerd/config.toml",
                "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n",
            ),
            (
                "etc/containerd/conf.d/90-kata-husk.toml",
                "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata-husk]\nruntime_type = \"io.containerd.kata-husk.v2\"\n",
            ),
            (
                "etc/crio/crio.conf.d/50-a.conf",
                "[crio.runtime.runtimes.pods]\nruntime_path = \"/opt/kata/bin/containerd-shim-kata-v2\"\n",
            ),
            ("etc/crio/crio.conf.d/60-broken", "[[["),
        ]);
        let node = Node::gather(root.path());
        assert_eq!(
            node,
            Node {
                containerd: Some("2.1.5".into()),
                crio: Some("1.33.1-1.1".into()),
                distribution: None,
                kata: "4.1.0".into(),
                shims: vec!["Go"],
                handlers: vec!["kata-husk".into(), "pods".into()],
                total_bytes: 4 << 30,
                available_bytes: 2 << 30,
            }
        );
    }

    #[test]
    fn a_distribution_that_brings_its_engine_is_known_with_its_handlers() {
        let handler = "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n";
        for (name, folder, path) in [
            (
                "k3s",
                "var/lib/rancher/k3s/x",
                "var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/kata.toml",
            ),
            (
                "RKE2",
                "var/lib/rancher/rke2/x",
                "var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            ),
            (
                "MicroK8s",
                "var/snap/microk8s/x",
                "var/snap/microk8s/current/args/containerd-template.toml",
            ),
            ("k0s", "var/lib/k0s/x", "etc/k0s/containerd.d/kata.toml"),
        ] {
            let node = Node::gather(host(&[(folder, ""), (path, handler)]).path());
            assert_eq!((node.distribution, node.handlers), (Some(name), vec!["kata".into()]));
        }
    }

    #[test]
    fn an_engine_of_which_nothing_is_known_has_no_version() {
        let root = host(&[
            ("usr/bin/containerd", "#!/bin/sh\necho containerd unknown\n"),
            ("usr/bin/crio", "no program"),
        ]);
        let node = Node::gather(root.path());
        assert_eq!((node.containerd, node.crio), (None, None));
        assert_eq!(Node::gather(host(&[]).path()), Node::default());
    }
}
