//! Distributions of Kubernetes that bring a containerd of their own, which does not read `/etc/containerd`.

use std::path::Path;

use super::behind;

/// One of them.
#[derive(Debug)]
pub(crate) struct Distribution {
    /// What it is called.
    pub(crate) name: &'static str,
    /// A folder that is there where it is.
    folder: &'static str,
    /// Where handlers go.
    pub(crate) place: &'static str,
    /// Files of its containerd, and folders of their drop-ins.
    pub(crate) configurations: &'static [&'static str],
}

/// Those that are known.
pub(crate) const DISTRIBUTIONS: [Distribution; 4] = [
    Distribution {
        name: "k3s",
        folder: "/var/lib/rancher/k3s",
        place: "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d",
        configurations: &[
            "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
            "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d",
        ],
    },
    Distribution {
        name: "RKE2",
        folder: "/var/lib/rancher/rke2",
        place: "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d",
        configurations: &[
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
            "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d",
        ],
    },
    Distribution {
        name: "MicroK8s",
        folder: "/var/snap/microk8s",
        place: "/var/snap/microk8s/current/args/containerd-template.toml",
        configurations: &["/var/snap/microk8s/current/args/containerd-template.toml"],
    },
    Distribution {
        name: "k0s",
        folder: "/var/lib/k0s",
        place: "/etc/k0s/containerd.d",
        configurations: &["/etc/k0s/containerd.toml", "/etc/k0s/containerd.d"],
    },
];

/// The one that is on the system at `root`.
pub(crate) fn distribution(root: &Path) -> Option<&'static Distribution> {
    let is_here = |distribution: &&Distribution| behind(root, Path::new(distribution.folder)).is_dir();
    DISTRIBUTIONS.iter().find(is_here)
}
