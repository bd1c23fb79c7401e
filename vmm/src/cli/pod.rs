//! The options that describe a pod: `--pod`, and what the node lets it ask for.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use regex_lite::Regex;

use super::run::UsageError;
use crate::pod::{Node, Pod, Policy};

/// What a node lets pods ask for.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    /// Honour only annotations io.katacontainers.config.hypervisor.KEY in whose KEY one of these expressions is found
    ///
    /// The node's policy, as Kata's enable_annotations: expressions are not anchored, and any other annotation below
    /// that name is refused. Without this option all that husk knows are honoured; an empty list honours none. A comma
    /// ends an expression, also within braces.
    #[arg(long, value_name = "REGEX,...", value_delimiter = ',', value_parser = Policy::expression, help_heading = "Pod")]
    pub enable_annotations: Option<Vec<Regex>>,
}

/// A pod that a VM is made for.
#[derive(Args, Clone, Debug)]
pub struct PodArgs {
    /// Size and boot as a pod's sandbox asks in its OCI config.json
    ///
    /// vCPUs, memory, what of both may come later, huge pages, memory allocated at the start and more words for the
    /// kernel come from its linux.resources and its annotations: io.kubernetes.cri.sandbox-cpu-quota, -cpu-period,
    /// -cpu-shares and -memory, and io.katacontainers.config.hypervisor.KEY, where KEY is default_vcpus,
    /// default_max_vcpus, default_memory, memory_overhead, memory_slots, enable_hugepages, enable_virtio_mem,
    /// enable_mem_prealloc or kernel_params. --cpus, --memory and --cmdline are used in place of the pod's when they
    /// are given.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Pod")]
    pub pod: Option<PathBuf>,

    /// What the node lets it ask for.
    #[command(flatten)]
    pub policy: PolicyArgs,
}

impl PolicyArgs {
    /// The policy.
    pub(super) fn policy(&self) -> Policy {
        self.enable_annotations.clone().map_or_else(Policy::default, Policy::of)
    }
}

impl PodArgs {
    /// The pod, if there is one, on the host whose files lie under `root`.
    pub(super) fn read(&self, root: &Path) -> Result<Option<Pod>, UsageError> {
        if self.pod.is_none() && self.policy.enable_annotations.is_some() {
            return Err(UsageError::NoPod);
        }
        let read = |path: &PathBuf| {
            Pod::read(path, &self.policy.policy(), Node::of(root)).map_err(|source| UsageError::Pod {
                path: path.clone(),
                source,
            })
        };
        self.pod.as_ref().map(read).transpose()
    }
}
