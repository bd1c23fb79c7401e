//! Can this host run pods? Facts of the host, pure rules over them, and a report.
//!
//! | check | mandatory | asks |
//! |---|---|---|
//! | `cpu virtualization` | yes | VMX or SVM in `/proc/cpuinfo` |
//! | `cpu sse4` | yes | SSE4.1 and SSE4.2 |
//! | `kernel version` | yes | at least [`rules::MIN_KERNEL`] |
//! | `kvm module` | yes | `kvm`, loaded or built in |
//! | `kvm vendor module` | yes | `kvm_intel` or `kvm_amd`, as the CPU needs |
//! | `/dev/kvm` | yes | can be opened |
//! | `kvm api` | yes | version 12 and every capability that husk uses, and that a VM can be created |
//! | `kvm hardware` | yes | that VMX or SVM stands behind `/dev/kvm`, not an emulator |
//! | `bare metal` | no | that husk's guests are not guests of a guest |
//! | `vhost net`, `vhost vsock` | no | the devices of in-kernel back ends |
//! | `memlock`, `cgroup memory`, `cgroup pids` | no | limits that this process would put on a VM |
//! | `huge pages` | no | transparent or reserved ones |
//! | `fips` | no | nothing: it says whether guests will be in that mode |
//! | `container engine`, `kata`, `kata handlers` | no | the versions of what starts husk, and whether it is installed there |
//! | `free memory` | no | room for a pod |
//! | `share landlock`, `share users`, `share sandbox` | no | what confines whatever serves files: rules of the kernel, capabilities, namespaces |

mod facts;
mod limits;
mod node;
pub mod rules;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

pub use facts::{Cpu, Facts, HugePages, KvmDevice, Module, Serving, Virtualization};
pub use limits::Limits;
pub use node::Node;

/// What labels of node feature discovery begin with.
const NFD_PREFIX: &str = "feature.node.kubernetes.io/";

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Pods run, not as well as they could.
    Warn,
    /// Not as it must be, or absent.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// Whether pods cannot run without it.
    pub mandatory: bool,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub reason: &'static str,
    /// What to do about it, when it is not [`Status::Ok`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The verdict on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    eligible: bool,
    checks: Vec<Check>,
    #[serde(skip)]
    features: Vec<(&'static str, String)>,
}

/// Examines the host whose files lie under `root`.
pub fn check(root: &Path) -> Report {
    let facts = Facts::gather(root);
    Report::new(rules::apply(&facts), rules::features(&facts))
}

impl Report {
    /// The verdict that follows from `checks`, and what a host that can run pods is selected by.
    pub fn new(checks: Vec<Check>, features: Vec<(&'static str, String)>) -> Self {
        let eligible = !checks
            .iter()
            .any(|check| check.mandatory && check.status == Status::Fail);
        Self {
            eligible,
            checks,
            features,
        }
    }

    /// Whether everything mandatory holds.
    pub const fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Every check, in order.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// For programs: `{"eligible": …, "checks": [{"name", "status", "mandatory", "found", "reason", "remedy"}, …]}`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and booleans are always JSON");
        text.push('\n');
        text
    }

    /// For node feature discovery's local source: a line for each feature, or nothing for a host that cannot run pods.
    pub fn to_nfd(&self) -> String {
        let features = self.features.iter().filter(|_| self.eligible);
        features
            .map(|(name, value)| format!("{NFD_PREFIX}{name}={value}\n"))
            .collect()
    }

    /// As text for a terminal, with a line end after each row.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let status = match (check.status, check.mandatory) {
                (Status::Ok, _) => "ok",
                (Status::Warn, _) | (Status::Fail, false) => "warn",
                (Status::Fail, true) => "FAIL",
            };
            let _ = writeln!(text, "{status:<5} {:<19} {}", check.name, check.found);
            if let Some(remedy) = &check.remedy {
                let _ = writeln!(text, "{:25} why: {}\n{:25} do:  {remedy}", "", check.reason, "");
            }
        }
        let failed = self
            .checks
            .iter()
            .filter(|check| check.mandatory && check.status == Status::Fail);
        let failed: Vec<_> = failed.map(|check| check.name).collect();
        let _ = match failed.as_slice() {
            [] => writeln!(text, "\nThis host can run pods."),
            names => writeln!(text, "\nThis host cannot run pods: {}.", names.join(", ")),
        };
        text
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
